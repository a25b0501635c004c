"""COCO evaluation: engines, subsets, ground truth from records and json, and the runner."""

import contextlib
import io
import json
import types

import numpy as np
import pytest
import tensorflow as tf
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.records import schema
from maskx_tf.errors import UserError
from maskx_tf.evaluation import coco, ground_truth, limits, operating_point, report, runner
from maskx_tf.evaluation import detector as of_detector
from maskx_tf.inference.detections import Detections
from maskx_tf.inference.detector import Detector
from maskx_tf.inference.tiling import Tiling
from maskx_tf.ops import masks
from tests.harness import shared_data

VOCABULARY = Vocabulary(("ant", "bee", "cat", "dog", "eel", "fox"), (1, 3, 4, 7, 8, 9))
SET_A = (1, 3, 6)


def random_box(rng, height, width):
    center, size = rng.uniform(0, 1, 2) * [height, width], rng.uniform(3, 150, 2)
    low = np.clip(center - size / 2, 0, [height - 4, width - 4])
    return np.concatenate([low, np.minimum(low + size, [height, width])])


def random_rle(rng, box, height, width):
    return masks.paste_to_rle(rng.random((1, 4, 4)) + 0.2, box[None], height, width)[0]


def random_ground_truth(seed=0, images=12):
    """Images 7, 10, 13, … with objects of the classes 1..5 (none of 6), some of them crowds."""
    rng = np.random.default_rng(seed)
    truth = ground_truth.ground_truth_from_images([], VOCABULARY)
    for index in range(images):
        height, width = (int(side) for side in rng.integers(100, 200, 2))
        image_id = 7 + 3 * index
        truth["images"].append({"id": image_id, "height": height, "width": width})
        for _ in range(rng.integers(0, 8)):
            box = random_box(rng, height, width)
            rle = random_rle(rng, box, height, width)
            y1, x1, y2, x2 = box.tolist()
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, 6)),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": masks.rle_area(rle),
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": rle,
                }
            )
    return truth


def yxyx(annotation):
    x, y, w, h = annotation["bbox"]
    return np.array([y, x, y + h, x + w])


def add_noisy_predictions(evaluator, truth, seed=1):
    """Moved copies of the objects, some in a wrong class, and false ones; none for image 7."""
    rng = np.random.default_rng(seed)
    for image in truth["images"][1:]:
        boxes, classes = [], []
        for annotation in truth["annotations"]:
            if annotation["image_id"] == image["id"]:
                boxes += [yxyx(annotation) + rng.normal(0, 3, 4), yxyx(annotation)]
                classes += [annotation["category_id"], rng.integers(1, 7)]
        boxes += [random_box(rng, image["height"], image["width"]) for _ in range(3)]
        classes += rng.integers(1, 7, 3).tolist()
        rles = [random_rle(rng, box, image["height"], image["width"]) for box in boxes]
        scores = np.round(rng.random(len(boxes)), 1)  # with ties
        evaluator.add(image["id"], np.array(boxes), scores, np.array(classes), rles)


def add_truth_as_predictions(evaluator, truth):
    for image in truth["images"]:
        mine = [
            a
            for a in truth["annotations"]
            if a["image_id"] == image["id"] and not a["iscrowd"] and "segmentation" in a
        ]
        boxes = np.array([yxyx(a) for a in mine]).reshape(-1, 4)
        classes = np.array([a["category_id"] for a in mine], int)
        rles = [a["segmentation"] for a in mine]
        evaluator.add(image["id"], boxes, np.ones(len(mine)), classes, rles)
        evaluator.add_given_boxes(image["id"], boxes, classes, rles)


def evaluate(truth, add, set_a=SET_A, engine="faster_coco_eval", per_class=False):
    evaluator = coco.CocoEvaluator(truth, VOCABULARY, set_a, engine)
    add(evaluator, truth)
    return evaluator.evaluate(per_class)


