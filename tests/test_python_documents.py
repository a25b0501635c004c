"""The Python of the documents runs as it stands there, on data and models made for it."""

import ast
import json
import re
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maskx_tf import checkpoints, visualize
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.pipeline import make_dataset
from tests import batches, harness, tiny
from tf_records import coco
from tf_records.output import Output

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# In place of the published size, which takes hours: what differs from the defaults.
TINY = {
    name: value
    for name, value in vars(batches.tiny_config()).items()
    if value != getattr(Config(), name)
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with what the documents name: runs, records, a photo."""
    monkeypatch.chdir(tmp_path)
    annotations = [
        harness.annotation(image, [5, 6, 20, 18], category_id=category)
        for image, category in ((1, 1), (2, 2), (2, 3))
    ]
    data = harness.write_coco(
        tmp_path / "coco",
        annotations,
        sizes=((40, 60), (48, 64)),
        names=("cat", "dog", "zebra"),
    )
    for split in ("train", "val"):
        coco.convert(*data, Output(f"records/{split}", split, workers=1))
    for run in ("runs/mine", "runs/demo/seed0/cls_box"):
        config = tiny.config(model_dir=run, convolutions="direct", score_threshold=0.01)
        checkpoints.save_run(config, tiny.VOCABULARY, tiny.SET_A)
        tf.train.Checkpoint(model=tiny.model(config)).save(f"{run}/ckpt")
    for photo in ("photo.jpg", "aerial.tif"):
        Image.fromarray(harness.random_image(240, 320)).save(photo)
    return tmp_path


def run_blocks(path, replaced, namespace):
    """Runs the blocks of a document one after the other, as one would type them."""
    for number, block in enumerate(_BLOCK.findall(path.read_text())):
        for old, new in replaced.items():
            block = block.replace(old, new)
        exec(compile(block, f"{path.name}, block {number}", "exec"), namespace)
    return namespace


@pytest.mark.slow
def test_python_md(place, monkeypatch, capsys):
    shown, converted = [], []
    monkeypatch.setattr(visualize, "show_picture", shown.append)
    supervision = types.SimpleNamespace(Detections=lambda **given: converted.append(given))
    monkeypatch.setitem(sys.modules, "supervision", supervision)
    dataset = make_dataset(
        ["records/train"], Config(**TINY), Vocabulary.load("coco"), [], training=True, seed=0
    )
    replaced = {
        "mx.Config(": "mx.Config(**TINY, ",
        "train_steps=1000": "train_steps=1",
        "min_score=0.5": "min_score=0",
    }
    namespace = {"np": np, "Image": Image, "TINY": TINY, "my_tf_data": dataset}
    run_blocks(harness.REPOSITORY / "docs" / "python.md", replaced, namespace)
    detections, masks = namespace["detections"], namespace["masks"]
    assert len(detections) > 1 and len(shown) == 1 and (place / "out.jpg").is_file()
    assert "absent.jpg cannot be read: No such file or directory." in capsys.readouterr().out
    assert len(masks) == 1 and masks[0].mask().shape == (240, 320)
    for run in ("new", "other"):
        assert (place / "runs" / run / "ckpt-1.index").is_file()
    assert_fits_supervision(converted[0], detections)


def assert_fits_supervision(given, detections):
    """What `supervision.Detections` checks of its arguments."""
    count, (height, width) = len(detections), detections.image_size
    assert given["xyxy"].shape == (count, 4)
    for column, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        np.testing.assert_array_equal(given["xyxy"][:, column], detections.boxes_yxyx[:, other])
    assert given["mask"].dtype == bool and given["mask"].shape == (count, height, width)
    assert given["confidence"].shape == given["class_id"].shape == (count,)
    assert len(given["data"]["class_name"]) == count


@pytest.mark.slow
def test_readme(place, monkeypatch):
    shown = []
    monkeypatch.setattr(visualize, "show_picture", shown.append)
    namespace = {"boxes_yxyx": [[20, 30, 180, 220]], "classes": ["cat"]}
    run_blocks(harness.REPOSITORY / "README.md", {"min_score=0.5": "min_score=0"}, namespace)
    assert len(shown) == 1 and len(namespace["masks"]) == 1


@pytest.mark.slow
def test_notebook(tmp_path, monkeypatch):
    """Its cells in order, with few images and steps; what a cell ends with can be shown."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((harness.REPOSITORY / "docs" / "quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in cells) == 1
    namespace: dict = {}
    pictures = []
    for cell in cells:
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell["id"], "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", ()):
            namespace |= {"TRAIN_IMAGES": 16, "STEPS": 2}
        if last:
            value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), namespace)
            pictures += [value._repr_png_()] if hasattr(value, "_repr_png_") else []
    assert len(pictures) == 2 and all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert namespace["results"]["mask"]["B"]["AP"] is not None
