"""manifest.json beside record shards: what they hold, and how to find the shards of a data set."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.system.files import write_atomically
from maskx_tf.system.literal_paths import matches

FILE_NAME = "manifest.json"
HUMAN = "human"  # source of a mask of which the annotations name none
_FORMAT = "maskx_tf records, version 1"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One record file: its name, number of records, size in bytes and sha256 in hex."""

    file: str
    count: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of a record directory.

    Attributes:
      name: data set name, the start of the shards' names.
      shards: the record files in order.
      vocabulary: classes in the order of the records' `class_id`.
      class_counts: class name -> (objects, objects with mask), without crowds; classes without
        objects are absent.
      max_objects_per_image: largest number of objects in an image.
      set_a: names of the classes meant to be trained with masks, where the source says so.
      issues: reason -> {"effect": str, "count": int, "ids": [[annotation id or None, image id]]}.
      source: what the records were made of: settings and fingerprints.
      mask_sources: where masks are from (`schema.ObjectRecord.mask_source`) -> how many.
      crowd_counts: class name -> crowds. None: records of before, which count them as objects.
      warnings: sentences of what looks wrong in much of the data set.
      class_attributes: class name -> "frequency" (r, c or f) and "synset", where the source (LVIS)
        has them.
      weighted_masks: source -> how many of its masks have a weight other than 1.
    """

    name: str
    shards: tuple[Shard, ...]
    vocabulary: Vocabulary
    class_counts: Mapping[str, tuple[int, int]]
    max_objects_per_image: int
    set_a: tuple[str, ...] | None
    issues: Mapping[str, Mapping[str, Any]]
    source: Mapping[str, Any]
    mask_sources: Mapping[str, int] = dataclasses.field(default_factory=dict)
    crowd_counts: Mapping[str, int] | None = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    class_attributes: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    weighted_masks: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """Number of records in all shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def num_objects(self) -> int:
        """Number of objects in all records."""
        return sum(objects for objects, _ in self.class_counts.values())

    @property
    def num_crowds(self) -> int:
        """Number of crowds in all records, as far as it is known."""
        return sum((self.crowd_counts or {}).values())

    @property
    def num_masks(self) -> int:
        """Number of objects with a mask in all records."""
        return sum(masks for _, masks in self.class_counts.values())

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `directory/manifest.json`, atomically."""
        content = {
            "format": _FORMAT,
            "name": self.name,
            "images": self.num_images,
            "objects": self.num_objects,
            "objects_with_mask": self.num_masks,
            "crowds": self.num_crowds,
            "mask_sources": dict(self.mask_sources),
            "max_objects_per_image": self.max_objects_per_image,
            "source": dict(self.source),
            "set_a": None if self.set_a is None else list(self.set_a),
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
            "categories": self.vocabulary.categories(),
            "class_counts": {name: list(pair) for name, pair in self.class_counts.items()},
            "crowd_counts": None if self.crowd_counts is None else dict(self.crowd_counts),
            "warnings": list(self.warnings),
            "dropped_or_repaired": {reason: dict(entry) for reason, entry in self.issues.items()},
        }
        if self.weighted_masks:
            content["weighted_masks"] = dict(self.weighted_masks)
        if self.class_attributes:
            content["class_attributes"] = {
                name: dict(texts) for name, texts in self.class_attributes.items()
            }
        body = ",\n".join(f"{json.dumps(key)}: {_dump(value)}" for key, value in content.items())
        write_atomically(pathlib.Path(directory) / FILE_NAME, f"{{\n{body}\n}}\n")

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Manifest:
        """Reads `directory/manifest.json`; UserError if it is absent or not one of ours."""
        path = pathlib.Path(directory) / FILE_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise UserError(
                f"{directory} holds no finished records (no {FILE_NAME}); make them with "
                "maskx records coco, visual-genome or shapes."
            ) from None
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); write the records again.") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise UserError(f"{path} is not a manifest of '{_FORMAT}'; write the records again.")
        try:
            return cls._from_content(content, path)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error!r}); write the records again.") from None

    @classmethod
    def _from_content(cls, content: dict[str, Any], path: pathlib.Path) -> Manifest:
        return cls(
            name=content["name"],
            shards=tuple(Shard(**shard) for shard in content["shards"]),
            vocabulary=Vocabulary.from_categories(content["categories"], str(path)),
            class_counts={name: (pair[0], pair[1])
                          for name, pair in content["class_counts"].items()},
            max_objects_per_image=content["max_objects_per_image"],
            set_a=None if content["set_a"] is None else tuple(content["set_a"]),
            issues=content["dropped_or_repaired"],
            source=content["source"],
            mask_sources=mask_sources_of(content, content["class_counts"]),
            crowd_counts=content.get("crowd_counts"),
            warnings=tuple(content.get("warnings", ())),
            class_attributes=content.get("class_attributes", {}),
            weighted_masks=content.get("weighted_masks", {}),
        )  # fmt: skip


def mask_sources_of(
    content: Mapping[str, Any], class_counts: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """The entry "mask_sources"; files of before it tell of masks that the annotations hold."""
    masks = sum(counts[1] for counts in class_counts.values())
    return dict(content.get("mask_sources", {HUMAN: masks} if masks else {}))


def _dump(value: Any) -> str:
    """Json text with one line for each item of a list or dict."""
    if isinstance(value, dict) and value:
        items = (f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
        return "{\n" + ",\n".join(items) + "\n}"
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"  {json.dumps(item)}" for item in value) + "\n]"
    return json.dumps(value)


class Found(NamedTuple):
    """Record files in order, and the manifests beside them by directory."""

    paths: list[pathlib.Path]
    manifests: dict[pathlib.Path, Manifest]

    @property
    def shards(self) -> dict[pathlib.Path, Shard]:
        """What the manifests say of all their shards, by path."""
        return {
            directory / shard.file: shard
            for directory, manifest in self.manifests.items()
            for shard in manifest.shards
        }

    @property
    def counts(self) -> dict[pathlib.Path, int]:
        """How many records each of these shards holds."""
        return {path: shard.count for path, shard in self.shards.items()}


def find_records(records: Sequence[str], check_sizes: bool = True) -> Found:
    """The record files of directories (with manifest.json) and glob patterns, with manifests.

    Files that a glob pattern names need no manifest.

    Raises:
      UserError: nothing matches, a directory is unfinished, or a shard is absent or, unless told
        otherwise, has another size than its manifest says.
    """
    if not records:
        raise UserError("No records are given; name them with --train_records or --eval_records.")
    found = Found([], {})
    for entry in records:
        if pathlib.Path(entry).is_dir():
            directory = pathlib.Path(entry)
            manifest = found.manifests.setdefault(directory, Manifest.load(directory))
            paths = [directory / shard.file for shard in manifest.shards]
        else:
            paths = matches(entry)
            paths = [path for path in paths if path.is_file()]
        if not paths:
            raise UserError(f"No records match {entry!r}: no such directory or files.")
        found.paths.extend(paths)
    for directory in dict.fromkeys(path.parent for path in found.paths):
        if directory not in found.manifests and (directory / FILE_NAME).is_file():
            found.manifests[directory] = Manifest.load(directory)
    _check_files(found, check_sizes)
    return found


def find_shards(records: Sequence[str]) -> list[pathlib.Path]:
    """The record files alone, see `find_records`."""
    return find_records(records).paths


def vocabulary_of(records: Sequence[str]) -> Vocabulary:
    """The classes of several record directories, in order of first appearance.

    External ids are those of the records where all directories agree, else 1..K.
    """
    vocabularies = [manifest.vocabulary for manifest in find_records(records).manifests.values()]
    if not vocabularies:
        raise UserError(
            f"{', '.join(records)}: no {FILE_NAME} beside the records, so their classes are "
            "unknown; give --vocabulary."
        )
    if all(vocabulary == vocabularies[0] for vocabulary in vocabularies):
        return vocabularies[0]
    names = (name for vocabulary in vocabularies for name in vocabulary.names)
    return Vocabulary.from_names(dict.fromkeys(names))


def _check_files(found: Found, check_sizes: bool) -> None:
    """A file cut at a record boundary reads without any error: its size gives it away."""
    shards = found.shards
    for path in found.paths:
        expected = shards[path].bytes if path in shards else None
        size = path.stat().st_size if path.is_file() else None
        differs = check_sizes and expected is not None and size != expected
        if size is None or differs:
            state = "is missing" if size is None else f"has {size} bytes"
            raise UserError(
                f"{path} {state}; its manifest says {expected} bytes. "
                f"maskx records verify {path.parent} lists all damage; write the records "
                "again."
            )
