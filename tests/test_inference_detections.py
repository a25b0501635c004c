"""The objects of an image: as arrays, one by one, as COCO results and as pictures."""

import dataclasses
import io
import json
import types

import numpy as np
import pytest
from PIL import Image, ImageShow
from pycocotools.coco import COCO

from maskx_tf import visualize
from maskx_tf.errors import ImageError, UserError
from maskx_tf.inference import image_files, inputs
from maskx_tf.inference.detections import Detections
from maskx_tf.ops import masks
from tests import awkward_images, harness, stub_server

SIZE = (120, 160)


def detections(count=12, seed=1, **others):
    single = {key: value[0] for key, value in stub_server.outputs(count, *SIZE, seed).items()}
    return Detections.from_outputs(single, **others)


def boxes_only(**others):
    single = {key: value[0] for key, value in stub_server.outputs(3, *SIZE).items()}
    del single["detection_masks"]
    return Detections.from_outputs(single, **others)


def assert_same(one, other):
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


class TestArrays:
    def test_the_padding_is_left_out(self):
        single = {key: value[0] for key, value in stub_server.outputs(4, *SIZE).items()}
        found = detections(4, 0)
        assert len(found) == 4 < len(single["detection_scores"])
        np.testing.assert_array_equal(found.boxes_yxyx, single["detection_boxes"][:4])
        np.testing.assert_array_equal(found.category_ids, found.class_ids)
        assert [stub_server.NAMES[i] for i in found.class_ids] == found.class_names.tolist()

    def test_names_may_be_bytes(self):
        single = {key: value[0] for key, value in stub_server.outputs(4, *SIZE).items()}
        single["detection_class_names"] = np.array(
            [name.encode() for name in single["detection_class_names"]], object
        )
        assert Detections.from_outputs(single).class_names.tolist() == (
            detections(4, 0).class_names.tolist()
        )

    def test_booleans_slices_and_indices_choose(self):
        found = detections()
        is_chosen = found.scores > np.median(found.scores)
        chosen = found[is_chosen]
        assert len(chosen) == 6 and (chosen.scores > found.scores[~is_chosen].max()).all()
        assert_same(found[np.flatnonzero(is_chosen)], chosen)
        assert_same(found[is_chosen.tolist()], chosen)
        assert_same(found[:6], chosen)
        assert [d.score for d in found[::-1]] == [d.score for d in found][::-1]
        assert len(found[found.class_names == "cat"]) == found.class_names.tolist().count("cat")
        assert len(found[[]]) == 0

    def test_an_index_and_iteration_give_single_ones(self):
        found = detections()
        for index, one in enumerate(found):
            assert one.class_name == found.class_names[index] and type(one.class_name) is str
            assert (one.class_id, one.score) == (found.class_ids[index], found.scores[index])
            assert one.box_yxyx == tuple(found.boxes_yxyx[index])
            assert one.mask_seen is bool(found.mask_seen[index])
            np.testing.assert_array_equal(one.box_mask, found.box_masks[index])
        assert index == len(found) - 1
        assert found[-1].box_yxyx == one.box_yxyx
        with pytest.raises(IndexError):
            found[len(found)]

    def test_none_at_all(self):
        found = detections(0)
        assert list(found) == found.to_coco() == [] and found.masks().shape == (0, *SIZE)
        assert not found and len(found[found.scores > 0.5]) == 0
        assert "nothing" in repr(found)

    def test_they_cannot_be_changed(self):
        with pytest.raises(AttributeError):
            detections().scores = None
        with pytest.raises(AttributeError):
            detections()[0].score = 1.0

    def test_the_text_names_the_image_and_the_objects(self):
        text = repr(detections(name="photos/a.png"))
        assert "a.png" in text and "160 × 120" in text and text.endswith("…>")
        assert len(text) < 200 and f"{detections()[0].class_name} 0.9" in text


