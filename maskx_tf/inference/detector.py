"""A model ready to predict with, from a checkpoint or from an export alike."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, overload

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from maskx_tf import checkpoints
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.inference import graph_model, inputs, tiles, tiling
from maskx_tf.inference.detections import MASK_OUTPUTS, Detections
from maskx_tf.inference.module import DetectionModule
from maskx_tf.inference.segmenter import ExportedSegmenter, Segmenter, prompts_of
from maskx_tf.system.literal_paths import literal

_MOST_IMAGES = 4  # of one size, that go through the network together
_MOST_DECODED = 16  # images in memory at a time


def _no_segmenter() -> NoReturn:
    raise UserError(
        "This export has no signature for given boxes; export the run again, or load the run "
        "itself."
    )


@dataclasses.dataclass(frozen=True, repr=False)
class Detector:
    """A model that finds objects in images, and gives masks to boxes.

        detections = detector("photo.jpg", min_score=0.5)
        detections = detector.masks("photo.jpg", [[10, 20, 110, 220]], ["cat"])

    Attributes:
      detect: uint8 [B, H, W, 3] -> outputs as of `module.DetectionModule`; of a model without a
        trained mask head there are no `detection_masks` and their windows.
      vocabulary: its classes.
      segmenter: returns what gives masks to boxes, or raises a UserError of why it does not.
      name: where it was loaded from.
      mask_class_ids: the classes of set A, which had masks in training.
    """

    detect: Callable[[tf.Tensor], Mapping[str, npt.ArrayLike]]
    vocabulary: Vocabulary
    segmenter: Callable[[], Segmenter | ExportedSegmenter] = _no_segmenter
    name: str = ""
    mask_class_ids: tuple[int, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes 1..K."""
        return self.vocabulary.names

    def __repr__(self) -> str:
        return f"<Detector of {self.vocabulary.num_classes} classes, {self.name or 'unnamed'}>"

    @overload
    def __call__(  # type: ignore[overload-overlap] # a path is a sequence too
        self, images: inputs.Image, min_score: float = ...
    ) -> Detections: ...
    @overload
    def __call__(
        self, images: Sequence[inputs.Image], min_score: float = ...
    ) -> list[Detections]: ...
    def __call__(self, images, min_score: float = 0.5):
        """The objects in an image, or in each image of a list.

        Args:
          images: an image, or a list of images, which may differ in kind and size: the path of a
            file; its bytes; a picture of Pillow; or an array, uint8 RGB [H, W, 3]. Photographs are
            turned as their EXIF orientation says.
          min_score: objects below this score are left out; 0: all that the model finds.

        Returns:
          `Detections` in pixels of the upright image; of a list, a list of them.

        Raises:
          ImageError: an image cannot be read, or is of another kind.
        """
        if not 0 <= min_score <= 1:
            raise UserError(f"min_score={min_score} must lie in [0, 1].")
        if not isinstance(images, list | tuple):
            name, pixels = inputs.read_image(images)
            (detections,) = self._detect([pixels])
            return self._finished(detections, min_score, name, pixels)
        results = []
        for start in range(0, len(images), _MOST_DECODED):
            sources = images[start : start + _MOST_DECODED]
            names, decoded = zip(*map(inputs.read_image, sources), strict=True)
            for source, name, pixels, detections in zip(
                sources, names, decoded, self._detect(decoded), strict=True
            ):
                # What can be read again when it is drawn does not stay in memory.
                image = source if isinstance(source, str | os.PathLike | bytes) else pixels
                results.append(self._finished(detections, min_score, name, image))
        return results

    def tiled(
        self,
        image: inputs.Image,
        tile: int = 1024,
        overlap: float = 0.25,
        min_score: float = 0.5,
        max_pixels: int = tiling.MAX_PIXELS,
    ) -> Detections:
        """The objects in a large image, found in overlapping tiles and made whole.

        Args:
          image: as of `__call__`.
          tile: side of the tiles in pixels.
          overlap: share of a side that neighbours have in common at least; see `tiles.detect`.
          min_score: as of `__call__`.
          max_pixels: files of more are refused.

        Raises:
          ImageError: as of `__call__`.
          UserError: there are no such tiles.
        """
        name, pixels = inputs.read_image(image, max_pixels)
        detections = tiles.detect(self._detect, pixels, tile, overlap)
        return self._finished(detections, min_score, name, pixels)

    def _detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """All that is found in images uint8 [H, W, 3]; those of one size share batches."""
        results: dict[int, Detections] = {}
        for size in dict.fromkeys(image.shape for image in images):
            places = [i for i, image in enumerate(images) if image.shape == size]
            for start in range(0, len(places), _MOST_IMAGES):
                batch = places[start : start + _MOST_IMAGES]
                outputs = self.detect(tf.constant(np.stack([images[i] for i in batch])))
                arrays = {key: np.asarray(value) for key, value in outputs.items()}
                for row, i in enumerate(batch):
                    one = {key: value[row] for key, value in arrays.items()}
                    results[i] = Detections.from_outputs(one, self.name)
        return [results[i] for i in range(len(images))]

    def _finished(
        self,
        detections: Detections,
        min_score: float,
        name: str,
        image: np.ndarray | bytes | str | os.PathLike[str],
    ) -> Detections:
        detections = detections[detections.scores >= min_score]
        category_ids = np.array(self.vocabulary.external_ids)[detections.class_ids - 1]
        return dataclasses.replace(detections, category_ids=category_ids, name=name, image=image)

    def masks(
        self,
        image: inputs.Image,
        boxes_yxyx: npt.ArrayLike,
        classes: str | int | Sequence[str | int],
    ) -> Detections:
        """Masks of given boxes of an image.

        Args:
          image: as of `__call__`.
          boxes_yxyx: float [N, 4], (y1, x1, y2, x2) in pixels of the upright image, exclusive
            corners.
          classes: N names, or ids 1..K; a single one is that of all boxes.

        Returns:
          `Detections` in the order of the boxes, which are clipped to the image. The score is the
          IoU that the model expects of a mask (`segmenter.expected_iou`).

        Raises:
          UserError: a box has no area in the image, a class is unknown, or the model detects boxes
            only.
          ImageError: as of `__call__`.
        """
        segmenter = self.segmenter()
        name, pixels = inputs.read_image(image)
        boxes = inputs.read_boxes(boxes_yxyx, *pixels.shape[:2])
        class_ids = inputs.read_classes(classes, len(boxes), self.vocabulary)
        return segmenter.segment(pixels, boxes, class_ids, name=name)


