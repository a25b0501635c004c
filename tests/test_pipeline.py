"""From records to batches: geometry, classes, masks, order, errors."""

import collections
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.config import Config
from maskx_tf.data import augmentation
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.order import TrainingOrder
from maskx_tf.data.pipeline import make_dataset
from maskx_tf.data.records import manifest
from maskx_tf.data.records.reader import reading_errors
from maskx_tf.data.records.schema import ImageRecord, ObjectRecord, serialize_record
from maskx_tf.errors import UserError
from tests import corruption, harness
from tests.harness import thorough
from tf_records import coco
from tf_records.output import Output

PETS = Vocabulary.from_names(("cat", "dog", "bird"))
CONFIG = Config(
    image_min_side=64, image_max_side=96, batch_size=2, max_objects=4, mask_crop_size=14
)
SQUARE = CONFIG.replace(image_min_side=64, image_max_side=64)


def make_records(tmp_path, annotations, *, name="pets", num_shards=1, **options):
    annotations_path, images = harness.write_coco(tmp_path / name, annotations, **options)
    output = Output(str(tmp_path / f"{name}_records"), name, num_shards, workers=1, most_dropped=1)
    coco.convert(annotations_path, images, output)
    return (output.directory,)


def elements(records, config=CONFIG, vocabulary=PETS, mask_class_ids=(1, 2, 3), seed=0, **kwargs):
    kwargs = {"training": False} | kwargs
    dataset = make_dataset(records, config, vocabulary, mask_class_ids, seed=seed, **kwargs)
    return dataset.as_numpy_iterator()


def single_image(records, config=CONFIG, **kwargs):
    """Features and labels of the first image, without the batch dimension."""
    features, labels = next(elements(records, config, **kwargs))
    first = [{key: value[0] for key, value in part.items()} for part in (features, labels)]
    return first[0], first[1]


def test_shapes_and_types(tmp_path):
    records = make_records(tmp_path, [harness.annotation(1, [3, 4, 20, 10])])
    dataset = make_dataset(records, CONFIG, PETS, (1,), training=True, seed=0)
    features, labels = dataset.element_spec
    expected = {
        "image": (tf.uint8, [2, None, None, 3]),
        "image_size": (tf.float32, [2, 2]),
        "image_scale": (tf.float32, [2, 2]),
        "original_size": (tf.int32, [2, 2]),
        "image_id": (tf.int64, [2]),
        "boxes_yxyx": (tf.float32, [2, 4, 4]),
        "classes": (tf.int32, [2, 4]),
        "is_crowd": (tf.bool, [2, 4]),
        "has_mask": (tf.bool, [2, 4]),
        "masks": (tf.uint8, [2, 4, 14, 14]),
        "mask_weight": (tf.float32, [2, 4]),
    }
    found = {key: (spec.dtype, spec.shape.as_list()) for key, spec in (features | labels).items()}
    assert found == expected
    square = make_dataset(records, SQUARE, PETS, (1,), training=True, seed=0)
    assert square.element_spec[0]["image"].shape == (2, 64, 64, 3)


def test_boxes_and_sizes_are_those_of_the_network_input(tmp_path):
    records = make_records(tmp_path, [harness.annotation(1, [3, 4, 20, 10])])
    features, labels = single_image(records)
    assert features["image"].shape == (64, 96, 3)
    assert features["image_size"].tolist() == [64, 96]
    assert features["original_size"].tolist() == [40, 60]
    np.testing.assert_allclose(features["image_scale"], [1.6, 1.6], rtol=1e-6)
    wanted = np.array([4, 3, 14, 23]) * 1.6
    np.testing.assert_allclose(labels["boxes_yxyx"][0], wanted, atol=1e-4)
    assert not labels["boxes_yxyx"][1:].any()
    assert labels["classes"].tolist() == [1, 0, 0, 0]
    assert labels["has_mask"].tolist() == [True, False, False, False]
    assert labels["masks"][0].all()
    assert not labels["masks"][1:].any()


