"""Multi-task Network Cascades: masked features, mask voting, their losses, one whole way."""

import numpy as np
import pytest
import tensorflow as tf

from export import saved_model
from export.client import Client
from maskx_tf import mnc_objective
from maskx_tf.assembly import build_model
from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.inference.module import DetectionModule
from maskx_tf.layers.mnc_box_head import MNCBoxHead, inside
from maskx_tf.model import trained_variables, variable_key
from maskx_tf.objective import loss_terms, shares, training_losses
from maskx_tf.ops import mask_voting, masks
from tests import batches, harness, runs, serving_toy, tiny, whole_way

OPTIONS = {
    "box_head": "mnc",
    "box_passes": 2,
    "box_roi_op": "warp",
    "box_roi_size": 3,
    "mask_body": "mlp",
    "mask_mlp": True,
    "mask_output": "class_agnostic",
    "mask_roi_op": "warp",
    "mask_roi_size": 6,
}
SEED = tf.constant([0, 0])


def vote(roi_masks, rois, scores, boxes, size):
    arguments = (tf.constant(a, tf.float32) for a in (roi_masks, rois, scores, boxes))
    return mask_voting.vote(*arguments, size).numpy()


class TestMaskedFeatures:
    def test_worked_by_hand(self):
        """Continuous masks, not thresholded."""
        features = tf.constant([[1.0, 2], [3, 4]])[None, :, :, None]
        masked = inside(features, tf.constant([[[0.5, 1.0], [0.0, 0.25]]]))
        np.testing.assert_allclose(masked[0, :, :, 0], [[0.5, 2], [0, 1]])

    def test_the_masked_path_comes_first(self):
        head = MNCBoxHead(2, units=5)
        features = tf.constant(np.random.default_rng(0).normal(size=(3, 4, 4, 2)), tf.float32)
        bright, dark = (head(features, tf.fill([3, 8, 8], value)).numpy() for value in (1.0, 0.0))
        np.testing.assert_array_equal(bright[:, 5:], dark[:, 5:])
        assert not dark[:, :5].any() and bright[:, :5].any()
        assert head.cls_kernel.shape == head.box_cls_kernel.shape == (3, 10)


class TestVoting:
    def test_worked_by_hand(self):
        """Boxes x 0..4 of IoUs 1, 0.75 and 0.6, scores 0.9, 0.6 and 0.3."""
        rois = [[0, 0, 4, 4], [0, 0, 3, 4], [0, 1, 4, 5]]
        rows = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
        roi_masks = np.tile(rows[:, None], [1, 4, 1])
        (voted,) = vote(roi_masks, rois, [[0.9, 0.6, 0.3]], rois[:1], 4)
        means = np.array([0.5 + 1 / 3, 1, 0.5, 1 / 6])
        wanted = np.where(means >= 0.4, 0.5 + (means - 0.4) / 1.2, means / 0.8)
        np.testing.assert_allclose(voted[1], wanted, atol=1e-5)
        assert (voted[1] >= 0.5).tolist() == [True, True, True, False]

    def test_is_the_definition(self):
        """Against masks pasted into the image; boxes of whole pixels, as large as the masks."""
        rng = np.random.default_rng(1)
        size, side = 8, 40
        low = rng.integers(3, 20, (5, 2))
        boxes = np.concatenate([low, low + size], axis=1).astype(float)
        rois = np.repeat(boxes, 6, axis=0) + rng.integers(-3, 4, (30, 4))
        roi_masks, scores = rng.uniform(size=(30, size, size)), rng.uniform(size=(5, 30))
        scores[:, 7] = 0.0
        found = vote(roi_masks, rois, scores, boxes, size)
        pairs = zip(roi_masks, rois, strict=True)
        pasted = np.array([masks.paste_mask(mask, roi, side, side, 0.4) for mask, roi in pairs])
        with_votes = 0
        for box, of_box, result in zip(boxes, scores, found, strict=True):
            areas = np.prod(rois[:, 2:] - rois[:, :2], axis=1)
            common = np.minimum(rois[:, 2:], box[2:]) - np.maximum(rois[:, :2], box[:2])
            common = np.prod(np.maximum(common, 0), axis=1)
            votes = of_box * (common / (areas + size**2 - common) >= 0.5)
            y, x = box[:2].astype(int)
            images = pasted[:, y : y + size, x : x + size]
            if not votes.any():
                assert not result.any()
                continue
            with_votes += 1
            mean = np.tensordot(votes / votes.sum(), images, axes=1)
            np.testing.assert_array_equal(result >= 0.5, mean >= 0.4 - 1e-6)
        assert with_votes > 2

    def test_a_detection_without_votes_keeps_its_mask(self):
        voted = tf.constant([[[[0.0]], [[0.2]]]])
        assert mask_voting.voted_or_own(voted, voted * 0 + 0.9).numpy().ravel().tolist() == (
            pytest.approx([0.9, 0.2])
        )


