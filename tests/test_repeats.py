"""Repeat factors: their values, and that an order with repeats is exact and can be resumed."""

import collections
import math

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.data import repeats
from maskx_tf.data.order import TrainingOrder
from maskx_tf.data.pipeline import make_dataset
from maskx_tf.data.records import index
from tests import harness
from tests.harness import thorough
from tests.test_pipeline import CONFIG, PETS, make_records


def epochs(order, count):
    return [order.batches(tf.constant(epoch, tf.int64)).numpy() for epoch in range(count)]


@pytest.mark.parametrize(
    ("groups", "batch_size", "factors"),
    [
        ([0] * 6, 2, [1, 1, 2.5, 1, 1.25, 4]),
        thorough([0, 1, 0, 0, 1, 0, 0], 2, [1, 3.3, 1, 1.7, 1, 1, 2]),
        thorough([0, 1, 0], 5, [1, 1.5, 1]),
    ],
)
def test_every_record_comes_as_often_as_its_factor_says(groups, batch_size, factors):
    groups, factors = np.array(groups), np.array(factors, float)
    order = TrainingOrder(groups, batch_size, 3, factors)
    found = np.concatenate(epochs(order, 200))  # [steps, batch_size, 2]
    assert all(len(set(groups[batch])) == 1 for batch in found[..., 0])
    numbers = found[..., 1].ravel()
    assert len(set(numbers)) == len(numbers)
    for step in (0, 1, 7, 50, 111):
        epoch, place = order.find(step)
        batch = order.batches(tf.constant(epoch, tf.int64))[place]
        np.testing.assert_array_equal(batch, found[step])
    for group in set(groups.tolist()):
        of_group = np.flatnonzero(groups == group)
        length = round(factors[of_group].sum())
        share = factors[of_group] * length / factors[of_group].sum()
        counts = np.bincount(found[..., 0].ravel(), minlength=len(groups))[of_group] / 200
        np.testing.assert_allclose(counts, share, atol=0.1)


def test_repeats_of_an_epoch_are_a_factor_rounded_down_or_up():
    factors = np.array([1, 1, 2.5, 1, 1.25, 4, 1.25])  # 12 in all
    for batches in epochs(TrainingOrder(np.zeros(7, int), 1, 0, factors), 20):
        counts = np.bincount(batches[:, 0, 0], minlength=7)
        assert counts.sum() == 12
        assert all(math.floor(f) <= n <= math.ceil(f) for f, n in zip(factors, counts, strict=True))


def test_factors_are_those_of_the_rarest_class(tmp_path):
    """10 images, all with cats, four with dogs, one with a bird; a crowd of birds is none."""
    annotations = [harness.annotation(i, [1, 2, 9, 9]) for i in range(1, 11)]
    annotations += [harness.annotation(i, [2, 2, 9, 9], category_id=2) for i in (2, 3, 4, 5)]
    annotations.append(harness.annotation(5, [3, 4, 9, 9], category_id=3))
    annotations.append(harness.annotation(9, [3, 4, 9, 9], category_id=3, iscrowd=1))
    (records,) = make_records(tmp_path, annotations, sizes=[(40, 60)] * 11, num_shards=3)
    paths = sorted((tmp_path / "pets_records").glob("*.tfrecord"))
    assert str(paths[0]).startswith(records)
    found = index.build(paths, {}, skip_corrupt=False)
    factors = repeats.repeat_factors(found, threshold=0.9)
    ids = [index.image_id(place.read()) for place in _places(found, paths)]
    expected = dict.fromkeys(map(str, range(1, 12)), 1.0)  # cats: 10 of 11 images
    expected |= dict.fromkeys("234", math.sqrt(0.9 / (4 / 11))) | {"5": math.sqrt(0.9 * 11)}
    assert dict(zip(ids, factors, strict=True)) == pytest.approx(expected)
    few = repeats.repeat_factors(found, threshold=1 / 11)
    assert few.tolist() == [1.0] * 11


def _places(found, paths):
    for shard, offset, length in zip(found.shard, found.offset, found.length, strict=True):
        yield index.Place(paths[shard], index.Frame(int(offset), int(length)))


@pytest.mark.thorough
def test_training_sees_rare_classes_more_often_and_resumes(tmp_path):
    annotations = [
        harness.annotation(i, [3, 4, 20, 10], category_id=2 if i == 4 else 1) for i in range(1, 9)
    ]
    records = make_records(tmp_path, annotations, sizes=[(40, 60)] * 8)
    config = CONFIG.replace(batch_size=1, repeat_threshold=1.0)

    def ids(start, count):
        dataset = make_dataset(records, config, PETS, (1,), training=True, seed=5, start_step=start)
        return [int(features["image_id"][0]) for features, _ in dataset.take(count)]

    # sqrt(8) times the dog, sqrt(8 / 7) times each cat: 10.3, rounded to 10 in an epoch.
    found = collections.Counter(ids(0, 20))
    assert sum(found.values()) == 20 and found[4] in (4, 5, 6)  # 2 or 3 without
    assert ids(13, 7) == ids(0, 20)[13:]


def test_peeked_features_are_those_of_tensorflow(tmp_path):
    names = [name * 50 for name in ("cat", "dog", "bird")]  # longer than a head of a map entry
    annotations = [harness.annotation(1, [i, 2, 9, 9], category_id=1 + i % 3) for i in range(30)]
    make_records(tmp_path, annotations, names=names)
    (path,) = (tmp_path / "pets_records").glob("*.tfrecord")
    found = index.build([path], {}, skip_corrupt=False)
    keys = ("image/object/class/text", "image/object/area", "no/such/key")
    ((text, area, none),) = index.features_of(found, keys)
    (payload,) = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    feature = tf.train.Example.FromString(payload).features.feature
    assert tf.train.Feature.FromString(text) == feature[keys[0]]
    assert tf.train.Feature.FromString(area) == feature[keys[1]]
    assert none == b""
