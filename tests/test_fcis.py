"""FCIS beyond its body: joint scores, hard RoIs, two passes; the body is in test_mask_bodies."""

import importlib

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

import maskx_tf as mx
from export.client import Client
from maskx_tf import box_detections, losses, objective
from maskx_tf import config as config_lib
from maskx_tf.assembly import build_model
from maskx_tf.errors import UserError
from maskx_tf.frozen import training as feature_cache
from maskx_tf.inference import folding
from maskx_tf.layers import joint_scores
from maskx_tf.model import variable_key
from maskx_tf.ops import boxes, mask_voting, sampling
from tests import batches, harness, serving_toy, whole_way

FCIS = {"mask_body": "fcis", "mask_roi_op": "average", "mask_mlp": False, "loss_joint": 0.4}


class TestHardest:
    def test_is_a_sort(self):
        rng = np.random.default_rng(0)
        values = rng.integers(0, 9, 40).astype(np.float32)  # with equals
        eligible = rng.random(40) < 0.7
        for share in (0.01, 0.25, 1.0):
            found = sampling.hardest(tf.constant(values), tf.constant(eligible), share).numpy()
            order = sorted(np.flatnonzero(eligible), key=lambda i: (-values[i], i))
            wanted = order[: int(np.ceil(share * eligible.sum()))]
            assert sorted(wanted) == [*np.flatnonzero(found)] and wanted
        assert not np.any(sampling.hardest(tf.constant(values), tf.zeros([40], bool), 0.5))

    def test_fcis_weighs_masks_ten_times(self):
        """Entropies in NumPy; a RoI without a mask has that of its class alone."""
        rng = np.random.default_rng(0)
        z, y = rng.normal(size=(12, 4, 4)), rng.integers(0, 2, (12, 4, 4))
        logits, classes = rng.normal(0, 9, (12, 5)), rng.integers(0, 5, 12)
        valid, scored = np.arange(12) % 3 == 0, np.arange(12) < 11
        of_masks = (np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - z * y).mean((1, 2))
        of_classes = np.log(np.exp(logits).sum(1)) - logits[np.arange(12), classes]
        total = np.where(scored, of_classes + 10 * valid * of_masks, -1)
        found = losses.hard_rois(
            tf.constant(z, tf.float32),
            tf.constant(y, tf.float32),
            tf.constant(valid),
            tf.constant(logits, tf.float32),
            tf.constant(classes, tf.int32),
            tf.constant(scored),
            0.5,
        )
        assert {*np.flatnonzero(found)} == {*np.argsort(total)[-6:]}


class TestCandidates:
    LOGITS = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)

    def test_are_the_likeliest_of_each_group_and_the_given(self):
        groups, classes = (range(1, 8), range(8, 12)), np.array([0, 11, 3, 8, 1, 7])
        found = joint_scores.candidates(tf.constant(self.LOGITS), groups, tf.constant(classes))
        for row, logits, given in zip(found.numpy(), self.LOGITS, classes, strict=True):
            wanted = set()
            for low, high, most in ((0, 8, 5), (8, 12, 4)):
                order = sorted(range(low, high), key=lambda c: (c != given, -logits[c]))
                wanted |= set(order[:most])
            assert sorted(row) == sorted(wanted) and given in row

    def test_scores_are_added_to_their_classes(self):
        classes = joint_scores.candidates(tf.constant(self.LOGITS), (range(1, 12),))
        scores = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
        found = joint_scores.add(tf.constant(self.LOGITS), classes, tf.constant(scores))
        wanted = self.LOGITS.copy()
        for row, of_row, added in zip(wanted, classes.numpy(), scores, strict=True):
            row[of_row] += added
        np.testing.assert_allclose(found, wanted)


