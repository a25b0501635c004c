"""Partial supervision: which loss depends on what, and where its gradient goes.

The model is Mask^X with stop-gradient unless a test says otherwise; image 0 of `labels` has three
objects, of which the tests take masks away.
"""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import losses, objective
from maskx_tf.assembly import build_model
from maskx_tf.objective import loss_terms, training_losses, trim_objects
from tests import batches, oracles

BOX_PARTS = {"backbone", "fpn", "rpn", "box_head"}
MASK_PARTS = {"mask_head", "weight_transfer"}
OF_MASKS = ("mask", "area")
SEED = tf.constant([0, 0])

ON_GPU = bool(tf.config.list_physical_devices("GPU"))


@pytest.fixture(scope="module", autouse=True)
def exact_gradients():
    """As training does, see `devices.make_strategy`."""
    if not ON_GPU:
        tf.config.experimental.enable_op_determinism()


class Step:
    """Losses and gradients of one batch; a function of the labels alone.

    Args:
      traced: makes many calls fast; a single call is faster without.
      **changes: to the configuration.
    """

    def __init__(self, traced: bool = False, **changes):
        self.model = build_model(batches.tiny_config(**changes), batches.NUM_CLASSES)
        # Weights at rest give every class nearly the same scores and masks: wake them.
        rng = np.random.default_rng(0)
        for variable in (self.model.box_head.cls_kernel, self.model.box_head.box_kernel):
            variable.assign(rng.normal(0, 0.05, variable.shape))
        self._saved = [v.numpy() for v in self.model.weights]
        self.features = batches.random_features()
        self.compute = tf.function(self._compute, autograph=False) if traced else self._compute

    def _compute(self, features, labels):
        variables = self.model.trainable_variables
        with tf.GradientTape(persistent=True) as tape:
            found = training_losses(self.model, features, labels, SEED)
            others = [value for name, (value, _) in found.items() if name not in OF_MASKS]
            others = tf.add_n(others) if others else None
        mask = tape.gradient(found["mask"][0], variables) if "mask" in found else None
        rest = tape.gradient(others, variables) if others is not None else None
        return found, mask, rest

    def __call__(self, labels):
        """{loss: value}, {loss: count}, {variable: gradient of the mask loss}, {… of the rest}."""
        for variable, value in zip(self.model.weights, self._saved, strict=True):
            variable.assign(value)  # moving averages
        found, mask, rest = self.compute(self.features, batches.to_tensors(labels))
        values = {name: value.numpy() for name, (value, _) in found.items()}
        counts = {name: count.numpy() for name, (_, count) in found.items()}
        return values, counts, self._by_name(mask), self._by_name(rest)

    def _by_name(self, gradients):
        if gradients is None:
            return None
        names = [v.name.removeprefix("maskx_rcnn/") for v in self.model.trainable_variables]
        found = {}
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                gradient = tf.convert_to_tensor(gradient).numpy()
                assert np.isfinite(gradient).all(), name
                if np.any(gradient):
                    found[name] = gradient
        return found


def parts(gradients):
    """The parts of the model that get a gradient other than zero."""
    return {name.split("/")[0] for name in gradients}