def test_image_without_objects(tmp_path):
    _, labels = single_image(make_records(tmp_path, []))
    assert not any(value.any() for value in labels.values())


def test_classes_are_matched_by_name_over_several_directories(tmp_path):
    one = make_records(tmp_path, [harness.annotation(1, [0, 0, 9, 9], category_id=2)])
    other = make_records(
        tmp_path,
        [harness.annotation(1, [0, 0, 9, 9], category_id=1)],
        name="more",
        names=("owl", "cat"),
    )
    vocabulary = manifest.vocabulary_of(one + other)
    assert vocabulary.names == ("cat", "dog", "bird", "owl")
    batches = elements(one + other, CONFIG.replace(batch_size=1), vocabulary, (4,))
    found = [(labels["classes"][0, 0], labels["has_mask"][0, 0]) for _, labels in batches]
    assert found == [(2, False), (4, True)]


def test_class_that_the_vocabulary_lacks(tmp_path):
    records = make_records(tmp_path, [harness.annotation(1, [0, 0, 9, 9], category_id=3)])
    cats_and_dogs = Vocabulary.from_names(("dog", "cat"))
    with pytest.raises(UserError, match="1 classes that the vocabulary lacks: 'bird'"):
        elements(records, vocabulary=cats_and_dogs)
    (tmp_path / "pets_records" / "manifest.json").unlink()
    shards = (str(tmp_path / "pets_records" / "*.tfrecord"),)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"vocabulary lacks(.|\n)*bird"):
        next(elements(shards, vocabulary=cats_and_dogs, mask_class_ids=()))
    # A class of the vocabulary that no object has is not missed.
    records = make_records(tmp_path, [harness.annotation(1, [0, 0, 9, 9])], name="cats")
    next(elements(records, vocabulary=cats_and_dogs, mask_class_ids=()))


def test_training_takes_masks_of_the_chosen_sources(tmp_path):
    annotations = [
        harness.annotation(1, [5, 5, 30, 20]),
        harness.annotation(1, [20, 10, 30, 20], segmentation=[]),
    ]
    made = harness.write_coco(tmp_path / "coco", annotations)
    for masks in ("grabcut_missing", "annotated"):
        coco.convert(*made, Output(str(tmp_path / masks), "x", 1, workers=1), masks=masks)
    both = (str(tmp_path / "grabcut_missing"),)
    config = SQUARE.replace(batch_size=1, horizontal_flip=False)

    def has_mask(*sources, training=True):
        chosen = config.replace(mask_sources=sources)
        return single_image(both, chosen, training=training)[1]["has_mask"].tolist()[:2]

    assert has_mask("human") == [True, False]
    assert has_mask("grabcut", "human") == [True, True]
    assert has_mask("human", training=False) == [True, True]
    with pytest.raises(UserError, match="no record has a mask of humans; .* of: grabcut, human"):
        has_mask("human", "humans")
    only = config.replace(mask_sources=("grabcut",))
    with pytest.raises(UserError, match="no record has a mask of grabcut; there are .*: human"):
        elements((str(tmp_path / "annotated"),), only, training=True)
    (tmp_path / "annotated" / "manifest.json").unlink()
    bare = str(tmp_path / "annotated" / "*.tfrecord")
    for records in ((bare,), (bare, *both)):  # what they hold is not known
        elements(records, only, training=True)
    (tmp_path / "grabcut_missing" / "manifest.json").unlink()
    both = (str(tmp_path / "grabcut_missing" / "*.tfrecord"),)
    assert has_mask("grabcut") == [False, True]