def flat(results, prefix=""):
    for key, value in results.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


@pytest.mark.parametrize("seed", range(4))
def test_engines_agree(seed):
    truth = random_ground_truth(seed)
    fast = evaluate(truth, add_noisy_predictions, per_class=True)
    referee = evaluate(truth, add_noisy_predictions, engine="pycocotools", per_class=True)
    assert dict(flat(fast)).keys() == dict(flat(referee)).keys()
    for (key, value), (_, wanted) in zip(flat(fast), flat(referee), strict=True):
        assert value == wanted or abs(value - wanted) < 1e-12, key
    assert fast["mask"]["per_class"]["fox"] is None
    assert 0.05 < fast["box"]["all"]["AP"] < 0.95  # neither trivial


@pytest.mark.parametrize(("iou_type", "name"), [("bbox", "box"), ("segm", "mask")])
@pytest.mark.parametrize("subset", ["A", "B", "all"])
def test_subset_ap_equals_rerunning_cocoeval_on_the_subset(iou_type, name, subset):
    truth = random_ground_truth(5, images=20)
    evaluator = coco.CocoEvaluator(truth, VOCABULARY, SET_A)
    add_noisy_predictions(evaluator, truth)
    class_ids = {"A": [1, 3, 6], "B": [2, 4, 5], "all": [1, 2, 3, 4, 5, 6]}[subset]
    rows = [
        {k: v for k, v in row.items() if iou_type == "segm" or k != "segmentation"}
        for image_rows in evaluator.detections.values()
        for row in image_rows
    ]
    if iou_type == "segm":
        rows = [{k: v for k, v in row.items() if k != "bbox"} for row in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = json.loads(json.dumps({"info": {}, **truth}))
        index.createIndex()
        referee = COCOeval(index, index.loadRes(rows), iou_type)
        referee.params.catIds = class_ids
        referee.evaluate()
        referee.accumulate()
        referee.summarize()
    found = list(evaluator.evaluate()[name][subset].values())
    np.testing.assert_allclose(found, referee.stats[:6], rtol=0, atol=1e-12)


def test_ground_truth_as_predictions_is_perfect():
    results = evaluate(random_ground_truth(), add_truth_as_predictions)
    for section in ("box", "mask", "mask_given_boxes"):
        for subset in ("A", "B", "all"):
            assert results[section][subset]["AP"] == pytest.approx(1, abs=1e-12)
    assert results["mask_given_boxes"]["all"]["IoU"] == 1


def test_empty_subsets_are_none():
    truth = random_ground_truth()
    results = evaluate(truth, add_noisy_predictions, set_a=())
    assert set(results["box"]["A"].values()) == {None}
    assert results["box"]["B"] == results["box"]["all"]
    results = evaluate(truth, add_noisy_predictions, set_a=range(1, 7))
    assert set(results["mask"]["B"].values()) == {None}
    assert results["mask"]["A"] == results["mask"]["all"]


def test_without_objects_or_without_predictions():
    truth = random_ground_truth()
    nothing = evaluate(truth, lambda evaluator, truth: None, per_class=True)
    assert nothing["box"]["all"]["AP"] == 0 and nothing["mask"]["per_class"]["ant"] == 0
    assert "mask_given_boxes" not in nothing
    bare = {**truth, "annotations": []}
    assert evaluate(bare, add_noisy_predictions)["box"]["all"]["AP"] is None


def test_images_without_predictions_count():
    truth = random_ground_truth()
    half = coco.CocoEvaluator(truth, VOCABULARY, SET_A)
    for image in truth["images"][:6]:
        add_truth_as_predictions(half, {**truth, "images": [image]})
    assert 0.2 < half.evaluate()["box"]["all"]["AP"] < 0.8


def test_objects_without_mask_are_ignored_by_mask_ap_only():
    truth = random_ground_truth()
    for annotation in truth["annotations"][::2]:
        del annotation["segmentation"]
    results = evaluate(truth, add_truth_as_predictions)
    assert results["mask"]["all"]["AP"] == pytest.approx(1, abs=1e-12)
    assert results["box"]["all"]["AP"] < 0.9  # the unmasked ones were not predicted
    boxes = coco.CocoEvaluator(truth, VOCABULARY, SET_A)
    for image in truth["images"]:
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        size = image["height"], image["width"]
        boxes.add(
            image["id"],
            np.array([yxyx(a) for a in mine]).reshape(-1, 4),
            np.ones(len(mine)),
            np.array([a["category_id"] for a in mine], int),
            [
                a.get("segmentation")
                or masks.paste_to_rle(np.ones((1, 1, 1)), yxyx(a)[None], *size)[0]
                for a in mine
            ],
        )
    results = boxes.evaluate()
    assert results["box"]["all"]["AP"] == pytest.approx(1, abs=1e-12)
    assert results["mask"]["all"]["AP"] == pytest.approx(1, abs=1e-12)


def test_equal_scores_are_ranked_by_image_id_whatever_the_order_of_adding():
    truth = random_ground_truth(3)
    forward = coco.CocoEvaluator(truth, VOCABULARY, SET_A)
    backward = coco.CocoEvaluator(truth, VOCABULARY, SET_A)
    rng = np.random.default_rng(0)
    parts = []
    for image in truth["images"]:
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([yxyx(a) for a in mine]).reshape(-1, 4)
        rles = [random_rle(rng, box, image["height"], image["width"]) for box in boxes]
        parts.append((image["id"], boxes, [a["category_id"] for a in mine], rles))
    for part in parts:
        forward.add_given_boxes(*part)
    for part in parts[::-1]:
        backward.add_given_boxes(*part)
    assert forward.evaluate() == backward.evaluate()


def test_wrong_images_and_engines_are_user_errors():
    truth = random_ground_truth()
    evaluator = coco.CocoEvaluator(truth, VOCABULARY, SET_A)
    nothing: tuple[np.ndarray, list, list, list] = np.zeros((0, 4)), [], [], []
    with pytest.raises(UserError, match="Image id 5 .* not among the 12 images"):
        evaluator.add(5, *nothing)
    evaluator.add(7, *nothing)
    with pytest.raises(UserError, match="7 is predicted twice"):
        evaluator.add(7, *nothing)
    with pytest.raises(UserError, match="not one of: faster_coco_eval, pycocotools"):
        coco.CocoEvaluator(truth, VOCABULARY, SET_A, engine="other")


def encoded_image(height, width):
    return tf.io.encode_png(tf.fill([height, width, 3], tf.constant(90, tf.uint8))).numpy()


def image_record(image_id, objects, height=48, width=64):
    encoded = encoded_image(height, width)
    return schema.ImageRecord(image_id, f"{image_id}.png", encoded, height, width, objects)


def object_record(name, box, mask, crowd=False):
    box = np.array(box, np.float64)
    class_id = VOCABULARY.id_of(name)
    return schema.ObjectRecord(box, class_id, name, 300.0, crowd, 1, mask)


def write_records(path, images):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image in images:
            writer.write(schema.serialize_record(image))
    return str(path)


def test_ground_truth_from_records(tmp_path):
    mask = np.zeros((20, 10), np.uint8)
    mask[:, :5] = 1
    images = [
        image_record(4, [object_record("cat", (8, 30, 28, 40), mask)]),
        image_record(2, [object_record("bee", (0, 0, 5.5, 9), None, crowd=True)]),
        image_record(9, []),
    ]
    path = write_records(tmp_path / "x.tfrecord", images)
    # By name, in the ids of another vocabulary.
    other = Vocabulary.from_names(["bee", "cat"])
    truth = ground_truth.ground_truth_from_records((path,), other)
    assert [image["id"] for image in truth["images"]] == [4, 2, 9]
    first, second = truth["annotations"]
    assert (first["id"], first["image_id"], first["category_id"]) == (1, 4, 2)
    np.testing.assert_allclose(first["bbox"], [30, 8, 10, 20], atol=1e-4)
    wanted = np.zeros((48, 64), np.uint8)
    wanted[8:28, 30:35] = 1
    np.testing.assert_array_equal(masks.decode_rle(first["segmentation"]), wanted)
    assert (second["category_id"], second["iscrowd"], second["area"]) == (1, 1, 300)
    assert "segmentation" not in second
    with pytest.raises(UserError, match="Unknown class 'cat'"):
        ground_truth.ground_truth_from_records((path,), Vocabulary.from_names(["bee", "car"]))
    twice = write_records(tmp_path / "y.tfrecord", images[:1])
    with pytest.raises(UserError, match="Image id 4 .* occurs twice"):
        ground_truth.ground_truth_from_records((path, twice), other)


def coco_file(tmp_path, **changes):
    source = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": 10, "width": 12}],
        "categories": [{"id": 70, "name": "cat"}, {"id": 71, "name": "zebra"}],
        "annotations": [
            {
                "id": 0,
                "image_id": 5,
                "category_id": 70,
                "bbox": [1, 2, 4, 3],
                "segmentation": [[1, 2, 5, 2, 5, 5, 1, 5]],
            }
        ],
        **changes,
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(source))
    return str(path)