def assert_equal(found, wanted):
    """Bit for bit on the CPU; on GPUs gradients are added up in any order."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        tolerance = 1e-3 * np.abs(value).max() if ON_GPU else 0
        np.testing.assert_allclose(found[name], value, 0, tolerance, err_msg=name)


def without_masks(labels, *objects):
    """A copy in which the given objects (image, object) have no mask."""
    changed = {name: value.copy() for name, value in labels.items()}
    for place in objects:
        changed["has_mask"][place] = False
        changed["masks"][place] = 0
    return changed


@pytest.fixture(scope="module")
def step():
    return Step(traced=True)


@pytest.fixture(scope="module")
def labels():
    return batches.random_labels()


@pytest.fixture(scope="module")
def partial(labels):
    """Two of the six objects have no mask."""
    return without_masks(labels, (0, 1), (1, 0))


def test_losses_and_what_they_count(step, labels):
    values, counts, *_ = step(labels)
    assert list(values) == ["rpn_score", "rpn_box", "class", "box", "mask"]
    assert all(np.isfinite(v) and v > 0 for v in values.values())
    config = step.model.config
    assert 0 < counts["rpn_box"] <= counts["rpn_score"] <= 2 * config.rpn_batch_size
    assert 6 <= counts["box"] <= counts["class"] <= 2 * config.roi_batch_size
    assert counts["mask"] == counts["box"]


def test_losses_start_where_chance_is(labels):
    """Untrained last layers: log 2 per anchor and pixel, log (K + 1) per RoI."""
    fresh = build_model(batches.tiny_config(), batches.NUM_CLASSES)
    losses = training_losses(fresh, batches.random_features(), batches.to_tensors(labels), SEED)
    assert float(losses["rpn_score"][0]) == pytest.approx(np.log(2), rel=0.05)
    assert float(losses["class"][0]) == pytest.approx(np.log(8), rel=0.1)
    assert float(losses["mask"][0]) == pytest.approx(np.log(2), rel=0.1)


class TestStopGradient:
    def test_the_mask_loss_does_not_touch_the_rows_it_reads(self, step, labels):
        _, _, mask, _ = step(labels)
        assert not [name for name in mask if name.startswith("box_head/")]
        assert parts(mask) == MASK_PARTS | {"backbone", "fpn"}

    def test_without_it_the_rows_of_the_classes_present_get_gradient(self, labels):
        _, _, mask, _ = Step(transfer_stop_gradient=False)(labels)
        rows = set(labels["classes"][labels["has_mask"]])
        assert rows < set(range(1, 8))
        for name in ("box_head/cls_kernel:0", "box_head/box_kernel:0"):
            assert set(np.flatnonzero(mask[name].reshape(8, -1).any(axis=1))) == rows
        assert {n for n in mask if n.startswith("box_head/")} == {
            "box_head/cls_kernel:0",
            "box_head/box_kernel:0",
        }

    def test_the_other_losses_do_not_touch_the_mask_head(self, step, labels):
        *_, rest = step(labels)
        assert parts(rest) == BOX_PARTS


class TestMissingMasks:
    def test_box_losses_and_gradients_are_bit_identical(self, step, labels, partial):
        values, counts, _, rest = step(labels)
        partial_values, partial_counts, _, partial_rest = step(partial)
        for name in ("rpn_score", "rpn_box", "class", "box"):
            assert values[name] == partial_values[name] and counts[name] == partial_counts[name]
        assert values["mask"] != partial_values["mask"]
        assert 0 < partial_counts["mask"] < counts["mask"]
        assert_equal(partial_rest, rest)

    def test_mask_bits_of_an_object_without_mask_change_nothing(self, step, partial):
        changed = {name: value.copy() for name, value in partial.items()}
        changed["masks"][0, 1] = 1
        changed["masks"][1, 0] = np.eye(14)
        wanted, found = step(partial), step(changed)
        assert found[0] == wanted[0]
        assert_equal(found[2], wanted[2])

    def test_the_class_of_an_object_without_mask_does_not_touch_the_mask_loss(self, step, partial):
        changed = {name: value.copy() for name, value in partial.items()}
        changed["classes"][0, 1] = partial["classes"][0, 1] % batches.NUM_CLASSES + 1
        wanted, found = step(partial), step(changed)
        assert found[0]["class"] != wanted[0]["class"]
        assert found[0]["mask"] == wanted[0]["mask"]
        assert_equal(found[2], wanted[2])

    def test_the_mask_loss_is_that_of_the_objects_with_masks_alone(self, step, labels):
        """The sum over all RoIs is the sum over those of each half of the objects."""
        odd = [(i, j) for i in range(2) for j in range(3) if (i + j) % 2]
        even = [(i, j) for i in range(2) for j in range(3) if (i + j) % 2 == 0]
        sums = []
        for missing in ([], odd, even):
            values, counts, *_ = step(without_masks(labels, *missing))
            sums.append((values["mask"] * counts["mask"], counts["mask"]))
        assert sums[0][0] == pytest.approx(sums[1][0] + sums[2][0], rel=1e-5)
        assert sums[0][1] == sums[1][1] + sums[2][1]

    def test_a_batch_without_any_mask(self, step, labels):
        everything = [(i, j) for i in range(2) for j in range(3)]
        values, counts, mask, rest = step(without_masks(labels, *everything))
        assert values["mask"] == 0 and counts["mask"] == 0
        assert mask == {}  # all zero or None, and finite
        assert parts(rest) == BOX_PARTS

    def test_images_without_objects(self, step, labels):
        empty = {name: np.zeros_like(value) for name, value in labels.items()}
        values, counts, mask, rest = step(empty)
        assert all(np.isfinite(v) for v in values.values())
        assert counts["rpn_box"] == counts["box"] == counts["mask"] == 0
        assert values["rpn_box"] == values["box"] == values["mask"] == 0
        assert mask == {} and parts(rest) == BOX_PARTS


@pytest.mark.thorough
class TestMaskWeights:
    """Bit for bit, with the sampling of RoIs and the counts."""

    @pytest.fixture(
        scope="class", params=[{}, {"mode": "stage2_masks"}, {"mask_rois": "ground_truth"}]
    )
    def weighted_step(self, request):
        return Step(traced=True, **request.param)

    def with_weights(self, labels, *objects, weight):
        """A copy with weight 1 but of the given objects (image, object)."""
        weights = np.ones_like(labels["classes"], np.float32)
        for place in objects:
            weights[place] = weight
        return labels | {"mask_weight": weights}

    def test_all_1_is_without_weights(self, weighted_step, labels):
        wanted, found = weighted_step(labels), weighted_step(self.with_weights(labels, weight=1))
        assert found[:2] == wanted[:2]
        assert_equal(found[2], wanted[2])

    def test_weight_0_is_no_mask(self, weighted_step, labels, partial):
        wanted = weighted_step(partial)
        found = weighted_step(self.with_weights(labels, (0, 1), (1, 0), weight=0.0))
        assert found[:2] == wanted[:2]
        assert_equal(found[2], wanted[2])

    def test_other_weights_are_factors_on_the_masks_of_their_objects(self, weighted_step, labels):
        """All 0.5: half the loss and gradient, of as many RoIs."""
        everything = [(i, j) for i in range(2) for j in range(3)]
        values, counts, mask, _ = weighted_step(labels)
        half = weighted_step(self.with_weights(labels, *everything, weight=0.5))
        assert half[0]["mask"] == pytest.approx(values["mask"] / 2, rel=1e-6)
        assert half[1] == counts
        for name, gradient in mask.items():
            np.testing.assert_allclose(2 * half[2][name], gradient, 1e-4, 1e-7, err_msg=name)


class TestObjects:
    def test_padding_is_trimmed(self, labels):
        """M' = 3: what lies behind the last object of every image can have no effect."""
        trimmed = trim_objects(batches.to_tensors(labels))
        assert trimmed["boxes_yxyx"].shape == (2, 3, 4) and trimmed["masks"].shape[:2] == (2, 3)

    def test_padding_in_one_image_changes_nothing_in_the_other(self, step, labels):
        """An image of one object in a batch with three: its padding is as if it were not there."""
        one = without_masks(labels)
        for value in one.values():
            value[0, 1:] = 0
        garbage = without_masks(one)
        garbage["masks"][0, 1:] = 1
        wanted, found = step(one), step(garbage)
        assert found[:2] == wanted[:2]
        assert_equal(found[2], wanted[2])
        assert_equal(found[3], wanted[3])

    def test_the_order_of_the_objects_does_not_matter_to_what_is_positive(self, step, labels):
        turned = {name: value.copy() for name, value in labels.items()}
        for value in turned.values():
            value[:, :3] = value[:, 2::-1]
        _, wanted, *_ = step(labels)
        _, found, *_ = step(turned)
        assert found["rpn_box"] == wanted["rpn_box"]
        assert found["box"] == wanted["box"] and found["mask"] == wanted["mask"]

    def test_a_crowd_is_no_object(self, step, labels):
        """It is no target of any loss, and its mask none either."""
        crowd = {name: value.copy() for name, value in labels.items()}
        crowd["is_crowd"][:, :3] = True
        values, counts, mask, _ = step(crowd)
        assert counts["rpn_box"] == counts["box"] == counts["mask"] == 0
        assert values["mask"] == 0 and mask == {}

    def test_overlapping_objects_keep_their_own_masks(self, step):
        """Two objects of nearly the same box: only the one that a RoI is matched to counts.

        The object of class 2 has no mask. If a RoI of it took that of the other, or if a RoI of
        the other one were dropped, the count or the loss would change with its box.
        """
        labels = {name: np.zeros_like(v) for name, v in batches.random_labels().items()}
        labels["boxes_yxyx"][:, 0] = [10, 10, 50, 50]
        labels["boxes_yxyx"][:, 1] = [10, 10, 46, 50]
        labels["classes"][:, :2] = [1, 2]
        labels["has_mask"][:, 0] = True
        labels["masks"][:, 0, :7] = 1
        _, counts, *_ = step(labels)
        # The proposals follow from the weights alone: match them here.
        matched = expected_matches(step, labels)
        assert counts["mask"] == sum(index == 0 for index in matched) >= 2
        assert counts["box"] == len(matched)
        both = {name: value.copy() for name, value in labels.items()}
        both["has_mask"][:, 1] = True
        both["masks"][:, 1, 7:] = 1
        assert step(both)[1]["mask"] == len(matched)
        both["has_mask"][:, 0] = False
        assert step(both)[1]["mask"] == sum(index == 1 for index in matched) >= 2


