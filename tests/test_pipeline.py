"""From records to batches: geometry, classes, masks, order, errors."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.config import Config
from maskx_tf.data import augmentation, manifest
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.pipeline import make_dataset
from maskx_tf.errors import UserError
from tests import harness
from tf_records import coco
from tf_records.output import Output

PETS = Vocabulary.from_names(("cat", "dog", "bird"))
CONFIG = Config(
    image_min_side=64, image_max_side=96, batch_size=2, max_objects=4, mask_crop_size=14
)
SQUARE = CONFIG.replace(image_min_side=64, image_max_side=64)


def make_records(tmp_path, annotations, *, name="pets", num_shards=1, **options):
    annotations_path, images = harness.write_coco(tmp_path / name, annotations, **options)
    output = Output(str(tmp_path / f"{name}_records"), name, num_shards, workers=1)
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


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.5, 1.0), (1.4, 2.0)])
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


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"GIF89a", r"neither JPEG nor PNG(.|\n)*image(.|\n)*1\.jpg(.|\n)*pets-00000"),
        (harness.encode_image(harness.random_image(9, 9)), r"image size(.|\n)*1\.jpg"),
    ],
)
def test_bad_image_in_a_record_is_named(tmp_path, encoded, message):
    path = make_records(tmp_path, [])[0]
    shard = next((tmp_path / "pets_records").glob("*.tfrecord"))
    example = tf.train.Example.FromString(next(iter(tf.data.TFRecordDataset(str(shard)))).numpy())
    example.features.feature["image/encoded"].bytes_list.value[0] = encoded
    with tf.io.TFRecordWriter(str(shard)) as writer:
        writer.write(example.SerializeToString())
    (tmp_path / "pets_records" / "manifest.json").unlink()
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