def test_ground_truth_from_json(tmp_path):
    truth = ground_truth.ground_truth_from_json(coco_file(tmp_path), VOCABULARY)
    (annotation,) = truth["annotations"]
    assert (annotation["id"], annotation["category_id"], annotation["area"]) == (1, 3, 12)
    assert masks.decode_rle(annotation["segmentation"])[2:5, 1:5].all()
    assert [c["name"] for c in truth["categories"]] == list(VOCABULARY.names)


def test_crowds_of_a_json_as_objects(tmp_path):
    item = {"id": 1, "image_id": 5, "category_id": 70, "bbox": [1, 2, 4, 3], "iscrowd": 1}
    path = coco_file(tmp_path, annotations=[item])
    truth = ground_truth.ground_truth_from_json(path, VOCABULARY, None, "objects")
    assert truth["annotations"][0]["iscrowd"] == 0
    with pytest.raises(UserError, match="--crowds=objects.*as --eval_records were written"):
        ground_truth.ground_truth_from_json(path, VOCABULARY)


SQUARE = [1, 2, 5, 2, 5, 5, 1, 5]


@pytest.mark.parametrize(
    ("changes", "reason", "expected"),
    [
        ({"image_id": 6}, "annotation_of_unknown_image", None),
        ({"image_id": None}, "annotation_malformed", None),
        ({"bbox": None}, "box_of_mask", (12, True)),
        ({"bbox": None, "segmentation": []}, "box_missing", None),
        ({"bbox": [1, 2, 0, 3], "segmentation": []}, "box_empty", None),
        ({"bbox": [1, "two", 4, 3], "segmentation": []}, "box_not_numeric", None),
        ({"image_id": "5", "category_id": 70.0, "bbox": ["1", 2, 4, 3]}, "", (12, True)),
        ({"area": None}, "", (12, True)),
        ({"area": "12"}, "", (12, True)),
        ({"area": "many"}, "area_invalid", (12, True)),
        ({"area": 10**400}, "area_invalid", (12, True)),
        ({"segmentation": [[1, 2, 5, 5]]}, "mask_no_polygon", (12, False)),
        ({"segmentation": [SQUARE, [1, 2, 5, 5]]}, "mask_part_invalid", (12, True)),
        ({"segmentation": SQUARE}, "", (12, True)),
        ({"segmentation": {"size": [10, 12], "counts": [5]}}, "mask_counts_invalid", (12, False)),
        ({"segmentation": {"size": [10, 12], "counts": [0, 7, 113]}}, "", (7, True)),
        ({"bbox": [-0.5, 2, 4, 3], "area": 9.5}, "box_clipped", (9.5, True)),  # kept as it is
        ({"id": None}, "annotation_id_missing", (12, True)),
    ],
)
def test_ground_truth_of_a_json_with_defects(tmp_path, caplog, changes, reason, expected):
    """What cannot be used is dropped or left out and named, as in the conversion to records."""
    annotation = {"id": 8, "image_id": 5, "category_id": 70, "bbox": [1, 2, 4, 3]}
    annotation |= {"segmentation": [SQUARE]} | changes
    categories = [{"id": 70, "name": " cat "}]
    path = coco_file(tmp_path, annotations=[annotation], categories=categories)
    if not expected:  # nothing is left
        with pytest.raises(UserError, match=rf"no object to be found.*1 {reason}, such as .*8"):
            ground_truth.ground_truth_from_json(path, VOCABULARY)
        return
    truth = ground_truth.ground_truth_from_json(path, VOCABULARY)
    found = [(a["area"], "segmentation" in a) for a in truth["annotations"]]
    assert found == [expected]
    assert (f"({reason}: " in caplog.text) if reason else not caplog.text
    for found in truth["annotations"]:
        assert found["bbox"] == [float(value) for value in annotation["bbox"] or [1, 2, 4, 3]]


