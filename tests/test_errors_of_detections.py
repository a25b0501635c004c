"""Kinds of errors, compared with the figures of tidecv 1.0.1, and the page of them."""

from collections import Counter

import numpy as np
import pytest

from benchmarks import browser
from maskx_tf.evaluation import coco, error_page, errors, report
from maskx_tf.ops import masks
from tests.test_evaluation import SET_A, VOCABULARY, random_box, random_ground_truth

SUBSETS = {"A": SET_A, "B": (2, 4, 5), "all": range(1, 7)}


def noisy_detections(truth, seed):
    """Detections of all kinds of errors, by image id."""
    rng = np.random.default_rng(seed)
    detections = {image["id"]: [] for image in truth["images"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}

    def add(image_id, class_id, box_yxyx, cells):
        height, width = sizes[image_id]
        box = np.clip(box_yxyx, 0, [height, width, height, width])
        y1, x1, y2, x2 = box.tolist()
        (rle,) = masks.paste_to_rle(cells, box[None], height, width)
        detections[image_id].append(
            {
                "image_id": image_id,
                "category_id": class_id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(rng.random()),
                "segmentation": rle,
            }
        )

    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        for _ in range(rng.integers(0, 4)):
            shift = rng.normal(0, rng.choice([0.02, 0.2, 0.5]), 4) * [height, width, height, width]
            class_id = annotation["category_id"]
            if rng.random() < 0.3:
                class_id = int(rng.integers(1, 6))
            box = np.array([y, x, y + height, x + width]) + shift
            box[2:] = np.maximum(box[2:], box[:2] + 2)
            cells = np.ones((1, 4, 4)) if rng.random() < 0.5 else rng.random((1, 4, 4)) + 0.2
            add(annotation["image_id"], class_id, box, cells)
    for image_id, (height, width) in sizes.items():
        for _ in range(rng.integers(0, 3)):
            class_id = int(rng.integers(1, 6))
            add(image_id, class_id, random_box(rng, height, width), np.ones((1, 4, 4)))
    return detections


def analysis_of(seed, iou_type, images=30):
    truth = random_ground_truth(seed, images)
    detections = noisy_detections(truth, seed)
    return errors.analyse(coco.ground_truth_for(iou_type, truth), detections, iou_type)


# AP50, Cls, Loc, Both, Dupe, Bkg, Miss, FalsePos, FalseNeg and the numbers of the six kinds of
# errors, of tidecv 1.0.1 for the same detections.
TIDE = {
    (0, "bbox"): (
        [28.59, 10.07, 22.14, 0.13, 0.87, 6.95, 4.12, 23.49, 24.89],
        [19, 50, 13, 27, 33, 12],
    ),
    (1, "segm"): ([7.8, 0.52, 26.81, 2.73, 0.1, 1.42, 6.31, 19.72, 21.16], [7, 44, 29, 7, 42, 35]),
    (2, "segm"): (
        [10.49, 5.42, 20.27, 0.98, 0.55, 2.26, 5.17, 24.76, 19.56],
        [15, 54, 21, 15, 51, 27],
    ),
}
TIDE_KINDS = ("class", "localization", "both", "duplicate", "background", "missed")


@pytest.mark.parametrize(("seed", "iou_type"), TIDE)
def test_errors_are_those_of_tidecv(seed, iou_type):
    analysis = analysis_of(seed, iou_type)
    expected, counts = TIDE[seed, iou_type]
    values = errors.summarize(analysis, SUBSETS)["all"]
    names = ("AP50", *TIDE_KINDS, "false_positives", "false_negatives")
    assert [100 * values[name] for name in names] == pytest.approx(expected, abs=0.01)
    numbers = Counter(error.kind for error in analysis.errors)
    numbers["localization"] = numbers.pop("box") + numbers.pop("mask", 0)
    assert [numbers[name] for name in TIDE_KINDS] == counts


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_ap_without_mending_is_that_of_coco(iou_type):
    truth = random_ground_truth(3, 20)
    evaluator = coco.CocoEvaluator(truth, VOCABULARY, SET_A)
    for image_id, rows in noisy_detections(truth, 3).items():
        boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        boxes = np.concatenate([boxes[:, 1::-1], boxes[:, 1::-1] + boxes[:, :1:-1]], axis=1)
        columns = ([row[key] for row in rows] for key in ("score", "category_id", "segmentation"))
        evaluator.add(image_id, boxes, *columns)
    section = {"bbox": "box", "segm": "mask"}[iou_type]
    annotations = coco.ground_truth_for(iou_type, truth)
    analysis = errors.analyse(annotations, evaluator.detections, iou_type)
    results = evaluator.evaluate()[section]
    summary = errors.summarize(analysis, evaluator.subsets)
    for subset in "A", "B", "all":
        assert summary[subset]["AP50"] == pytest.approx(results[subset]["AP50"], abs=1e-6)


def square(class_id, x, side=20, mask_side=None, **more):
    """An object or a detection in a 100 x 100 image, its mask a corner of its box."""
    mask = np.zeros((100, 100), np.uint8)
    mask[10 : 10 + (mask_side or side), x : x + (mask_side or side)] = 1
    rle = masks.encode_region(mask, 0, 0, 100, 100)
    return {"image_id": 1, "category_id": class_id, "bbox": [x, 10, side, side]} | {
        "segmentation": rle,
        **more,
    }


def test_kinds_of_single_errors():
    """Objects at 0, 30 and 60; every kind once."""
    objects = [square(1, 0, iscrowd=0), square(2, 30, iscrowd=0), square(2, 60, iscrowd=0)]
    found = [
        square(1, 0, score=0.9),
        square(1, 1, score=0.8),
        square(1, 30, score=0.7),
        square(2, 30, mask_side=12, score=0.6),
        square(3, 70, mask_side=30, side=30, score=0.55),
        square(3, 80, side=15, score=0.5),
    ]
    analysis = errors.analyse(objects, {1: found}, "segm")
    kinds = [(error.kind, error.score) for error in analysis.errors]
    assert kinds[:4] == [("duplicate", 0.8), ("class", 0.7), ("mask", 0.6), ("both", 0.55)]
    assert kinds[4][0] in ("background", "both") and kinds[5:] == [("missed", 1.0)]
    # The object at 30 is claimed once: by the better of the two that would take it.
    assert analysis.missed == Counter({2: 1}) and analysis.unmatched == Counter({2: 2})
    assert analysis.ap() == {1: 1.0, 2: 0.0}
    assert analysis.ap(["class"])[2] == pytest.approx(51 / 101)  # one of two, before the bad mask
    assert analysis.confusions(0.5) == Counter({(1, 1): 1, (2, 1): 1})
    assert analysis.confusions(0.75) == Counter({(1, 1): 1})
    of_scores = analysis.calibration([1, 2, 3])
    assert [row["count"] for row in of_scores] == [0, 0, 0, 0, 0, 2, 1, 1, 1, 1]
    assert of_scores[9] == {"count": 1, "score": pytest.approx(0.9), "right": 1.0}


def page_of(names):
    """The evaluator, what the page sums up, and the page."""
    truth = random_ground_truth(1, 30)
    evaluator = coco.CocoEvaluator(truth, VOCABULARY, SET_A)
    evaluator.detections.update(noisy_detections(truth, 1))
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    summary, page = error_page.page(
        evaluator,
        names,
        lambda image_id: np.full((*sizes[image_id], 3), 90, np.uint8),
        title="a & b",
        about="two",
    )
    return evaluator, summary, page


def test_the_page_shows_what_it_counts():
    evaluator, summary, page = page_of(("<ant>", *VOCABULARY.names[1:]))
    assert "Errors of a &amp; b" in page and "<ant>" not in page and "&lt;ant&gt;" in page
    shown = {e.image_id for e in evaluator.errors().errors if e.score >= 0.5}
    assert page.count("<img ") == len(shown) == page.count("data:image/jpeg;base64,")
    assert "http" not in page  # it needs nothing from elsewhere
    for kind in errors.KINDS:
        assert report.percent(summary["B"][kind]) in page
    assert "class: right place, wrong class" in report.format_errors(summary)


@pytest.mark.slow
@pytest.mark.skipif(browser.programs() is None, reason="chromium or chromedriver is absent")
def test_the_page_opens_in_a_browser(tmp_path):
    """All pictures are shown, and tables have the numbers of the analysis."""
    _, summary, page = page_of(VOCABULARY.names)
    (tmp_path / "errors.html").write_text(page)
    with browser.chromium(tmp_path / "profile", tmp_path) as driver:
        driver.get((tmp_path / "errors.html").as_uri())
        assert driver.title == "Errors of a & b"
        pictures = driver.find_elements("tag name", "img")
        for picture in pictures:
            driver.execute_script("arguments[0].loading = 'eager'", picture)
            widths = driver.execute_async_script(
                "const [image, done] = arguments;"
                "image.decode().then(() => done(image.naturalWidth), () => done(0))",
                picture,
            )
            assert widths > 100
        assert len(pictures) == page.count("<img ")
        costs = driver.find_element("tag name", "table").text
        assert f"right place, wrong class {report.percent(summary['A']['class'])}" in costs