def test_weights_of_masks_and_of_their_sources(tmp_path):
    kinds = [("human", 1), ("human", 0.5), ("maskx_tf", 0.5), ("sam", None)]
    annotations = [
        harness.annotation(1, [5 * k, 5, 30, 20], mask_source=source, mask_weight=weight)
        for k, (source, weight) in enumerate(kinds)
    ]
    records = make_records(tmp_path, annotations)
    config = SQUARE.replace(batch_size=1, horizontal_flip=False)

    def weights(*said, training=True):
        labels = single_image(records, config.replace(mask_source_weights=said), training=training)[
            1
        ]
        assert labels["has_mask"].all()
        return labels["mask_weight"].tolist()

    assert weights("maskx_tf:0.5", "sam:0") == [1, 0.5, 0.25, 0]
    assert weights("maskx_tf:0.5", training=False) == [1, 0.5, 0.5, 1]
    with pytest.raises(UserError, match=r"--mask_source_weights=.* no record has a mask of sams"):
        weights("sams:0.5")
    with pytest.raises(UserError, match="--mask_source_weights=sam:0 leaves no mask"):
        elements(
            records,
            config.replace(mask_sources=("sam",), mask_source_weights=("sam:0",)),
            training=True,
        )


def test_masks_of_set_b_and_of_crowds_are_withheld(tmp_path):
    annotations = [
        harness.annotation(1, [0, 0, 9, 9], category_id=1),
        harness.annotation(1, [10, 0, 9, 9], category_id=2),
        harness.annotation(1, [20, 0, 9, 9], category_id=2, segmentation=[]),
        harness.annotation(1, [30, 0, 9, 9], category_id=2, iscrowd=1),
    ]
    _, labels = single_image(make_records(tmp_path, annotations), mask_class_ids=(2,))
    assert labels["has_mask"].tolist() == [False, True, False, False]
    assert labels["masks"].any(axis=(1, 2)).tolist() == [False, True, False, False]
    assert labels["is_crowd"].tolist() == [False, False, False, True]


def test_largest_objects_are_kept_in_their_order(tmp_path):
    sides = [5, 9, 3, 8, 7, 6]
    annotations = [harness.annotation(1, [8 * i, 0, side, side]) for i, side in enumerate(sides)]
    _, labels = single_image(make_records(tmp_path, annotations))
    heights = labels["boxes_yxyx"][:, 2] / 1.6
    np.testing.assert_allclose(heights, [9, 8, 7, 6], atol=1e-4)


def test_training_is_shuffled_repeated_and_the_same_for_a_seed(tmp_path):
    sizes = [(40, 60)] * 3 + [(60, 40)] * 3
    records = make_records(
        tmp_path, [harness.annotation(1, [0, 0, 9, 9])], sizes=sizes, num_shards=3
    )
    config = SQUARE.replace(scale_jitter_min=0.8, scale_jitter_max=1.3)

    def ids_and_pixels(seed):
        dataset = make_dataset(records, config, PETS, (1,), training=True, seed=seed)
        batches = [features for features, _ in dataset.take(9).as_numpy_iterator()]
        return (np.stack([batch[key] for batch in batches]) for key in ("image_id", "image"))

    ids, pixels = ids_and_pixels(seed=1)
    again, same_pixels = ids_and_pixels(seed=1)
    other, _ = ids_and_pixels(seed=2)
    np.testing.assert_array_equal(ids, again)
    np.testing.assert_array_equal(pixels, same_pixels)
    assert ids.tolist() != other.tolist()
    epochs = ids.reshape(3, 6)
    assert [sorted(epoch) for epoch in epochs.tolist()] == [[1, 2, 3, 4, 5, 6]] * 3
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1


