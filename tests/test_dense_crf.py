"""The dense CRF: against the textbook's formula, its properties, and the way it takes to masks."""

import dataclasses
import json

import numpy as np
import pytest

from maskx_tf import checkpoints
from maskx_tf.errors import UserError
from maskx_tf.evaluation.segmentation import Segment, by_crf
from maskx_tf.inference import mask_post
from maskx_tf.inference.detections import Detections
from maskx_tf.ops import dense_crf, masks
from maskx_tf.ops.dense_crf import Parameters
from tests import commands, stub_server, tiny
from tests.test_grabcut import BOX, converted, data, disc, iou, picture  # noqa: F401

DEEPLAB = Parameters(weight=4, color=3, reach=67, smoothness=3, smoothness_reach=3)

FAR = Parameters(weight=4, reach=0.5)  # for even colours


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def textbook(probabilities, image, parameters):
    """Q of foreground by the article's update over two labels, pixel by pixel, in float64."""
    p = np.asarray(probabilities, np.float64)
    places = [(y, x) for y in range(p.shape[0]) for x in range(p.shape[1])]
    colors = [image[place].astype(np.float64) for place in places]
    kernels = []
    for weight, reach, color in (
        (parameters.weight, parameters.reach, parameters.color),
        (parameters.smoothness, parameters.smoothness_reach, np.inf),
    ):
        k = np.array([[
            np.exp(-np.sum(np.subtract(places[i], places[j]) ** 2) / (2 * reach**2)
                   - np.sum((colors[i] - colors[j]) ** 2) / (2 * color**2))
            for j in range(p.size)] for i in range(p.size)])  # fmt: skip
        if parameters.normalization == "symmetric":
            k /= np.sqrt(np.outer(k.sum(0), k.sum(0)))
        else:
            np.fill_diagonal(k, 0)
        kernels.append(weight * k)
    own = np.log(np.stack([1 - p.ravel(), p.ravel()]))
    q = np.exp(own)
    for _ in range(parameters.steps):
        exponents = own + sum(q @ k for k in kernels)
        q = np.exp(exponents - exponents.max(0))
        q /= q.sum(0)
    return q[1].reshape(p.shape)


class TestMeanField:
    @pytest.mark.parametrize("normalization", ["symmetric", "none"])
    @pytest.mark.parametrize("seed", range(4))
    def test_equals_the_textbook(self, seed, normalization):
        rng = np.random.default_rng(seed)
        height, width = rng.integers(1, 7, 2)
        image = rng.integers(0, 256, [height, width, 3], np.uint8)
        p = rng.uniform(0.01, 0.99, [height, width])
        parameters = Parameters(*rng.uniform(0.5, [5, 80, 9, 4, 3]), steps=5,
                                normalization=normalization)  # fmt: skip
        refined = sigmoid(dense_crf.mean_field(np.log(p / (1 - p)), image, parameters))
        np.testing.assert_allclose(refined, textbook(p, image, parameters), atol=1e-4)

    @pytest.mark.parametrize(
        ("normalization", "steps", "expected"),
        [
            ("symmetric", 1, (0.980059, 0.766938, 0.283813)),
            ("symmetric", 2, (0.99833, 0.975101, 0.226192)),
            ("symmetric", 10, (0.99941, 0.990581, 0.03865)),
            ("none", 1, (0.586447, 0.988979, 0.720859)),
        ],
    )
    def test_three_pixels(self, normalization, steps, expected):
        """Worked by hand: two black pixels and a white one. The published values of DeepLab."""
        image = np.repeat(np.uint8([[0, 0, 255]])[..., None], 3, axis=2)
        p = np.array([[0.9, 0.4, 0.4]])
        parameters = DEEPLAB._replace(steps=steps, normalization=normalization)
        refined = sigmoid(dense_crf.mean_field(np.log(p / (1 - p)), image, parameters))
        np.testing.assert_allclose(refined, [expected], atol=2e-6)

    def test_what_says_nothing_stays(self):
        image = np.full([8, 9, 3], 77, np.uint8)
        np.testing.assert_array_equal(dense_crf.mean_field(np.zeros([8, 9]), image, DEEPLAB), 0)
        z = np.random.default_rng(0).normal(size=[8, 9]).astype(np.float32)
        without = DEEPLAB._replace(weight=0, smoothness=0)
        np.testing.assert_array_equal(dense_crf.mean_field(z, image, without), z)


