"""New classes from boxes: the old outputs stay to the bit, the new rows are near the right ones."""

import json
import pathlib
import re
import shutil
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from export import saved_model
from maskx_tf import add_classes, checkpoints
from maskx_tf.adding import examples, fit, grow, known, prior, regions
from maskx_tf.adding.frozen_detector import FrozenDetector
from maskx_tf.assembly import build_model
from maskx_tf.checkpoints import LoadedModel
from maskx_tf.data import pipeline
from maskx_tf.data.coco import instances
from maskx_tf.errors import UserError
from maskx_tf.inference import folding
from maskx_tf.inference.module import DetectionModule
from maskx_tf.layers.box_head import BoxHead
from maskx_tf.layers.detections import by_falling_score
from tests import harness, tiny
from tf_records import coco
from tf_records.output import Output

OPTIONS = tiny.config(max_detections=8, score_threshold=0.02)


def random_rows(head, count, seed=0):
    rng = np.random.default_rng(seed)
    return fit.Rows(
        *(
            rng.normal(0, part.std() + 0.01, (count, *part.shape[1:])).astype(np.float32)
            for part in fit.old_rows(head)
        )
    )


@pytest.fixture(scope="module")
def old():
    return LoadedModel(tiny.model(OPTIONS), OPTIONS, tiny.VOCABULARY, tiny.SET_A)


def with_loud_classes(old):
    """Two new classes that would push the old ones out if places, or boxes, were shared."""
    rows = [
        random_rows(head, 2)._replace(cls_bias=np.array([1.0, 1.5], np.float32))
        for head in old.model.box_heads
    ]
    return grow.grow(old, ["emu", "fox"], [9, 4], rows)


@pytest.fixture(scope="module")
def grown(old):
    return with_loud_classes(old)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    images = tf.constant(rng.integers(0, 256, (2, 64, 96, 3)).astype(np.uint8))
    return images, tf.constant([[64.0, 96.0], [50.0, 96.0]])


def detections_of(found, image, classes):
    rows = np.isin(found["detection_classes"][image], classes)
    return {key: found[key][image][rows] for key in found if key != "num_detections"}


def test_old_classes_are_detected_the_same_to_the_bit(old, grown, batch):
    check_old_classes(old, grown, batch)


@pytest.mark.thorough
def test_old_classes_of_a_cascade_are_detected_the_same_to_the_bit(batch):
    """Also where new classes would move RoIs, or change the mean of the heads' scores."""
    config = OPTIONS.replace(cascade_ious=(0.5, 0.6), score_threshold=0.0)
    model = tiny.model(config)
    rng = np.random.default_rng(1)
    for head in model.box_heads:
        head.cls_kernel.assign(rng.normal(0, 0.02, head.cls_kernel.shape))
        head.box_kernel.assign(rng.normal(0, 0.02, head.box_kernel.shape))
    old = LoadedModel(model, config, tiny.VOCABULARY, tiny.SET_A)
    grown = with_loud_classes(old)
    for head in grown.model.box_heads:  # boxes that move
        head.box_bias.assign(tf.ones_like(head.box_bias) * tf.range(7.0)[:, None])
    for head, same in zip(model.box_heads, grown.model.box_heads, strict=True):
        head.box_bias.assign(same.box_bias[:5])
    check_old_classes(old, grown, batch)


def check_old_classes(old, grown, batch):
    before = {
        key: value.numpy() for key, value in tf.function(old.model, autograph=False)(*batch).items()
    }
    after = {
        key: value.numpy()
        for key, value in tf.function(grown.model, autograph=False)(*batch).items()
    }
    new_count = 0
    for image in range(2):
        was, now = (detections_of(f, image, range(1, 5)) for f in (before, after))
        assert len(was["detection_scores"]) > 2
        for key in was:
            np.testing.assert_array_equal(was[key], now[key])
        new = detections_of(after, image, [5, 6])
        new_count += len(new["detection_scores"])
        assert after["num_detections"][image] == len(was["detection_scores"]) + len(
            new["detection_scores"]
        )
        assert (np.diff(after["detection_scores"][image]) <= 0).all()
    assert new_count > 8
    assert after["detection_boxes"].shape[1] == grown.config.max_detections == 16