class TestOptions:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"mask_body": "fcn"}, "loss_joint=0.4 .*mask_body=fcis.*fcn"),
            ({"mask_output": "class_agnostic"}, "mask_output=transfer or class_specific"),
            ({"mask_rois": "ground_truth"}, "mask_rois=proposals"),
            ({"mask_branches": ("cam",), "box_head": "conv"}, "mask_branches=.*cam"),
            ({"mask_voting": True, "mask_roi_scale": 1.25}, "mask_roi_scale=1.0.*mask_voting"),
            ({"loss_joint": 0.0, "mask_voting": True}, "mask_voting=True needs.*loss_joint"),
            ({"loss_joint": 0.0, "hard_rois": 0.5}, "hard_rois=0.5 needs loss_joint"),
            ({"hard_rois": 0.0}, r"hard_rois=0.0 must lie in \(0, 1\]"),
            ({"box_passes": 3}, "box_passes=3 must be 1 or 2"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, changes, message):
        with pytest.raises(UserError, match=message):
            mx.Config(**FCIS | changes)

    def test_evaluation_may_vote_with_a_trained_model(self):
        command = importlib.import_module("maskx_tf.evaluate")
        values = flags.FlagValues()
        config_lib.define_flags(values)
        values(["evaluate", "--mask_voting", "--box_passes=2"])
        trained = mx.Config(mode="stage2_masks", **FCIS)
        found = command.evaluation_config(trained, values)
        assert found == trained.replace(mask_voting=True, box_passes=2)
        with pytest.raises(UserError, match="--mask_voting=True needs"):
            command.evaluation_config(mx.Config(), values)

    def test_cached_detections_would_have_other_scores(self):
        with pytest.raises(UserError, match="--feature_cache .*--loss_joint=0.4.*leave out"):
            feature_cache.check(mx.Config(mode="stage2_masks", **FCIS))


SEED = tf.constant([0, 3])


