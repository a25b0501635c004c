"""Visual Genome to records: the rules of docs/visual_genome.md, one by one."""

import math
import pathlib
import shutil

import numpy as np
import pytest

from benchmarks import visual_genome_scale
from maskx_tf.data.classes import Vocabulary, load_mask_classes
from maskx_tf.data.coco import issues as issues_lib
from maskx_tf.data.records.manifest import Manifest
from maskx_tf.errors import UserError
from tests import harness
from tests.visual_genome_data import (
    contents,
    convert,
    converted,
    reasons,
    records_of,
    vg_entry,
    vg_image,
    vg_object,
    write,
)

BOX = (10, 5, 20, 12)


def only_object(tmp_path, item, **options):
    manifest, (record,) = converted(tmp_path, [vg_entry(1, item)], **options)
    (found,) = record.objects
    return found, reasons(manifest)


def test_clean_object(tmp_path):
    found, issues = only_object(tmp_path, vg_object("bag.n.01", BOX, 7))
    assert issues == {}
    np.testing.assert_allclose(found.box_yxyx, [5, 10, 17, 30], atol=1e-5)
    assert (found.class_id, found.class_name, found.annotation_id) == (81, "bag.n.01", 7)
    assert (found.area, found.is_crowd, found.mask) == (240, False, None)


def test_golden_data_set(tmp_path):
    """What is written for a small data set, in full."""
    entries = [
        vg_entry(1, vg_object("person.n.01", BOX, 11), vg_object("tree.n.01", (0, 0, 9, 9), 12)),
        vg_entry(2, vg_object("tree.n.01", (-4, 2, 10, 10), 21)),
        vg_entry(3, vg_object("bag.n.06", BOX, 31), vg_object(["a.n.01", "b.n.01"], BOX, 32)),
        vg_entry(4, vg_object("sky.n.01", BOX, 41)),
    ]
    images = [vg_image(1), vg_image(2, coco_id=9), vg_image(3, coco_id=8), vg_image(4)]
    paths = write(tmp_path, entries, images, coco=[{"id": 9}])
    made = convert(paths, tmp_path / "r", num_classes=3, test_images=1)
    # sky.n.01 is not among the three most frequent: of five named once, a and b come first.
    assert made.classes.names[80:] == ("a.n.01", "b.n.01", "tree.n.01")
    found = [
        [split, record.image_id, record.file_name]
        + [
            (item.annotation_id, item.class_id, item.class_name, item.box_yxyx.round(3).tolist())
            for item in record.objects
        ]
        for split in made.manifests
        for record in records_of(tmp_path / "r" / split)
    ]
    person = (11, 1, "person", [5, 10, 17, 30])
    assert found == [
        ["train", 1, "VG_100K/1.jpg", person, (12, 83, "tree.n.01", [0, 0, 9, 9])],
        ["train", 3, "VG_100K/3.jpg", (31, 29, "suitcase", [5, 10, 17, 30])],
        ["val", 2, "VG_100K_2/2.jpg", (21, 83, "tree.n.01", [2, 0, 12, 6])],
        ["test", 4, "VG_100K_2/4.jpg"],
    ]
    issues = {split: reasons(manifest) for split, manifest in made.manifests.items()}
    assert issues == {
        "train": {"synset_ambiguous": [[32, 3]]},
        "val": {"box_clipped": [[21, 2]]},
        "test": {"synset_rare": [[41, 4]]},
    }
    assert made.manifests["val"].class_counts == {"tree.n.01": (1, 0)}


def in_version(version, entries, images):
    """The same data as another version of the files has them."""
    if version == "1.4":
        return entries, images
    entries = [dict(entry) for entry in entries]
    for entry in entries:
        del entry["image_url"]
        entry["objects"] = [dict(item) for item in entry["objects"]]
        for item in entry["objects"]:
            del item["merged_object_ids"]
            if version == "1.0":
                item["id"] = item.pop("object_id")
        if version == "1.0":
            entry["id"] = entry.pop("image_id")
    if version == "1.0":
        images = [{"id": image["image_id"]} | image for image in images]
        for image in images:
            del image["image_id"]
    return entries, images