class TestRefine:
    def test_a_displaced_mask_is_drawn_to_the_edges(self):
        """A disc that is off by 3 pixels, with the noise that Shapes has."""
        inside = disc(40, 40, (8, 8, 32, 32))
        image = picture(inside)
        off = np.roll(inside, 3, axis=1)
        p = np.where(off, 0.8, 0.2)
        z = dense_crf.mean_field(np.log(p / (1 - p)), image, Parameters(weight=4, reach=12))
        assert iou(off, inside) < 0.75
        assert iou(z > 0, inside) > 0.98

    @pytest.mark.parametrize("factor", [1, 5])
    def test_masks_of_boxes(self, factor):
        """Of boxes of any size, those that are scaled down too: a square becomes the disc."""
        height, width, box = 60 * factor, 80 * factor, np.multiply(BOX, factor)
        inside = disc(height, width, box)
        mask = np.full([7, 7], 0.6)
        refined = dense_crf.refine(picture(inside), box, mask, FAR)
        assert refined.shape == (dense_crf.SIDE,) * 2 and refined.dtype == np.float32
        pasted = masks.paste_mask(refined, box, height, width)
        assert iou(masks.paste_mask(mask, box, height, width) > 0, inside) < 0.85
        assert iou(pasted > 0, inside) > 0.95

    def test_without_kernels_the_mask_stays(self):
        rng = np.random.default_rng(3)
        image = rng.integers(0, 256, [60, 80, 3], np.uint8)
        y, x = np.mgrid[:28, :28] / 28
        mask = sigmoid(4 * np.sin(5 * y) * np.cos(3 * x) + 0.3)
        for box in (BOX, (-7.5, 3.2, 40.6, 90.0)):
            parameters = Parameters(weight=0, smoothness=0)
            refined = dense_crf.refine(image, box, mask, parameters)
            one, other = (masks.paste_mask(m, box, 60, 80) > 0 for m in (mask, refined))
            assert iou(one, other) > 0.97

    @pytest.mark.parametrize("box", [(90, 90, 99, 99), (5, 5, 5, 20), (-9, -9, -1, -1)])
    def test_of_a_box_outside_the_mask_stays(self, box):
        refined = dense_crf.refine(picture(disc()), box, np.full([4, 4], 0.3))
        np.testing.assert_allclose(refined, 0.3, rtol=1e-6)

    @pytest.mark.parametrize("box", [(0, 0, 60, 80), (59.5, 2, 60, 79), (3, 3, 3.2, 3.1)])
    def test_thin_boxes_and_whole_images(self, box):
        refined = dense_crf.refine(picture(disc()), box, np.eye(5))
        assert np.isfinite(refined).all() and 0 <= refined.min() <= refined.max() <= 1


class TestMasksOfDetections:
    def test_scores_and_boxes_stay(self):
        single = {key: value[0] for key, value in stub_server.outputs(5, 60, 80, 1).items()}
        image = np.random.default_rng(0).integers(0, 256, [60, 80, 3], np.uint8)
        before = Detections.from_outputs(single, image=image)
        after = before.with_crf()
        assert after.box_masks.shape == (len(before), *(dense_crf.SIDE,) * 2)
        np.testing.assert_array_equal(after.scores, before.scores)
        np.testing.assert_array_equal(after.boxes_yxyx, before.boxes_yxyx)
        i = len(before) - 1  # in the order of the boxes
        wanted = dense_crf.refine(image, before[i].box_yxyx, before[i].box_mask / 255)
        np.testing.assert_array_equal(after[i].box_mask, wanted)
        assert len(before[:0].with_crf()) == 0
        windows = np.tile(np.float32([2, 3, 50, 70]), [len(before), 1])
        wider = dataclasses.replace(before, mask_windows_yxyx=windows).with_crf()
        wanted = dense_crf.refine(image, windows[i], before[i].box_mask / 255)
        np.testing.assert_array_equal(wider[i].box_mask, wanted)

    def test_what_is_missing_is_said(self):
        single = {key: value[0] for key, value in stub_server.outputs(2, 60, 80).items()}
        with pytest.raises(UserError, match="without their image"):
            Detections.from_outputs(single).with_crf()
        del single["detection_masks"]
        with pytest.raises(UserError, match="boxes only"):
            Detections.from_outputs(single, image=np.zeros([60, 80, 3], np.uint8)).with_crf()


