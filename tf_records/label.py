"""Writes records anew, with masks by a model for the boxes that have no mask to train on.

Masks that the model may train on stay as they are: those of set A, of the sources of its run.
All others, of people too, are replaced or left out.

Example:
  maskx records label --records=records/mine/train --model_dir=runs/mine --output_dir=labelled
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from maskx_tf import checkpoints
from maskx_tf.checkpoints import LoadedModel
from maskx_tf.data import decoding
from maskx_tf.data.classes import Vocabulary, load_mask_classes
from maskx_tf.data.coco.masks import read_segmentation
from maskx_tf.data.records import framing, schema
from maskx_tf.data.records.framing import Frame
from maskx_tf.data.records.manifest import Found, Manifest, find_records, vocabulary_of
from maskx_tf.data.records.schema import ImageRecord, ObjectRecord
from maskx_tf.errors import UserError
from maskx_tf.inference import mask_post
from maskx_tf.inference.segmenter import Segmenter
from maskx_tf.labeling import of_records
from maskx_tf.labeling.objects import OURS
from maskx_tf.labeling.of_records import MIN_AGREEMENT, TO_LABEL, Usable, labelled_and_kept
from maskx_tf.ops import dense_crf
from maskx_tf.ops.masks import box_agreement
from maskx_tf.system import cli
from tf_records import writer
from tf_records.coco import DEFAULT_MASK_SIZE
from tf_records.output import Output
from tf_records.shards import Encoded


class _Item(NamedTuple):
    """A record in a file."""

    path: pathlib.Path
    frame: Frame


def label(
    records: Sequence[str],
    checkpoint: str,
    loaded: LoadedModel,
    usable: Usable,
    output: Output,
    min_agreement: float = MIN_AGREEMENT,
    min_quality: float = 0.0,
    crf: dense_crf.Parameters | None = None,
) -> Manifest:
    """Writes records with the masks of a model in place of those that may not be trained on.

    A mask is kept if the box around its own pixels agrees with the given one, and the model with
    itself; its weight is the model's own score of it, `segmenter.expected_iou`.

    Args:
      records: directories or patterns.
      checkpoint: of the model.
      loaded: the model, with masks.
      usable: which masks stay.
      output: where to, of one worker.
      min_agreement: least IoU of the two boxes, `masks.box_agreement`.
      min_quality: least score.
      crf: refines the masks first.

    Raises:
      UserError: records are missing or damaged or have classes that the model lacks, there is
        nothing to label, or no mask agrees with its box, and nothing is written then.
    """
    files = find_records(records)
    vocabulary = vocabulary_of(records)
    loaded.vocabulary.ids_of(vocabulary.names)  # names those that it lacks
    items, to_label = _survey(files, usable)
    if not to_label:
        raise UserError(
            f"{', '.join(records)}: every object has a mask that the model may train on; there is "
            "nothing to label. Set B, the classes without masks, is empty, or has no boxes here."
        )
    mask_sizes = [manifest.source.get("mask_size") for manifest in files.manifests.values()]
    mask_size = next((size for size in mask_sizes if size is not None), DEFAULT_MASK_SIZE)
    index = pathlib.Path(f"{checkpoint}.index").read_bytes()  # with a checksum of each tensor
    source: dict[str, Any] = {
        "records_sha256": list(_hashes(files)),
        "checkpoint_sha256": hashlib.sha256(index).hexdigest(),
        "min_agreement": min_agreement,
        "min_quality": min_quality,
        "mask_classes": sorted(usable.classes),
        "mask_sources": list(usable.sources),
        "mask_source_weights": usable.weights,
        "mask_size": mask_size,
        "crf": crf and list(crf),
        TO_LABEL: to_label,
    }
    labeller = _Labeller(loaded, vocabulary, usable, (min_agreement, min_quality), mask_size, crf)
    attributes: dict[str, Any] = {}
    for manifest in files.manifests.values():
        attributes |= manifest.class_attributes
    manifest = writer.write(
        labeller, items, output, vocabulary=vocabulary, source=source, class_attributes=attributes
    )
    if not any(kept for _, kept in labelled_and_kept(manifest).values()):
        output.remove_old()
        raise UserError(
            f"None of the {sum(to_label.values())} masks is good enough for --min_agreement="
            f"{min_agreement} and --min_quality={min_quality}, and nothing is written. Lower them; "
            "a model that was hardly trained yet has no mask to teach."
        )
    return manifest


def _survey(files: Found, usable: Usable) -> tuple[list[_Item], dict[str, int]]:
    """All records, and how many boxes of each class are to be labelled."""
    items, counts = [], collections.Counter[str]()
    for path in files.paths:
        for frame in _frames(path):
            items.append(_Item(path, frame))
            _, columns = schema.columns_of(_payload(items[-1]))
            for row in zip(*(columns[name] for name in _SURVEYED), strict=True):
                name, source, has_mask, weight, is_crowd = row
                said = source.decode() if has_mask else ""
                if not is_crowd and not usable(name.decode(), said, weight):
                    counts[name.decode()] += 1
    return items, dict(sorted(counts.items()))


_SURVEYED = ("class/text", "mask_source", "has_mask", "mask_weight", "is_crowd")


def _frames(path: pathlib.Path) -> Iterator[Frame]:
    for frame in framing.walk(path):
        if isinstance(frame, framing.Fault):
            raise UserError(f"{path}, byte {frame.offset}: {frame.message}; {_remedy(path)}")
        yield frame


def _payload(item: _Item) -> bytes:
    with open(item.path, "rb", buffering=0) as file:
        payload, damage = framing.read_payload(file, item.frame)
    if damage:
        raise UserError(f"{item.path}, byte {item.frame.offset}: {damage}; {_remedy(item.path)}")
    return payload


def _remedy(path: pathlib.Path) -> str:
    return f"maskx records verify {path.parent} lists all damage."


def _hashes(files: Found) -> Iterator[str]:
    shards = files.shards
    for path in files.paths:
        if path in shards:
            yield shards[path].sha256
        else:
            with open(path, "rb") as file:
                yield hashlib.file_digest(file, "sha256").hexdigest()


class _Labeller:
    """Makes the new record of an item."""

    def __init__(
        self,
        loaded: LoadedModel,
        vocabulary: Vocabulary,
        usable: Usable,
        least: tuple[float, float],  # agreement and score
        mask_size: int,
        crf: dense_crf.Parameters | None,
    ):
        self._loaded, self._usable = loaded, usable
        self._class_ids = {name: number for number, name in enumerate(vocabulary.names, start=1)}
        self._least, self._mask_size, self._crf = least, mask_size, crf

    @functools.cached_property
    def _segmenter(self) -> Segmenter:
        return Segmenter(self._loaded)

    def __call__(self, item: _Item) -> Encoded:
        record = schema.from_example(_payload(item))
        objects = [
            dataclasses.replace(one, class_id=self._class_ids[one.class_name])
            for one in record.objects
        ]
        chosen = [
            number
            for number, one in enumerate(objects)
            if not one.is_crowd
            and not self._usable(one.class_name, one.mask_source, one.mask_weight)
        ]
        if chosen:
            new = self._labelled(record, [objects[number] for number in chosen])
            for number, one in zip(chosen, new, strict=True):
                objects[number] = one
        return writer.encode(dataclasses.replace(record, objects=objects))

    def _labelled(self, record: ImageRecord, objects: list[ObjectRecord]) -> list[ObjectRecord]:
        """The objects with the model's masks, or without a mask."""
        image = decoding.to_array(record.encoded)
        class_ids = self._loaded.vocabulary.ids_of(one.class_name for one in objects)
        boxes = np.array([one.box_yxyx for one in objects])
        detections = self._segmenter.segment(image, boxes, np.array(class_ids))
        if self._crf:
            detections = detections.with_crf(self._crf)
        size = image.shape[:2]
        new = []
        for one, detection in zip(objects, detections, strict=True):
            rle = detection.rle()
            mask = None
            agreement = box_agreement(rle, one.box_yxyx.tolist())
            if agreement >= self._least[0] and detection.score >= self._least[1]:
                segmentation = read_segmentation(rle, (size, size))
                assert segmentation is not None
                mask, _ = segmentation.crop(one.box_yxyx, self._mask_size)
            if mask is None or not mask.any():
                new.append(dataclasses.replace(one, mask=None))
                continue
            new.append(
                dataclasses.replace(
                    one, mask=mask, mask_source=OURS, mask_weight=float(detection.score)
                )
            )
        return new


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_list(
        "records", None, "Record directories (or shard globs) to label.", required=True
    )
    flags.DEFINE_string("model_dir", None, "Run, or checkpoint of a run.", required=True)
    flags.DEFINE_string("output_dir", None, "Directory to write records to.", required=True)
    of_records.define_flags()
    flags.DEFINE_string(
        "mask_classes", "", "Set A, whose masks stay, as of maskx train; empty: that of the run."
    )
    flags.DEFINE_list("mask_sources", [], "Sources of masks that stay; empty: those of the run.")
    flags.DEFINE_integer("num_shards", 0, "Number of files; 0: one per 1000 images.")
    flags.DEFINE_bool("reuse", False, "Keep finished records of the same source and settings.")
    flags.DEFINE_bool(
        "overwrite", False, "Replace existing records, including those of an unfinished run."
    )