def test_the_size_of_the_file_counts_in_ground_truth(tmp_path):
    """As in records, whatever the json says; so does a run-length code of that size."""
    rle = {"size": [12, 10], "counts": [0, 7, 113]}
    items = [
        {"id": 1, "image_id": 5, "category_id": 70, "bbox": [0, 0, 9, 11], "segmentation": rle},
        {"id": 2, "image_id": 5, "category_id": 70, "bbox": [1, 2, 4, 3], "segmentation": [SQUARE]},
    ]
    path = coco_file(tmp_path, annotations=items)
    truth = ground_truth.ground_truth_from_json(path, VOCABULARY, {5: (12, 10)})
    assert [(i["height"], i["width"]) for i in truth["images"]] == [(12, 10)]
    assert [a["segmentation"]["size"] for a in truth["annotations"]] == [[12, 10]] * 2
    assert [a["area"] for a in truth["annotations"]] == [7, 12]


def test_ground_truth_from_json_errors(tmp_path):
    zebra = {"id": 1, "image_id": 5, "category_id": 71, "bbox": [1, 2, 4, 3]}
    with pytest.raises(UserError, match="1 classes that the model does not know.*zebra"):
        ground_truth.ground_truth_from_json(coco_file(tmp_path, annotations=[zebra]), VOCABULARY)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        ground_truth.ground_truth_from_json(str(tmp_path / "absent.json"), VOCABULARY)
    unknown = coco_file(tmp_path, annotations=[zebra | {"category_id": 9}])
    with pytest.raises(UserError, match="annotation 1 has category_id 9, which is not in"):
        ground_truth.ground_truth_from_json(unknown, VOCABULARY)
    image = {"id": 5, "file_name": "a.jpg", "width": 12}
    with pytest.raises(UserError, match=r"image 5 \(a.jpg\) has no height"):
        ground_truth.ground_truth_from_json(coco_file(tmp_path, images=[image]), VOCABULARY)
    (tmp_path / "list.json").write_text("{}")
    with pytest.raises(UserError, match="it has no list 'images'"):
        ground_truth.ground_truth_from_json(str(tmp_path / "list.json"), VOCABULARY)
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(UserError, match="is not json"):
        ground_truth.ground_truth_from_json(str(tmp_path / "text.json"), VOCABULARY)


