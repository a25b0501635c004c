"""A served model in CVAT and Label Studio, with the types of their own SDKs."""

import json
import types

import numpy as np
import PIL.Image
import pytest

from export.client import Client, ServerError
from maskx_tf.errors import UserError
from maskx_tf.labeling.formats import label_studio as label_studio_format
from maskx_tf.ops import masks
from tests import harness, stub_server

HEIGHT, WIDTH = 120, 160
BOX = (10.0, 20.0, 90.0, 140.0)  # yxyx


@pytest.fixture
def server():
    with stub_server.serve(lambda data: stub_server.outputs(6, HEIGHT, WIDTH, seed=2)) as running:
        yield running


@pytest.fixture
def photo():
    return PIL.Image.fromarray(harness.random_image(HEIGHT, WIDTH, 0))


class TestCvat:
    @pytest.fixture(autouse=True)
    def sdk(self):
        self.cvataa = pytest.importorskip("cvat_sdk.auto_annotation")
        self.sdk_masks = pytest.importorskip("cvat_sdk.masks")
        from export.labeling_tools import cvat

        self.tool = cvat

    def context(self, conf_threshold=None, conv_mask_to_poly=False):
        class Context(self.cvataa.DetectionFunctionContext):
            frame_name = "a.png"

        Context.conf_threshold, Context.conv_mask_to_poly = conf_threshold, conv_mask_to_poly
        Context.__abstractmethods__ = frozenset()
        return Context()

    def decoded(self, points):
        return self.sdk_masks.decode_mask(points, image_width=WIDTH, image_height=HEIGHT)

    @pytest.mark.parametrize("threshold", [None, 0.1, 0.8])
    def test_masks_and_labels_are_those_of_the_client(self, server, photo, threshold):
        function = self.tool.create(server.url)
        names = {label.id: label.name for label in function.spec.labels}
        assert list(names.values()) == list(stub_server.NAMES[1:])
        shapes = function.detect(self.context(threshold), photo)
        found = Client(server.url).detect(harness.image_file(np.asarray(photo), "PNG"))
        found = found[found.scores >= (0.5 if threshold is None else threshold)]
        assert len(shapes) == len(found) > 0
        for shape, detection in zip(shapes, found, strict=True):
            assert shape.type.value == "mask" and names[shape.label_id] == detection.class_name
            assert shape.score == pytest.approx(detection.score) and shape.frame == 0
            np.testing.assert_array_equal(self.decoded(shape.points), detection.mask())

    def test_polygons_where_they_are_asked_for(self, server, photo):
        function = self.tool.create(server.url)
        shapes = function.detect(self.context(0.0, conv_mask_to_poly=True), photo)
        wanted = function.detect(self.context(0.0), photo)
        assert {shape.type.value for shape in shapes} == {"polygon"}
        groups = {}
        for shape in shapes:
            groups.setdefault(shape.group or id(shape), []).append(list(shape.points))
        assert len(groups) == len(wanted)
        for outlines, mask in zip(groups.values(), wanted, strict=True):
            pixels = masks.decode_rle(masks.segmentation_to_rle(outlines, HEIGHT, WIDTH)) > 0
            expected = self.decoded(mask.points)
            assert (pixels & expected).sum() / (pixels | expected).sum() > 0.95

    def test_the_mask_of_a_box(self, server, photo):
        function = self.tool.create(server.url, interactive=True)
        assert function.spec.min_bounding_boxes == 1
        prompts = types.SimpleNamespace(bounding_box=((BOX[1], BOX[0]), (BOX[3], BOX[2])))
        prepared = function.preprocess_image(None, photo)
        (shape,) = function.detect(None, prepared, prompts)
        detections = Client(server.url).masks(prepared, [BOX])
        assert isinstance(shape, self.cvataa.InteractionResultShape) and shape.type == "mask"
        np.testing.assert_array_equal(self.decoded(shape.points), detections[0].mask())
        (_, body), *_ = server.requests
        assert body["instances"][0]["boxes"] == [list(BOX)]
        with pytest.raises(UserError, match="box"):
            function.detect(None, prepared, types.SimpleNamespace(bounding_box=None))

    def test_a_server_that_is_not_there(self, monkeypatch):
        monkeypatch.setattr("export.client.retries.FIRST_DELAY_S", 0.0)
        with pytest.raises(ServerError, match="cannot be reached"):
            self.tool.create("http://127.0.0.1:1")


