"""What benchmarks compare runs, and has the shapes that make the comparison fair."""

import json
import types

import pytest

from benchmarks import add_classes, class_count, few_masks, kill_training, mask_heads, overfit_coco
from maskx_tf.errors import UserError


@pytest.mark.parametrize("make", [class_count.gathered_masks, class_count.all_masks])
def test_masks_of_detections(make):
    masks = make(num_classes=5)()
    side = 2 * class_count.SIDE
    assert masks.shape == (class_count.DETECTIONS, side, side)
    assert 0 <= masks.numpy().min() < 0.5 < masks.numpy().max() <= 1


def test_masks_of_a_body():
    head, features, kernels = mask_heads.head("gcn", rois=2)
    forward, training = mask_heads.passes(head, features, kernels)
    assert forward().shape == (2, 28, 28)
    assert len(training()) == 1 + len(head.trainable_variables)


def test_a_few_masks_of_each_other_class():
    categories = [{"id": i, "name": name} for i, name in enumerate(["disc", "ring", "star"], 1)]
    annotations = [
        {"id": n, "category_id": n % 3 + 1, "bbox": [0, 0, 9, 9], "segmentation": [n]}
        for n in range(30)
    ]
    content = {"categories": categories, "annotations": annotations}
    masked = {}
    for count in (0, 3, 99):
        left = few_masks.few_masks(content, {"disc"}, count)["annotations"]
        assert [{**a, "segmentation": [a["id"]]} for a in left] == annotations
        masked[count] = {a["id"] for a in left if "segmentation" in a}
        of_class = [
            sum(annotations[i]["category_id"] == c for i in masked[count]) for c in (1, 2, 3)
        ]
        assert of_class == [10, min(count, 10), min(count, 10)]
    assert masked[0] < masked[3] < masked[99]


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Options of `add_classes.Setup` -> what its steps make, below the output directory."""
    monkeypatch.setattr(add_classes, "execute", lambda steps: None)
    names = ["disc", "ring", "star"]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    annotations = [
        {"id": n, "image_id": n, "category_id": n % 3, "bbox": [0, 0, 9, 9], "iscrowd": 0}
        for n in range(60)
    ]
    coco = {"images": [{"id": n} for n in range(60)], "annotations": annotations}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "instances_train.json").write_text(
        json.dumps({**coco, "categories": categories})
    )

    def made(**options):
        setup = add_classes.Setup(tmp_path, **{"classes": ("disc", "ring"), **options})
        steps = add_classes.all_steps(setup, draws=2)
        return {str(step.output.relative_to(tmp_path)) for step in steps}

    return made


def test_classes_are_added_apart_for_other_options(outputs):
    first = outputs()
    assert outputs(classes=("ring", "disc")) == first
    shared = first & outputs(classes=("star",))
    assert len(shared) == 3 and all("/full/" in path for path in shared)
    assert {path for path in first if "draw" in path} == first - outputs(examples=5)
    assert not first & outputs(schedule=0.5)


def test_other_images_are_not_evaluated_with_the_model_of_the_first(tmp_path):
    path = tmp_path / "new" / "instances.json"
    for _ in range(2):
        overfit_coco.keep(path, "8 images")
    with pytest.raises(UserError, match="new holds a run on other images; name another"):
        overfit_coco.keep(path, "9 images")
    assert path.read_text() == "8 images"


def test_more_kills_than_steps_to_kill_in_are_refused(monkeypatch):
    options = types.SimpleNamespace(kills=20, steps=30, seed=0)
    monkeypatch.setattr(kill_training, "flags", types.SimpleNamespace(FLAGS=options))
    with pytest.raises(UserError, match="--kills=20: --steps=30 has room for 19"):
        kill_training.main()