def test_old_masks_of_given_boxes_are_the_same_to_the_bit(old, grown, batch):
    boxes = tf.constant([[[5.0, 6, 40, 50], [10, 3, 60, 90]]] * 2)
    classes = tf.constant([[1, 4], [2, 3]])
    before, after = (tiny.segment(m.model, *batch, boxes, classes).numpy() for m in (old, grown))
    np.testing.assert_array_equal(before, after)
    new = tiny.segment(grown.model, *batch, boxes, classes * 0 + 6).numpy()
    assert np.abs(new - after).max() > 1e-4  # T gives the new class masks of its own


def test_folded_transfer_keeps_old_rows(old, grown):
    for loaded in (old, grown):
        table = loaded.model.w_seg(tf.range(5))
        np.testing.assert_array_equal(table, loaded.model.w_seg(tf.range(5)))
    grown_table = build_model(grown.config, 6)
    grown_table.set_weights(grown.model.get_weights())
    folding.fold_transfer(grown_table)
    old_kernels, _ = grown_table.mask_kernels(tf.range(5))
    np.testing.assert_array_equal(old_kernels, old.model.w_seg(tf.range(5)))


def test_new_scores_are_the_softmax_over_all_classes():
    features = tf.constant(np.random.default_rng(0).normal(size=(7, 12)), tf.float32)
    plain, grouped = BoxHead(5, 12), BoxHead(5, 12, (3, 2))
    for head in (plain, grouped):
        head.build([None, 3, 3, 4])
    grouped.set_weights(plain.get_weights())
    np.testing.assert_allclose(
        plain.class_logits(features), grouped.class_logits(features), atol=1e-6
    )
    assert grouped.groups == (range(1, 4), range(4, 6)) and plain.groups == (range(1, 6),)


def test_by_falling_score_keeps_the_order_of_a_group():
    first = {"num_detections": tf.constant([2]), "detection_scores": tf.constant([[0.9, 0.5, 0.0]])}
    second = {"num_detections": tf.constant([1]), "detection_scores": tf.constant([[0.5, 0, 0]])}
    first["tag"], second["tag"] = tf.constant([[1, 2, 0]]), tf.constant([[3, 0, 0]])
    merged = by_falling_score([first, second])
    assert merged["num_detections"].numpy().tolist() == [3]
    assert merged["tag"].numpy().tolist() == [[1, 2, 3, 0, 0, 0]]
    assert by_falling_score([first]) is first


def test_groups_must_fit():
    with pytest.raises(UserError, match="are 3 classes, but the vocabulary has 4"):
        build_model(tiny.config(class_groups=(2, 1)), 4)
    with pytest.raises(UserError, match="must be a multiple of 3"):
        build_model(tiny.config(class_groups=(2, 1, 1), max_detections=8), 4)


def test_vocabulary_and_a_second_round(grown):
    assert grown.vocabulary.names[4:] == ("emu", "fox")
    assert grown.vocabulary.external_ids == (1, 3, 4, 7, 9, 10)  # 4 was taken
    again = grow.grow(grown, ["gnu"], [11], [random_rows(grown.model.box_head, 1)])
    assert again.config.class_groups == (4, 2, 1)
    assert again.config.max_detections == 24  # 8 for each group


def factor_world(seed=0, shapes=8, textures=5, width=24, per_class=60):
    """Class weights of a softmax regression on features that a shape and a texture make."""
    rng = np.random.default_rng(seed)
    parts = rng.normal(0, 1, (shapes, width)), rng.normal(0, 1, (textures, width))
    means = (parts[0][:, None] + parts[1]).reshape(-1, width)
    count = len(means)
    labels = np.repeat(np.arange(count + 1), per_class)  # class 0 is background
    centres = np.concatenate([np.zeros([1, width]), means])[labels]
    features = np.maximum(centres + rng.normal(0, 1.2, centres.shape), 0).astype(np.float32)
    return features, labels


