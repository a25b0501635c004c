"""Mask Scoring R-CNN: targets and loss by hand, ranking, and the head from training to export."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import losses, objective
from maskx_tf.assembly import build_model
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.evaluation.coco import CocoEvaluator
from maskx_tf.frozen import training as feature_cache
from maskx_tf.inference.detections import Detections
from maskx_tf.model import variable_key
from maskx_tf.ops import masks as mask_ops
from maskx_tf.ops.mask_targets import mask_ious, object_areas
from tests import batches, stub_server, whole_way

SEED = tf.constant([0, 0])


@pytest.fixture(scope="module", autouse=True)
def exact_gradients():
    """As training does, see `devices.make_strategy`."""
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


class TestTargets:
    def test_by_hand(self):
        """4 cells predicted, 3 of them right; the object has 4 cells here and 5 in all."""
        logits = np.full([3, 3, 3], -2.0, np.float32)
        targets = np.zeros([3, 3, 3], np.float32)
        logits[0, 0, :] = logits[0, 1, 1] = 0.0
        targets[0, 0, :] = targets[0, 2, 1] = 1
        logits[1], targets[1, 0, 0] = -1, 1  # nothing predicted
        areas = tf.constant([5.0, 1.0, 0.0])
        found = mask_ious(tf.constant(logits), tf.constant(targets), areas)
        np.testing.assert_allclose(found, [3 / (4 + 5 - 3), 0, 0])

    def test_a_whole_object_has_its_area_in_cells_of_the_window(self):
        """Half of the mask's crop is set: 100 of 200 pixels, in windows of 40 and 800 pixels."""
        mask = np.zeros([2, 4, 4], np.uint8)
        mask[1, :2] = 1
        boxes = tf.constant([[0.0, 0, 1, 1], [10, 20, 20, 40]])
        rois = tf.constant([[10.0, 20, 14, 30], [0, 20, 20, 60]])
        found = object_areas(tf.constant(mask), boxes, rois, tf.constant([1, 1]), 8)
        np.testing.assert_allclose(found, [100 * 64 / 40, 100 * 64 / 800], rtol=1e-6)

    def test_loss(self):
        """Without the invalid, and without those that miss their objects."""
        ious, targets = tf.constant([0.5, 0.2, 0.9, 1.0]), tf.constant([0.9, 0.0, 0.1, 0.6])
        valid = tf.constant([True, True, False, True])
        value, count = losses.mask_iou_loss(ious, targets, valid)
        assert (float(value), float(count)) == (pytest.approx(0.5 * 0.16), 2)
        value, _ = losses.mask_iou_loss(ious, targets, valid, tf.constant([0.5, 1, 1, 1]))
        assert float(value) == pytest.approx(0.5 * (0.08 + 0.16) / 2)
        value, count = losses.mask_iou_loss(ious, targets, tf.zeros([4], bool))
        assert float(value) == float(count) == 0


def test_masks_are_ranked_by_their_own_scores_and_boxes_are_not():
    """A right mask behind a wrong one by their boxes' scores, and before it by their own."""
    mask = np.zeros([20, 30], np.uint8)
    mask[2:12, 3:18] = 1
    good, bad = mask_ops.encode_rle(mask), mask_ops.encode_rle(mask[::-1])
    truth = {
        "images": [{"id": 1, "height": 20, "width": 30}],
        "categories": [{"id": 1, "name": "ant"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 2, 15, 10], "area": 150,
             "iscrowd": 0, "segmentation": good}
        ],
    }  # fmt: skip
    found = {}
    for name, mask_scores in (("boxes", None), ("masks", [0.2, 0.7]), ("equal", [0.9, 0.8])):
        evaluator = CocoEvaluator(truth, Vocabulary(("ant",), (1,)), [1])
        boxes = [[2, 3, 12, 18], [2, 3, 12, 18]]
        evaluator.add(1, boxes, [0.9, 0.8], [1, 1], [bad, good], mask_scores)
        found[name] = evaluator.evaluate()
    assert {name: of["box"]["A"]["AP"] for name, of in found.items()} == dict.fromkeys(found, 1.0)
    ap = {name: of["mask"]["A"]["AP"] for name, of in found.items()}
    assert ap == {"boxes": 0.5, "masks": 1.0, "equal": 0.5}


def test_detections_have_them():
    outputs = {key: value[0] for key, value in stub_server.outputs(count=3).items()}
    scores = outputs["detection_scores"] * 0.5
    found = Detections.from_outputs(outputs | {"detection_mask_scores": scores})
    np.testing.assert_array_equal(found.mask_scores, scores[:3])
    assert found[1].mask_score == scores[1]
    assert found[np.array([False, True, True])].to_coco()[0]["mask_score"] == pytest.approx(
        scores[1], abs=1e-6
    )
    without = Detections.from_outputs(outputs)
    assert without[0].mask_score is None and "mask_score" not in without.to_coco()[0]


