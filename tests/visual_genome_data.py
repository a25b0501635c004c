"""Small Visual Genome data sets for the tests of their conversion."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from maskx_tf.data.records import manifest as manifest_lib
from maskx_tf.data.records import schema as records_lib
from maskx_tf.data.records.manifest import Manifest
from maskx_tf.data.records.schema import ImageRecord
from tests import harness
from tf_records.output import Output
from tf_records.visual_genome import __main__ as visual_genome
from tf_records.visual_genome.data import Options

HOST = "https://cs.stanford.edu/people/rak248"


def vg_object(synset: Any, box: Sequence[Any], number: Any, **changes: Any) -> dict[str, Any]:
    """An object as in version 1.4: `synset` is one, or the list of them."""
    x, y, w, h = box
    synsets = synset if isinstance(synset, list) else [synset]
    made = {"synsets": synsets, "object_id": number, "names": ["a"], "merged_object_ids": []}
    return made | {"x": x, "y": y, "w": w, "h": h} | changes


def vg_image(image_id: int, **changes: Any) -> dict[str, Any]:
    """An entry of image_data.json; the file is 40 x 60."""
    url = f"{HOST}/VG_100K{'' if image_id % 2 else '_2'}/{image_id}.jpg"
    made = {"image_id": image_id, "url": url, "width": 60, "height": 40}
    return made | {"coco_id": None, "flickr_id": None} | changes


def vg_entry(image_id: int, *objects: Any) -> dict[str, Any]:
    """An entry of objects.json."""
    return {"image_id": image_id, "objects": list(objects), "image_url": "x"}


def write(
    directory: pathlib.Path,
    entries: Sequence[Any],
    images: Sequence[Any],
    coco: Sequence[Any] | None = ({"id": 1_000_000},),
) -> dict[str, str]:
    """Writes the jsons and image files; the arguments of `visual_genome.convert`."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = {"objects": directory / "objects.json", "image_data": directory / "image_data.json"}
    paths["objects"].write_text(json.dumps(entries))
    paths["image_data"].write_text(json.dumps(images))
    for image_id in range(1, 10):
        folder = directory / "images" / f"VG_100K{'' if image_id % 2 else '_2'}"
        folder.mkdir(parents=True, exist_ok=True)
        encoded = harness.encode_image(harness.random_image(40, 60, seed=image_id))
        (folder / f"{image_id}.jpg").write_bytes(encoded)
    paths["images"] = directory / "images"
    if coco is not None:
        paths["coco_annotations"] = directory / "coco.json"
        paths["coco_annotations"].write_text(json.dumps({"images": coco}))
    return {name: str(path) for name, path in paths.items()}


def convert(
    paths: Mapping[str, str], directory: pathlib.Path, output: Any = None, **options: Any
) -> visual_genome.Converted:
    """Converts; every image is in train unless `options` or its ids say otherwise."""
    options = {"test_images": 0, "num_classes": 50} | options
    settings = {"workers": 1, "most_dropped": 1} | (output or {})
    return visual_genome.convert(
        **paths,
        output=Output(str(directory), "x", **settings),
        options=Options(**options),
    )


def records_of(directory: pathlib.Path) -> list[ImageRecord]:
    """The records of a split."""
    return list(records_lib.read_records(manifest_lib.find_shards([str(directory)])))


def converted(
    tmp_path: pathlib.Path, entries: Sequence[Any], images: Sequence[Any] | None = None, **options
) -> tuple[Manifest, list[ImageRecord]]:
    """Manifest and records of train, made of one image unless others are given."""
    paths = write(tmp_path / "vg", entries, images or [vg_image(1)])
    made = convert(paths, tmp_path / "records", **options)
    return made.manifests["train"], records_of(tmp_path / "records" / "train")


def reasons(manifest: Manifest) -> dict[str, list]:
    """Reason -> ids."""
    return {reason: entry["ids"] for reason, entry in manifest.issues.items()}


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}
