"""Leaves masks on a few objects of the classes outside set A: what is a mask worth?

Reads and writes COCO json; the price curve of configs/shapes/ladder.toml trains on the result.

Example:
  python -m benchmarks.few_masks --annotations=data/shapes/instances_train.json \
      --mask_classes=data/shapes/set_a.txt --per_class=3 --output=few3.json
"""

import json
import pathlib
import random

from absl import app, flags

from maskx_tf.system.files import write_atomically


def few_masks(content: dict, set_a: set[str], per_class: int, seed: int = 0) -> dict:
    """A COCO json with masks on all objects of `set_a` and `per_class` of every other class.

    A larger number keeps the masks of a smaller one.
    """
    names = {category["id"]: category["name"] for category in content["categories"]}
    others: dict[int, list[int]] = {i: [] for i, name in names.items() if name not in set_a}
    for place, annotation in enumerate(content["annotations"]):
        if annotation["category_id"] in others:
            others[annotation["category_id"]].append(place)
    bare: set[int] = set()
    for class_id, places in others.items():
        random.Random(f"{seed} {class_id}").shuffle(places)
        bare.update(places[per_class:])
    annotations = [
        {key: value for key, value in annotation.items() if key != "segmentation"}
        if place in bare
        else annotation
        for place, annotation in enumerate(content["annotations"])
    ]
    return {**content, "annotations": annotations}


def main(argv) -> None:
    """Reads, leaves out, writes."""
    del argv
    values = flags.FLAGS
    set_a = set(pathlib.Path(values.mask_classes).read_text().splitlines())
    content = json.loads(pathlib.Path(values.annotations).read_bytes())
    write_atomically(
        values.output, json.dumps(few_masks(content, set_a, values.per_class, values.seed))
    )


if __name__ == "__main__":
    flags.DEFINE_string("annotations", None, "COCO json to read.", required=True)
    flags.DEFINE_string("mask_classes", None, "Names of set A, one a line.", required=True)
    flags.DEFINE_integer("per_class", None, "Masks left on each other class.", required=True)
    flags.DEFINE_integer("seed", 0, "Which objects.")
    flags.DEFINE_string("output", None, "COCO json to write.", required=True)
    app.run(main)
