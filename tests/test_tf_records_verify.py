"""`tf_records.verify` names every kind of damage, and only damage."""

import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.data.records import framing, schema
from maskx_tf.data.records.manifest import FILE_NAME
from maskx_tf.errors import UserError
from tests import corruption, harness
from tf_records import coco, directories, verify
from tf_records.output import Output


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """24 images of 2 objects in 2 shards."""
    path = tmp_path_factory.mktemp("clean")
    annotations = [
        harness.annotation(image_id, [2 + 3 * k, 4, 20.5, 10], category_id=1 + k)
        for image_id in range(1, 25)
        for k in range(2)
    ]
    made = harness.write_coco(path, annotations, sizes=[(40, 60), (60, 40)] * 12)
    coco.convert(*made, Output(str(path / "records"), "pets", 2, workers=1))
    return path / "records"


@pytest.fixture
def directory(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "records")


def shard(directory, index=0):
    return directory / f"pets-0000{index}-of-00002.tfrecord"


def faults(directory, workers=1):
    return verify.verify([str(directory)], workers).faults


def test_whole_records_have_no_fault(directory):
    report = verify.verify([str(directory), str(directory)], workers=1)
    assert report.faults == []
    assert report.summary() == "4 files, 48 images, 96 objects, 96 with mask: no faults."


EXPECTED = {
    "payload bit": r"record 5, byte {at}, image 6: the payload does not match its checksum$",
    "length byte": r"record 5, byte {at}: the length is damaged: \d+ in place of \d+; .* are lost",
    "length checksum": r"record 5, byte {at}: the checksum of the length is damaged",
    "cut in a record": r"record 5, byte {at}: the file ends inside the record, \d+ of its bytes",
    "cut in a header": r"record 5, byte {at}: the file ends inside a header, after 5 of 12 bytes",
    "cut between records": r"5 records can be told apart, the manifest says 12",
    "4 kB of zeros": r"record 5, byte {at}, .*the payload does not match its checksum: \d+ zero"
    " byte",
}


@pytest.mark.parametrize("kind", corruption.KINDS)
def test_every_kind_of_corruption_is_named(directory, kind):
    at = corruption.damage(shard(directory), kind, 5)
    found = list(map(str, faults(directory)))
    assert all(line.startswith(str(shard(directory))) for line in found)
    assert any(re.search(EXPECTED[kind].format(at=at), line) for line in found), found
    assert any("the sha256 is not the one in the manifest" in line for line in found)
    if kind.startswith("cut"):
        assert any(re.search(r"has \d+ bytes, the manifest says \d+", line) for line in found)


@pytest.mark.parametrize("kind", ["payload bit", "length byte", "length checksum"])
def test_reading_goes_on_after_a_fault(directory, kind):
    corruption.damage(shard(directory), kind, 2)
    second = corruption.damage(shard(directory, 1), "payload bit", 11)
    report = verify.verify([str(directory)], workers=1)
    assert f"record 11, byte {second}, image 24" in "\n".join(map(str, report.faults))
    assert report.objects == 2 * 22
    assert report.images == (24 if kind == "payload bit" else 23)


def test_a_second_fault_of_one_file_is_found(directory):
    corruption.damage(shard(directory), "length checksum", 7)
    corruption.damage(shard(directory), "payload bit", 2)
    text = "\n".join(map(str, faults(directory)))
    assert "record 2," in text and "record 7," in text


def test_files_that_are_missing_or_too_many(directory):
    shutil.copy(shard(directory), directory / "old.tfrecord")
    shard(directory, 1).unlink()
    found = [str(fault) for fault in faults(directory)]
    assert found == [
        f"{directory}/old.tfrecord: is not in the manifest",
        f"{shard(directory, 1)}: is missing (12 records)",
    ]


def rewrite(path, change):
    """Applies `change` to the list of payloads of a file; its checksums fit again."""
    with open(path, "rb") as file:
        payloads = [framing.read_payload(file, frame)[0] for frame in framing.walk(path)]
    change(payloads)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in payloads:
            writer.write(payload)


def test_records_that_occur_twice(directory):
    def repeat(payloads):
        payloads[3] = payloads[1]
        payloads[4] = payloads[2].replace(b"3.jpg", b"x.jpg")

    rewrite(shard(directory), repeat)
    text = "\n".join(map(str, faults(directory)))
    name = shard(directory).name
    assert f"image 2: the record is the same as that of record 1 of {name}" in text
    assert f"image 3: the image id is also that of record 2 of {name}" in text


def set_feature(key, index, value):
    def change(payloads):
        example = tf.train.Example.FromString(payloads[0])
        feature = example.features.feature[key]
        getattr(feature, feature.WhichOneof("kind")).value[index] = value
        payloads[0] = example.SerializeToString()

    return change


def drop_area(payloads):
    example = tf.train.Example.FromString(payloads[0])
    example.features.feature["image/object/area"].float_list.value.pop()
    payloads[0] = example.SerializeToString()