class TestMasks:
    def test_array_rle_and_polygons_are_the_same_mask(self):
        found = detections()
        together = found.masks()
        assert together.shape == (12, *SIZE) and together.any(axis=(1, 2)).sum() >= 10
        for one, mask in zip(found, together, strict=True):
            np.testing.assert_array_equal(one.mask(), mask)
            np.testing.assert_array_equal(masks.decode_rle(one.rle()), mask)
            outline = one.polygons()
            assert bool(outline) == mask.any()
            if outline:
                filled = masks.decode_rle(masks.segmentation_to_rle(outline, *SIZE))
                np.testing.assert_array_equal(filled, mask)

    def test_probabilities_may_be_floats(self):
        found = detections()
        floats = dataclasses.replace(found, box_masks=(found.box_masks / 255).astype(np.float32))
        np.testing.assert_array_equal(floats.masks(0.3), found.masks(0.3))

    def test_the_rule_of_pasting_is_kept(self):
        found = detections(whole_pixels=True)
        values, boxes = found.box_masks / 255, found.boxes_yxyx
        wanted = masks.paste_to_rle(values, boxes, *SIZE, whole_pixels=True)
        assert [one.rle() for one in found] == wanted
        assert wanted != [one.rle() for one in detections()]

    def test_a_model_of_boxes_only_has_none_and_says_so(self):
        found = boxes_only()
        assert len(found[found.scores > 0.1]) and found.box_masks is None
        assert not any("segmentation" in row for row in found.to_coco())
        for method in (found[0].mask, found[0].rle, found[0].polygons, found.masks):
            with pytest.raises(UserError, match="boxes only"):
                method()


class TestCoco:
    def test_results_load_into_cocos_tools(self, tmp_path):
        found = dataclasses.replace(detections(name="photos/a.png"))
        found = dataclasses.replace(found, category_ids=10 * found.class_ids)
        rows = found.to_coco(image_id=8)
        index = COCO()
        index.dataset = {
            "info": {},
            "images": [{"id": 8, "height": SIZE[0], "width": SIZE[1]}],
            "categories": [{"id": 10 * i, "name": n} for i, n in enumerate(stub_server.NAMES)],
            "annotations": [],
        }
        index.createIndex()
        path = tmp_path / "results.json"
        path.write_text(json.dumps(rows))
        loaded = index.loadRes(str(path))
        assert len(loaded.anns) == 12
        for row, annotation, one in zip(rows, loaded.dataset["annotations"], found, strict=True):
            np.testing.assert_array_equal(index.annToMask(annotation), one.mask())
            assert (row["image_id"], row["file_name"]) == (8, "a.png")
            assert row["category_id"] == 10 * one.class_id
            assert (row["category_name"], row["mask_seen"]) == (one.class_name, one.mask_seen)
            x, y, w, h = row["bbox"]
            np.testing.assert_allclose((y, x, y + h, x + w), one.box_yxyx, atol=2e-3)
            assert row["score"] == pytest.approx(one.score, abs=1e-6)

    def test_masks_may_be_polygons_or_left_out(self):
        found = detections()
        rows = found.to_coco(segmentation="polygon")
        assert [row["segmentation"] for row in rows] == [one.polygons() for one in found]
        assert not any("segmentation" in row for row in found.to_coco(segmentation="none"))
        with pytest.raises(UserError, match=r"segmentation='png'.*rle, polygon"):
            found.to_coco(segmentation="png")

    def test_a_file_name_may_be_given(self):
        assert {row["file_name"] for row in detections(name="x/a.png").to_coco(1, "b")} == {"b"}


