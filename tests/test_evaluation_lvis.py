"""LVIS's protocol against lvis-api 0.5.3, whose numbers are kept here."""

import json

import numpy as np
import pytest

from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.coco import instances
from maskx_tf.data.records import framing
from maskx_tf.data.records.manifest import find_shards
from maskx_tf.data.records.schema import read_records
from maskx_tf.errors import UserError
from maskx_tf.evaluation import coco, federated, ground_truth, report
from maskx_tf.ops import masks
from tests import harness, test_evaluation
from tf_records import coco as coco_records
from tf_records import verify, verify_contents
from tf_records.output import Output

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
VOCABULARY = Vocabulary.from_names(NAMES)
SET_A = (1, 2, 4, 7)
FREQUENCIES = "rrccffr"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
# What lvis-api makes of `scene()`: IoU type -> classes -> its values, in the order of METRICS.
LVIS_API = {
    ("bbox", "all"): [
        .100424785, .168555384, .104471962, .026883938, .146452324, .187880395,
        .096789350, .078069646, .126415359,
    ],
    ("bbox", "A"): [
        .090331153, .165692097, .090234797, .053767877, .146625281, .053896104,
        .096789350, .077414760, -1,
    ],
    ("bbox", "B"): [
        .110518417, .171418670, .118709126, .000000000, .146279367, .321864686,
        -1, .078724533, .126415359,
    ],
    ("segm", "all"): [
        .020873127, .084002296, .000304646, .000000000, .030676021, .125206271,
        .012663328, .022608920, .027347134,
    ],
    ("segm", "A"): [
        .014522404, .054997352, .000609292, .000000000, .023073017, .066666667,
        .012663328, .018240558, -1,
    ],
    ("segm", "B"): [
        .027223850, .113007240, .000000000, .000000000, .038279025, .183745875,
        -1, .026977281, .027347134,
    ],
}  # fmt: skip
PLACES = {"bbox": "box", "segm": "mask"}
SUBSETS = {"all": range(1, 8), "A": SET_A, "B": (3, 5, 6)}


def scene(images=14, crowded=3):
    """Ground truth as LVIS has it, and detections of all kinds, some images with over 300."""
    rng = np.random.default_rng(5)
    truth = ground_truth.ground_truth_from_images([], VOCABULARY)
    for category, frequency in zip(truth["categories"], FREQUENCIES, strict=True):
        category["frequency"] = frequency
    detections = []
    for index in range(images):
        height, width = (int(side) for side in rng.integers(100, 260, 2))
        image_id = 5 + 2 * index
        present = set()
        for _ in range(rng.integers(0, 9)):
            box = test_evaluation.random_box(rng, height, width)
            rle = test_evaluation.random_rle(rng, box, height, width)
            y1, x1, y2, x2 = box.tolist()
            class_id = int(rng.integers(1, 7))  # none of the last class
            present.add(class_id)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": class_id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": masks.rle_area(rle) * float(rng.random() > 0.05),
                    "iscrowd": 0,
                    "segmentation": rle,
                }
            )
            for shift in (3, 15):
                moved = box + rng.normal(0, shift, 4)
                detections.append((image_id, (height, width), moved, class_id))
        absent = sorted(set(range(1, 8)) - present)
        negative = [c for c in absent if rng.random() < 0.4]
        incomplete = [c for c in sorted(present) if rng.random() < 0.4]
        truth["images"].append(
            {
                "id": image_id,
                "height": height,
                "width": width,
                "neg_category_ids": negative,
                "not_exhaustive_category_ids": incomplete,
            }
        )
        for _ in range(320 if index < crowded else 25):
            box = test_evaluation.random_box(rng, height, width)
            detections.append((image_id, (height, width), box, int(rng.integers(1, 8))))
    results = []
    for image_id, size, box, class_id in detections:
        box = np.concatenate([np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])])
        score = float(np.round(rng.random(), 2))  # with ties
        rle = test_evaluation.random_rle(rng, box, *size)
        if rng.random() < 0.03:  # without an area
            box = box[[0, 1, 0, 3]]
            rle = masks.encode_rle(np.zeros(size, np.uint8))
        results.append((image_id, box, score, class_id, rle))
    return truth, results