def trained_head(features, labels, classes):
    """A box head whose rows are trained on these features, with weight decay."""
    head = BoxHead(classes, features.shape[1])
    head.build([None, 1, 1, features.shape[1]])
    optimizer = tf_keras.optimizers.Adam(0.02)
    variables = [head.cls_kernel, head.cls_bias]
    x, y = tf.constant(features), tf.constant(labels)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, head.class_logits(x))
            loss = tf.reduce_mean(losses) + 0.003 * tf.reduce_sum(head.cls_kernel**2)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    for _ in range(300):
        step()
    rng = np.random.default_rng(5)  # box rows that follow from the class rows
    mixer = rng.normal(0, 0.1, (features.shape[1], 4, features.shape[1]))
    head.box_kernel.assign(np.einsum("kd,dce->kce", head.cls_kernel.numpy(), mixer))
    return head


def correlation(a, b):
    a, b = a.ravel(), b.ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def world():
    """Heads trained with all 40 classes and without the last two, and the features."""
    features, labels = factor_world()
    known = labels <= 38
    return (
        features,
        labels,
        trained_head(features, labels, 40),
        trained_head(features[known], labels[known], 38),
    )


def ten_examples(world):
    """Ten examples of each of the two, thirty other regions for each example."""
    features, labels, full, _ = world
    rng = np.random.default_rng(3)
    chosen = [rng.choice(np.flatnonzero(labels == c), 10, replace=False) for c in (39, 40)]
    others = rng.choice(np.flatnonzero(labels <= 38), 600, replace=False)
    rows = np.concatenate([*chosen, others])
    fitted = np.array([1] * 10 + [2] * 10 + [0] * 600)
    weights = np.where(fitted > 0, 1.0, 60 / 600)
    targets = np.zeros([len(rows), 4], np.float32)
    for index in np.flatnonzero(fitted):
        kernel = full.box_kernel.numpy()[labels[rows[index]]]
        targets[index] = kernel @ features[rows[index]] + rng.normal(0, 0.1, 4)
    return examples.Samples(features[rows], fitted, weights, targets)


def test_rows_are_near_those_of_full_training(world):
    features, labels, full, without = world
    rows = fit.fit(without, ten_examples(world), 2)
    old, wanted = fit.old_rows(without), fit.old_rows(full)
    for part in ("cls_kernel", "box_kernel"):
        mean = getattr(old, part).mean(axis=0)
        for index in range(2):
            new = getattr(rows, part)[index] - mean
            true = getattr(wanted, part)[38 + index] - getattr(wanted, part).mean(axis=0)
            assert correlation(new, true) > 0.8
            assert 0.4 < np.linalg.norm(new) / np.linalg.norm(true) < 1.5
    # They classify: against each other and against the old classes.
    test = labels >= 39
    logits = np.concatenate(
        [without.class_logits(features[test]), features[test] @ rows.cls_kernel.T + rows.cls_bias],
        axis=1,
    )
    right = (logits.argmax(axis=1) == labels[test]).mean()
    assert (
        right
        > 0.75 * (full.class_logits(features[test]).numpy().argmax(axis=1) == labels[test]).mean()
    )


def test_fit_is_at_its_minimum(world):
    samples = ten_examples(world)
    _, _, _, without = world
    rows = fit.fit(without, samples, 2)
    longer, steps = None, fit._STEPS
    try:
        fit._STEPS = 3 * steps
        longer = fit.fit(without, samples, 2)
    finally:
        fit._STEPS = steps
    gap = np.abs(rows.cls_kernel - longer.cls_kernel).max()
    assert gap < 0.02 * np.abs(longer.cls_kernel).max()