def test_caches_with_areas_are_others():
    for scoring, has in (("none", False), ("agnostic", True)):
        config = Config(mask_scoring=scoring, mask_source_weights=("human:1",))
        names = [array.name for array in feature_cache._arrays(config)]
        assert ("areas" in names) == has and names[-1] == "weights"


@pytest.mark.thorough
class TestModel:
    @pytest.fixture(scope="class", params=["agnostic", "transfer"])
    def model(self, request):
        options = {"mask_scoring": request.param, "mask_scoring_units": 6, "mode": "end_to_end"}
        options["score_threshold"] = 0.0
        model = build_model(batches.tiny_config(**options), batches.NUM_CLASSES)
        rng = np.random.default_rng(0)
        for variable in (model.box_head.cls_kernel, model.box_head.box_kernel):
            variable.assign(rng.normal(0, 0.05, variable.shape))
        for variable in model.mask_iou_weights.trainable_variables:
            variable.assign(rng.normal(0, 0.3, variable.shape))
        return model

    def losses(self, model, labels):
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            features = batches.random_features()
            found = objective.training_losses(model, features, batches.to_tensors(labels), SEED)
            loss = found["mask_iou"][0]
        named = {}
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            if gradient is not None and np.any(value := tf.convert_to_tensor(gradient).numpy()):
                named[variable_key(variable)] = value
        return found, named

    def test_other_variables_are_as_without_it(self, model):
        again = build_model(model.config, batches.NUM_CLASSES)
        found = {variable_key(v): v.numpy() for v in again.weights}
        plain = build_model(batches.tiny_config(), batches.NUM_CLASSES)
        for variable in plain.weights:
            np.testing.assert_array_equal(found.pop(variable_key(variable)), variable)
        weights = {"agnostic": "mask_iou_weights", "transfer": "mask_iou_transfer"}
        parts = {name.split("/")[0] for name in found}
        assert parts == {"mask_iou_head", weights[model.config.mask_scoring]}

    def test_where_the_gradient_goes(self, model):
        """To features and the head; not to the mask that it judges, nor to the class weights."""
        _, gradients = self.losses(model, batches.random_labels())
        parts = {name.split("/")[0] for name in gradients}
        assert {"fpn", "mask_iou_head"} < parts
        assert not {"mask_head", "weight_transfer", "box_head"} & parts
        assert ("mask_iou_transfer" in parts) == (model.config.mask_scoring == "transfer")

    def test_objects_without_a_mask_teach_it_nothing(self, model):
        labels = batches.random_labels()
        labels["has_mask"][0, 1] = False
        before, gradients = self.losses(model, labels)
        labels["masks"][0, 1] ^= 1
        after, same = self.losses(model, labels)
        assert float(before["mask_iou"][0]) == float(after["mask_iou"][0]) > 0
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, same[name])

    def test_scores_are_those_of_the_boxes_times_the_ious(self, model, monkeypatch):
        """Predictions beyond 0 and 1 are cut; where there is no detection, the score is 0."""
        features = batches.random_features()
        image, sizes = features["image"], features["image_size"]
        pyramid = model.pyramid(image, sizes)
        seen, predict = [], model.mask_ious

        def spread(*arguments):  # over more than [0, 1]
            ious = predict(*arguments)
            seen.append(tf.linspace(-0.5, 1.5, len(ious)) + 0 * ious)
            return seen[-1]

        monkeypatch.setattr(model, "mask_ious", spread)
        found = model.detect(pyramid, sizes)
        real = found["detection_classes"].numpy() > 0
        wanted = found["detection_scores"].numpy()[real] * np.clip(seen[0], 0, 1)
        assert len(wanted) > 4 and wanted.max() > 0
        np.testing.assert_allclose(found["detection_mask_scores"].numpy()[real], wanted, atol=1e-6)
        assert not found["detection_mask_scores"].numpy()[~real].any()


@pytest.mark.slow
def test_it_trains_resumes_evaluates_grows_and_is_exported(shapes_data, stage_1, tmp_path):
    """On cached features, as without a cache; the export compares itself with the model."""
    config = whole_way.stage_2(
        shapes_data,
        tmp_path,
        stage_1,
        mask_scoring="transfer",
        mask_scoring_units=8,
    )
    whole_way.check(config, shapes_data, tmp_path, str(tmp_path / "cache"), atol=1e-6)
    signatures = tf.saved_model.load(str(tmp_path / "export" / "1")).signatures
    outputs = signatures["image_tensor"](images=tf.zeros([1, 64, 64, 3], tf.uint8))
    assert (outputs["detection_mask_scores"] <= outputs["detection_scores"]).numpy().all()