def load_checkpoint(path: str) -> Detector:
    """A detector from a run's directory or one of its checkpoints."""
    return of_model(checkpoints.load_model(path), path)


def of_model(loaded: checkpoints.LoadedModel, path: str) -> Detector:
    """A detector of a model that was loaded from a path."""
    model, config, vocabulary, mask_class_ids = loaded

    @functools.cache  # who only gives masks to boxes does not wait for its graphs
    def detecting() -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        module = DetectionModule(
            model, config, vocabulary, mask_class_ids if loaded.has_masks else ()
        )

        # A graph around the module's: what nothing is left to read, as masks here, is not computed.
        @tf.function(autograph=False, input_signature=module.detect_images.input_signature)
        def detect(images: tf.Tensor) -> dict[str, tf.Tensor]:
            outputs = dict(module.detect_images(images))
            if not loaded.has_masks:
                for name in MASK_OUTPUTS:
                    outputs.pop(name, None)
            return outputs

        return detect

    @functools.cache
    def segmenter() -> Segmenter:
        checkpoints.require_masks(loaded, path)
        return Segmenter(loaded)

    of_a = tuple(mask_class_ids)
    return Detector(lambda images: detecting()(images), vocabulary, segmenter, path, of_a)


def is_export(directory: pathlib.Path) -> bool:
    """Whether a directory is a version of an export, or has some."""
    names = ("saved_model.pb", *graph_model.MODEL_FILES)
    return any(any(directory.glob(f"{at}{name}")) for at in ("", "[0-9]*/") for name in names)


def load_export(path: str) -> Detector:
    """A detector from an export: OUTPUT_DIR (its latest version is taken) or OUTPUT_DIR/<version>.

    Raises:
      UserError: there is no export of this project, or not the package that runs it.
    """
    versions = [int(p.name) for p in pathlib.Path(path).glob("*") if p.name.isdecimal()]
    directory = pathlib.Path(path) / str(max(versions)) if versions else pathlib.Path(path)
    classes = directory / "assets" / "classes.json"
    if not classes.is_file():
        raise UserError(
            f"--saved_model={path} is not an exported model: there is no {classes}; make one with "
            "maskx export."
        )
    vocabulary = Vocabulary.load(classes)
    seen = [entry.get("mask_seen", False) for entry in json.loads(classes.read_text())]
    of_a = tuple(number for number, is_seen in enumerate(seen, start=1) if is_seen)
    if graph_model.is_version(directory):
        detect = graph_model.GraphModel(directory, vocabulary)

        @functools.cache  # what boxes need is loaded when it is asked for
        def segmenter() -> ExportedSegmenter:
            prompts = graph_model.GraphPrompts(directory, vocabulary)
            return ExportedSegmenter(prompts, vocabulary)

        has_prompts = graph_model.is_version(directory / graph_model.PROMPTS)
        return Detector(detect, vocabulary, segmenter if has_prompts else _no_segmenter, path, of_a)
    loaded = tf.saved_model.load(literal(directory))
    # A signature does not keep its variables alive; the closure does, through `loaded`.
    signature = loaded.signatures.get("box_prompts")
    prompted = signature and ExportedSegmenter(prompts_of(signature), vocabulary)
    return Detector(
        lambda images: loaded.signatures["image_tensor"](images=images),
        vocabulary,
        (lambda: prompted) if prompted else _no_segmenter,
        path,
        of_a,
    )


def require_one(model_dir: str, saved_model: str) -> None:
    """A UserError unless a command's options name one model."""
    if bool(model_dir) == bool(saved_model):
        raise UserError("Give either --model_dir=DIRECTORY or --saved_model=DIRECTORY.")


def load(model_dir: str, saved_model: str) -> Detector:
    """The detector of a command's options, named by the path of its checkpoint or export."""
    require_one(model_dir, saved_model)
    if saved_model:
        return load_export(saved_model)
    return load_checkpoint(checkpoints.latest_checkpoint(model_dir))


def version_of(detector: Detector) -> list[str | int]:
    """Where a detector of `load` comes from, and when that was written: tells it from others."""
    path = detector.name if os.path.isdir(detector.name) else f"{detector.name}.index"
    return [detector.name, os.stat(path).st_mtime_ns]