class TestPictures:
    def image(self):
        return harness.random_image(*SIZE)

    def test_they_are_written_as_their_name_says(self, tmp_path):
        found = detections(image=self.image())
        found.save(tmp_path / "new" / "a.png")
        with Image.open(tmp_path / "new" / "a.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), found.draw())
            assert picture.size == (480, 360)
        for name in ("a.gif", "a"):
            with pytest.raises(UserError, match=r"must end in \.jpg or \.png"):
                found.save(tmp_path / name)

    def test_colours_tell_set_a_from_set_b_and_masks_are_filled(self):
        grey = np.full((500, 600, 3), 128, np.uint8)
        one = Detections(
            boxes_yxyx=np.array([[200.0, 220, 400, 480]]),
            scores=np.array([0.934]),
            class_ids=np.array([2]),
            class_names=np.array(["bee"]),
            category_ids=np.array([2]),
            mask_seen=np.array([True]),
            box_masks=np.full((1, 28, 28), 255, np.uint8),
            image_size=(500, 600),
            image=grey,
        )
        for seen, channel in ((True, 1), (False, 0)):
            drawn = dataclasses.replace(one, mask_seen=np.array([seen])).draw()
            inside = drawn[300, 350].astype(int)
            assert inside[channel] > np.delete(inside, channel).max() + 30
            np.testing.assert_array_equal(drawn[100, 100], 128)
        outline = dataclasses.replace(one, box_masks=None).draw()
        np.testing.assert_array_equal(outline[300, 350], 128)
        assert (grey == 128).all()

    @pytest.mark.parametrize("kind", ["path", "str", "bytes"])
    def test_an_image_file_is_read_when_it_is_drawn_on(self, tmp_path, kind):
        path = tmp_path / "a.png"
        path.write_bytes(harness.encode_image(self.image(), ".png"))
        source = {"path": path, "str": str(path), "bytes": path.read_bytes()}[kind]
        found = detections(image=source)
        np.testing.assert_array_equal(found.draw(), detections(image=self.image()).draw())
        if kind != "bytes":
            path.unlink()
            with pytest.raises(ImageError, match=r"a\.png cannot be drawn on"):
                found.draw()

    def test_without_an_image_there_is_none(self):
        with pytest.raises(UserError, match="without their image"):
            detections().draw()
        assert detections()._repr_png_() is None

    def test_notebooks_get_a_png(self):
        found = detections(image=self.image())
        with Image.open(io.BytesIO(found._repr_png_())) as picture:
            np.testing.assert_array_equal(np.asarray(picture), found.draw())

    def test_show_in_a_notebook_in_a_window_and_without_a_screen(self, monkeypatch):
        found, shown = detections(image=self.image()), []
        monkeypatch.setattr(visualize.sys, "platform", "linux")
        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setattr(ImageShow, "show", lambda image: shown.append(image) or True)
        found.show()
        np.testing.assert_array_equal(np.asarray(shown.pop()), found.draw())
        monkeypatch.setattr(ImageShow, "show", lambda image: False)
        with pytest.raises(UserError, match="save it to a file"):
            found.show()
        monkeypatch.setattr(ImageShow, "show", lambda image: pytest.fail("no screen"))
        monkeypatch.delenv("DISPLAY")
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        with pytest.raises(UserError, match="no screen"):
            found.show()
        notebook = types.SimpleNamespace(kernel="a kernel")
        display = types.SimpleNamespace(display=shown.append)
        monkeypatch.setitem(
            visualize.sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: notebook)
        )
        monkeypatch.setitem(visualize.sys.modules, "IPython.display", display)
        found.show()
        np.testing.assert_array_equal(np.asarray(shown.pop()), found.draw())


class TestReadUpright:
    def test_pictures_are_turned_as_the_model_did(self, tmp_path):
        path = tmp_path / "a.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(harness.random_image(20, 30)).save(path, exif=exif, quality=95)
        upright = image_files.read_upright(path, (30, 20))
        lying = image_files.read_upright(path, (20, 30))  # for a model that does not honour EXIF
        np.testing.assert_array_equal(np.rot90(lying, -1), upright)

    def test_another_size_is_refused(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(harness.encode_image(harness.random_image(20, 30), ".png"))
        with pytest.raises(ImageError, match="30 × 20 pixels here, and 31 × 20 for the model"):
            image_files.read_upright(path, (20, 31))
        with pytest.raises(ImageError, match=r"image cannot be drawn on"):
            image_files.read_upright(b"junk", (20, 31))

    @pytest.mark.parametrize("name", ["12 bit png", "webp", "animated gif", "exif"])
    def test_what_is_drawn_on_is_what_the_model_sees(self, name):
        data = (awkward_images.valid() | awkward_images.convertible())[name]
        _, pixels = inputs.read_image(data)
        drawn = image_files.read_upright(data, pixels.shape[:2])
        np.testing.assert_array_equal(drawn, pixels)