def expected_matches(step, labels):
    """The object of each positive RoI of both images, from the proposals; all fit the sample."""
    config, model = step.model.config, step.model
    sizes = step.features["image_size"]
    pyramid = model.pyramid(step.features["image"], sizes, training=True)
    proposals, _ = model.rpn.propose(
        model.rpn(pyramid), sizes, config.rpn_pre_nms_train, config.rpn_post_nms_train
    )
    matched = []
    for image in range(2):
        objects = labels["boxes_yxyx"][image, :2]
        ious = oracles.iou_matrix(np.concatenate([objects, proposals[image]]), objects)
        positive = ious[ious.max(axis=1) >= config.roi_positive_iou]
        assert len(positive) <= config.roi_batch_size * config.roi_positive_fraction
        matched += list(positive.argmax(axis=1))
    return matched


class TestModes:
    def test_stage_1_trains_the_boxes_alone(self, step, labels):
        values, _, mask, rest = Step(mode="stage1_boxes")(labels)
        assert list(values) == ["rpn_score", "rpn_box", "class", "box"]
        assert mask is None and parts(rest) == BOX_PARTS
        wanted = step(labels)[0]
        for name, value in values.items():
            assert value == pytest.approx(wanted[name], rel=1e-5)

    def test_stage_2_computes_no_gradient_for_the_detector(self, partial):
        stage_2 = Step(mode="stage2_masks")
        values, counts, mask, rest = stage_2(partial)
        assert list(values) == ["mask"] and values["mask"] > 0 and counts["mask"] > 0
        assert rest is None and parts(mask) == MASK_PARTS
        moving = [v.numpy() for v in stage_2.model.weights if "moving" in v.name]
        assert not any(np.any(v != 0) and np.any(v != 1) for v in moving), "statistics moved"

    @pytest.mark.thorough
    def test_stage_2_draws_its_rois_among_the_objects_with_masks(self, labels):
        """The quota of one RoI an image is filled whatever the other two objects do."""
        step = Step(mode="stage2_masks", roi_batch_size=4, roi_positive_fraction=0.25)
        tensors = batches.to_tensors(without_masks(labels, (0, 0), (0, 1), (1, 1), (1, 2)))
        count = tf.function(
            lambda seed: training_losses(step.model, step.features, tensors, seed)["mask"][1]
        )
        assert [float(count(tf.constant([0, seed]))) for seed in range(10)] == [2.0] * 10

    def test_ground_truth_boxes_as_mask_rois(self, partial):
        _, counts, mask, _ = Step(mask_rois="ground_truth")(partial)
        assert counts["mask"] == 4  # objects with masks
        assert parts(mask) == MASK_PARTS | {"backbone", "fpn"}

    @pytest.mark.parametrize("mask_output", ["class_agnostic", "class_specific"])
    def test_learned_mask_weights(self, labels, mask_output):
        _, _, mask, rest = Step(mask_output=mask_output)(labels)
        assert parts(mask) == {"backbone", "fpn", "mask_head", "mask_weights"}
        assert parts(rest) == BOX_PARTS
        if mask_output == "class_specific":
            rows = np.flatnonzero(mask["mask_weights/kernel:0"].any(axis=1))
            assert set(rows) == set(labels["classes"][labels["has_mask"]])

    def test_the_same_seed_gives_the_same_losses_and_another_one_others(self, labels):
        step = Step(rpn_batch_size=8, roi_batch_size=8)
        tensors = batches.to_tensors(labels)
        losses = tf.function(
            lambda seed: training_losses(step.model, step.features, tensors, seed)["class"][0]
        )
        first, again, other = (float(losses(tf.constant(s))) for s in ([0, 1], [0, 1], [0, 2]))
        assert first == again != other