@pytest.mark.parametrize("engine", list(coco.ENGINES))
def test_coco_ground_truth_as_predictions_is_perfect(engine):
    path = shared_data() / "coco_mini" / "annotations" / "instances_val2017.json"
    vocabulary = Vocabulary.load(path)
    truth = ground_truth.ground_truth_from_json(str(path), vocabulary)
    evaluator = coco.CocoEvaluator(truth, vocabulary, range(1, 21), engine)
    add_truth_as_predictions(evaluator, truth)
    results = evaluator.evaluate()
    for section in ("box", "mask", "mask_given_boxes"):
        for subset in ("A", "B", "all"):
            assert results[section][subset]["AP"] == pytest.approx(1, abs=1e-12)


class FakeModel:
    """Finds the same "cat" in every image, in network-input pixels, with the left half as mask."""

    box = (16.0, 60.0, 56.0, 80.0)

    def pyramid(self, images, image_sizes):
        assert images.dtype == tf.uint8
        return images

    def detect_boxes(self, pyramid, image_sizes, image_scales):
        batch = tf.shape(pyramid)[0]
        boxes = tf.constant([[self.box, (0, 0, 0, 0)]])
        return {
            "num_detections": tf.ones([batch], tf.int32),
            "detection_boxes": tf.tile(boxes, [batch, 1, 1]),
            "detection_scores": tf.tile([[0.9, 0.0]], [batch, 1]),
            "detection_classes": tf.tile([[3, 0]], [batch, 1]),
        }

    def detect(self, pyramid, image_sizes, image_scales):
        masks = tf.tile(self.left_half(), [tf.shape(pyramid)[0], 2, 1, 1])
        boxes = self.detect_boxes(pyramid, image_sizes, image_scales)
        return {**boxes, "detection_masks": masks}

    def masks(self, pyramid, boxes_yxyx, classes, image_scales):
        return tf.tile(self.left_half(), [*tf.unstack(tf.shape(classes)), 1, 1])

    def left_half(self):
        return tf.constant(np.tile(np.arange(28) < 14, (1, 1, 28, 1)), tf.float32)