def interface(*tags, labels=("cat", "dog", "kite")):
    inside = "".join(f'<Label value="{label}"/>' for label in labels)
    controls = "".join(f'<{t} name="{t[:4]}" toName="img">{inside}</{t}>' for t in tags)
    return f'<View><Image name="img" value="$photo"/>{controls}</View>'


class TestLabelStudio:
    @pytest.fixture(autouse=True)
    def sdk(self):
        self.api = pytest.importorskip("label_studio_ml.api")
        from export.labeling_tools import label_studio

        self.tool = label_studio

    def backend(self, server, *tags, **others):
        config = interface(*tags, **others)
        return self.tool.MaskXBackend(config, client=Client(server.url), min_score=0.1)

    def task(self, photo, tmp_path):
        photo.save(tmp_path / "a.png")
        path = tmp_path / "a.png"
        return {"id": 1, "data": {"photo": f"/data/local-files/?d={path}"}}

    def test_all_objects_by_its_own_server(self, server, photo, tmp_path):
        """What Label Studio sends, answered by the SDK's application."""
        app = self.api.init_app(self.tool.MaskXBackend, client=Client(server.url), min_score=0.1)
        config = interface("BrushLabels", "RectangleLabels")
        with app.test_client() as http:
            setup = {"project": "1.1", "schema": config, "hostname": "", "access_token": ""}
            assert http.post("/setup", json=setup).status_code == 200
            asked = {"tasks": [self.task(photo, tmp_path)], "project": "1.1", "params": {}}
            answer = http.post("/predict", json=asked | {"label_config": config})
            assert answer.status_code == 200
            (prediction,) = json.loads(answer.data)["results"]
        found = Client(server.url).detect(str(tmp_path / "a.png"))
        found = [d for d in found if d.score >= 0.1 and d.class_name in ("cat", "dog", "kite")]
        assert 0 < prediction["score"] <= 1 and len(prediction["result"]) == 2 * len(found)
        boxes, brushes = prediction["result"][::2], prediction["result"][1::2]
        for box, brush, detection in zip(boxes, brushes, found, strict=True):
            assert box["value"]["rectanglelabels"] == [detection.class_name]
            assert box["value"]["x"] == pytest.approx(100 * detection.box_yxyx[1] / WIDTH)
            assert brush["value"]["rle"] == label_studio_format.brush_rle(detection.rle())
            assert (brush["type"], brush["from_name"], brush["to_name"]) == (
                "brushlabels", "Brus", "img"
            )  # fmt: skip
            assert (brush["original_width"], brush["original_height"]) == (WIDTH, HEIGHT)

    @pytest.mark.parametrize("label", ["dog", "sofa", ""])
    def test_the_mask_of_a_box(self, server, photo, tmp_path, label):
        """Of a class of the model, of a label that it does not know, and of any."""
        backend = self.backend(
            server, "RectangleLabels", "PolygonLabels", labels=("dog", "cat", "sofa")
        )
        value = label_studio_format.box_value((20, 10, 120, 80), HEIGHT, WIDTH)
        value |= {"rectanglelabels": [label]} if label else {}
        region = {"value": value, "original_width": WIDTH, "original_height": HEIGHT}
        (prediction,) = backend.predict([self.task(photo, tmp_path)], context={"result": [region]})
        _, body = server.requests[-1]
        (instance,) = body["instances"]
        np.testing.assert_allclose(instance["boxes"], [BOX], rtol=1e-5)
        assert instance["class_names"] == ["dog" if label == "dog" else ""]
        assert prediction["result"]
        for result in prediction["result"]:
            assert result["type"] == "polygonlabels"
            assert result["value"]["polygonlabels"] == [label or "cat"]

    def test_labels_of_other_names(self, server, photo, tmp_path):
        backend = self.backend(
            server, "BrushLabels", labels=('pet" predicted_values="cow, cat,kite, dog',)
        )
        (prediction,) = backend.predict([self.task(photo, tmp_path)])
        labels = [result["value"]["brushlabels"] for result in prediction["result"]]
        assert labels and all(label == ["pet"] for label in labels)

    @pytest.mark.parametrize(
        ("tags", "labels", "named"),
        [(("BrushLabels",), ("sofa",), "sofa"), (("Choices",), ("cat",), "RectangleLabels")],
    )
    def test_an_interface_that_cannot_be_filled(self, server, tags, labels, named):
        with pytest.raises(UserError, match=named):
            self.backend(server, *tags, labels=labels)