class TestLossThatLearnsFromBoxes:
    """A further row in the table of losses; its value is the mean area of the objects' boxes."""

    @pytest.fixture(autouse=True)
    def further_loss(self, monkeypatch):
        def of_masks(logits, examples, config):
            sides = examples.boxes_yxyx[:, 2:] - examples.boxes_yxyx[:, :2]
            areas = tf.reduce_prod(sides, axis=1) + 0 * tf.reduce_sum(logits)
            count = tf.math.count_nonzero(areas, dtype=tf.float32)
            return tf.reduce_sum(areas) / tf.maximum(count, 1.0), count

        further = losses.Term("area", "mask_head", "area", 0.5, of_masks, needs_masks=False)
        monkeypatch.setattr(losses, "TERMS", (*losses.TERMS, further))

    def test_it_sees_all_foreground_rois_and_the_mask_loss_those_with_masks(self, step, partial):
        values, counts, *_ = Step()(partial)
        assert list(values) == ["rpn_score", "rpn_box", "class", "box", "mask", "area"]
        wanted, wanted_counts, *_ = step(partial)  # traced before there was a further loss
        assert counts["area"] == counts["box"] > counts["mask"] == wanted_counts["mask"]
        assert values["mask"] == pytest.approx(wanted["mask"], rel=1e-4)
        config = batches.tiny_config()
        # Foreground overlaps its object, but not in full.
        assert 0 < values["area"] < config.mask_size**2
        terms = loss_terms(config)
        shares = objective.shares({n: (values[n], counts[n]) for n in values}, terms)
        assert float(shares["area"]) == pytest.approx(0.5 * values["area"])

    def test_stage_2_on_ground_truth_boxes(self, partial):
        step = Step(mode="stage2_masks", mask_rois="ground_truth")
        values, counts, *_ = step(partial)
        assert list(values) == ["mask", "area"]
        assert counts["mask"] == 4 and counts["area"] == 6
        assert values["area"] == pytest.approx(step.model.config.mask_size**2, rel=1e-4)

    def test_a_batch_without_objects(self, labels):
        nothing = {name: np.zeros_like(value) for name, value in labels.items()}
        values, counts, mask, _ = Step(mode="stage2_masks")(nothing)
        assert values == counts == {"mask": 0, "area": 0} and mask == {}