class TestEvaluation:
    def test_masks_of_the_records_images(self, data, tmp_path):  # noqa: F811
        converted(data, tmp_path / "records")
        segment_box = by_crf(FAR, whole_pixels=False)
        with Segment((str(tmp_path / "records"),), segment_box, refines=True) as segment:
            (rle,) = segment(2, np.array([BOX]), np.full([1, 28, 28], 0.6, np.float32))
        assert iou(masks.decode_rle(rle) > 0, disc()) > 0.95

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (("crf", -1.0, 13.0, 0.1), "--crf_weight=-1"),
            (("crf", 4.0, 0.0, 0.1), "--crf_color=0"),
            (("crf", 4.0, 13.0, 0.0), "--crf_reach=0"),
            (("blur", 4.0, 13.0, 0.1), "--mask_post=blur"),
        ],
    )
    def test_parameters_that_are_none(self, arguments, named):
        with pytest.raises(UserError, match=named):
            mask_post.crf_of(*arguments)

    @pytest.mark.thorough
    def test_commands(self, data, tmp_path, monkeypatch):  # noqa: F811
        """Predict, label and evaluate have masks refined; scores are those of before."""
        converted(data, tmp_path / "records")
        run, names = tmp_path / "run", ("cat", "dog", "bird")
        options = tiny.config(model_dir=str(run), eval_records=(str(tmp_path / "records"),))
        checkpoints.save_run(options, tiny.Vocabulary.from_names(names), (1, 2, 3))
        model = tiny.build_model(options, len(names))
        tiny.tf.train.Checkpoint(model=model).save(str(run / "ckpt"))
        annotations, images = data
        asked = []

        def whole_box(image, box_yxyx, mask, parameters):
            asked.append(parameters)
            return np.ones([5, 5], np.float32)

        monkeypatch.setattr(dense_crf, "refine", whole_box)
        monkeypatch.setattr(dense_crf, "SIDE", 5)

        def command(module, *arguments):
            return commands.in_process(module, f"--model_dir={run}", "--mask_post=crf", *arguments)

        done = command("maskx_tf.predict", f"--images={images}", f"--output_dir={tmp_path}/out")
        assert done.returncode == 0, done.stderr
        for result in json.loads((tmp_path / "out" / "detections.json").read_text()):
            _, _, width, height = result["bbox"]
            assert masks.rle_area(result["segmentation"]) >= 0.95 * width * height - 2
        output = tmp_path / "labels.json"
        done = command("export.label", f"--images={images}", f"--annotations={annotations}",
                       f"--output={output}", "--overwrite_masks", "--crf_color=7")  # fmt: skip
        assert done.returncode == 0, done.stderr
        labelled = [a for a in json.loads(output.read_text())["annotations"] if "mask_score" in a]
        assert len(labelled) == 3
        for annotation in labelled:
            assert annotation["area"] >= 0.95 * np.prod(annotation["bbox"][2:])
            assert annotation["mask_score"] < 1
        assert asked[-1] == Parameters(color=7)
        done = command("maskx_tf.evaluate")
        assert done.returncode == 0, done.stderr
        written = json.loads((run / "evaluation_crf.json").read_text())
        assert written["mask_given_boxes"]["all"]["AP"] > 0.9  # masks are annotated as boxes
        for argument, named in (
            ("--masks=grabcut", "leave out --masks=grabcut"),
            ("--crf_color=0", "--crf_color=0.0 must be positive"),
        ):
            done = command("maskx_tf.evaluate", argument)
            assert done.returncode == 2 and named in done.stderr