def runner_setup(tmp_path):
    mask = np.zeros((20, 10), np.uint8)
    mask[:, :5] = 1
    cat = object_record("cat", (8, 30, 28, 40), mask)
    dog = object_record("dog", (2, 2, 30, 12), np.ones((28, 10), np.uint8))
    images = [image_record(3, [cat]), image_record(1, [cat, dog]), image_record(2, [cat])]
    path = write_records(tmp_path / "x.tfrecord", images)
    return Config(
        eval_records=(path,), image_min_side=96, image_max_side=128, batch_size=2, max_objects=4
    )


def test_scores_in_original_pixels(tmp_path):
    config = runner_setup(tmp_path)
    results = runner.ModelEvaluator(FakeModel(), config, VOCABULARY, SET_A).evaluate()
    assert results["box"]["A"]["AP"] == pytest.approx(1)
    assert results["mask"]["A"]["AP"] == pytest.approx(1)
    assert results["mask_given_boxes"]["A"]["AP"] == pytest.approx(1)
    assert results["box"]["B"]["AP"] == 0  # the dog is missed
    assert results["mask_given_boxes"]["B"]["AP"] < 0.2  # and its mask is not the left half
    ious = {subset: results["mask_given_boxes"][subset]["IoU"] for subset in ("A", "B")}
    assert ious == {"A": pytest.approx(1), "B": pytest.approx(0.5)}