def main() -> None:
    """Labels and prints what was kept."""
    values = flags.FLAGS
    output = Output(
        values.output_dir,
        "labelled",
        num_shards=values.num_shards,
        workers=1,  # the model computes in as many threads as there are cores
        reuse=values.reuse,
        overwrite=values.overwrite,
    )
    checkpoint, loaded = checkpoints.load_latest(values.model_dir)
    checkpoints.require_masks(loaded, values.model_dir)
    vocabulary, class_ids = loaded.vocabulary, loaded.mask_class_ids
    if values.mask_classes:
        class_ids = load_mask_classes(values.mask_classes, vocabulary)
    usable = Usable(
        set(vocabulary.names_of(class_ids)),
        tuple(values.mask_sources) or loaded.config.mask_sources,
        loaded.config.source_weights,
    )
    manifest = label(
        values.records,
        checkpoint,
        loaded,
        usable,
        output,
        values.min_agreement,
        values.min_quality,
        mask_post.from_flags(values),
    )
    counts = labelled_and_kept(manifest).values()
    labelled, kept = (sum(column) for column in zip(*counts, strict=True))
    print(writer.describe(manifest, values.output_dir))
    print(
        f"{kept} of {labelled} masks agree with their boxes ({kept / labelled:.1%}) and are kept."
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
