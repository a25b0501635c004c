"""docs/own_data.md followed word for word, on folders as annotation tools write them.

The commands are the guide's own. What a reader has to fill in is filled in: the names of the
classes with masks, and a remedy that a command asks for. A tiny model and few steps stand for
detectron2's weights and thousands of steps.
"""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from maskx_tf import checkpoints
from maskx_tf.data.pipeline import make_dataset
from maskx_tf.data.records.manifest import Manifest, find_shards
from maskx_tf.data.records.schema import read_records
from maskx_tf.system import verbs
from tests import commands, harness, tiny

GUIDE = harness.REPOSITORY / "docs" / "own_data.md"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"^(.*?) <<'END'\n(.*?)^END$", re.MULTILINE | re.DOTALL)
SHORTER = {
    "--train_steps=3000": "--train_steps=6",
    "--warmup_steps=200": "--warmup_steps=0",
    "--lr_steps=2000,2700": "--lr_steps=4,5",
    "--checkpoint_interval=500": "--checkpoint_interval=3",
    "--eval_interval=500": "--eval_interval=6",
}
# Verbs that are not run here, and why.
LEFT_OUT = {
    "records folder": "the folder is a COCO json with its images; see test_folders.py",
    "learn": "it runs the same commands; see test_learn.py",
    "weights detectron2": "its file has 170 MB; a tiny model is in its place",
    "add-classes": "needs boxes of further classes",
    "serve": "runs without end",
    "client": "needs the server",
}


class Reader:
    """Somebody who follows the guide in a directory of their own."""

    def __init__(self, directory, case, *, with_masks, photos=lambda folder: None, **options):
        self.directory, self._with_masks = directory, with_masks
        self._options = options  # verb -> what a command has asked them to add
        self.said = {}  # verb -> what its last command printed
        annotations, images = harness.case(case) if case else partly_masked(directory / "given")
        (directory / "mine").mkdir()
        shutil.copy(annotations, directory / "mine" / "all.json")
        shutil.copytree(images, directory / "mine" / "photos")
        photos(directory / "mine" / "photos")
        imported = tiny.config(
            model_dir=str(directory / "runs" / "imported"), rpn_batch_size=64, batch_size=2,
            max_objects=12, image_min_side=96, image_max_side=128,
        )  # fmt: skip
        checkpoints.save_run(imported, tiny.VOCABULARY, tiny.SET_A)
        tf.train.Checkpoint(model=tiny.model(imported)).save(f"{imported.model_dir}/ckpt")

    def follow(self, until):
        """Does what the blocks of the guide say, one after the other."""
        for kind, text in _BLOCK.findall(GUIDE.read_text().split(until)[0]):
            if kind == "sh":  # of other data
                continue
            if not kind:
                self._write_flags(text)
                continue
            text = _HEREDOC.sub(self._heredoc, text)
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["maskx"]:
                    self._run(words[1:])

    def _write_flags(self, text):
        for old, new in SHORTER.items():
            assert old in text
            text = text.replace(old, new)
        (self.directory / "mine.flags").write_text(text)

    def _heredoc(self, match):
        command, text = match.groups()
        if command == "python -":
            with commands.contextlib.chdir(self.directory):
                exec(compile(text, "the guide", "exec"), {})
        else:
            path = command.removeprefix("cat > ")
            text = "".join(f"{name}\n" for name in self._with_masks)
            (self.directory / path).write_text(text)
        return ""

    def _run(self, words):
        verb, arguments = verbs.split(words)
        assert verb, words
        if verb in LEFT_OUT:
            return
        if verb == "train":
            arguments = [SHORTER.get(argument, argument) for argument in arguments]
            arguments.append("--num_gpus=0")
        arguments += self._options.get(verb.replace(" ", "_"), [])
        done = commands.in_process(verbs.VERBS[verb].module, *arguments, directory=self.directory)
        assert done.returncode == 0, f"maskx {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        self.said[verb] = done.stdout


def partly_masked(directory):
    """A data set of the kind that the guide is about: boxes of all classes, masks of cats."""
    annotations = [
        harness.annotation(
            image,
            [3 + 9 * k, 4, 25, 20 + k],
            category_id=1 + k,
            **({"segmentation": []} if k else {}),
        )
        for image in range(1, 7)
        for k in range(3)
    ]
    return harness.write_coco(directory, annotations, sizes=[(50, 70), (70, 50)] * 3)


def usable(reader):
    """Image id -> boxes xywh of its objects with a mask, and of those without, as in the json."""
    boxes: dict = {}
    for item in json.loads((reader.directory / "mine" / "all.json").read_text())["annotations"]:
        without_mask = not item["segmentation"]
        boxes.setdefault(item["image_id"], ([], []))[without_mask].append(item["bbox"])
    return boxes