def test_a_detector_is_scored_as_a_model(tmp_path):
    config = runner_setup(tmp_path)
    mask = np.tile(np.arange(28) < 14, (28, 1)) * np.uint8(255)

    class LeftHalf:
        def segment(self, image, boxes_yxyx, class_ids, **others):
            return Detections(
                boxes_yxyx=boxes_yxyx,
                scores=np.ones(len(boxes_yxyx)),
                class_ids=class_ids,
                class_names=np.array(NAMES)[class_ids - 1],
                category_ids=class_ids,
                mask_seen=class_ids > 0,
                box_masks=np.stack([mask] * len(boxes_yxyx)),
                image_size=image.shape[:2],
            )

    def detect(images):
        assert images.shape[1:] == (48, 64, 3)  # not resized
        return {
            "num_detections": [1],
            "detection_boxes": np.array([[[8, 30, 28, 40]]], np.float32),
            "detection_scores": np.array([[0.9]], np.float32),
            "detection_classes": np.array([[3]], np.int32),
            "detection_class_names": np.array([[b"cat"]], object),
            "detection_masks": mask[None, None],
            "detection_mask_seen": np.array([[True]]),
            "image_size": np.array([[48, 64]], np.int32),
        }

    model = Detector(detect, VOCABULARY, LeftHalf)
    for tiling in (None, Tiling(64, 0.5)):
        evaluator = of_detector.evaluate(model, config.eval_records, SET_A, tiling=tiling)
        results = evaluator.evaluate()
        for section in ("box", "mask", "mask_given_boxes"):
            assert results[section]["A"]["AP"] == pytest.approx(1)
        assert results["box"]["B"]["AP"] == 0  # the dog is missed
        assert results["mask_given_boxes"]["B"]["IoU"] == pytest.approx(0.5)
    alone = of_detector.evaluate(Detector(detect, VOCABULARY), config.eval_records, SET_A)
    assert "mask_given_boxes" not in alone.evaluate()


NAMES = VOCABULARY.names


class TestLimits:
    """A perfect model may not reach 100, and is told why."""

    def truth(self, *counts):
        """Image 1 with so many objects of each class."""
        objects = [
            {"image_id": 1, "category_id": class_id, "iscrowd": 0}
            for class_id, count in enumerate(counts, start=1)
            for _ in range(count)
        ]
        crowd = {"image_id": 1, "category_id": 1, "iscrowd": 1}
        names = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
        images = [{"id": 1, "file_name": "1.jpg", "height": 9, "width": 9}]
        return {"images": images, "categories": names, "annotations": [*objects, crowd]}

    def warnings(self, caplog, truth, **options):
        caplog.clear()
        limits.warn(truth, Config(**options))
        return " ".join(caplog.messages)

    def test_more_objects_of_a_class_than_are_counted(self, caplog):
        text = self.warnings(caplog, self.truth(100, 150), max_objects=300)
        assert (
            f"1 images have more than 100 objects of a class, such as 150 of {NAMES[1]!r}" in text
        )
        assert self.warnings(caplog, self.truth(100, 100), max_objects=300) == ""
        lvis = self.truth(100, 150)
        lvis["images"][0]["neg_category_ids"] = []
        assert self.warnings(caplog, lvis, max_objects=300, max_detections=300) == ""

    def test_more_detections_than_are_counted(self, caplog):
        text = self.warnings(caplog, self.truth(1), max_detections=300)
        assert "--max_detections=300" in text and "best 100" in text

    def test_more_objects_than_are_given(self, caplog):
        text = self.warnings(caplog, self.truth(4, 5), max_objects=8)
        assert "more than --max_objects=8 objects" in text and "Set --max_objects=10." in text
        assert self.warnings(caplog, self.truth(4, 5), max_objects=10) == ""
        boxes = {"mode": "stage1_boxes", "max_objects": 8}
        assert self.warnings(caplog, self.truth(4, 5), **boxes) == ""

    def test_an_evaluation_warns(self, tmp_path, caplog):
        config = runner_setup(tmp_path).replace(max_objects=1)
        runner.ModelEvaluator(FakeModel(), config, VOCABULARY, SET_A)
        assert "--max_objects=1" in caplog.text


def test_of_a_model_without_a_trained_mask_head_only_boxes_are_scored(tmp_path):
    config = runner_setup(tmp_path).replace(mode="stage1_boxes")
    evaluator = runner.ModelEvaluator(FakeModel(), config, VOCABULARY, SET_A)
    results = evaluator.evaluate(per_class=True)
    assert list(evaluator.curves) == ["box"] and list(results) == ["box", "operating_point"]
    assert results["box"]["A"]["AP"] == pytest.approx(1)
    assert "mask" not in report.format_table(results, {"cat"})


