"""Which anchors and RoIs are trained on: thresholds, forced matches, quotas, crowds, seeds."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.ops import sampling
from tests import batches, detectron2_fixture, oracles

IMAGE_SIZE = tf.constant([100.0, 100.0])
ANCHOR_OPTIONS = {
    "size": 64,
    "positive_fraction": 0.5,
    "positive_iou": 0.7,
    "negative_iou": 0.3,
    "straddle_threshold": 0.0,
}
ROI_OPTIONS = {"size": 64, "positive_fraction": 0.5, "positive_iou": 0.5}


def uniform(count, seed=0):
    return tf.random.stateless_uniform([1, count], (0, seed))


def draw_anchors(anchors, objects, seed=0, image_size=IMAGE_SIZE, **changes):
    """{anchor index: (positive, object index)} of the valid part of the sample."""
    anchors = tf.constant(anchors, tf.float32)
    options = ANCHOR_OPTIONS | changes
    objects = tf.constant([objects], tf.float32)
    sample, matched = sampling.sample_anchors(
        anchors, objects, image_size[None], uniform(len(anchors), seed), **options
    )
    return as_dict(sample, matched, options["size"])


def draw_rois(proposals, objects, eligible=None, crowds=((0, 0, 0, 0),), seed=0, **changes):
    """{candidate index: (positive, object index)}; candidates are the objects, then proposals."""
    eligible = [True] * len(objects) if eligible is None else eligible
    options = ROI_OPTIONS | changes
    sample, rois, matched = sampling.sample_rois(
        tf.constant([proposals], tf.float32),
        tf.constant([objects], tf.float32),
        tf.constant([eligible]),
        tf.constant([crowds], tf.float32),
        uniform(len(objects) + len(proposals), seed),
        **options,
    )
    candidates = np.concatenate([np.float32(objects), np.float32(proposals)])
    np.testing.assert_array_equal(rois[0], candidates[sample.indices[0]])
    return as_dict(sample, matched, options["size"])


def as_dict(sample, matched, size, image=0):
    """{candidate: (positive, match)} of one image; checks what holds for every sample."""
    for part in sample:
        assert part.shape[1:] == (size,)
    indices, positive, valid = (part[image].numpy() for part in sample)
    # Positives first, then negatives, then padding.
    assert np.all(np.diff(positive.astype(int)) <= 0) and np.all(np.diff(valid.astype(int)) <= 0)
    assert not np.any(positive & ~valid)
    assert len(set(indices[valid])) == valid.sum(), "drawn twice"
    pairs = zip(positive[valid].tolist(), matched[image].numpy()[valid].tolist(), strict=True)
    return dict(zip(indices[valid].tolist(), pairs, strict=True))


def positives(drawn):
    return {index: match for index, (positive, match) in drawn.items() if positive}


def negatives(drawn):
    return {index for index, (positive, _) in drawn.items() if not positive}


class TestBalancedSample:
    @pytest.mark.parametrize(
        ("num_positive", "num_negative", "wanted"),
        [
            (50, 80, (10, 20)),  # enough of both: the quota, filled up
            (4, 80, (4, 26)),
            (50, 5, (10, 5)),  # padding rather than more positives
            (0, 80, (0, 30)),
            (0, 0, (0, 0)),
        ],
    )
    def test_quotas(self, num_positive, num_negative, wanted):
        place = np.random.default_rng(0).permutation(200)
        positive = np.isin(np.arange(200), place[:num_positive])
        negative = np.isin(np.arange(200), place[num_positive : num_positive + num_negative])
        # A coarse random number has ties, which must not exceed the quota.
        for random in (uniform(200), tf.round(4 * uniform(200)) / 5):
            sample = sampling.balanced_sample(positive[None], negative[None], 30, 10, random)
            drawn = as_dict(sample, sample.indices, 30)
            assert (len(positives(drawn)), len(negatives(drawn))) == wanted
            assert all(positive[i] for i in positives(drawn))
            assert all(negative[i] for i in negatives(drawn))

    @pytest.mark.parametrize("kind", ["positive", "negative"])
    def test_every_candidate_is_drawn_alike(self, kind):
        random = tf.random.stateless_uniform([400, 20], (0, 0))
        everything = tf.ones([400, 20], tf.bool)
        pools = (everything, ~everything) if kind == "positive" else (~everything, everything)
        drawn = sampling.balanced_sample(*pools, 5, 5, random).indices.numpy()
        counts = np.bincount(drawn.ravel(), minlength=20)
        assert counts.min() > 65 and counts.max() < 140  # 100 expected

    def test_fewer_candidates_than_the_sample_holds(self):
        sample = sampling.balanced_sample([[True, False]], [[False, True]], 4, 3, tf.zeros([1, 2]))
        assert as_dict(sample, sample.indices, 4) == {0: (True, 0), 1: (False, 1)}

    def test_a_quota_of_zero(self):
        sample = sampling.balanced_sample([[True, False]], [[False, True]], 4, 0, tf.zeros([1, 2]))
        assert as_dict(sample, sample.indices, 4) == {1: (False, 1)}


class TestAnchors:
    def test_thresholds(self):
        """Anchors of 10 x 10 whose IoU with the object is x / 10 for a width of x."""
        objects = [[20, 20, 30, 30]]
        anchors = [[20, 20, 30, 20 + width] for width in (10, 8, 7, 6, 4, 3, 2)]
        anchors.append([60, 60, 70, 70])
        drawn = draw_anchors(anchors, objects)
        assert positives(drawn) == {0: 0, 1: 0, 2: 0}
        assert negatives(drawn) == {6, 7}  # 0.3 itself is ignored

    def test_the_best_anchors_of_an_object_are_positive_ties_included(self):
        objects = [[20, 20, 30, 30], [60, 60, 70, 70]]
        anchors = [[20, 20, 30, 24], [20, 26, 30, 30], [20, 22, 30, 25], [60, 60, 70, 62]]
        drawn = draw_anchors(anchors, objects)
        assert positives(drawn) == {0: 0, 1: 0, 3: 1}  # 0.4 twice; 0.2, the best there is
        assert negatives(drawn) == set()  # 0.3 is ignored, and forced positives are no negatives

    def test_a_forced_anchor_learns_its_own_best_object(self):
        """The best anchor of a small object may overlap a large one more."""
        objects = [[0, 0, 40, 40], [0, 0, 8, 8]]
        drawn = draw_anchors([[0, 0, 39, 40], [0, 0, 20, 20], [90, 90, 99, 99]], objects)
        assert positives(drawn) == {0: 0, 1: 0}
        assert negatives(drawn) == {2}

    @pytest.mark.parametrize(
        ("threshold", "allowed"), [(0.0, {1, 4}), (5.0, {0, 1, 3, 4}), (-1.0, {0, 1, 2, 3, 4})]
    )
    def test_straddle(self, threshold, allowed):
        anchors = [
            [-5, 10, 10, 20],
            [0, 10, 10, 20],
            [-6, 10, 10, 20],
            [90, 90, 100, 105],
            [90, 90, 100, 100],
        ]
        objects = [[0, 0, 0, 0]]
        assert set(draw_anchors(anchors, objects, straddle_threshold=threshold)) == allowed

    def test_a_straddling_anchor_does_not_take_the_place_of_the_best(self):
        objects = [[0, 0, 10, 10]]
        drawn = draw_anchors([[-1, 0, 10, 10], [0, 0, 10, 5]], objects)
        assert positives(drawn) == {1: 0}

    def test_padded_objects_match_nothing(self):
        anchors = [[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 1, 1]]
        alone = draw_anchors(anchors, [[20, 20, 30, 30]])
        padded = draw_anchors(anchors, [[20, 20, 30, 30], [0, 0, 0, 0], [0, 0, 0, 0]])
        assert alone == padded and positives(padded) == {1: 0}

    def test_without_objects_all_anchors_are_negative(self):
        drawn = draw_anchors([[0, 0, 10, 10], [20, 20, 30, 30]], [[0, 0, 0, 0]])
        assert drawn.keys() == negatives(drawn) == {0, 1}

    def test_quota_and_seed(self):
        rng = np.random.default_rng(0)
        anchors = batches.random_boxes(rng, 600, 100)
        objects = anchors[:200]
        drawn = [draw_anchors(anchors, objects, seed, size=64) for seed in (1, 1, 2)]
        assert len(positives(drawn[0])) == 32 and len(drawn[0]) == 64
        assert drawn[0] == drawn[1] != drawn[2]

    @pytest.mark.parametrize("name", detectron2_fixture.NAMES)
    def test_labels_equal_detectron2(self, name):
        fixture = detectron2_fixture.load(name)
        anchors = np.concatenate([fixture[f"anchors_p{level}"] for level in range(2, 7)])
        drawn = draw_anchors(
            anchors[:, detectron2_fixture.YXYX],
            fixture["gt_boxes"][:, detectron2_fixture.YXYX],
            image_size=tf.constant(fixture["meta"]["size"], tf.float32),
            size=3 * len(anchors),
            straddle_threshold=-1.0,
        )
        labels = fixture["anchor_labels"]
        assert set(positives(drawn)) == set(np.flatnonzero(labels == 1))
        assert negatives(drawn) == set(np.flatnonzero(labels == 0))
        for index, match in positives(drawn).items():
            assert match == fixture["anchor_matched"][index]


def test_the_images_of_a_batch_are_sampled_on_their_own():
    rng = np.random.default_rng(0)
    anchors = tf.constant(batches.random_boxes(rng, 50, 100))
    objects = tf.constant([batches.random_boxes(rng, 3, 100, least=20) for _ in range(3)])
    proposals = tf.constant([batches.random_boxes(rng, 40, 100, least=10) for _ in range(3)])
    sizes = tf.constant([[100.0, 100.0], [80.0, 100.0], [100.0, 60.0]])
    random = tf.random.stateless_uniform([3, 50], (0, 0))
    eligible = tf.constant([[True, True, False], [True, True, True], [False, False, True]])

    def sample(rows):
        by_anchor = sampling.sample_anchors(
            anchors, objects[rows], sizes[rows], random[rows], **ANCHOR_OPTIONS
        )
        by_roi = sampling.sample_rois(
            proposals[rows], objects[rows], eligible[rows], objects[rows] / 2, random[rows, :43],
            **ROI_OPTIONS,
        )  # fmt: skip
        return tf.nest.flatten([by_anchor, by_roi])

    together = sample(slice(None))
    for image in range(3):
        for ours, wanted in zip(together, sample(slice(image, image + 1)), strict=True):
            np.testing.assert_array_equal(ours[image], wanted[0])


@pytest.mark.parametrize(
    ("mask", "places", "real"),
    [
        ([[0, 1, 0], [1, 0, 1]], [[0, 1], [1, 0], [1, 2]], [True, True, True]),
        ([[0, 0, 0], [0, 0, 0]], [[0, 0]], [False]),
    ],
)
def test_where_or_first_is_never_empty(mask, places, real):
    found = sampling.where_or_first(tf.cast(mask, tf.bool))
    np.testing.assert_array_equal(found[0], places)
    np.testing.assert_array_equal(found[1], real)


class TestRois:
    OBJECTS = ([10, 10, 30, 30], [50, 50, 90, 90])

    def test_thresholds_and_the_ground_truth_boxes_among_the_candidates(self):
        proposals = [[10, 10, 30, 20], [10, 10, 30, 19], [52, 50, 90, 90], [0, 60, 9, 70]]
        drawn = draw_rois(proposals, self.OBJECTS)
        assert positives(drawn) == {0: 0, 1: 1, 2: 0, 4: 1}  # 0.5 itself is foreground
        assert negatives(drawn) == {3, 5}

    def test_each_roi_belongs_to_the_object_it_overlaps_most(self):
        rng = np.random.default_rng(0)
        objects = batches.random_boxes(rng, 6, 100, least=20)
        proposals = (np.repeat(objects, 20, axis=0) + rng.normal(0, 2, (120, 4))).astype(np.float32)
        drawn = draw_rois(proposals, objects, size=400)
        ious = oracles.iou_matrix(np.concatenate([objects, proposals]), objects)
        assert set(positives(drawn)) == set(np.flatnonzero(ious.max(axis=1) >= 0.5))
        assert all(match == ious[i].argmax() for i, match in positives(drawn).items())
        assert negatives(drawn) == set(np.flatnonzero(ious.max(axis=1) < 0.5))

    def test_quota_and_seed(self):
        rng = np.random.default_rng(0)
        proposals = batches.random_boxes(rng, 300, 100)
        objects = proposals[:100]
        options = {"size": 64, "positive_fraction": 0.25}
        drawn = [draw_rois(proposals, objects, seed=seed, **options) for seed in (1, 1, 2)]
        assert len(positives(drawn[0])) == 16
        assert drawn[0] == drawn[1] != drawn[2]

    def test_padding_is_never_drawn(self):
        proposals = [[10, 10, 30, 30], [0, 0, 0, 0], [60, 5, 80, 25], [0, 0, 0, 0]]
        drawn = draw_rois(proposals, [*self.OBJECTS, [0, 0, 0, 0]])
        assert set(drawn) == {0, 1, 3, 5}

    def test_without_objects_all_proposals_are_negative(self):
        drawn = draw_rois([[10, 10, 30, 30], [0, 0, 0, 0]], [[0, 0, 0, 0]])
        assert drawn.keys() == negatives(drawn) == {1}

    def test_rois_of_objects_that_are_not_eligible_are_left_out(self):
        proposals = [[11, 10, 30, 30], [52, 50, 90, 90], [0, 60, 9, 70]]
        drawn = draw_rois(proposals, self.OBJECTS, eligible=[True, False])
        assert positives(drawn) == {0: 0, 2: 0}
        assert negatives(drawn) == {4}

    def test_a_roi_inside_a_crowd_is_no_negative(self):
        """Share of the RoI inside the crowd: 1, 0.8, 0.7, 0.5."""
        proposals = [[60, 0, 70, 10], [60, 12, 70, 22], [60, 13, 70, 23], [60, 15, 70, 25]]
        crowd = [[50, 0, 90, 20], [0, 0, 0, 0]]
        objects = [[10, 60, 30, 80]]
        assert negatives(draw_rois(proposals, objects)) == {1, 2, 3, 4}
        assert negatives(draw_rois(proposals, objects, crowds=crowd)) == {3, 4}

    def test_a_crowd_does_not_take_away_positives(self):
        proposals = [[11, 10, 30, 30]]
        drawn = draw_rois(proposals, self.OBJECTS, crowds=[[0, 0, 100, 100]])
        assert positives(drawn) == {0: 0, 1: 1, 2: 0}

    @pytest.mark.parametrize("name", detectron2_fixture.NAMES)
    def test_labels_equal_detectron2(self, name):
        fixture = detectron2_fixture.load(name)
        objects = fixture["gt_boxes"][:, detectron2_fixture.YXYX]
        rois = fixture["train_rois"][:, detectron2_fixture.YXYX]
        drawn = draw_rois(rois, objects, size=200)
        classes, background = fixture["train_roi_classes"], fixture["meta"]["num_classes"]
        for index in range(len(rois)):
            positive, match = drawn[len(objects) + index]
            assert positive == (classes[index] != background)
            if positive:
                assert match == fixture["train_roi_matched"][index]
                assert fixture["gt_classes"][match] == classes[index]