def ours(truth, results, engine="faster_coco_eval", **options):
    evaluator = coco.CocoEvaluator(truth, VOCABULARY, SET_A, engine)
    for image in truth["images"]:
        mine = [row for row in results if row[0] == image["id"]]
        boxes, scores, classes, rles = (
            list(column) for column in zip(*(row[1:] for row in mine), strict=True)
        )
        evaluator.add(image["id"], np.array(boxes), scores, classes, rles)
    return evaluator.evaluate(**options)


def of_lvis_api(truth, results, iou_type, class_ids, monkeypatch):
    """Its values; mask results have no boxes, as in detectron2, so that areas are of masks."""
    lvis = pytest.importorskip("lvis", reason="pip install --no-deps lvis==0.5.3 compares anew")
    monkeypatch.setattr(np, "float", float, raising=False)  # it was written for NumPy 1
    index = lvis.LVIS.__new__(lvis.LVIS)
    index.logger, index.dataset = (
        lvis.lvis.logging.getLogger("lvis"),
        json.loads(json.dumps(truth | {"annotations": []})),
    )
    index.dataset["annotations"] = [dict(a) for a in truth["annotations"]]
    index._create_index()
    rows = []
    for image_id, (y1, x1, y2, x2), score, class_id, rle in results:
        row = {"image_id": image_id, "category_id": class_id, "score": score}
        where = {"bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]}
        rows.append(row | (where if iou_type == "bbox" else {"segmentation": dict(rle)}))
    evaluation = lvis.LVISEval(index, lvis.LVISResults(index, rows), iou_type)
    evaluation.params.cat_ids = sorted(class_ids)
    evaluation.run()
    return [float(evaluation.get_results()[metric]) for metric in METRICS]


@pytest.fixture(scope="module")
def made():
    return scene()


def same_as_lvis_api(results):
    for (iou_type, subset), values in LVIS_API.items():
        of_subset = results[PLACES[iou_type]][subset]
        found = [-1.0 if of_subset[metric] is None else of_subset[metric] for metric in METRICS]
        np.testing.assert_allclose(found, values, rtol=0, atol=2e-9, err_msg=f"{iou_type} {subset}")


@pytest.mark.parametrize("engine", list(coco.ENGINES))
@pytest.mark.parametrize("at_once", [10, 500_000])
def test_numbers_are_those_of_lvis_api(made, engine, at_once, monkeypatch):
    monkeypatch.setattr(coco, "_MOST_PAIRS", at_once)  # classes in one group, or in several
    results = ours(*made, engine)
    assert results["protocol"] == "LVIS"
    same_as_lvis_api(results)


@pytest.mark.thorough
@pytest.mark.parametrize(("iou_type", "subset"), list(LVIS_API))
def test_the_numbers_kept_here_are_what_lvis_api_says(made, iou_type, subset, monkeypatch):
    values = of_lvis_api(*made, iou_type, SUBSETS[subset], monkeypatch)
    np.testing.assert_allclose(values, LVIS_API[iou_type, subset], rtol=0, atol=2e-9)


def without(image, *keys):
    return {key: value for key, value in image.items() if key not in keys}


def test_each_rule_counts(made):
    """Of COCO's protocol, and of LVIS's without one of its lists, the numbers are others."""
    truth, results = made
    lists = ("neg_category_ids", "not_exhaustive_category_ids")
    plain = truth | {"images": [without(image, *lists) for image in truth["images"]]}
    coco_results = ours(plain, results)
    assert "protocol" not in coco_results and list(coco_results["box"]["all"]) == list(coco.METRICS)
    scores = [coco_results["box"]["all"]["AP"], ours(truth, results)["box"]["all"]["AP"]]
    for key in lists:
        images = [{**image, key: []} for image in truth["images"]]
        scores.append(ours(truth | {"images": images}, results)["box"]["all"]["AP"])
    assert len(set(np.round(scores, 6))) == 4
    assert scores[0] < scores[1]


def test_the_operating_point_counts_the_same(made):
    truth, results = made
    shown = ours(truth, results)["operating_point"]
    plain = [
        without(image, "neg_category_ids", "not_exhaustive_category_ids")
        for image in truth["images"]
    ]
    assert (
        shown["all"]["precision"]
        > ours(truth | {"images": plain}, results)["operating_point"]["all"]["precision"]
    )


def test_images_that_are_annotated_for_all_classes_stay_so():
    """COCO's images beside LVIS's: what has no list is counted as before."""
    truth, _ = scene(images=4, crowded=0)
    image = truth["images"][0]
    del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    counting = federated.that_count({image["id"]: [{"category_id": 7, "score": 0.5}]}, truth)
    assert len(counting[image["id"]]) == 1


def test_the_table_names_the_protocol(made):
    text = report.format_table(ours(*made))
    assert "APr" in text and "APf" in text and "LVIS's protocol" in text and "–" in text


def lvis_json(directory, truth):
    """The scene as LVIS's json and photos; category ids 10, 20, …, no file names, no iscrowd."""
    folder = directory / "photos" / "val2017"
    folder.mkdir(parents=True)
    images = []
    for image in truth["images"]:
        name = f"{image['id']:012}.jpg"
        picture = harness.random_image(image["height"], image["width"], image["id"])
        (folder / name).write_bytes(harness.encode_image(picture))
        lists = {key: [10 * c for c in image[key]]
                 for key in ("neg_category_ids", "not_exhaustive_category_ids")}  # fmt: skip
        url = f"http://images.example.org/val2017/{name}"
        images.append(image | lists | {"coco_url": url})
    annotations = []
    for item in truth["annotations"]:
        counts = item["segmentation"]["counts"]
        rle = item["segmentation"] | {
            "counts": counts if isinstance(counts, str) else counts.decode()
        }
        annotations.append(
            without(item, "iscrowd")
            | {"category_id": 10 * item["category_id"], "segmentation": rle}
        )
    categories = [
        {
            "id": 10 * c["id"],
            "name": c["name"],
            "frequency": c["frequency"],
            "synset": f"{c['name']}.n.01",
        }
        for c in reversed(truth["categories"])
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (directory / "lvis.json").write_text(json.dumps(content))
    return str(directory / "lvis.json"), str(directory / "photos")


@pytest.fixture(scope="module")
def converted(made, tmp_path_factory):
    directory = tmp_path_factory.mktemp("lvis")
    paths = lvis_json(directory, made[0])
    records = str(directory / "records")
    return paths, records, coco_records.convert(*paths, Output(records, "lvis", workers=1))


def test_as_it_is_from_json_and_records(made, converted):
    """By name, whatever the ids; masks are exact in the json only."""
    truth, results = made
    (annotations, _), records, manifest = converted
    assert manifest.num_objects == manifest.num_masks == len(truth["annotations"])
    assert not manifest.issues
    assert manifest.class_attributes["bee"] == {"frequency": "r", "synset": "bee.n.01"}
    of_json = ground_truth.ground_truth_from_json(annotations, VOCABULARY)
    same_as_lvis_api(ours(of_json, results))
    of_records = ground_truth.ground_truth_from_records([records], VOCABULARY)
    for image, other, original in zip(
        of_records["images"], of_json["images"], truth["images"], strict=True
    ):
        assert image == other == original | {"file_name": image["file_name"]}
        assert image["file_name"].startswith("val2017/")
    box = ours(of_records, results)["box"]["all"]
    found = [-1.0 if box[metric] is None else box[metric] for metric in METRICS]
    np.testing.assert_allclose(found, LVIS_API["bbox", "all"], rtol=0, atol=1e-3)


def test_classes_that_the_model_lacks_are_left_out(converted):
    """A class without objects need not be in the vocabulary, also if an image lists it."""
    few = Vocabulary.from_names(NAMES[:6])
    truth = ground_truth.ground_truth_from_records([converted[1]], few)
    assert {c for image in truth["images"] for c in image["neg_category_ids"]} <= set(range(1, 7))


def test_verify_reads_the_lists(converted):
    assert verify.verify([converted[1]], workers=1).faults == []
    names = [name for name in NAMES if name != "gnu"]
    faults = [
        fault
        for payload in raw_records(converted[1])
        for fault in verify_contents.examine(payload, names).faults
    ]
    assert any("neg_category" in fault and "gnu" in fault for fault in faults)


def raw_records(directory):
    for path in find_shards([directory]):
        with open(path, "rb", buffering=0) as file:
            for frame in framing.walk(path):
                yield framing.read_payload(file, frame)[0]


def test_records_of_other_data_are_as_before(tmp_path):
    made = harness.write_coco(tmp_path / "coco", [harness.annotation(1, [2, 2, 20, 20])])
    records = str(tmp_path / "records")
    coco_records.convert(*made, Output(records, "x", workers=1))
    assert all(b"category/text" not in payload for payload in raw_records(records))
    assert "class_attributes" not in json.loads(
        (tmp_path / "records" / "manifest.json").read_text()
    )
    truth = ground_truth.ground_truth_from_records(
        [records], Vocabulary.from_names(["cat", "dog", "bird"])
    )
    assert set(truth["images"][0]) == {"id", "file_name", "height", "width"}


def test_one_image_with_a_list_makes_all_have_both(tmp_path):
    """Otherwise an image whose list is empty would be one that is annotated for all classes."""
    path, _ = harness.write_coco(tmp_path, [], sizes=((40, 60), (40, 60)))
    content = json.loads((tmp_path / "instances.json").read_text())
    content["images"][0]["neg_category_ids"] = [2]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    items = instances.read(path).items
    assert [item[-2:] for item in items] == [((2,), ()), ((), ())]


@pytest.mark.parametrize("value", [None, 3, ["x"], "[1]"])
def test_what_is_no_list_of_ids(value, tmp_path):
    path, _ = harness.write_coco(tmp_path, [])
    content = json.loads((tmp_path / "instances.json").read_text())
    content["images"][0]["not_exhaustive_category_ids"] = value
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="not_exhaustive_category_ids of image 1"):
        instances.read(path)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://images.cocodataset.org/train2017/000000391895.jpg", "train2017/000000391895.jpg"),
        ("https://example.org/a/b%20c/x.jpg?size=1#y", "b c/x.jpg"),
        ("http://example.org/x.jpg", "x.jpg"),
    ],
)
def test_names_in_urls(url, name, tmp_path):
    path, _ = harness.write_coco(
        tmp_path, [], images=[{"id": 1, "coco_url": url, "height": 4, "width": 4}]
    )
    (item,) = instances.read(path).items
    assert item.file_name == name


def test_a_wrong_directory_is_told_what_it_has_to_hold(converted, tmp_path):
    (annotations, _), *_ = converted
    with pytest.raises(UserError, match="directory that holds val2017"):
        coco_records.convert(
            annotations, str(tmp_path), Output(str(tmp_path / "r"), "x", workers=1)
        )


def test_the_case(tmp_path):
    manifest = coco_records.convert(
        *harness.case("c14_lvis"), Output(str(tmp_path / "r"), "x", workers=1)
    )
    assert manifest.class_attributes["ant"] == {"frequency": "r", "synset": "ant.n.01"}
    for record in read_records(find_shards([str(tmp_path / "r")])):
        assert record.neg_classes == ("bee",) and record.not_exhaustive_classes == ()
        assert len(record.objects) == 2 and record.file_name.startswith("train2017/")
