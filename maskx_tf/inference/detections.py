"""The objects in an image: parallel arrays, with masks pasted, drawn and written on demand."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, overload

import numpy as np

from maskx_tf import visualize
from maskx_tf.errors import UserError
from maskx_tf.inference.image_files import read_upright
from maskx_tf.ops import dense_crf, polygons
from maskx_tf.ops import masks as mask_ops

_KINDS = {  # output: (dtype, rank), without the batch dimension; D detections, masks m × m
    "num_detections": (np.int32, 0),
    "detection_boxes": (np.float32, 2),
    "detection_scores": (np.float32, 1),
    "detection_classes": (np.int32, 1),
    "detection_class_names": (np.object_, 1),
    "detection_masks": (np.uint8, 3),
    "detection_mask_seen": (np.bool_, 1),
    "detection_mask_windows": (np.float32, 2),
    "detection_mask_scores": (np.float32, 1),
    "image_size": (np.int32, 1),
}
MASK_OUTPUTS = ("detection_masks", "detection_mask_windows", "detection_mask_scores")
_CRF = dense_crf.Parameters()
SEGMENTATIONS = ("rle", "polygon", "none")  # how COCO results may have masks


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """An object in an image.

    Attributes:
      class_name: name of its class.
      class_id: number of its class in the model, 1..K.
      category_id: number of its class in the data set; `class_id` where the model names no other.
      score: 0 to 1.
      box_yxyx: (y1, x1, y2, x2), pixels of the original image, exclusive corners.
      mask_seen: whether the class had training masks (set A of the paper).
      box_mask: [m, m], the mask's probability over its window: uint8, 255 times it, or float. None
        of a model that detects boxes only, whose objects have no `mask`, `rle` and `polygons`.
      image_size: (height, width) of the image in pixels; of a photograph with an EXIF orientation
        that the model honours, as it is seen upright.
      whole_pixels: how the mask is pasted, see `ops.masks.paste_region`.
      mask_window_yxyx: what the mask reaches over, as `box_yxyx`, where it is more than the box
        (--mask_roi_scale); it may leave the image.
      mask_score: `score` times the IoU that the mask is predicted to have, with --mask_scoring.
    """

    class_name: str
    class_id: int
    category_id: int
    score: float
    box_yxyx: tuple[float, float, float, float]
    mask_seen: bool
    box_mask: np.ndarray | None
    image_size: tuple[int, int]
    whole_pixels: bool = False
    mask_window_yxyx: tuple[float, float, float, float] | None = None
    mask_score: float | None = None

    def mask(self, threshold: float = 0.5) -> np.ndarray:
        """The mask in the image, uint8 {0, 1} [height, width]; pasting as of `ops.masks`."""
        region, top, left = self.region(threshold)
        image = np.zeros(self.image_size, np.uint8)
        image[top : top + region.shape[0], left : left + region.shape[1]] = region
        return image

    def rle(self, threshold: float = 0.5) -> mask_ops.Rle:
        """The mask as COCO's compressed run-length code."""
        return mask_ops.encode_region(*self.region(threshold), *self.image_size)

    def polygons(self, threshold: float = 0.5) -> list[list[float]]:
        """The mask's exact outline as COCO polygons [x1, y1, x2, y2, …]; see `ops.polygons`."""
        return polygons.outline(*self.region(threshold))

    @property
    def box_xywh(self) -> tuple[float, float, float, float]:
        """The box as COCO writes it."""
        y1, x1, y2, x2 = self.box_yxyx
        return x1, y1, x2 - x1, y2 - y1

    def probabilities(self) -> np.ndarray:
        """The mask's probability over the box, float [m, m]; UserError without a mask."""
        if self.box_mask is None:
            raise UserError(
                f"This {self.class_name} has no mask: the model detects boxes only. Train a mask "
                "head on top of it (mode=stage2_masks), or take a model with masks."
            )
        return self.box_mask / 255.0 if self.box_mask.dtype == np.uint8 else self.box_mask

    def region(self, threshold: float = 0.5) -> tuple[np.ndarray, int, int]:
        """The mask's pixels, uint8 {0, 1} [h, w], and where they start: top, left."""
        return mask_ops.paste_region(
            self.probabilities(),
            self.mask_window_yxyx or self.box_yxyx,
            *self.image_size,
            threshold,
            self.whole_pixels,
        )


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Detections:
    """N objects in an image, best first.

        for detection in detections[detections.scores >= 0.7]:
            print(detection.class_name, detection.score, detection.mask().sum())

    It has a length and gives a `Detection` for each index; a slice, an array of booleans or of
    indices gives `Detections` again. Notebooks show it as a picture.

    Attributes:
      boxes_yxyx: float [N, 4], (y1, x1, y2, x2), pixels of the original image, exclusive corners.
      scores: float [N], 0 to 1.
      class_ids: int [N], 1..K.
      class_names: str [N].
      category_ids: int [N], as of `Detection`.
      mask_seen: bool [N], whether the class had training masks (set A of the paper).
      box_masks: uint8 or float [N, m, m] as of `Detection`; None of a model of boxes only.
      image_size: (height, width) in pixels, as of `Detection`.
      name: what the image was given as: its path, or a name given with it.
      image: the image, to draw on: uint8 RGB [height, width, 3], or the path or the bytes of its
        file. None: there is nothing to draw on.
      whole_pixels: as of `Detection`.
      mask_windows_yxyx: float [N, 4] or None, as of `Detection`.
      mask_scores: float [N] or None, likewise.
    """

    boxes_yxyx: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    class_names: np.ndarray
    category_ids: np.ndarray
    mask_seen: np.ndarray
    box_masks: np.ndarray | None
    image_size: tuple[int, int]
    name: str = ""
    image: np.ndarray | bytes | str | os.PathLike[str] | None = None
    whole_pixels: bool = False
    mask_windows_yxyx: np.ndarray | None = None
    mask_scores: np.ndarray | None = None

    @classmethod
    def from_outputs(
        cls, outputs: Mapping[str, Any], model: str = "the model", **others: Any
    ) -> Detections:
        """The objects in a model's outputs for one image.

        Args:
          outputs: arrays or lists without batch dimension, as of `inference.module`; others are
            ignored.
          model: what error messages call the model.
          **others: further attributes, such as `name`.

        Raises:
          UserError: they are not the outputs of a model of this project.
        """
        kinds = {k: kind for k, kind in _KINDS.items() if k not in MASK_OUTPUTS or k in outputs}
        arrays = {key: _array(outputs, key, *kind, model) for key, kind in kinds.items()}
        height, width = (int(side) for side in arrays["image_size"])
        rows = slice(int(arrays["num_detections"]))
        names = [n.decode() if isinstance(n, bytes) else n for n in arrays["detection_class_names"]]
        masks, windows, mask_scores = (arrays.get(key) for key in MASK_OUTPUTS)
        return cls(
            boxes_yxyx=arrays["detection_boxes"][rows],
            scores=arrays["detection_scores"][rows],
            class_ids=arrays["detection_classes"][rows],
            class_names=np.array(names, np.str_)[rows],
            mask_seen=arrays["detection_mask_seen"][rows],
            box_masks=masks[rows] if masks is not None else None,
            mask_windows_yxyx=windows[rows] if windows is not None else None,
            mask_scores=mask_scores[rows] if mask_scores is not None else None,
            image_size=(height, width),
            **{"category_ids": arrays["detection_classes"][rows], **others},
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray | list) -> Detections: ...
    def __getitem__(self, index: Any) -> Detection | Detections:
        columns = {
            field.name: value[index]
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray) and field.name != "image"
        }
        if columns["scores"].ndim:
            return dataclasses.replace(self, **columns)
        y1, x1, y2, x2 = columns["boxes_yxyx"].tolist()
        window, mask_score = columns.get("mask_windows_yxyx"), columns.get("mask_scores")
        return Detection(
            class_name=str(columns["class_names"]),
            class_id=int(columns["class_ids"]),
            category_id=int(columns["category_ids"]),
            score=float(columns["scores"]),
            box_yxyx=(y1, x1, y2, x2),
            mask_seen=bool(columns["mask_seen"]),
            box_mask=columns.get("box_masks"),
            image_size=self.image_size,
            whole_pixels=self.whole_pixels,
            mask_window_yxyx=None if window is None else tuple(window.tolist()),
            mask_score=None if mask_score is None else float(mask_score),
        )

    def __repr__(self) -> str:
        height, width = self.image_size
        names = [f"{d.class_name} {d.score:.2f}" for d in self[:8]]
        listed = ", ".join(names + ["…"] * (len(self) > 8)) or "nothing"
        where = f"{os.path.basename(self.name) or 'image'} of {width} × {height} pixels"
        return f"<Detections in {where}: {listed}>"

    def masks(self, threshold: float = 0.5) -> np.ndarray:
        """All masks in the image, uint8 {0, 1} [N, height, width]; `Detection.mask` gives one."""
        masks = np.zeros((len(self), *self.image_size), np.uint8)
        for mask, detection in zip(masks, self, strict=True):
            mask[:] = detection.mask(threshold)
        return masks

    def with_crf(self, parameters: dense_crf.Parameters = _CRF) -> Detections:
        """The same with masks that a dense CRF has drawn to the image's edges.

        Scores stay. The masks have other sides, and are float32.

        Raises:
          UserError: there are no masks, or there is no image.
        """
        masks = [detection.probabilities() for detection in self]
        image = self._pixels("there is nothing to draw masks to")
        windows = self.mask_windows_yxyx
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            refined = threads.map(
                lambda box, mask: dense_crf.refine(image, box, mask, parameters),
                (windows if windows is not None else self.boxes_yxyx).tolist(),
                masks,
            )
            side = dense_crf.SIDE
            box_masks = np.reshape([*refined], [-1, side, side]).astype(np.float32)
        return dataclasses.replace(self, box_masks=box_masks)

    def to_coco(
        self, image_id: int = 1, file_name: str | None = None, segmentation: str = "rle"
    ) -> list[dict[str, Any]]:
        """COCO results, as `pycocotools` loads them.

        Args:
          image_id: goes into the results.
          file_name: too; None: that of the image, if it has one.
          segmentation: "rle": masks as compressed run-length codes; "polygon": as exact outlines;
            "none": boxes only, as of a model without masks.

        Returns:
          Dictionaries with image_id, file_name, category_id (the data set's own), category_name,
          bbox (xywh, original pixels), score, segmentation and mask_seen; mask_score if there is
          one.
        """
        if segmentation not in SEGMENTATIONS:
            raise UserError(
                f"segmentation={segmentation!r} is not one of: {', '.join(SEGMENTATIONS)}."
            )
        if file_name is None:
            file_name = os.path.basename(self.name)
        given = segmentation if self.box_masks is not None else "none"
        return [
            {
                "image_id": image_id,
                "file_name": file_name,
                "category_id": detection.category_id,
                "category_name": detection.class_name,
                "bbox": [round(v, 3) for v in detection.box_xywh],
                "score": round(detection.score, 6),
                **(
                    {}
                    if detection.mask_score is None
                    else {"mask_score": round(detection.mask_score, 6)}
                ),
                **({"segmentation": detection.rle()} if given == "rle" else {}),
                **({"segmentation": detection.polygons()} if given == "polygon" else {}),
                "mask_seen": detection.mask_seen,
            }
            for detection in self
        ]

    def draw(self) -> np.ndarray:
        """A picture, uint8 RGB as of `visualize.draw`: classes of set A in green, of B in red.

        Raises:
          UserError: there is no image, or its file cannot be read any more.
        """
        return visualize.draw(
            self._pixels("there is nothing to draw"),
            self.boxes_yxyx,
            None if self.box_masks is None else [detection.rle() for detection in self],
            [f"{detection.class_name} {detection.score:.2f}" for detection in self],
            visualize.instance_colors(self.mask_seen.astype(int).tolist(), {1}),
        )

    def _pixels(self, without: str) -> np.ndarray:
        """The image, uint8 RGB [height, width, 3]; UserError of what is `without` it."""
        if self.image is None:
            raise UserError(f"These detections come without their image: {without}.")
        if isinstance(self.image, np.ndarray):
            return self.image
        return read_upright(self.image, self.image_size, self.name)

    def show(self) -> None:
        """Shows the picture: in a notebook below the cell, elsewhere in the system's viewer."""
        visualize.show_picture(self.draw())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the picture to a .jpg or .png file, whose directory is made if need be."""
        path = pathlib.Path(path)
        if path.suffix.lower() not in visualize.PICTURES:
            raise UserError(
                f"{path} must end in .jpg or .png, the formats that pictures are saved in."
            )
        visualize.write_picture(self.draw(), path)

    def _repr_png_(self) -> bytes | None:
        return None if self.image is None else visualize.encode_picture(self.draw(), "PNG")


def _array(outputs: Mapping[str, Any], key: str, dtype: type, rank: int, model: str) -> np.ndarray:
    try:
        array: np.ndarray = np.asarray(outputs[key], dtype)
    except KeyError:
        raise UserError(f"{model} has no output {key}: it was not made by maskx export.") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{model}: its output {key} cannot be read: {error}.") from None
    if array.ndim != rank:
        raise UserError(f"{model}: its output {key} has {array.ndim} dimensions, not {rank}.")
    return array