@pytest.mark.parametrize(
    ("changes", "option", "value"),
    [
        ({"mode": "stage1_boxes"}, "mode", "stage1_boxes"),
        ({"mode": "stage2_masks"}, "mode", "stage2_masks"),
        ({"cascade_ious": (0.5, 0.6)}, "cascade_ious", "0.5,0.6"),
        ({"mask_roi_size": 8}, "mask_roi_size", "8"),
        ({"box_roi_op": "align"}, "box_roi_op", "align"),
        ({"mask_output": "class_specific"}, "mask_output", "class_specific"),
        ({"mask_output": "transfer", "mask_mlp": False}, "mask_mlp", "False"),
        ({"mask_output": "transfer", "mask_voting": True}, "mask_voting", "True"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, option, value):
    with pytest.raises(UserError, match=f"box_head=mnc needs {option}=.*{value}"):
        Config(**OPTIONS | changes)


def test_votes_need_masks_of_rois():
    with pytest.raises(UserError, match="mask_voting=True needs.*box_head=mnc.*box_head=fc"):
        Config(**OPTIONS | {"box_head": "fc", "mask_voting": True})


@pytest.fixture(scope="module")
def model():
    return build_model(batches.tiny_config(**OPTIONS), batches.NUM_CLASSES)


def losses_of(model, **changed):
    labels = batches.random_labels() | changed
    return training_losses(model, batches.random_features(), batches.to_tensors(labels), SEED)


@pytest.mark.thorough
class TestLosses:
    def test_both_passes_train_all_weights(self, model):
        terms = loss_terms(model.config)
        trained = trained_variables(model)
        with tf.GradientTape() as tape:
            losses = losses_of(model)
            total = tf.add_n(list(shares(losses, terms).values()))
        assert set(losses) == {term.name for term in terms} > {"mask_2", "class_of_box_2", "box_2"}
        assert {term.weight for term in terms if term.name.startswith("mask")} == {2.0}
        gradients = tape.gradient(total, trained)
        idle = [variable_key(v) for v, g in zip(trained, gradients, strict=True) if g is None]
        assert not idle

    def test_gradients_reach_deltas_over_the_second_pass(self, model):
        head = model.box_heads[0]
        with tf.GradientTape() as tape:
            loss = losses_of(model)["class_2"][0]
        assert np.any(tf.convert_to_tensor(tape.gradient(loss, head.box_kernel)))

    def test_a_gradient_of_boxes_is_limited(self):
        boxes = tf.Variable([[0.0, 0, 9, 9]])
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(mnc_objective._limited(boxes) * [[1e-3, -1e-3, 5, -5]])
        largest = mnc_objective.BOX_GRADIENT
        np.testing.assert_allclose(
            tape.gradient(value, boxes), [[1e-3, -1e-3, largest, -largest]], rtol=1e-6
        )

    def test_bad_masks_are_background_and_objects_without_masks_are_not(self, model, monkeypatch):
        """With masks that fill their RoIs, full objects are good, empty ones bad."""
        monkeypatch.setattr(
            model,
            "roi_mask_logits",
            lambda features, training=False: tf.fill([len(features), 12, 12], 9.0),
        )
        seen = {}
        take = mnc_objective.losses_of_box_head

        def note(head, features, logits, sample, labels):
            seen[len(seen)] = int(np.sum(sample.positive))
            return take(head, features, logits, sample, labels)

        monkeypatch.setattr(mnc_objective, "losses_of_box_head", note)
        labels = batches.random_labels()
        positives = {}
        for name, changed in {
            "full": {"masks": np.ones_like(labels["masks"])},
            "empty": {"masks": np.zeros_like(labels["masks"])},
            "none": {"has_mask": np.zeros_like(labels["has_mask"])},
        }.items():
            seen.clear()
            losses = losses_of(model, **changed)
            positives[name] = (seen[0], seen[1])  # by box, by mask, in the first pass
        assert positives["full"][0] == positives["empty"][0] == positives["none"][0] > 6
        assert positives["full"][1] > 6  # not all: a RoI may cut its object
        assert positives["empty"][1] == 0
        assert positives["none"][1] == positives["none"][0]
        assert losses["mask"][0] == 0 and losses["mask"][1] == 0


@pytest.mark.thorough
def test_one_pass_is_three_stages(model):
    """At test time the weights are the same; the passes compete for places."""
    images = batches.random_features()["image"], tf.fill([2, 2], float(batches.SIDE))
    rng = np.random.default_rng(0)
    head = model.box_heads[0]
    kept = head.get_weights()
    head.cls_kernel.assign(rng.normal(0, 3, head.cls_kernel.shape))
    head.box_bias.assign(tf.tile([[2.0, 0, 0, 0]], [batches.NUM_CLASSES + 1, 1]))
    found = {}
    for passes in (1, 2):
        model.config = model.config.replace(box_passes=passes, score_threshold=0.01)
        found[passes] = model.detect_boxes(model.pyramid(*images), images[1])
    model.config = batches.tiny_config(**OPTIONS)
    head.set_weights(kept)
    assert found[1]["num_detections"].numpy().min() > 2
    best = [found[passes]["detection_scores"].numpy().max() for passes in (1, 2)]
    assert best[1] >= best[0]
    assert not np.array_equal(found[1]["detection_boxes"], found[2]["detection_boxes"])


@pytest.mark.slow
def test_it_trains_resumes_evaluates_grows_and_is_exported(shapes_data, tmp_path):
    """The export compares itself with the model."""
    changes = {"mask_output": "transfer", "box_passes": 1}
    config = runs.config(
        shapes_data,
        tmp_path / "plain",
        train_steps=2,
        checkpoint_interval=1,
        score_threshold=0.0,
        **OPTIONS | changes,
    )
    whole_way.check(config, shapes_data, tmp_path, "", atol=1e-6)


@pytest.mark.slow
def test_an_export_with_votes_answers_the_local_server(tmp_path):
    """Of a model whose second pass has other boxes than the first, so that none is as good."""
    config = tiny.config(**OPTIONS, mask_voting=True)
    network = tiny.model(config)
    shift = tf.tile([[1.0, 0, 1, 0]], [tiny.VOCABULARY.num_classes + 1, 1])
    network.box_head.box_bias.assign(shift)
    saved_model.export(network, config, tiny.VOCABULARY, tiny.SET_A, str(tmp_path))
    image = tiny.images(1)[0]
    with (
        serving_toy.serving(tmp_path, "maskx") as (server, _),
        Client(grpc=f"127.0.0.1:{server.port}") as client,
    ):
        answer = client.detect(harness.image_file(image))
    direct = DetectionModule(network, config, tiny.VOCABULARY, tiny.SET_A)
    wanted = direct.detect_images(image[None])
    assert len(answer) == wanted["num_detections"][0] > 0
    scores = [detection.score for detection in answer]
    np.testing.assert_allclose(scores, wanted["detection_scores"][0, : len(answer)], atol=1e-5)
    assert answer.masks().any()