@pytest.mark.thorough
class TestModel:
    """Image 0 has an object without a mask."""

    @pytest.fixture(scope="class", params=["transfer", "class_specific"])
    def model(self, request):
        config = batches.tiny_config(mask_output=request.param, mask_upsampling=1, **FCIS)
        model = build_model(config, batches.NUM_CLASSES)
        rng = np.random.default_rng(0)
        of_classes = (model.box_head.cls_kernel, model.box_head.box_kernel)
        for variable in (*of_classes, *model.mask_weights.trainable_variables):
            variable.assign(rng.normal(0, 0.05, variable.shape))
        return model

    def losses(self, model, labels):
        variables = model.trainable_variables
        with tf.GradientTape(persistent=True) as tape:
            features = batches.random_features()
            value = objective.training_losses(model, features, batches.to_tensors(labels), SEED)
        parts = {}
        for name in ("mask", "joint"):
            gradients = zip(variables, tape.gradient(value[name][0], variables), strict=True)
            parts[name] = {
                variable_key(variable).split("/")[0]
                for variable, gradient in gradients
                if gradient is not None and np.any(tf.convert_to_tensor(gradient))
            }
        return value, parts

    def test_other_variables_are_as_without_joint_scores(self, model):
        plain = build_model(model.config.replace(loss_joint=0.0), batches.NUM_CLASSES)
        again = build_model(model.config, batches.NUM_CLASSES)
        for a, b in zip(plain.weights, again.weights, strict=True):
            assert variable_key(a) == variable_key(b)
            np.testing.assert_array_equal(a, b)

    def test_every_roi_tells_its_class_and_only_some_a_mask(self, model):
        labels = batches.random_labels()
        labels["has_mask"][0, 1] = False
        before, parts = self.losses(model, labels)
        plain = build_model(batches.tiny_config(), batches.NUM_CLASSES)
        others = objective.training_losses(
            plain, batches.random_features(), batches.to_tensors(labels), SEED
        )
        assert float(before["mask"][1]) == float(others["mask"][1])  # positive RoIs with masks
        assert float(before["joint"][1]) == float(before["class"][1])  # all that are sampled
        of_masks = {"backbone", "fpn", "mask_head", "mask_weights", "weight_transfer"}
        for name in ("mask", "joint"):
            assert {"backbone", "fpn", "mask_head"} < parts[name] < of_masks
        labels["masks"][0, 1] ^= 1
        after, _ = self.losses(model, labels)
        assert float(before["mask"][0]) == float(after["mask"][0])
        labels["has_mask"][:] = False
        none, parts = self.losses(model, labels)
        assert float(none["mask"][0]) == 0 and not parts["mask"]
        assert float(none["joint"][0]) == pytest.approx(float(before["joint"][0]), rel=1e-5)

    def test_joint_loss_by_its_definition(self, model):
        """Of each RoI, the box head's logits and the scores of the body's maps; and hard RoIs."""
        labels, features = batches.to_tensors(batches.random_labels()), batches.random_features()
        found = objective.frozen_mask_examples(model, features, labels, SEED)
        scored = found.scored.numpy()
        assert not np.any(found.classes.numpy()[~found.valid.numpy() & scored])
        pixels = model.mask_head.pixels(found.features)
        every = tf.range(batches.NUM_CLASSES + 1)
        kernels = model.mask_kernels(every)[0]
        if model.config.mask_output == "transfer":
            kernels = tf.tile(kernels[None], [len(scored), 1, 1])
        scores = model.mask_head.body.scores(pixels, kernels).numpy()
        logits = found.class_logits.numpy().astype(np.float64)
        for row, (own, label) in enumerate(zip(scores, found.classes.numpy(), strict=True)):
            order = sorted(range(len(every)), key=lambda c: (c != label, -logits[row, c]))
            chosen = order if model.config.mask_output == "class_specific" else order[:5]
            logits[row, chosen] += own[chosen]
        entropy = np.log(np.exp(logits).sum(1)) - logits[range(len(logits)), found.classes]
        value = objective._mask_losses(model, found)
        assert float(value["joint"][0]) == pytest.approx(entropy[scored].mean(), rel=1e-4)
        model.config, config = model.config.replace(hard_rois=0.25), model.config
        hard = objective._mask_losses(model, found)
        model.config = config
        assert float(hard["joint"][1]) == np.ceil(scored.sum() / 4)
        assert float(hard["joint"][0] + 10 * hard["mask"][0]) > float(value["joint"][0])
        assert 0 < float(hard["mask"][1]) <= float(value["mask"][1])

    def test_detections_have_joint_scores_of_both_passes(self, model):
        """Each is the box of one of the RoIs, first or again, with its score, in NumPy."""
        features = batches.random_features()
        config = model.config.replace(box_passes=2, score_threshold=0.0)
        model.config, before = config, model.config
        found = model(*features.values())
        model.config = before
        pyramid, sizes = model.pyramid(*features.values()), features["image_size"]
        rois, _ = model.rpn.propose(model.rpn(pyramid), sizes, 100, 50)
        pairs, head = [], model.box_head
        for _ in range(2):
            box_features = head(model.roi_features(pyramid, rois, config.box_roi_size))
            flat = tf.reshape(rois, [-1, 4])
            images = tf.repeat(tf.range(2), rois.shape[1])
            seen = model.flat_roi_features(pyramid, flat, images, 7, "average")
            any_class = tf.ones_like(images)
            logits = head.class_logits(box_features)
            if config.mask_output == "class_specific":
                _, logits = model.joint_logits(seen, any_class, logits)
            else:
                likeliest = tf.argmax(logits, axis=1, output_type=tf.int32)
                _, logits = model.joint_logits(seen, likeliest, logits)
            pairs.append((box_features, logits, flat))
            rois = head.refine(box_features, logits, rois, sizes)
        of_passes = [0, 0]
        for image in range(2):
            count = int(found["num_detections"][image])
            assert count
            for i in range(count):
                box, score = found["detection_boxes"][image, i], found["detection_scores"][image, i]
                label = found["detection_classes"][image, i]
                nearest = []
                for box_features, logits, flat in pairs:
                    rows = slice(50 * image, 50 * image + 50)
                    classes = tf.fill([50], label)
                    decoded = head.decode(box_features[rows], classes, flat[rows])
                    decoded = boxes.clip(decoded, sizes[image])
                    errors = tf.reduce_max(tf.abs(decoded - box), axis=1)
                    errors += 100 * tf.abs(tf.nn.softmax(logits[rows])[:, label] - score)
                    nearest.append(float(tf.reduce_min(errors)))
                assert min(nearest) < 1e-2
                of_passes[int(np.argmin(nearest))] += 1
        assert min(of_passes) > 0

    def test_masks_of_the_class_vote(self, model):
        """Those of the RoIs around a detection for its class, if it is among their candidates."""
        features, before = batches.random_features(), model.config
        model.config = before.replace(mask_voting=True, score_threshold=0.0)
        found = model(*features.values())
        model.config = before
        pyramid, (rois, valid, *_) = model.pyramid(*features.values()), _proposals(model, features)
        logits = model.class_logits(pyramid, rois)[1]
        images, rois = tf.ones([len(rois[1])], tf.int32), rois[1]
        seen = model.flat_roi_features(pyramid, rois, images, 7, "average")
        likeliest = tf.argmax(logits, axis=1, output_type=tf.int32)
        _, joint = model.joint_logits(seen, likeliest, logits)
        scores = tf.nn.softmax(joint)
        most = 8 if model.config.mask_output == "class_specific" else joint_scores.CANDIDATES
        candidates = tf.math.top_k(logits, most).indices.numpy()
        count = int(found["num_detections"][1])
        assert count
        for i in range(count):
            label = found["detection_classes"][1, i]
            votes = (candidates == label.numpy()).any(1) & valid[1].numpy()
            masks = tf.sigmoid(model.mask_logits(seen, tf.fill([len(rois)], label)))
            of_class = tf.where(votes, scores[:, label], 0.0)
            box = found["detection_boxes"][1, i]
            [wanted] = mask_voting.vote(masks, rois, of_class[None], box[None], 7)
            if np.any(wanted):
                errors = np.abs(found["detection_masks"][1, i] - wanted)
                assert np.mean(errors > 1e-3) < 0.05  # but where rounding decides on a vote
            else:
                assert np.any(found["detection_masks"][1, i])  # its own

    def test_old_classes_are_found_as_without_those_added_later(self, model):
        """Bit for bit, although RoIs move in between."""
        features = batches.random_features()
        before, groups = model.config, model.box_head.groups
        arguments = model.pyramid(*features.values()), *_proposals(model, features)
        found = []
        for parts in ((range(1, 6),), (range(1, 6), range(6, 8))):
            shares = {"max_detections": 5 * len(parts), "nms_candidates": 500 * len(parts)}
            model.config = before.replace(box_passes=2, score_threshold=0.0, **shares)
            model.box_head.groups = parts
            found.append(box_detections.of_rois(model, *arguments))
        model.config, model.box_head.groups = before, groups
        [alone], [first, added] = found
        for name in ("detection_boxes", "detection_scores"):
            np.testing.assert_array_equal(alone[name], first[name])
        assert np.any(first["num_detections"])
        assert set(np.unique(added["detection_classes"])) <= {0, 6, 7}

    def test_a_folded_model_detects_the_same(self, model):
        image, size = batches.random_features().values()
        before = model(image, size)
        copy = build_model(model.config, batches.NUM_CLASSES)
        copy.set_weights(model.get_weights())
        folding.fold(copy)
        after = copy(image, size)
        for name in ("detection_scores", "detection_masks", "detection_boxes"):
            np.testing.assert_allclose(after[name], before[name], atol=1e-3)


def _proposals(model, features):
    """Further arguments of `box_detections.of_rois`."""
    pyramid, sizes = model.pyramid(*features.values()), features["image_size"]
    rois, scores = model.rpn.propose(model.rpn(pyramid), sizes, 100, 50)
    return rois, scores > float("-inf"), sizes, None


@pytest.mark.slow
def test_the_whole_way(shapes_data, stage_1, tmp_path):
    config = whole_way.stage_2(
        shapes_data,
        tmp_path,
        stage_1,
        **FCIS | {"mask_upsampling": 1, "hard_rois": 0.5, "box_passes": 2, "mask_voting": True},
    )
    whole_way.check(config, shapes_data, tmp_path, "", atol=0)
    image = harness.random_image(48, 60)
    wanted = mx.load(str(tmp_path / "export"))(image, min_score=0.0)
    with (
        serving_toy.serving(tmp_path / "export", "maskx") as (server, _),
        Client(f"http://127.0.0.1:{server.rest_api_port}") as client,
    ):
        found = client.detect(harness.encode_image(image, ".png"))
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert one.class_name == other.class_name
        np.testing.assert_allclose(one.score, other.score, atol=1e-5)