@pytest.mark.parametrize("version", ["1.0", "1.2"])
def test_versions_agree(tmp_path, version):
    entries = [
        vg_entry(1, vg_object("person.n.01", BOX, 11), vg_object([], BOX, 12)),
        vg_entry(2, vg_object("tree.n.01", BOX, 13)),
    ]
    images = [vg_image(1), vg_image(2, coco_id=4)]
    paths = write(tmp_path / "vg", entries, images, coco=[{"id": 4}])
    older = write(tmp_path / version, *in_version(version, entries, images), coco=[{"id": 4}])
    made, other = convert(paths, tmp_path / "a"), convert(older, tmp_path / "b")
    assert made.classes == other.classes
    for split in ("train", "val"):
        assert reasons(made.manifests[split]) == reasons(other.manifests[split])
        first, second = (contents(tmp_path / name / split) for name in "ab")
        assert first.keys() == second.keys()
        assert [n for n in first if n != "manifest.json" and first[n] != second[n]] == []


@pytest.mark.parametrize(
    ("synsets", "reason"),
    [
        ([], "synset_missing"),
        (None, "synset_missing"),
        ("", "synset_missing"),
        (["a.n.01", "b.n.01"], "synset_ambiguous"),
        (["a.n.01", "a.n.01"], "synset_ambiguous"),
        (5, "synset_malformed"),
        ([None], "synset_malformed"),
        (["tree"], "synset_malformed"),
        (["person"], "synset_malformed"),
        (["tr\u0000ee.n.01"], "synset_malformed"),
        (["\ud800.n.01"], "synset_malformed"),
        (["# a.n.01"], "synset_malformed"),
        (["a.n.01", 3], "synset_malformed"),
    ],
)
def test_objects_without_exactly_one_synset_are_dropped(tmp_path, synsets, reason):
    items = [vg_object("x.n.01", BOX, 41, synsets=synsets), vg_object("tree.n.01", BOX, 42)]
    manifest, (record,) = converted(tmp_path, [vg_entry(1, *items)])
    assert [item.annotation_id for item in record.objects] == [42]
    assert reasons(manifest) == {reason: [[41, 1]]}
    assert manifest.issues[reason]["effect"] == "dropped"


@pytest.mark.parametrize(
    "synsets", ["tree.n.01", [{"synset_name": "tree.n.01", "entity_name": "tree"}]]
)
def test_other_spellings_of_one_synset(tmp_path, synsets):
    found, issues = only_object(tmp_path, vg_object("", BOX, 7, synsets=synsets))
    assert (found.class_name, issues) == ("tree.n.01", {})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"x": math.nan}, "box_not_finite"),
        ({"w": math.inf}, "box_not_finite"),
        ({"w": 10**400}, "box_not_finite"),
        ({"y": "one"}, "box_not_numeric"),
        ({"h": True}, "box_not_numeric"),
        ({"h": None}, "box_not_numeric"),
        (dict.fromkeys("xywh"), "box_missing"),
        ({"w": 0}, "box_empty"),
        ({"h": -5}, "box_empty"),
        ({"x": 60}, "box_outside_image"),
        ({"y": -30}, "box_outside_image"),
    ],
)
def test_unusable_boxes_are_dropped_and_listed(tmp_path, changes, reason):
    items = [vg_object("a.n.01", BOX, 41, **changes), vg_object("a.n.01", BOX, 42)]
    manifest, (record,) = converted(tmp_path, [vg_entry(1, *items)])
    assert [item.annotation_id for item in record.objects] == [42]
    assert reasons(manifest) == {reason: [[41, 1]]}


@pytest.mark.parametrize(
    ("box", "wanted"),
    [((-5, 30, 15, 20), [30, 0, 40, 10]), ((-1e300, -9, 2e300, 99), [0, 0, 40, 60])],
)
def test_boxes_beyond_the_image_are_clipped(tmp_path, box, wanted):
    found, issues = only_object(tmp_path, vg_object("a.n.01", box, 1))
    np.testing.assert_allclose(found.box_yxyx, wanted, atol=1e-5)
    assert found.area == pytest.approx((wanted[2] - wanted[0]) * (wanted[3] - wanted[1]))
    assert issues == {"box_clipped": [[1, 1]]}