@pytest.mark.parametrize("workers", [thorough(1), 2, thorough(4)])
def test_the_parts_of_several_devices_make_up_the_batches_of_one(tmp_path, workers):
    """Four replicas: those of a worker take the elements of its dataset in turn."""
    sizes = [(40, 60)] * 5 + [(60, 40)] * 6
    records = make_records(
        tmp_path, [harness.annotation(1, [0, 0, 9, 9])], sizes=sizes, num_shards=3
    )
    config = CONFIG.replace(batch_size=4, scale_jitter_max=1.3)

    def elements(count, context=None):
        dataset = make_dataset(
            records, config, PETS, (1,), training=True, seed=1, start_step=2, context=context
        )
        return list(dataset.take(count).as_numpy_iterator())

    parts = []
    for worker in range(workers):
        found = elements(24 // workers, tf.distribute.InputContext(workers, worker, 4))
        parts.append([found[i : i + 4 // workers] for i in range(0, len(found), 4 // workers)])
    for step, whole in enumerate(elements(6)):
        step_parts = [part for worker in parts for part in worker[step]]
        merged = tf.nest.map_structure(lambda *values: np.concatenate(values), *step_parts)
        tf.nest.map_structure(np.testing.assert_array_equal, merged, whole)


def test_evaluation_is_one_pass_in_record_order(tmp_path):
    records = make_records(tmp_path, [], sizes=[(40, 60), (60, 40), (40, 60)], num_shards=2)
    batches = [features["image_id"].tolist() for features, _ in elements(records, SQUARE)]
    assert batches == [[1, 2], [3]]


@pytest.mark.parametrize("training", [False, True])
def test_batches_hold_one_orientation(tmp_path, training):
    sizes = [(40, 60), (60, 40), (40, 60), (50, 50), (60, 40), (40, 60), (60, 40)]
    records = make_records(tmp_path, [], sizes=sizes)
    seen = collections.Counter()
    dataset = make_dataset(records, CONFIG, PETS, (), training=training, seed=0)
    for features, _ in dataset.take(8).as_numpy_iterator():
        portrait = features["original_size"][:, 0] > features["original_size"][:, 1]
        assert features["image"].shape[1:3] == ((96, 64) if portrait[0] else (64, 96))
        assert len(set(portrait)) == 1
        seen.update(features["image_id"].tolist())
    if training:
        assert len(seen) == 7
    else:
        assert seen == dict.fromkeys(range(1, 8), 1)


def painted(tmp_path, config):
    """Draws of an image with a white L on black, its polygon the object: image, box and mask."""
    corner = [20, 10, 50, 10, 50, 18, 28, 18, 28, 35, 20, 35]
    annotation = harness.annotation(1, [20, 10, 30, 25], segmentation=[corner], area=376)
    path, images = harness.write_coco(tmp_path / "l", [annotation])
    image = np.zeros([40, 60, 3], np.uint8)
    image[10:18, 20:50] = image[10:35, 20:28] = 255
    (tmp_path / "l" / "images" / "1.jpg").write_bytes(harness.encode_image(image, ".png"))
    records = (str(tmp_path / "l_records"),)
    coco.convert(path, images, Output(records[0], "l", workers=1))
    dataset = make_dataset(records, config, PETS, (1,), training=True, seed=3)
    for features, labels in dataset.take(12).unbatch().as_numpy_iterator():
        if not labels["has_mask"][0]:
            assert not labels["boxes_yxyx"].any()  # cropped away as a whole
            continue
        yield features, labels["boxes_yxyx"][0], labels["masks"][0]


def assert_mask_is_where_the_image_is_white(features, box, mask):
    """Looks the mask's pixel centres up in the image; rims apart, they must agree."""
    size = mask.shape[0]
    at = (np.arange(size) + 0.5) / size
    y = np.clip(box[0] + at * (box[2] - box[0]), 0, features["image_size"][0] - 1).astype(int)
    x = np.clip(box[1] + at * (box[3] - box[1]), 0, features["image_size"][1] - 1).astype(int)
    white = features["image"][..., 0][np.ix_(y, x)] > 127
    assert np.mean(white != mask) < 0.12


@pytest.mark.parametrize(("low", "high"), [thorough(1.0, 1.0), (0.5, 1.0), (1.4, 2.0)])
def test_boxes_and_masks_follow_flip_scale_and_crop(tmp_path, low, high):
    config = CONFIG.replace(
        scale_jitter_min=low, scale_jitter_max=high, mask_crop_size=28, batch_size=1
    )
    flips, scales = collections.Counter(), set()
    for features, box, mask in painted(tmp_path, config):
        assert (box[:2] >= 0).all()
        assert (box[2:] <= features["image_size"] + 1e-4).all()
        assert_mask_is_where_the_image_is_white(features, box, mask)
        flips[bool(mask[:, :4].mean() < mask[:, -4:].mean())] += 1
        scales.add(float(features["image_scale"][0]))
    assert min(flips[True], flips[False]) >= 1
    assert (len(scales) > 1) == (low < high)


def test_no_flip_when_told(tmp_path):
    config = CONFIG.replace(horizontal_flip=False, batch_size=1)
    images = [features["image"] for features, _, _ in painted(tmp_path, config)]
    assert all((image == images[0]).all() for image in images)


def test_crop_masks_equals_lookup():
    """A crop of half the mask, against bilinear lookup at the pixel centres."""
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, [3, 8, 8]).astype(np.uint8)
    boxes = np.array([[0, 0, 8, 8], [0, 0, 16, 8], [2, 2, 10, 10]], np.float32)
    clipped = np.array([[0, 0, 8, 8], [4, 0, 12, 8], [2, 6, 10, 10]], np.float32)
    found = augmentation.crop_masks(tf.constant(masks), boxes, clipped).numpy()
    np.testing.assert_array_equal(found[0], masks[0])  # nothing cut: nothing changes

    def lookup(mask, y, x):
        y, x = np.clip([y, x], 0, 7)
        low_y, low_x = int(y), int(x)
        high_y, high_x = min(low_y + 1, 7), min(low_x + 1, 7)
        top = mask[low_y, low_x] * (1 - x + low_x) + mask[low_y, high_x] * (x - low_x)
        bottom = mask[high_y, low_x] * (1 - x + low_x) + mask[high_y, high_x] * (x - low_x)
        return top * (1 - y + low_y) + bottom * (y - low_y)

    for row in range(8):
        for column in range(8):
            y = (4 + (row + 0.5)) / 16 * 8 - 0.5  # second: rows 4 to 12 of a box of 16
            assert found[1, row, column] == (lookup(masks[1], y, column) >= 0.5)
            x = (4 + (column + 0.5) / 2) - 0.5  # third: the right half of a box of 8
            assert found[2, row, column] == (lookup(masks[2], row, x) >= 0.5)


def test_stored_masks_of_any_size_are_stretched():
    ones = harness.encode_image(np.full([3, 50], 255, np.uint8), ".png")
    half = np.zeros([40, 40], np.uint8)
    half[:20] = 255
    pngs = tf.constant([ones, b"", harness.encode_image(half, ".png")])
    found = augmentation.decode_masks(pngs, tf.constant([True, False, True]), 10).numpy()
    assert found[0].all()
    assert not found[1].any()
    assert found[2].tolist() == [[1] * 10] * 5 + [[0] * 10] * 5


def test_cut_shard_is_found_before_training(tmp_path):
    records = make_records(tmp_path, [], sizes=[(40, 60)] * 2)
    shard = next((tmp_path / "pets_records").glob("*.tfrecord"))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    for entry in (*records, str(shard)):
        with pytest.raises(UserError, match=rf"{shard.name} has \d+ bytes; its manifest says \d+"):
            elements((entry,))
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        elements(records)


def test_absent_records(tmp_path):
    with pytest.raises(UserError, match="No records match .*nowhere"):
        elements((str(tmp_path / "nowhere"),))
    with pytest.raises(UserError, match=r"holds no finished records \(no manifest.json\)"):
        elements((str(tmp_path),))
    with pytest.raises(UserError, match="No records are given"):
        elements(())


PHOTO = harness.encode_image(harness.random_image(40, 60))
BAD_PHOTOS = [
    (PHOTO[: len(PHOTO) // 2] + bytes(500), "1.jpg: it cannot be decoded: .*500 bytes are zeros"),
    (b"GIF89a", "1.jpg: it cannot be decoded: .*not a JPEG or PNG"),
    (harness.image_file(np.zeros([40, 60], np.uint16)), "1.jpg: it cannot be decoded: .*16 bits"),
    (
        harness.encode_image(harness.random_image(9, 9)),
        "image size 9 9 not as recorded: 40 60 .*1.jpg",
    ),
]


def with_photo(tmp_path, encoded):
    """Records of two images, of which the first holds these bytes; the shard, without manifest."""
    make_records(tmp_path, [], sizes=[(40, 60)] * 2)
    shard = next((tmp_path / "pets_records").glob("*.tfrecord"))
    payloads = [payload.numpy() for payload in tf.data.TFRecordDataset(str(shard))]
    example = tf.train.Example.FromString(payloads[0])
    example.features.feature["image/encoded"].bytes_list.value[0] = encoded
    with tf.io.TFRecordWriter(str(shard)) as writer:
        writer.write(example.SerializeToString())
        writer.write(payloads[1])
    (tmp_path / "pets_records" / "manifest.json").unlink()
    return str(shard)


@pytest.mark.parametrize(("encoded", "message"), BAD_PHOTOS)
@pytest.mark.parametrize("training", [True, thorough(False)])
def test_bad_image_in_a_record_is_named(tmp_path, encoded, message, training):
    records = (with_photo(tmp_path, encoded),)
    with pytest.raises(UserError, match=message) as error, reading_errors(records):
        for _ in make_dataset(records, CONFIG, PETS, (1,), training=training, seed=0).take(4):
            pass
    text = str(error.value)
    assert "pets-00000" in text and "record 0" in text and "image 1" in text and "\n" not in text


@pytest.mark.parametrize(("encoded", "message"), BAD_PHOTOS)
def test_images_that_cannot_be_decoded_are_left_out_when_told(tmp_path, encoded, message, caplog):
    records = (with_photo(tmp_path, encoded),)
    config = CONFIG.replace(skip_corrupt_records=True, batch_size=1)
    dataset = make_dataset(records, config, PETS, (1,), training=True, seed=0)
    assert {int(features["image_id"][0]) for features, _ in dataset.take(4)} == {2}
    (warning, count) = [entry.getMessage() for entry in caplog.records]
    assert re.search("byte 0: record 0, image 1: .*1.jpg|the record says 40 x 60", warning)
    assert "pets-00000" in warning and "1 intact records are used" in count


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_box_in_a_record_that_is_not_finite_is_named(tmp_path, value):
    path = make_records(tmp_path, [harness.annotation(1, [2, 3, 9, 9])])[0]
    shard = next((tmp_path / "pets_records").glob("*.tfrecord"))
    example = tf.train.Example.FromString(next(iter(tf.data.TFRecordDataset(str(shard)))).numpy())
    example.features.feature["image/object/bbox/xmax"].float_list.value[0] = value
    with tf.io.TFRecordWriter(str(shard)) as writer:
        writer.write(example.SerializeToString())
    (tmp_path / "pets_records" / "manifest.json").unlink()
    message = r"NaN or infinite(.|\n)*1\.jpg(.|\n)*image(.|\n)*pets-00000"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        next(elements((f"{path}/*.tfrecord",)))


def test_too_many_objects_are_announced_once(tmp_path, caplog):
    annotations = [harness.annotation(1, [i, i, 9, 9]) for i in range(6)]
    records = make_records(tmp_path, annotations)
    make_dataset(records, CONFIG, PETS, (1,), training=True, seed=0)
    (line,) = [entry.getMessage() for entry in caplog.records]
    assert (
        line == "Records 'pets' have images of up to 6 objects; --max_objects=4 keeps the largest."
    )


def plain_order(groups, batch_size, seed, steps):
    """Batches by walking through the epochs' permutations, one example after the other."""
    whole = TrainingOrder(np.zeros(len(groups), int), 1, seed)
    waiting, batches = collections.defaultdict(list), []
    for epoch in range(10_000):
        for example in whole.batches(tf.constant(epoch, tf.int64)).numpy()[:, 0].tolist():
            group = waiting[groups[example[0]]]
            group.append(example)
            if len(group) == batch_size:
                batches.append(list(group))
                group.clear()
                if len(batches) == steps:
                    return batches
    raise AssertionError("too few batches")


@pytest.mark.parametrize(
    ("groups", "batch_size"),
    [
        thorough([0] * 7, 1),
        thorough([0] * 6, 3),
        ([0, 1, 0, 0, 1, 0, 0], 2),
        thorough([0, 1, 0, 0], 5),
        ([1], 3),
    ],
)
def test_order_is_that_of_a_walk_through_the_epochs(groups, batch_size):
    order = TrainingOrder(np.array(groups), batch_size, seed=3)
    expected = plain_order(groups, batch_size, 3, steps=40)
    found = []
    for epoch in itertools.count():
        found += order.batches(tf.constant(epoch, tf.int64)).numpy().tolist()
        if len(found) >= 40:
            break
    assert found[:40] == expected
    for step in range(40):
        epoch, place = order.find(step)
        assert order.batches(tf.constant(epoch, tf.int64)).numpy()[place].tolist() == expected[step]
    numbers = [number for batch in expected for _, number in batch]
    assert len(set(numbers)) == len(numbers)


def test_an_epoch_has_every_record_once_and_looks_random():
    order = TrainingOrder(np.zeros(1000, int), 10, seed=-1)
    epochs = [order.batches(tf.constant(e, tf.int64)).numpy()[..., 0].ravel() for e in (0, 1)]
    for records in epochs:
        assert sorted(records) == list(range(1000))
        assert abs(np.corrcoef(records, np.arange(1000))[0, 1]) < 0.1
    assert abs(np.corrcoef(*epochs)[0, 1]) < 0.1
    other = TrainingOrder(np.zeros(1000, int), 10, seed=0).batches(tf.constant(0, tf.int64))
    assert abs(np.corrcoef(epochs[0], other.numpy()[..., 0].ravel())[0, 1]) < 0.1


def test_order_is_found_at_once_deep_in_a_run():
    groups = np.random.default_rng(0).random(118_287) < 0.25
    order = TrainingOrder(groups, 16, seed=0)
    epoch, place = order.find(1_000_000)
    batches = order.batches(tf.constant(epoch, tf.int64)).numpy()
    before = sum(epoch * count // 16 for count in (groups.sum(), (~groups).sum()))
    assert before + place == 1_000_000 and place < len(batches)
    assert len(set(groups[batches[place, :, 0]])) == 1


@pytest.mark.parametrize("start", [thorough(1), 7, thorough(23)])
def test_a_restart_goes_on_with_the_same_batches(tmp_path, start):
    sizes = [(40, 60), (60, 40), (40, 60), (40, 60), (60, 40), (40, 60), (40, 60)]
    annotations = [harness.annotation(i, [3, 4, 20, 10]) for i in range(1, 8)]
    records = make_records(tmp_path, annotations, sizes=sizes, num_shards=3)
    config = CONFIG.replace(scale_jitter_min=0.6, scale_jitter_max=1.5)

    def batches(start_step, count):
        dataset = make_dataset(
            records, config, PETS, (1,), training=True, seed=5, start_step=start_step
        )
        return list(dataset.take(count).as_numpy_iterator())

    undisturbed = batches(0, start + 4)[start:]
    for one, other in zip(undisturbed, batches(start, 4), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def damaged_records(tmp_path, kind):
    """12 images in 2 shards, of which the first is damaged from its third record on."""
    annotations = [harness.annotation(i, [0, 0, 9, 9]) for i in range(1, 13)]
    records = make_records(tmp_path, annotations, sizes=[(40, 60)] * 12, num_shards=2)
    shard = tmp_path / "pets_records" / "pets-00000-of-00002.tfrecord"
    corruption.damage(shard, kind, 2)
    return records, shard


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", corruption.KINDS)
def test_corruption_stops_with_its_name(tmp_path, kind, training):
    records, shard = damaged_records(tmp_path, kind)
    named = pytest.raises(UserError, match=rf"{shard.name}.*records verify")
    with named as error, reading_errors():
        dataset = make_dataset(records, CONFIG, PETS, (1,), training=training, seed=0)
        for _ in dataset.take(12):
            pass
    if kind == "payload bit":
        assert "record 2 at byte" in str(error.value)
        assert "(image 3): the payload does not match its checksum" in str(error.value)
    if kind == "length byte":
        assert "5 of the 6 records of its manifest" in str(error.value)


@pytest.mark.parametrize(
    "kind",
    [k if k in ("payload bit", "cut in a record") else thorough(k) for k in corruption.KINDS],
)
def test_corrupt_records_are_left_out_and_counted_when_told(tmp_path, kind, caplog):
    records, shard = damaged_records(tmp_path, kind)
    config = CONFIG.replace(skip_corrupt_records=True, batch_size=1)
    dataset = make_dataset(records, config, PETS, (1,), training=True, seed=0)
    warnings = [entry.getMessage() for entry in caplog.records]
    assert len(warnings) == 2
    kept = re.search(
        rf"{shard.name}: (\d) of the 6 records of its manifest are intact", warnings[0]
    )
    whole = int(kept[1])
    assert whole == (2 if kind.startswith("cut") else 5) or kind == "4 kB of zeros"
    ids = [int(f["image_id"][0]) for f, _ in dataset.take(2 * (6 + whole)).as_numpy_iterator()]
    epoch = set(range(1, 13)) - set(ids)
    assert warnings[1] == f"1 files are damaged; {6 + whole} intact records are used."
    assert 3 in epoch and len(epoch) == 6 - whole
    assert sorted(ids[: 6 + whole]) == sorted(ids[6 + whole :])
    with pytest.raises(UserError, match=shard.name), reading_errors():  # evaluation never skips
        for _ in make_dataset(records, config, PETS, (1,), training=False, seed=0):
            pass


def test_missing_shard_is_never_skipped(tmp_path):
    records, shard = damaged_records(tmp_path, "payload bit")
    shard.unlink()
    config = CONFIG.replace(skip_corrupt_records=True)
    with pytest.raises(UserError, match=rf"{shard.name} is missing"):
        make_dataset(records, config, PETS, (1,), training=True, seed=0)


def test_a_record_that_cannot_be_used_is_one_line(tmp_path):
    path = make_records(tmp_path, [harness.annotation(1, [0, 0, 9, 9], category_id=3)])[0]
    (tmp_path / "pets_records" / "manifest.json").unlink()
    vocabulary = Vocabulary.from_names(("dog",))
    named = pytest.raises(UserError, match=r"vocabulary lacks.*bird.*record 0 at byte 0")
    with named as error, reading_errors():
        next(elements((f"{path}/*.tfrecord",), vocabulary=vocabulary, mask_class_ids=()))
    assert "\n" not in str(error.value)


MEMORY = """
import os, re, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # so that one record is read at a time
import tensorflow as tf
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.pipeline import make_dataset
training = sys.argv[2] == "training"
jitter = dict(scale_jitter_min=0.8, scale_jitter_max=2.0) if training else {}
config = Config(batch_size=1, max_objects=1000, **jitter)
vocabulary = Vocabulary.from_names(("cat",))
tf.constant(1) + 1
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
dataset = make_dataset((sys.argv[1],), config, vocabulary, (1,), training=training, seed=0)
_, labels = next(iter(dataset))
assert int(tf.reduce_sum(tf.cast(labels["has_mask"], tf.int32))) >= (5 if training else 1000)
print(peak() - before)
"""


@pytest.mark.parametrize(
    "use", [thorough("evaluation"), pytest.param("training", marks=pytest.mark.slow)]
)
def test_a_thousand_objects_of_a_large_image_take_little_memory(tmp_path, use):
    """In MB over the imports; masks at full resolution, a few of them as large as the image."""
    objects = []
    for k in range(1000):
        h, w = (3000 - k, 4000 - k) if k < 5 else (90 + k % 50, 90 + k % 31)
        box, mask = np.array([0, 0, h, w], float), np.ones([h, w], np.uint8)
        objects.append(ObjectRecord(box, 1, "cat", 1.0, False, k, mask))
    encoded = harness.encode_image(harness.random_image(3000, 4000))
    path = tmp_path / "large.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(serialize_record(ImageRecord(1, "1.jpg", encoded, 3000, 4000, objects)))
    command = [sys.executable, "-c", MEMORY, str(path), use]
    done = subprocess.run(command, cwd=harness.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) / 1024 < 300