def world_means(world):
    """Class means of the 38 known classes."""
    features, labels, _, _ = world
    found = np.array([features[labels == k].mean(axis=0) for k in range(1, 39)])
    return known.ClassMeans(found, np.full(38, 60))


def test_looks_tell_the_row(world):
    _, _, full, without = world
    wanted = fit.old_rows(full).cls_kernel
    deviation = wanted[38:] - wanted.mean(axis=0)
    ten = ten_examples(world)
    alone = examples.Samples(*(part[:20] for part in ten))  # nothing beside the examples
    mix = prior.mix_of(world_means(world), ten.means(2))
    plain, told = (fit.fit(without, alone, 2, expected).cls_kernel for expected in (None, mix))
    mean = fit.old_rows(without).cls_kernel.mean(axis=0)
    for index in range(2):
        without_looks = correlation(plain[index] - mean, deviation[index])
        assert correlation(told[index] - mean, deviation[index]) > without_looks + 0.04


def test_a_class_that_looks_like_a_known_one_has_its_row(world):
    means = world_means(world)
    mix = prior.mix_of(means, means.features[[4, 17]])
    rows = fit.old_rows(world[3]).cls_kernel
    made = rows.mean(axis=0) + mix @ (rows - rows.mean(axis=0))
    for row, index in zip(made, (4, 17), strict=True):
        similar = [correlation(row - rows.mean(axis=0), r - rows.mean(axis=0)) for r in rows]
        assert np.argmax(similar) == index and similar[index] > 0.85


def test_classes_that_were_not_seen_have_no_part(world):
    rows = fit.old_rows(world[3]).cls_kernel
    means, seen = world_means(world), np.arange(38) % 3 > 0
    new = means.features[:2] + 0.1
    counts = np.where(seen, means.counts, 2)
    few = known.ClassMeans(np.where(seen[:, None], means.features, 99.0), counts)
    mix = prior.mix_of(few, new)
    alone = known.ClassMeans(means.features[seen], means.counts[seen])
    mix_alone = prior.mix_of(alone, new)
    assert (mix[:, ~seen] == 0).all()
    made = rows.mean(axis=0) + mix @ (rows - rows.mean(axis=0))
    centre = rows[seen].mean(axis=0)
    deviation = mix_alone @ (rows[seen] - centre)
    np.testing.assert_allclose(made, rows.mean(axis=0) + deviation, atol=1e-6)
    one = known.ClassMeans(means.features, np.where(np.arange(38) == 3, 9, 0))
    np.testing.assert_allclose(prior.mix_of(one, new), 0, atol=1e-12)
    none = known.ClassMeans(means.features, np.zeros(38, int))
    assert (prior.mix_of(none, new) == 0).all()