class TestByHand:
    """The whole chain in NumPy, with samples so large that every candidate is in them.

    RoIs are foreground with an IoU of 1, so that they are exactly the ground-truth boxes: box
    targets are zero and mask targets the masks themselves.
    """

    @pytest.fixture(scope="class")
    def case(self, labels):
        config = batches.tiny_config(
            roi_positive_iou=1.0,
            roi_batch_size=512,
            rpn_batch_size=4096,
            anchor_ratios=(1.0,),  # whose sides are no fractions: ties of the IoU are exact
        )
        model = build_model(config, batches.NUM_CLASSES)
        features = batches.random_features()
        losses = training_losses(model, features, batches.to_tensors(labels), SEED)
        sizes = features["image_size"]
        pyramid = model.pyramid(features["image"], sizes, training=True)
        values = {name: float(value) for name, (value, _) in losses.items()}
        return model, values, pyramid, model.rpn(pyramid), sizes

    @pytest.fixture(scope="class")
    def objects(self, labels):
        """Boxes [6, 4], classes [6] and images [6] of the objects."""
        images = np.repeat(np.arange(2), 3).astype(np.int32)
        return labels["boxes_yxyx"][:, :3].reshape(6, 4), labels["classes"][:, :3].ravel(), images

    def test_rpn(self, case, labels):
        _, losses, _, outputs, _ = case
        anchors = np.concatenate([o["anchors_yxyx"] for o in outputs.values()])
        scores = np.concatenate([o["logits"] for o in outputs.values()], axis=1)
        deltas = np.concatenate([o["deltas"] for o in outputs.values()], axis=1)
        entropy = distance = 0.0
        for image in range(2):
            boxes = labels["boxes_yxyx"][image, :3]
            ious = oracles.iou_matrix(anchors, boxes)
            best = ious.max(axis=1)
            positive = (best >= 0.7) | (np.isclose(ious, ious.max(axis=0)) & (ious > 0)).any(axis=1)
            negative = ~positive & (best < 0.3)
            assert positive.sum() >= 3 and negative.sum() > 100
            for anchor in np.flatnonzero(positive | negative):
                entropy += oracles.sigmoid_cross_entropy(scores[image, anchor], positive[anchor])
            for anchor in np.flatnonzero(positive):
                box = boxes[ious[anchor].argmax()]
                target = oracles.encode(box, anchors[anchor], (1, 1, 1, 1))
                error = np.abs(deltas[image, anchor] - target)
                smooth = np.where(error < 1 / 9, 4.5 * error**2, error - 1 / 18)
                distance += smooth.sum()
        assert losses["rpn_score"] == pytest.approx(entropy / (2 * 4096), rel=1e-4)
        assert losses["rpn_box"] == pytest.approx(distance / (2 * 4096), rel=1e-3)

    def test_box_head(self, case, objects):
        """Every proposal is background, every object of its class."""
        model, losses, pyramid, outputs, sizes = case
        config = model.config
        boxes, classes, images = objects
        proposals, scores = model.rpn.propose(
            outputs, sizes, config.rpn_pre_nms_train, config.rpn_post_nms_train
        )
        places = np.argwhere(np.isfinite(scores))
        rois = np.concatenate([boxes, proposals.numpy()[tuple(places.T)]])
        roi_images = np.concatenate([images, places[:, 0]]).astype(np.int32)
        targets = np.concatenate([classes, np.zeros(len(places), int)])
        features = model.box_head(model.flat_roi_features(pyramid, rois, roi_images, 7))
        shares = oracles.softmax(model.box_head.class_logits(features).numpy())
        entropy = -np.log(shares[np.arange(len(rois)), targets])
        assert losses["class"] == pytest.approx(entropy.mean(), rel=1e-4)
        deltas = np.abs(model.box_head.class_deltas(features[:6], classes))
        smooth = np.where(deltas < 1, deltas**2 / 2, deltas - 0.5)
        assert losses["box"] == pytest.approx(smooth.sum() / len(rois), rel=1e-3)

    def test_mask_head(self, case, objects, labels):
        model, losses, pyramid, *_ = case
        boxes, classes, images = objects
        size = model.config.mask_roi_size
        features = model.flat_roi_features(pyramid, tf.constant(boxes), images, size)
        logits = model.mask_logits(features, tf.constant(classes))
        masks = labels["masks"][:, :3].reshape(6, 14, 14)
        entropy = oracles.sigmoid_cross_entropy(logits, masks)
        assert losses["mask"] == pytest.approx(entropy.mean(), rel=1e-4)