def test_width_and_height_instead_of_w_and_h(tmp_path):
    item = vg_object("a.n.01", BOX, 1)
    item |= {"width": item.pop("w"), "height": item.pop("h")}
    found, _ = only_object(tmp_path, item)
    np.testing.assert_allclose(found.box_yxyx, [5, 10, 17, 30], atol=1e-5)


@pytest.mark.parametrize("drop", [False, True])
def test_duplicate_boxes(tmp_path, drop):
    items = [
        vg_object("a.n.01", BOX, 1),
        vg_object("a.n.01", BOX, 2),  # a duplicate
        vg_object("b.n.01", BOX, 3),  # another class
        vg_object("a.n.01", (10, 5, 20, 13), 4),  # another box
    ]
    manifest, (record,) = converted(tmp_path, [vg_entry(1, *items)], drop_duplicates=drop)
    kept = [item.annotation_id for item in record.objects]
    assert kept == ([1, 3, 4] if drop else [1, 2, 3, 4])
    assert reasons(manifest) == {"box_duplicate_dropped" if drop else "box_duplicate": [[2, 1]]}


def test_ids_become_unique(tmp_path):
    entries = [
        vg_entry(
            1,
            vg_object("a.n.01", BOX, 5),
            vg_object("a.n.01", BOX, 5),  # the same once more
            vg_object("a.n.01", (0, 0, 9, 9), 5),
            vg_object("a.n.01", (0, 0, 8, 8), None),
        ),
        vg_entry(2, vg_object("a.n.01", BOX, 5), vg_object("a.n.01", BOX, "x")),
        vg_entry(2, vg_object("a.n.01", (1, 1, 2, 2), 1)),
    ]
    manifest, records = converted(tmp_path, entries, [vg_image(1), vg_image(2)])
    found = [[item.annotation_id for item in record.objects] for record in records]
    assert found == [[5, 6, 7], [8, 9, 1]]
    assert reasons(manifest) == {
        "annotation_repeated": [[5, 1]],
        "annotation_id_duplicate": [[5, 1], [5, 2]],
        "annotation_id_missing": [[None, 1], [None, 2]],
        "objects_entry_repeated": [[None, 2]],
        "box_duplicate": [[9, 2]],
    }


def test_what_belongs_to_no_image(tmp_path):
    entries = [
        "text",
        vg_entry(99, vg_object("a.n.01", BOX, 5)),
        vg_entry(None, vg_object("a.n.01", BOX, 6), 7),
        {"image_id": 1},
        {"image_id": 1, "objects": [None]},
    ]
    manifest, (first, second) = converted(tmp_path, entries, [vg_image(1), vg_image(2)])
    assert first.objects == second.objects == []
    assert reasons(manifest) == {
        "objects_entry_malformed": [[None, None], [None, None], [None, 1]],
        "objects_entry_repeated": [[None, 1]],
        "objects_entry_missing": [[None, 2]],
        "annotation_of_unknown_image": [[5, 99], [6, None]],
        "annotation_malformed": [[None, None], [None, 1]],
    }


def test_entries_of_image_data(tmp_path):
    images = [
        vg_image(1),
        "text",
        {"image_id": 2},
        vg_image(3, url=5),
        vg_image(4, url="https://x/VG_100K/"),
        vg_image(5, url=".."),
        vg_image(6, url="http://[x/6.jpg"),
        vg_image(7, url="a/\ud800.jpg"),
        vg_image(1, url="again"),
        vg_image(8, coco_id=-1, flickr_id="x", width=0),
    ]
    manifest, records = converted(tmp_path, [vg_entry(1), vg_entry(8)], images)
    assert [record.image_id for record in records] == [1, 8]
    assert reasons(manifest) == {
        "image_entry_malformed": [[None, None], *([None, number] for number in range(2, 8))],
        "image_entry_repeated": [[None, 1]],
        "coco_id_invalid": [[None, 8]],
        "flickr_id_invalid": [[None, 8]],
        "image_size_invalid": [[None, 8]],
        "image_size_differs": [[None, 8]],
    }