def assert_learns_from(reader, boxes):
    """Every usable box is in the records where it was drawn, and reaches the losses with a mask."""
    manifests = {part: Manifest.load(reader.directory / "records" / "mine" / part)
                 for part in ("train", "val")}  # fmt: skip
    masks, others = (sum(len(drawn[kind]) for drawn in boxes.values()) for kind in (0, 1))
    assert sum(manifest.num_objects for manifest in manifests.values()) == masks + others
    assert sum(manifest.num_masks for manifest in manifests.values()) == masks
    recorded = {}
    for part in manifests:
        for record in read_records(
            find_shards([str(reader.directory / "records" / "mine" / part)])
        ):
            corners = sorted(item.box_yxyx.tolist() for item in record.objects)
            recorded[record.image_id] = corners
    assert recorded.keys() == boxes.keys()
    for image_id, drawn in boxes.items():
        corners = sorted([y, x, y + h, x + w] for x, y, w, h in drawn[0] + drawn[1])
        np.testing.assert_allclose(recorded[image_id], corners, atol=1e-4)
    with commands.contextlib.chdir(reader.directory):
        loaded = checkpoints.load_model("runs/mine")
        config = loaded.config
        assert [loaded.vocabulary.names[c - 1] for c in loaded.mask_class_ids] == reader._with_masks
        dataset = make_dataset(
            config.train_records, config, loaded.vocabulary, loaded.mask_class_ids,
            training=True, seed=config.seed,
        )  # fmt: skip
        seen = {}
        for features, labels in dataset.take(config.train_steps):
            usable_ones = (labels["classes"] > 0) & ~labels["is_crowd"]
            for i, image_id in enumerate(features["image_id"].numpy().tolist()):
                masks = labels["has_mask"][i] & tf.reduce_any(labels["masks"][i] > 0, [1, 2])
                seen[image_id] = (int(tf.reduce_sum(tf.cast(usable_ones[i], tf.int32))),
                                  int(tf.reduce_sum(tf.cast(masks, tf.int32))))  # fmt: skip
    assert seen == {i: (len(boxes[i][0] + boxes[i][1]), len(boxes[i][0])) for i in seen}
    assert sum(objects for objects, _ in seen.values()) == manifests["train"].num_objects


def turned(folder):
    """`mogrify -auto-orient`."""
    for path in folder.glob("*.jpg"):
        with Image.open(path) as image:
            ImageOps.exif_transpose(image).save(path, quality=95)


FOLDERS = {
    "c01_cvat_iscrowd": {
        "with_masks": ["ant", "bee"],
        "records_coco": ["--crowds=objects"],
        "label": ["--crowds=objects"],
    },
    "c28_exif_labelstudio": {"with_masks": ["ant", "bee"], "photos": turned},
    "c15_roboflow_same_name": {"with_masks": ["ant"]},
    "c14_lvis": {"with_masks": ["ant", "bee"]},
    "c19b_exif": {"with_masks": ["ant", "bee"]},
    "c42_broken_exif": {"with_masks": ["ant"]},
    "": {"with_masks": ["cat"]},  # one that is made here
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FOLDERS, ids=lambda case: case or "partly_masked")
def test_the_guide(case, tmp_path):
    """To a training in one stage; for the first folder to the end."""
    reader = Reader(tmp_path, case, **FOLDERS[case])
    to_the_end = case == next(iter(FOLDERS))
    reader.follow(until="## the end" if to_the_end else "Or train in two stages")
    boxes = usable(reader)
    assert_learns_from(reader, boxes)
    assert "no faults" in reader.said["records verify"]
    assert (tmp_path / "described" / "samples.jpg").is_file()
    for run in ("trial", "mine"):
        values = json.loads((tmp_path / "runs" / run / "validation.json").read_text())
        assert values["box"]["all"]["AP"] is not None
        assert ("APr" in values["mask"]["A"]) == (case == "c14_lvis")
    if not to_the_end:
        return
    evaluation = json.loads((tmp_path / "runs" / "mine" / "evaluation.json").read_text())
    assert set(evaluation["box"]["per_class"]) == {"ant", "bee"}
    # Of the json, iscrowd is read as the records have it.
    reader._run(["evaluate", "--model_dir=runs/mine", "--annotations=mine/val.json"])
    evaluation = json.loads((tmp_path / "runs" / "mine" / "evaluation.json").read_text())
    assert evaluation["mask"]["all"]["AP"] is not None
    photos = list((tmp_path / "mine" / "photos").rglob("*.jpg"))
    assert len(list((tmp_path / "predictions").rglob("*.jpg"))) >= len(photos)
    labelled = json.loads((tmp_path / "labelled.json").read_text())
    assert len(labelled["annotations"]) == 4 and all(
        a["segmentation"] for a in labelled["annotations"]
    )
    assert (tmp_path / "exported" / "mine" / "1" / "saved_model.pb").is_file()