def test_model_evaluator_repeats_and_takes_other_ground_truth(tmp_path, caplog):
    config = runner_setup(tmp_path)
    evaluator = runner.ModelEvaluator(FakeModel(), config, VOCABULARY, SET_A)
    assert evaluator.evaluate() == evaluator.evaluate()
    assert "ground truth" not in caplog.text
    truth = ground_truth.ground_truth_from_records(config.eval_records, VOCABULARY)
    truth["images"].append({"id": 50, "height": 10, "width": 10})
    other = runner.ModelEvaluator(FakeModel(), config, VOCABULARY, SET_A, ground_truth=truth)
    results = other.evaluate()
    assert results["box"]["A"]["AP"] == pytest.approx(1)
    assert "1 of the 4 images of the ground truth are not in --eval_records;" in caplog.text


@pytest.mark.parametrize("conventions", ["aligned", "detectron"])
def test_masks_are_pasted_as_the_conventions_have_it(tmp_path, monkeypatch, conventions):
    pasted = []

    def paste(*arguments, whole_pixels=False):
        pasted.append(whole_pixels)
        return masks.paste_to_rle(*arguments, whole_pixels=whole_pixels)

    config = runner_setup(tmp_path).replace(conventions=conventions)
    monkeypatch.setattr(runner, "mask_ops", types.SimpleNamespace(paste_to_rle=paste))
    runner.ModelEvaluator(FakeModel(), config, VOCABULARY, SET_A).evaluate()
    assert set(pasted) == {conventions == "detectron"} and len(pasted) == 6


def test_evaluation_needs_records():
    with pytest.raises(UserError, match="--eval_records"):
        runner.ModelEvaluator(FakeModel(), Config(), VOCABULARY, SET_A)


def test_the_operating_point_counts_as_pycocotools_does():
    rng = np.random.default_rng(3)
    truth = random_ground_truth(seed=3, images=40)
    results = []
    for annotation in truth["annotations"]:
        for _ in range(rng.integers(0, 4)):
            box = np.maximum(np.array(annotation["bbox"]) + rng.normal(0, 6, 4), 1.0).tolist()
            class_id = annotation["category_id"] if rng.random() < 0.8 else 1
            score = float(rng.random())
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": class_id,
                    "bbox": box,
                    "score": score,
                }
            )
    by_image = {image["id"]: [] for image in truth["images"]}
    for result in results:
        by_image[result["image_id"]].append(result)
    subsets = {"A": SET_A, "all": range(1, 7), "none": [6]}
    point = operating_point.operating_point(truth, by_image, subsets)

    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {**truth, "info": {}}
        reference.createIndex()
        shown = [result for result in results if result["score"] >= point["score"]]
        evaluation = COCOeval(reference, reference.loadRes(shown), "bbox")
        evaluation.params.iouThrs = np.array([point["box_iou"]])
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.evaluate()
    for name, class_ids in subsets.items():
        of_classes = [e for e in evaluation.evalImgs if e and e["category_id"] in class_ids]
        objects = sum((~np.array(e["gtIgnore"], bool)).sum() for e in of_classes)
        counts = sum((~e["dtIgnore"][0].astype(bool)).sum() for e in of_classes)
        right = sum(
            ((e["dtMatches"][0] > 0) & ~e["dtIgnore"][0].astype(bool)).sum() for e in of_classes
        )
        expected = {
            "recall": right / objects if objects else None,
            "precision": right / counts if counts else None,
        }
        assert point[name] == (pytest.approx(expected) if objects else expected)
    assert 0.1 < point["all"]["recall"] < 0.9 and 0.1 < point["all"]["precision"] < 0.9