def test_size_of_the_file_counts(tmp_path):
    item = vg_object("a.n.01", (10, 5, 200, 12), 1)
    images = [vg_image(1, width=300, height=100)]
    manifest, (record,) = converted(tmp_path, [vg_entry(1, item)], images)
    assert (record.height, record.width) == (40, 60)
    np.testing.assert_allclose(record.objects[0].box_yxyx, [5, 10, 17, 60], atol=1e-5)
    assert reasons(manifest) == {"image_size_differs": [[None, 1]], "box_clipped": [[1, 1]]}


def test_bad_image_files(tmp_path):
    entries = [vg_entry(number, vg_object("a.n.01", BOX, number)) for number in (1, 2, 3)]
    paths = write(tmp_path, entries, [vg_image(number) for number in (1, 2, 3)])
    folder = pathlib.Path(paths["images"])
    (folder / "VG_100K_2" / "2.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"Image 2: .*2\.jpg cannot be used.*--skip_bad_images"):
        convert(paths, tmp_path / "r")
    (folder / "VG_100K" / "3.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 image files of train are missing.*3\.jpg"):
        convert(paths, tmp_path / "r")
    made = convert(paths, tmp_path / "s", skip_bad_images=True)
    assert [record.image_id for record in records_of(tmp_path / "s" / "train")] == [1]
    assert reasons(made.manifests["train"]) == {
        "image_corrupt": [[None, 2]],
        "image_missing": [[None, 3]],
        "annotation_of_dropped_image": [[2, 2], [3, 3]],
    }


def test_grey_images_are_kept_as_they_are(tmp_path):
    paths = write(tmp_path, [vg_entry(1)], [vg_image(1)])
    grey = harness.encode_image(harness.random_image(40, 60)[..., 0])
    (pathlib.Path(paths["images"]) / "VG_100K" / "1.jpg").write_bytes(grey)
    manifest = convert(paths, tmp_path / "r").manifests["train"]
    (record,) = records_of(tmp_path / "r" / "train")
    assert record.encoded == grey
    assert reasons(manifest) == {"image_grey": [[None, 1]]}
    assert manifest.issues["image_grey"]["effect"] == "kept"


def test_image_files_in_one_folder(tmp_path):
    paths = write(tmp_path, [vg_entry(1), vg_entry(2)], [vg_image(1), vg_image(2)])
    folder = pathlib.Path(paths["images"])
    (folder / "VG_100K_2" / "2.jpg").rename(folder / "2.jpg")
    convert(paths, tmp_path / "r")
    names = [record.file_name for record in records_of(tmp_path / "r" / "train")]
    assert names == ["VG_100K/1.jpg", "2.jpg"]


def test_every_reason_is_documented():
    table = (harness.REPOSITORY / "docs" / "visual_genome.md").read_text()
    own = {"box_", "image_", "annotation_", "coco_", "flickr_", "objects_", "synset_"}
    own = {reason for reason in issues_lib.REASONS if any(map(reason.startswith, own))}
    own -= {"box_is_corners", "box_of_mask", "box_rotated", "image_name_differs"}  # of COCO jsons
    assert [reason for reason in sorted(own) if f"`{reason}`" not in table] == []


def random_data(directory, **changes):
    sizes = {"num_images": 40, "num_objects": 300, "synsets": 150} | changes
    paths = visual_genome_scale.make(directory, **sizes)
    return {flag: str(path) for flag, path in paths.items()}


def test_workers_give_the_same_bytes(tmp_path):
    paths = random_data(tmp_path / "vg")
    for workers in (1, 2):
        convert(paths, tmp_path / str(workers), {"workers": workers}, test_images=10)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_an_interrupted_run_goes_on(tmp_path):
    paths = random_data(tmp_path / "vg")
    convert(paths, tmp_path / "whole", test_images=10)
    convert(paths, tmp_path / "part", test_images=10, splits=("train",))
    (tmp_path / "part" / "vocabulary.json").unlink()  # is written last
    convert(paths, tmp_path / "part", test_images=10)
    assert contents(tmp_path / "whole") == contents(tmp_path / "part")
    with pytest.raises(UserError, match=r"train holds finished records; add --reuse"):
        convert(paths, tmp_path / "part", test_images=10)
    before = (tmp_path / "part" / "train" / "manifest.json").stat().st_mtime_ns
    convert(paths, tmp_path / "part", {"reuse": True}, test_images=10)
    assert (tmp_path / "part" / "train" / "manifest.json").stat().st_mtime_ns == before


def test_splits_that_are_added_later(tmp_path):
    """Also after an interruption: here, before the last of them is begun."""
    paths = random_data(tmp_path / "vg")
    for name, splits in (("whole", ["train", "test"]), ("part", ["train"])):
        convert(paths, tmp_path / name, test_images=10, splits=("val",))
        convert(paths, tmp_path / name, test_images=10, splits=tuple(splits))
    convert(paths, tmp_path / "part", test_images=10, splits=("train", "test"))
    assert contents(tmp_path / "whole") == contents(tmp_path / "part")
    with pytest.raises(UserError, match=r"train holds finished records; add --reuse"):
        convert(paths, tmp_path / "part", test_images=10, splits=("train", "test"))
    shutil.rmtree(tmp_path / "part" / "test")
    with pytest.raises(UserError, match=r"train holds records of another source"):
        convert(paths, tmp_path / "part", test_images=9, splits=("train", "test"))


def test_the_class_list_repeats_a_run(tmp_path):
    paths = random_data(tmp_path / "vg")
    made = convert(paths, tmp_path / "a", test_images=10, num_classes=60)
    class_list = tmp_path / "a" / "vocabulary.json"
    again = convert(paths, tmp_path / "b", test_images=10, vocabulary=str(class_list))
    assert made.classes == again.classes
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    vocabulary = Vocabulary.load(class_list)
    assert vocabulary == made.manifests["val"].vocabulary
    assert load_mask_classes("coco", vocabulary) == tuple(range(1, 81))
    # Splits written one by one have to have the same classes.
    with pytest.raises(UserError, match=r"vocabulary\.json lists other classes"):
        convert(paths, tmp_path / "a", test_images=10, num_classes=20, splits=("val",))


@pytest.mark.parametrize("seed", range(3))
def test_no_image_of_coco_val_gets_into_train(tmp_path, seed):
    random = np.random.default_rng(seed)
    images, coco = [], []
    for number in range(1, 10):
        kind = random.integers(6)
        ids = {"coco_id": 100 + number, "flickr_id": 4_000_000_000 + number}
        if kind in (1, 3):
            ids["coco_id"] = [None, -1][random.integers(2)]
        if kind in (2, 4):
            ids["flickr_id"] = str(ids["flickr_id"]) if kind == 4 else None
        images.append(vg_image(number, **ids))
        if random.random() < 0.5:
            url = f"http://farm5.staticflickr.com/4033/{4_000_000_000 + number}_0a1b_z.jpg"
            coco.append({"id": 100 + number, "flickr_url": url})
    coco.append({"id": 1, "flickr_url": None})
    paths = write(tmp_path, [], images, coco=coco)
    free = sum(isinstance(i["coco_id"], int) and i["coco_id"] > 0 for i in images)
    made = convert(paths, tmp_path / "r", test_images=min(1, 9 - free))
    in_val = {entry["id"] - 100 for entry in coco}
    split_of = {
        record.image_id: split
        for split in made.manifests
        for record in records_of(tmp_path / "r" / split)
    }
    assert sorted(split_of) == list(range(1, 10))
    assert {number for number, split in split_of.items() if split == "val"} == {
        number for number in range(1, 10) if number in in_val
    }


def test_test_images_are_the_last_ones_outside_of_coco(tmp_path):
    ids = [None, 5, None, -1, 6, None, 7]
    images = [vg_image(number, coco_id=coco_id) for number, coco_id in enumerate(ids, start=1)]
    images[5]["flickr_id"] = 44
    coco = [{"id": 7}, {"id": 1000, "flickr_url": "http://farm1.staticflickr.com/1/44_ab_z.jpg"}]
    paths = write(tmp_path, [], images, coco=coco)
    made = convert(paths, tmp_path / "r", test_images=2)
    found = {split: [record.image_id for record in records_of(tmp_path / "r" / split)]
             for split in made.manifests}  # fmt: skip
    assert found == {"train": [1, 2, 5], "val": [6, 7], "test": [3, 4]}
    assert "1 images are in COCO's json by coco_id, 1 more by flickr_id." in made.notes
    with pytest.raises(UserError, match="--test_images=4 is not between 0 and 3"):
        convert(paths, tmp_path / "s", test_images=4)


def test_without_a_coco_json(tmp_path):
    paths = write(tmp_path, [], [vg_image(1, coco_id=4), vg_image(2)], coco=None)
    with pytest.raises(
        UserError, match=r"give --coco_annotations=.*, or accept them with --keep_coco_val"
    ):
        convert(paths, tmp_path / "r")
    made = convert(paths, tmp_path / "r", keep_coco_val=True)
    assert list(made.manifests) == ["train"]
    assert any("may be in any split" in note for note in made.notes)
    assert "val has no images and was not written." in made.notes
    with pytest.raises(UserError, match="drop one"):
        convert(paths | {"coco_annotations": "x"}, tmp_path / "s", keep_coco_val=True)


@pytest.mark.parametrize(
    ("flag", "content", "message"),
    [
        ("objects", "{}", "holds no json list at its top level"),
        ("objects", "", "holds no json list"),
        ("objects", "[1, 2", "is not json"),
        ("objects", "[1] 2", "is not json: Extra data"),
        ("objects", '[{"image_id": 1, "objects": [}]', "is not json"),
        ("image_data", "[]", "has no images"),
        ("image_data", "[" * 100_000, "is not json"),
        ("coco_annotations", "[]", "has no images"),
        ("coco_annotations", '{"images": []}', "has no images"),
        ("coco_annotations", '{"images": [5]}', r"images\[0\] has no integer id"),
    ],
)
def test_unusable_jsons(tmp_path, flag, content, message):
    paths = write(tmp_path, [], [vg_image(1)])
    pathlib.Path(paths[flag]).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        convert(paths, tmp_path / "r")
    assert paths[flag] in str(error.value)
    pathlib.Path(paths[flag]).unlink()
    with pytest.raises(UserError, match=rf"--{flag}=.* cannot be read: No such file"):
        convert(paths, tmp_path / "r")


def test_unusable_options(tmp_path):
    paths = write(tmp_path, [], [vg_image(1)])
    with pytest.raises(UserError, match="--images=.*nowhere is not a directory"):
        convert(paths | {"images": str(tmp_path / "nowhere")}, tmp_path / "r")
    with pytest.raises(UserError, match="--splits=minival must be some of train, val, test"):
        convert(paths, tmp_path / "r", splits=("minival",))
    with pytest.raises(UserError, match="--splits=val: there are no images"):
        convert(paths, tmp_path / "r", splits=("val",))
    with pytest.raises(UserError, match="--num_classes=0 must be positive"):
        convert(paths, tmp_path / "r", num_classes=0)


def test_command_line(run_command, tmp_path):
    paths = write(tmp_path, [vg_entry(1, vg_object("a.n.01", BOX, 1))], [vg_image(1)])
    arguments = ["--test_images=0", "--splits=train", f"--output_dir={tmp_path / 'r'}"]
    arguments += [f"--{flag}={path}" for flag, path in paths.items()]
    done = run_command("tf_records.visual_genome", *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'r' / 'train'}: 1 images, 1 objects, 0 with mask")
    assert "81 classes, 80 of them of COCO." in lines
    assert Manifest.load(tmp_path / "r" / "train").source["test_images"] == 0
    again = run_command("tf_records.visual_genome", *arguments)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.splitlines()[-1].startswith("error: ")
