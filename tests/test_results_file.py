"""Results of other tools: scored as a model's, on A, B and all, detected or in given boxes."""

import json
import pathlib

import numpy as np
import pytest

from maskx_tf.data.coco import instances
from maskx_tf.errors import UserError
from maskx_tf.evaluation import coco, ground_truth, results_file
from maskx_tf.ops import masks
from tests import commands, harness
from tests.harness import polygon_of
from tf_records import coco as coco_records
from tf_records.output import Output

CATEGORIES = {3: "cat", 5: "dog", 9: "bird"}
L_SHAPE = [[10, 5, 30, 5, 30, 10, 15, 10, 15, 20, 10, 20]]
REST = [[15, 10, 30, 10, 30, 20, 15, 20]]  # of the same box


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(json, records, file of set A): a torn pair, objects with and without masks."""
    directory = tmp_path_factory.mktemp("results")
    items = [
        harness.annotation(1, [10, 5, 20, 15], category_id=3, segmentation=L_SHAPE),
        harness.annotation(1, [10, 5, 20, 15], category_id=5, segmentation=REST),
        harness.annotation(2, [1, 2, 20, 12], category_id=5, segmentation=polygon_of(1, 2, 20, 12)),
        harness.annotation(2, [30, 12, 15, 15], category_id=9, segmentation=[]),
    ]
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    sizes = [(40, 60), (30, 50)]
    path, images = harness.write_coco(directory, items, sizes=sizes, categories=categories)
    coco_records.convert(
        path, images, Output(str(directory / "records"), "x", workers=1), mask_size=0
    )
    (directory / "a.txt").write_text("cat\n")
    return path, str(directory / "records"), str(directory / "a.txt")


def rows_of(path, **changes):
    """The objects of the json as results; those without a mask get their box."""
    content = json.loads(pathlib.Path(path).read_text())
    rows = []
    for item in content["annotations"]:
        x, y, w, h = item["bbox"]
        segmentation = item["segmentation"] or polygon_of(x, y, w, h)
        row = {key: item[key] for key in ("image_id", "category_id", "bbox")}
        row |= {"segmentation": segmentation, "score": 0.9, **changes}
        rows.append({key: value for key, value in row.items() if value is not None})
    return rows


def run(data, tmp_path, *options, **files):
    _, records, set_a = data
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        options += (f"--{name}={tmp_path / f'{name}.json'}",)
    options += (f"--eval_records={records}", f"--mask_classes={set_a}")
    return commands.in_process("maskx_tf.evaluate", *options)


def test_the_truth_itself_is_perfect(data, tmp_path):
    rows = rows_of(data[0])
    options = ("--per_class", "--errors", f"--annotations={data[0]}")
    done = run(data, tmp_path, *options, results=rows, given_box_results=rows)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results_evaluation.json").read_text())
    for section in ("box", "mask", "mask_given_boxes"):
        for subset in ("A", "B", "all"):
            assert found[section][subset]["AP"] == pytest.approx(1), (section, subset)
    assert found["mask_given_boxes"]["all"]["IoU"] == pytest.approx(1)
    assert 0.5 < found["mask_given_boxes"]["all"]["ceiling"] < 1
    assert "A: 1 classes with masks, B: 2 without" in done.stdout
    assert "class-agnostic: at most" in done.stdout
    assert (tmp_path / "results_evaluation.html").is_file()


def test_what_sees_no_class_gets_one_mask_for_a_torn_pair(data, tmp_path):
    rows = rows_of(data[0], category_id=None, score=None)
    del rows[1]  # the pair's second box: it is the same
    done = run(data, tmp_path, f"--annotations={data[0]}", given_box_results=rows)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "given_box_results_evaluation.json").read_text())
    assert set(found) & {"box", "mask", "operating_point"} == set()
    of_pair = found["mask_given_boxes"]["all"]
    assert of_pair["shared"] == pytest.approx(2 / 3)
    assert of_pair["IoU_shared"] == pytest.approx(0.5)
    assert of_pair["IoU"] == pytest.approx(2 / 3)  # the others have the mask of their own box
    assert of_pair["IoU_shared"] <= of_pair["ceiling_shared"]
    assert found["mask_given_boxes"]["A"]["IoU"] == pytest.approx(1)
    assert "box " not in done.stdout.partition("mask, boxes given")[0]


def test_boxes_alone_get_box_ap_alone(data, tmp_path):
    done = run(data, tmp_path, results=rows_of(data[0], segmentation=None))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results_evaluation.json").read_text())
    assert "mask" not in found and found["box"]["all"]["AP"] == pytest.approx(1)


def test_figures_are_those_of_the_evaluator_that_models_get(data, tmp_path):
    path = data[0]
    rng = np.random.default_rng(0)
    rows = [
        {**row, "bbox": (np.array(row["bbox"]) + rng.uniform(0, 3, 4)).tolist(), "score": float(s)}
        for row, s in zip(rows_of(path) * 3, rng.random(12), strict=True)
    ]
    done = run(data, tmp_path, f"--annotations={path}", results=rows)
    found = json.loads((tmp_path / "results_evaluation.json").read_text())
    assert done.returncode == 0, done.stderr
    vocabulary = instances.read_categories(path)
    truth = ground_truth.ground_truth_from_json(path, vocabulary)
    evaluator = coco.CocoEvaluator(truth, vocabulary, (1,), "pycocotools")
    for image in truth["images"]:
        mine = [row for row in rows if row["image_id"] == image["id"]]
        boxes = [np.array(row["bbox"]) for row in mine]
        evaluator.add(
            image["id"],
            [[b[1], b[0], b[1] + b[3], b[0] + b[2]] for b in boxes],
            [row["score"] for row in mine],
            [list(CATEGORIES).index(row["category_id"]) + 1 for row in mine],
            [
                masks.segmentation_to_rle(r["segmentation"], image["height"], image["width"])
                for r in mine
            ],
        )
    expected = evaluator.evaluate()
    for section in ("box", "mask"):
        assert {s: found[section][s] for s in ("A", "B", "all")} == {
            s: pytest.approx(expected[section][s], nan_ok=True) for s in ("A", "B", "all")
        }
    assert 0 < expected["box"]["all"]["AP"] < 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 77}, "image_id"),
        ({"category_id": 1}, "category_id"),
        ({"category_id": None}, "category_id"),
        ({"score": "high"}, "score"),
        ({"score": None}, "score"),
        ({"bbox": [1, 2, 3]}, "bbox"),
        ({"bbox": None, "segmentation": None}, "bbox"),
        ({"segmentation": {"size": [1, 1], "counts": "a"}}, "mask_size_differs"),
        ({"segmentation": None}, "3 of 4"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(data, tmp_path, change, said):
    rows = rows_of(data[0])
    rows[2] = {key: value for key, value in {**rows[2], **change}.items() if value is not None}
    done = run(data, tmp_path, results=rows)
    assert done.returncode == 2
    assert said in done.stderr and "results.json" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[{]", '{"images": []}', "<a/>"])
def test_what_is_no_list_of_results(data, tmp_path, text):
    path, _, _ = data
    (tmp_path / "x.json").write_text(text)
    truth = ground_truth.ground_truth_from_json(path, instances.read_categories(path))
    with pytest.raises(UserError, match=r"x\.json"):
        results_file.read(str(tmp_path / "x.json"), "--results", truth, {})


@pytest.mark.parametrize("name", ["image_id", "file_name"])
@pytest.mark.parametrize("end", ["", ".jpg"])
def test_images_may_be_told_by_their_names(data, name, end, tmp_path):
    rows = rows_of(data[0])
    for row in rows:
        row[name] = f"{row['image_id']}{end}"
        row["image_id"] = row["image_id"] if name == "image_id" else 99
    (tmp_path / "x.json").write_text(json.dumps(rows))
    truth = ground_truth.ground_truth_from_json(data[0], instances.read_categories(data[0]))
    class_ids = dict(zip(CATEGORIES, (1, 2, 3), strict=True))
    found = results_file.read(str(tmp_path / "x.json"), "--results", truth, class_ids)
    assert {image_id: len(of_image) for image_id, of_image in found.items()} == {1: 2, 2: 2}


def test_options_of_models_do_not_go_with_files(data, tmp_path):
    done = run(data, tmp_path, "--kernels=mean_a", results=[])
    assert done.returncode == 2 and "--kernels" in done.stderr


def test_masks_in_given_boxes_need_a_mask_each(data, tmp_path):
    done = run(data, tmp_path, given_box_results=rows_of(data[0], segmentation=None))
    assert done.returncode == 2 and "segmentation" in done.stderr