def test_means_of_samples():
    features = np.array([[1.0, 0], [3, 0], [5, 5], [9, 9]], np.float32)
    samples = examples.Samples(
        features, np.array([1, 1, 2, 0]), np.array([0.75, 0.25, 1, 7]), np.zeros([4, 4])
    )
    np.testing.assert_allclose(samples.means(2), [[1.5, 0], [5, 5]])


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Six images with five bees, three cats and a crowd of cats; nothing else."""
    directory = tmp_path_factory.mktemp("known")
    annotations = [harness.annotation(i, [5 + i, 8, 25, 20]) for i in range(1, 6)]
    annotations += [
        harness.annotation(i, [20, 10, 30, 25], category_id=2, iscrowd=int(i == 2))
        for i in (1, 2, 3, 6)
    ]
    path, images = harness.write_coco(
        directory, annotations, sizes=[(40, 60)] * 6, names=("bee", "cat")
    )
    coco.convert(path, images, Output(str(directory / "records"), "known", 3, workers=1))
    return (str(directory / "records"),)


def test_class_means_are_of_the_objects(old, records):
    means = known.class_means(FrozenDetector(old), records, 100, 0)
    assert means.counts.tolist() == [0, 5, 3, 0]
    assert (means.features[[0, 3]] == 0).all() and (means.features[[1, 2]] != 0).any()
    again = known.class_means(FrozenDetector(old), records, 100, 0)
    np.testing.assert_array_equal(means.features, again.features)
    one_image = known.class_means(FrozenDetector(old), records, 1, 0)
    assert one_image.counts.sum() <= 2


@pytest.mark.thorough
def test_class_means_over_files_that_a_pattern_names(old, records, tmp_path):
    """With or without a manifest beside them, each of their images is drawn once."""
    wanted = known.class_means(FrozenDetector(old), records, 100, 0)
    for path in sorted(pathlib.Path(records[0]).glob("*.tfrecord*")):
        shutil.copy(path, tmp_path)
    bare = known.class_means(FrozenDetector(old), (str(tmp_path / "*"),), 100, 0)
    np.testing.assert_array_equal(bare.counts, wanted.counts)
    np.testing.assert_allclose(bare.features, wanted.features)
    one_shard = known.class_means(FrozenDetector(old), (f"{records[0]}/*-00000-*",), 100, 0)
    assert one_shard.counts.tolist() == [0, 2, 1, 0]


@pytest.mark.thorough
def test_class_means_near_the_features_of_the_boxes(old, records, monkeypatch):
    """Without proposals and jitter, what is left is the feature of each given box."""
    monkeypatch.setattr(
        regions,
        "jitter",
        lambda box, rng: np.repeat(box[None], regions.JITTERED, axis=0),
    )
    config = old.config
    monkeypatch.setattr(old.model.box_head, "positive_iou", 0.9999)
    means = known.class_means(FrozenDetector(old), records, 100, 0)
    expected = []
    options = config.replace(batch_size=1)
    data = pipeline.make_dataset(records, options, old.vocabulary, (), training=False, seed=0)
    for image, labels in data:
        pyramid = old.model.pyramid(image["image"], image["image_size"])
        boxes = tf.boolean_mask(labels["boxes_yxyx"], labels["classes"] == 2)[None]
        if boxes.shape[1]:
            rois = old.model.roi_features(pyramid, boxes, config.box_roi_size)
            expected.append(old.model.box_head(rois).numpy())
    expected = np.concatenate(expected)
    assert len(expected) == 5
    np.testing.assert_allclose(means.features[1], expected.mean(axis=0), atol=1e-4)


def test_weights_of_samples():
    found = regions.Regions(
        np.zeros([6, 4]),
        np.array([1, 1, 2, 0, 0, 0]),
        np.zeros([6, 4]),
        np.array([0, 0, 2, -1, -1, -1]),
    )
    probabilities = np.full([6, 3], 0.25)
    probabilities[3:, 0] = (0.9, 0.9, 0.3)
    weights = regions.sample_weights(found, probabilities, 0.25)
    np.testing.assert_allclose(weights, [0.5, 0.5, 1, 6 * 0.9 / 2.1, 6 * 0.9 / 2.1, 6 * 0.3 / 2.1])


def test_regions_belong_to_the_box_they_overlap_most():
    class Given:
        boxes_yxyx = np.array([[10.0, 10, 50, 50], [10, 10, 50, 58]])
        labels = np.array([1, 0])
        crowds = np.array([[70.0, 70, 100, 100]])

    proposals = np.array([[10.0, 10, 50, 51], [10, 10, 50, 57], [60, 5, 90, 30], [71, 71, 80, 80]])
    rng = np.random.default_rng(0)
    found = regions.regions_of(proposals, Given, np.array([100.0, 100]), 0.5, rng)
    last = {tuple(box): label for box, label in zip(found.boxes_yxyx, found.labels, strict=True)}
    assert last[tuple(proposals[0])] == 1
    assert last[tuple(proposals[1])] == 0  # the known class has it
    assert last[tuple(proposals[2])] == 0
    assert tuple(proposals[3]) not in last  # may be of a new class
    assert (found.labels > 0).sum() > 10
    assert len(found.labels) == 2 + regions.JITTERED + 3


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, old):
    directory = tmp_path_factory.mktemp("run")
    checkpoints.save_new(old, str(directory))
    return str(directory)


def test_command_writes_a_model_that_loads(model_dir, old, tmp_path, monkeypatch):
    annotations = [
        harness.annotation(image, [5 + image, 8, 25, 20], category_id=category, segmentation=[])
        for image in (1, 2, 3)
        for category in (1, 2)
    ]
    boxes, images = harness.write_coco(
        tmp_path, annotations, sizes=[(40, 60)] * 3, names=("emu", "bee")
    )
    output = str(tmp_path / "new")
    said = add_classes.add_classes(model_dir, boxes, images, output)
    assert said.startswith("added: emu (3 boxes)") and "5 classes" in said
    loaded = checkpoints.load_model(output)
    assert loaded.vocabulary.names == (*tiny.VOCABULARY.names, "emu")
    assert loaded.mask_class_ids == old.mask_class_ids
    before, after = (fit.old_rows(m.model.box_head) for m in (old, loaded))
    for was, now in zip(before, after, strict=True):
        np.testing.assert_array_equal(was, now[:4])
        assert np.isfinite(now[4]).all()
    with pytest.raises(UserError, match="holds a model already"):
        checkpoints.save_new(loaded, output)
    monkeypatch.setattr(add_classes.checkpoints, "load_model", None)  # refused before any work
    with pytest.raises(UserError, match="holds a model already"):
        add_classes.add_classes(model_dir, boxes, images, output)
    with pytest.raises(UserError, match=r"--output_dir=.*instances\.json.* cannot be written"):
        add_classes.add_classes(model_dir, boxes, images, f"{boxes}/new")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["Bee", "b ee", "BEE_"])
def test_known_classes_spelled_otherwise(model_dir, tmp_path, name):
    boxes, images = harness.write_coco(
        tmp_path, [harness.annotation(1, [5, 8, 25, 20])], names=(name,)
    )
    output = tmp_path / "new"
    with pytest.raises(UserError, match=rf"1 categories .*'{name}' \('bee'\).* --similar_names"):
        add_classes.add_classes(model_dir, boxes, images, str(output))
    assert not output.exists()
    add_classes.add_classes(model_dir, boxes, images, str(output), (), similar_names=True)
    assert checkpoints.load_model(str(output)).vocabulary.names[-1] == name


@pytest.mark.thorough
def test_known_records(model_dir, records, tmp_path, capsys):
    annotations = [harness.annotation(1, [5, 8, 25, 20])]
    boxes, images = harness.write_coco(tmp_path, annotations, names=("emu",))
    outputs = [str(tmp_path / name) for name in "abc"]
    add_classes.add_classes(model_dir, boxes, images, outputs[0])
    assert "training records cannot be used. The model names none." in capsys.readouterr().err
    add_classes.add_classes(model_dir, boxes, images, outputs[1], known_records=())
    add_classes.add_classes(model_dir, boxes, images, outputs[2], known_records=records)
    assert "cannot be used" not in capsys.readouterr().err
    rows = [fit.old_rows(checkpoints.load_model(path).model.box_head) for path in outputs]
    np.testing.assert_array_equal(rows[0].cls_kernel, rows[1].cls_kernel)
    assert np.abs(rows[1].cls_kernel - rows[2].cls_kernel)[4].max() > 1e-4
    with pytest.raises(UserError, match="absent"):
        add_classes.add_classes(
            model_dir, boxes, images, str(tmp_path / "d"), known_records=("absent",)
        )


def test_unusable_boxes(model_dir, tmp_path):
    known = harness.write_coco(
        tmp_path / "a", [harness.annotation(1, [1, 1, 9, 9])], names=("bee",)
    )
    with pytest.raises(UserError, match="no category that the model does not know"):
        add_classes.add_classes(model_dir, *known, str(tmp_path / "out"))
    empty = harness.write_coco(
        tmp_path / "b", [harness.annotation(1, [1, 1, 0, 9])], names=("emu",)
    )
    with pytest.raises(UserError, match="no usable box of 'emu'"):
        add_classes.add_classes(model_dir, *empty, str(tmp_path / "out"))
    crowd = harness.write_coco(
        tmp_path / "c", [harness.annotation(1, [5, 8, 25, 20], iscrowd=1)], names=("emu",)
    )
    with pytest.raises(UserError, match="no usable box of 'emu'"):
        add_classes.add_classes(model_dir, *crowd, str(tmp_path / "out"))
    said = add_classes.add_classes(model_dir, *crowd, str(tmp_path / "emu"), crowds="objects")
    assert "emu (1 boxes)" in said
    with pytest.raises(UserError, match="^--boxes=absent.json cannot be read: No such file"):
        add_classes.add_classes(model_dir, "absent.json", known[1], str(tmp_path / "out"))
    with pytest.raises(UserError, match="is not a directory"):
        add_classes.add_classes(model_dir, known[0], str(tmp_path / "none"), str(tmp_path / "out"))


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_output": "class_specific"},
        {"transfer_input": "embedding", "transfer_embeddings": "x.npy"},
    ],
)
def test_models_whose_masks_do_not_follow_from_boxes(changes, old):
    with pytest.raises(UserError, match="a new class"):
        grow.check(old._replace(config=old.config.replace(**changes)))


def test_a_model_of_boxes_only_is_refused(old, tmp_path, monkeypatch):
    boxes_only = old._replace(config=old.config.replace(mode="stage1_boxes"))
    monkeypatch.setattr(add_classes.checkpoints, "load_model", lambda path: boxes_only)
    with pytest.raises(UserError, match="run detects boxes only"):
        add_classes.add_classes("run", "boxes.json", str(tmp_path), str(tmp_path / "out"))


def test_unreadable_images_are_left_out(old, tmp_path, capsys):
    annotations = [harness.annotation(i, [5, 8, 25, 20]) for i in (1, 2)]
    boxes, images = harness.write_coco(tmp_path, annotations, sizes=[(40, 60)] * 2, names=("emu",))
    pathlib.Path(f"{images}/2.jpg").write_bytes(b"no")
    samples, counts = examples.collect(
        FrozenDetector(old), instances.read(boxes), pathlib.Path(images), ["emu"], 0
    )
    assert counts == Counter(emu=1)
    assert samples.features.shape == (len(samples.labels), OPTIONS.box_fc_units)
    assert samples.weights[samples.labels > 0].sum() == pytest.approx(1)
    assert re.search(
        r"1 images cannot be read, such as .*2\.jpg cannot be used", capsys.readouterr().err
    )
    assert json.loads(pathlib.Path(boxes).read_text())["categories"][0]["name"] == "emu"


@pytest.mark.slow
def test_export_grows_and_serves_the_old_classes_the_same(old, tmp_path):
    grown = with_loud_classes(old)
    image = tiny.images(1)[0][None]
    module = DetectionModule(*old)
    before = {key: value.numpy()[0] for key, value in module.detect_images(image).items()}
    path = saved_model.export(*grown, str(tmp_path))
    served = tf.saved_model.load(path).signatures["image_tensor"](images=tf.constant(image))
    after = {key: value.numpy()[0] for key, value in served.items()}
    is_new = np.isin(after["detection_class_names"], [b"emu", b"fox"])
    assert is_new.any() and not after["detection_mask_seen"][is_new].any()
    is_old = (after["detection_classes"] > 0) & ~is_new
    count = before["num_detections"]
    assert is_old.sum() == count > 0
    for key in ("detection_boxes", "detection_classes", "detection_masks"):
        np.testing.assert_array_equal(after[key][is_old], before[key][:count])
    # A graph that is optimised as a whole may round otherwise than one that was not exported.
    scores = after["detection_scores"][is_old], before["detection_scores"][:count]
    np.testing.assert_allclose(*scores, rtol=2e-7)