JPEG = harness.encode_image(harness.random_image(40, 60))
FULL = schema.encode_mask(np.ones([130, 130], np.uint8))
EMPTY = schema.encode_mask(np.zeros([3, 3], np.uint8))
CONTENT = [
    ("image/encoded", 0, JPEG[: len(JPEG) // 2], "1.jpg: it cannot be decoded: its end is missing"),
    ("image/encoded", 0, b"GIF89a", "1.jpg: it cannot be decoded: .* not a JPEG or PNG"),
    ("image/height", 0, 41, "the image is 40 x 60, the record says 41 x 60"),
    ("image/source_id", 0, b"seven", "the image id 'seven' is not a whole number"),
    ("image/object/bbox/ymin", 1, float("nan"), r"object 1 \(id 2\): the box .* is not finite"),
    ("image/object/bbox/ymin", 1, 0.9, r"object 1 \(id 2\): the box .* is empty"),
    ("image/object/bbox/xmax", 0, 1.01, r"object 0 \(id 1\): the box .* leaves the image"),
    ("image/object/class/label", 0, 2, "class 2 is 'dog' in the manifest, 'cat' in the record"),
    ("image/object/class/label", 0, 4, r"class 4 is none of 1\.\.3"),
    ("image/object/class/text", 0, b"owl", "class 1 is 'cat' in the manifest, 'owl'"),
    ("image/object/has_mask", 1, 0, r"has_mask is 0 with a mask of \d+ bytes"),
    ("image/object/mask", 1, b"", "has_mask is 1 with a mask of 0 bytes"),
    ("image/object/mask", 1, b"PNG", "a mask of 3 bytes is not a PNG"),
    ("image/object/mask", 1, EMPTY, "the mask has no pixel"),
    ("image/object/mask", 1, FULL, "the mask of 130 x 130 pixels is larger than its box of 10.0"),
    ("image/object/mask_source", 1, b"", "has_mask is 1 with a mask of the source ''"),
    ("image/object/area", 0, -1.0, r"the area is -1\.0"),
    ("image/object/is_crowd", 0, 3, "is_crowd is 3"),
]


@pytest.mark.parametrize(("key", "index", "value", "message"), CONTENT)
def test_contents(directory, key, index, value, message):
    rewrite(shard(directory), set_feature(key, index, value))
    image = "unknown" if key == "image/source_id" else 1
    pattern = rf"tfrecord, record 0, byte 0, image {image}: .*{message}"
    assert any(re.search(pattern, str(fault)) for fault in faults(directory)), faults(directory)


def test_weights(tmp_path):
    items = [harness.annotation(1, [2, 4, 20, 10], mask_weight=0.5 * k) for k in range(3)]
    made = harness.write_coco(tmp_path, items)
    coco.convert(*made, Output(str(tmp_path / "records"), "pets", 1, workers=1))
    assert faults(tmp_path / "records") == []
    path = tmp_path / "records" / FILE_NAME
    path.write_text(path.read_text().replace('"weighted_masks": {', '"weighted": {'))
    (fault,) = faults(tmp_path / "records")
    assert fault.message.startswith("says 0 weighted masks of the source 'human'")
    assert fault.message.endswith("2")
    file = tmp_path / "records" / "pets-00000-of-00001.tfrecord"
    rewrite(file, set_feature("image/object/mask_weight", 1, 1.5))
    assert any("mask_weight is 1.5" in str(fault) for fault in faults(tmp_path / "records"))


def test_image_ids_may_be_negative(tmp_path):
    images = [{"id": -1, "file_name": "1.jpg", "height": 40, "width": 60}]
    made = harness.write_coco(tmp_path, [harness.annotation(-1, [2, 4, 20, 10])], images=images)
    coco.convert(*made, Output(str(tmp_path / "records"), "pets", 1, workers=1))
    assert faults(tmp_path / "records") == []


def test_malformed_examples(directory):
    def garble(payloads):
        drop_area(payloads)
        payloads[1] = b"\xff\xff"

    rewrite(shard(directory), garble)
    text = "\n".join(map(str, faults(directory)))
    assert re.search("record 0, .* image 1: .*its object features differ in length", text)
    assert re.search("record 1, .* image unknown: .* is not a tf.Example", text)


def test_counts_of_the_manifest(directory):
    path = directory / FILE_NAME
    content = json.loads(path.read_text())
    content["class_counts"]["cat"] = [23, 23]
    content["max_objects_per_image"] = 9
    path.write_text(json.dumps(content))
    assert [fault.message for fault in faults(directory)] == [
        "says 23 objects of 'cat', 23 with mask; the records have 24, 24 with mask",
        "says at most 9 objects in an image, there are 2",
    ]


def test_processes_find_the_same(directory):
    corruption.damage(shard(directory), "length byte", 3)
    corruption.damage(shard(directory, 1), "payload bit", 3)
    assert faults(directory, workers=2) == faults(directory, workers=1)


def test_directory_without_manifest(tmp_path):
    with pytest.raises(UserError, match="holds no finished records"):
        faults(tmp_path)


def test_arguments_without_a_flag():
    command = ["verify", "a", "--logtostderr", "b", "--v", "1", "--verbosity=2", "c"]
    changed = directories.to_flag(command)
    assert changed == ["verify", "--logtostderr", "--v", "1", "--verbosity=2", "--records=a,b,c"]
    assert directories.to_flag(["verify", "--records=a"]) == ["verify", "--records=a"]
    for command in (["--records=a", "b"], ["b", "--records", "a"], ["--records=a", "--records=b"]):
        (changed,) = directories.to_flag(["verify", *command])[1:]
        assert sorted(changed.removeprefix("--records=").split(",")) == ["a", "b"]
    assert directories.to_flag(["verify", "--records="]) == ["verify"]


def test_exit_codes(run_command, directory):
    def run():
        return run_command("tf_records.verify", str(directory), "--workers", "1")

    good = run()
    assert (good.returncode, good.stdout.splitlines()[-1][-10:]) == (0, "no faults.")
    corruption.damage(shard(directory), "payload bit", 0)
    bad = run()
    assert bad.returncode == 1
    assert "2 faults in 1 files. Write the records again." in bad.stdout


def test_tiny_coco(tmp_path):
    """Real records are without a fault."""
    output = Output(str(tmp_path / "val"), "val", workers=1)
    coco.convert(*harness.coco_mini("val"), output)
    assert faults(tmp_path / "val") == []
