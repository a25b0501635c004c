"""The record schema: writing, both ways of reading, damage."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from maskx_tf.data.records import schema
from maskx_tf.data.records.example_proto import serialize
from maskx_tf.data.records.schema import ImageRecord, ObjectRecord
from maskx_tf.errors import UserError
from tests.harness import encode_image, random_image


def make_record(rng: np.random.Generator, num_objects: int) -> ImageRecord:
    objects = []
    for index in range(num_objects):
        y, x = rng.uniform(0, 20, 2)
        height, width = rng.uniform(1, 20, 2)
        mask = rng.integers(0, 2, rng.integers(1, 30, 2)).astype(np.uint8)
        objects.append(
            ObjectRecord(
                box_yxyx=np.array([y, x, y + height, x + width]),
                class_id=int(rng.integers(1, 4)),
                class_name="naïve cat",
                area=float(np.float32(height * width)),
                is_crowd=bool(rng.integers(2)),
                annotation_id=int(rng.integers(2**62)) + index,
                mask=mask if rng.integers(2) else None,
                mask_source=("human", "grabcut", "naïve")[rng.integers(3)],
                mask_weight=(1.0, 0.3, 0.0)[rng.integers(3)],
            )
        )
    encoded = encode_image(random_image(40, 60))
    return ImageRecord(int(rng.integers(2**62)), "dir/ä.jpg", encoded, 40, 60, objects)


def assert_equal_records(one: ImageRecord, other: ImageRecord) -> None:
    for field in ("image_id", "file_name", "encoded", "height", "width"):
        assert getattr(one, field) == getattr(other, field)
    assert len(one.objects) == len(other.objects)
    for a, b in zip(one.objects, other.objects, strict=True):
        np.testing.assert_allclose(a.box_yxyx, b.box_yxyx, atol=1e-5)
        for field in ("class_id", "class_name", "area", "is_crowd", "annotation_id"):
            assert getattr(a, field) == getattr(b, field)
        assert (a.mask_source, a.mask_weight) == (b.mask_source, b.mask_weight)
        assert (a.mask is None) == (b.mask is None)
        if a.mask is not None:
            np.testing.assert_array_equal(a.mask, b.mask)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), num_objects=st.integers(0, 5))
def test_round_trip(seed, num_objects):
    record = make_record(np.random.default_rng(seed), num_objects)
    assert_equal_records(schema.from_example(schema.serialize_record(record)), record)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.one_of(
            st.tuples(st.just(bytes), st.lists(st.binary(max_size=200), max_size=4)),
            st.tuples(st.just(float), st.lists(st.floats(width=32, allow_nan=False), max_size=4)),
            st.tuples(st.just(int), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)),
        ),
        max_size=5,
    )
)
def test_serialize_is_what_tensorflow_reads(features):
    kinds = {bytes: ("bytes_list", tf.train.BytesList), float: ("float_list", tf.train.FloatList)}
    kinds[int] = ("int64_list", tf.train.Int64List)
    feature = {
        key: tf.train.Feature(**{kinds[kind][0]: kinds[kind][1](value=values)})
        for key, (kind, values) in features.items()
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    assert tf.train.Example.FromString(serialize(features)) == example
    assert serialize(dict(reversed(features.items()))) == serialize(features)


def to_example(record):
    return tf.train.Example.FromString(schema.serialize_record(record))


def test_keys_are_model_gardens():
    features = to_example(make_record(np.random.default_rng(0), 2)).features.feature
    side = {f"image/object/bbox/{name}" for name in ("xmin", "xmax", "ymin", "ymax")}
    assert set(features) >= side | {
        "image/encoded",
        "image/height",
        "image/width",
        "image/source_id",
        "image/object/class/label",
        "image/object/class/text",
        "image/object/area",
        "image/object/is_crowd",
        "image/object/has_mask",
        "image/object/mask",
        "image/object/mask_source",
    }
    assert all(0 <= value <= 1 for name in side for value in features[name].float_list.value)


@pytest.mark.parametrize("num_objects", [0, 1, 4])
def test_graph_parsing_agrees_with_eager_parsing(num_objects):
    record = make_record(np.random.default_rng(1), num_objects)
    parsed = tf.function(schema.parse_example, autograph=False)(
        tf.constant(schema.serialize_record(record))
    )
    assert parsed["image_id"] == record.image_id
    assert parsed["original_size"].numpy().tolist() == [40, 60]
    assert parsed["encoded"] == record.encoded
    boxes = np.array([item.box_yxyx for item in record.objects]).reshape(-1, 4)
    np.testing.assert_allclose(parsed["boxes_yxyx"], boxes, atol=1e-4)
    for index, item in enumerate(record.objects):
        assert parsed["class_labels"][index] == item.class_id
        assert parsed["class_names"][index].numpy().decode() == item.class_name
        assert parsed["annotation_ids"][index] == item.annotation_id
        assert bool(parsed["is_crowd"][index]) == item.is_crowd
        assert bool(parsed["has_mask"][index]) == (item.mask is not None)
        png = parsed["mask_pngs"][index].numpy()
        assert (png == b"") == (item.mask is None)
        assert parsed["mask_sources"][index].numpy().decode() == item.mask_source
        assert parsed["mask_weights"][index] == item.mask_weight
        if item.mask is not None:
            decoded = tf.io.decode_png(png, channels=1).numpy()[..., 0]
            np.testing.assert_array_equal(decoded, item.mask * 255)


def test_records_of_before_the_source_have_masks_of_people():
    record = make_record(np.random.default_rng(3), 6)
    wanted = ["" if item.mask is None else "human" for item in record.objects]
    assert len(set(wanted)) == 2
    example = to_example(record)
    del example.features.feature["image/object/mask_source"]
    old = example.SerializeToString()
    assert [item.mask_source for item in schema.from_example(old).objects] == wanted
    parsed = tf.function(schema.parse_example, autograph=False)(tf.constant(old))["mask_sources"]
    assert [source.decode() for source in parsed.numpy()] == wanted


def test_weights_are_written_where_one_is_not_1():
    record = make_record(np.random.default_rng(3), 6)
    key = "image/object/mask_weight"
    for item in record.objects:
        item.mask_weight = 1.0
    assert key not in to_example(record).features.feature
    record.objects[3].mask_weight = 0.5
    weights = to_example(record).features.feature[key].float_list.value
    assert list(weights) == [1, 1, 1, 0.5, 1, 1]


def test_malformed_examples_name_the_image():
    with pytest.raises(UserError, match="not a tf.Example"):
        schema.from_example(b"\xff\xff")
    with pytest.raises(UserError, match="0 values of image/source_id instead of one"):
        schema.from_example(b"")
    record = make_record(np.random.default_rng(0), 2)
    record.image_id = 17
    example = to_example(record)
    example.features.feature["image/object/area"].float_list.value.pop()
    with pytest.raises(UserError, match=r"Record of image 17: .* differ in length .*area: 1"):
        schema.from_example(example.SerializeToString())
    example = to_example(record)
    example.features.feature["image/object/has_mask"].int64_list.value[:] = [1, 1]
    example.features.feature["image/object/mask"].bytes_list.value[:] = [b"png", b""]
    with pytest.raises(UserError, match="Record of image 17: a mask of 3 bytes is not a PNG"):
        schema.from_example(example.SerializeToString())


def test_damaged_record_is_named(tmp_path):
    path = tmp_path / "x.tfrecord"
    rng = np.random.default_rng(0)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(3):
            writer.write(schema.serialize_record(make_record(rng, 1)))
    assert len(list(schema.read_records([path]))) == 3
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.tfrecord, record 2 at byte \d+: the payload .*verify"):
        list(schema.read_records([path]))
    with pytest.raises(UserError, match=r"y\.tfrecord cannot be read: No such file"):
        list(schema.read_records([tmp_path / "y.tfrecord"]))
