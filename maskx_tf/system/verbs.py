"""The verbs of the command `maskx`: the module that each runs, and what it is for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple


class Verb(NamedTuple):
    """What `maskx NAME` does."""

    module: str
    meaning: str


GROUPS: dict[str, dict[str, Verb]] = {
    "Try it": {
        "demo": Verb("maskx_tf.demo", "Train, evaluate and draw on an embedded data set"),
    },
    "Use a model": {
        "predict": Verb("maskx_tf.predict", "Detections and pictures of image files"),
        "label": Verb("export.label", "Masks for boxes that people drew"),
        "advise": Verb("maskx_tf.advise", "Which classes to outline first"),
        "add-classes": Verb("maskx_tf.add_classes", "New classes from a few boxes, no training"),
        "weights detectron": Verb("maskx_tf.weights.detectron", "Import the authors' models"),
        "weights detectron2": Verb("maskx_tf.weights.detectron2", "Import detectron2's models"),
        "weights torchvision": Verb("maskx_tf.weights.torchvision", "Import torchvision's models"),
    },
    "Make records of a data set": {
        "records folder": Verb("tf_records.folder", "Of a folder of YOLO, VOC, CVAT, …"),
        "records coco": Verb("tf_records.coco", "Of data in COCO's format"),
        "records visual-genome": Verb("tf_records.visual_genome", "Of Visual Genome"),
        "records shapes": Verb("tf_records.shapes", "Of the embedded data set, drawn anew"),
        "records label": Verb("tf_records.label", "Anew, with a model's masks for bare boxes"),
        "records describe": Verb("tf_records.describe", "Count what is in records, draw samples"),
        "records verify": Verb("tf_records.verify", "Find every damage of records"),
        "records splits": Verb("tf_records.splits", "Draw random sets A of classes with masks"),
    },
    "Train and compare": {
        "learn": Verb("maskx_tf.learn", "From a labelled folder to an exported model"),
        "train": Verb("maskx_tf.train", "Train a model, or go on with a run"),
        "selftrain": Verb("maskx_tf.selftrain", "Rounds of labelling and training again"),
        "evaluate": Verb("maskx_tf.evaluate", "Box and mask AP of a trained model"),
        "study": Verb("maskx_tf.study", "Many runs, their tables and figures"),
    },
    "Serve a model": {
        "export": Verb("export.command", "Write it for TensorFlow, OpenVINO, ONNX"),
        "serve": Verb("export.serving.server", "Serve exported models on this machine"),
        "client": Verb("export.client", "Detections of image files from a server"),
        "label-studio": Verb("export.labeling_tools.label_studio", "Its masks in Label Studio"),
    },
}
VERBS = {name: verb for group in GROUPS.values() for name, verb in group.items()}
NAMES = {verb.module: name for name, verb in VERBS.items()}


def split(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that a command line begins with, "" if none, and the words after it.

    `records FOLDER` means `records folder FOLDER`, if there is such a directory or / is in it.
    """
    folder = words[1] if words[:1] == ["records"] and len(words) > 1 else ""
    if not folder.startswith("-") and ("/" in folder or os.path.isdir(folder)):
        return "records folder", list(words[1:])
    for length in (2, 1):
        name = " ".join(words[:length]).replace("_", "-")
        if len(words) >= length and name in VERBS:
            return name, list(words[length:])
    return "", list(words)


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether one of the words is `--help` or one of its short forms."""
    return any(word in ("--help", "-help", "--helpshort", "-h", "-?") for word in words)


def command(module: str) -> str:
    """How a person runs a module: `maskx train`, or `python -m …` where there is no verb."""
    return f"maskx {NAMES[module]}" if module in NAMES else f"python -m {module}"
