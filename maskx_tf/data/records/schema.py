"""The record schema, both directions: one tf.Example per image, masks cropped to their boxes.

TensorFlow is imported where it is used: the processes that only write records do without it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from maskx_tf.data.image_formats import BadImageError
from maskx_tf.data.records import framing
from maskx_tf.data.records.example_proto import serialize
from maskx_tf.data.records.manifest import HUMAN
from maskx_tf.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

GRABCUT = "grabcut"  # source of a mask that GrabCut found in the box
_OBJECT = "image/object/"
_OBJECT_FEATURES = {
    "bbox/ymin": float,  # divided by the image height
    "bbox/xmin": float,  # divided by the image width
    "bbox/ymax": float,
    "bbox/xmax": float,
    "class/label": int,  # 1..K in the order of the manifest's categories
    "class/text": bytes,
    "area": float,  # pixels of the original image
    "is_crowd": int,
    "id": int,  # annotation id
    "has_mask": int,
    "mask": bytes,  # 1-bit PNG covering exactly the box; empty without mask
    "mask_source": bytes,  # who drew the mask, see `ObjectRecord`; empty without mask
}
_WEIGHT = "mask_weight"
WEIGHT_KEY = _OBJECT + _WEIGHT  # of floats in [0, 1]; absent where all are 1
_IMAGE_FEATURES = {
    "image/source_id": bytes,  # image id as decimal text, as Model Garden has it
    "image/filename": bytes,
    "image/encoded": bytes,  # JPEG or PNG
    "image/height": int,
    "image/width": int,
}
# Of data sets whose images are annotated for some classes only, such as LVIS; absent from others.
FEDERATED_FEATURES = {
    "image/neg_category/text": "neg_classes",
    "image/not_exhaustive_category/text": "not_exhaustive_classes",
}


@dataclasses.dataclass
class ObjectRecord:
    """One annotated object.

    Attributes:
      box_yxyx: [4] float64, pixels of the original image, exclusive corners.
      class_id: 1..K in the order of the manifest's categories.
      class_name: name of the class.
      area: pixels of the original image, as annotated.
      is_crowd: the box stands for a group.
      annotation_id: id in the source.
      mask: uint8 {0, 1} [h, w] covering exactly the box, of any size; None: no mask.
      mask_source: where the mask is from: `HUMAN`, `GRABCUT` or another word; "" without mask.
      mask_weight: factor on the mask's loss, a float32 in [0, 1]; 1 without mask.
    """

    box_yxyx: np.ndarray
    class_id: int
    class_name: str
    area: float
    is_crowd: bool
    annotation_id: int
    mask: np.ndarray | None
    mask_source: str = HUMAN
    mask_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.mask is None:
            self.mask_source, self.mask_weight = "", 1.0
        self.mask_weight = float(np.float32(self.mask_weight))  # what a record can hold


@dataclasses.dataclass
class ImageRecord:
    """One image with its objects.

    Attributes:
      image_id: id in the source.
      file_name: in the source.
      encoded: JPEG or PNG bytes.
      height, width: pixels.
      objects: annotated.
      neg_classes: names of classes that it has no object of. None: of all classes but those of its
        objects, and there are no `not_exhaustive_classes`.
      not_exhaustive_classes: names of classes that it may have more objects of.
    """

    image_id: int
    file_name: str
    encoded: bytes
    height: int
    width: int
    objects: list[ObjectRecord]
    neg_classes: tuple[str, ...] | None = None
    not_exhaustive_classes: tuple[str, ...] | None = None


def encode_mask(mask: np.ndarray) -> bytes:
    """A {0, 1} mask [h, w] as a 1-bit PNG; other programs and decoders see it as 0 and 255."""
    ok, encoded = cv2.imencode(".png", mask * np.uint8(255), [cv2.IMWRITE_PNG_BILEVEL, 1])
    if not ok:
        raise ValueError(f"A mask of shape {mask.shape} cannot be stored as PNG.")
    return encoded.tobytes()


def decode_mask(encoded: bytes) -> np.ndarray:
    """uint8 {0, 1} [h, w] from the PNG; UserError if it is none."""
    data = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if encoded else None
    if image is None:
        raise UserError(f"a mask of {len(encoded)} bytes is not a PNG")
    return (image > 0).astype(np.uint8)


def serialize_record(record: ImageRecord) -> bytes:
    """The serialised tf.Example of an image; equal records give equal bytes."""
    objects = record.objects
    scale = np.array([record.height, record.width] * 2, np.float64)
    boxes = np.array([item.box_yxyx for item in objects], np.float64).reshape(-1, 4) / scale
    columns = {
        "bbox/ymin": boxes[:, 0].tolist(),
        "bbox/xmin": boxes[:, 1].tolist(),
        "bbox/ymax": boxes[:, 2].tolist(),
        "bbox/xmax": boxes[:, 3].tolist(),
        "class/label": [item.class_id for item in objects],
        "class/text": [item.class_name.encode() for item in objects],
        "area": [item.area for item in objects],
        "is_crowd": [int(item.is_crowd) for item in objects],
        "id": [item.annotation_id for item in objects],
        "has_mask": [int(item.mask is not None) for item in objects],
        "mask": [b"" if item.mask is None else encode_mask(item.mask) for item in objects],
        "mask_source": [item.mask_source.encode() for item in objects],
    }
    features: dict[str, tuple[type, Any]] = {
        _OBJECT + name: (kind, columns[name]) for name, kind in _OBJECT_FEATURES.items()
    }
    weights = [item.mask_weight for item in objects]
    if any(weight != 1 for weight in weights):
        features[WEIGHT_KEY] = (float, weights)
    features["image/source_id"] = (bytes, [str(record.image_id).encode()])
    features["image/filename"] = (bytes, [record.file_name.encode()])
    features["image/encoded"] = (bytes, [record.encoded])
    features["image/height"] = (int, [record.height])
    features["image/width"] = (int, [record.width])
    for key, attribute in FEDERATED_FEATURES.items():
        names = getattr(record, attribute)
        if names is not None:
            features[key] = (bytes, [name.encode() for name in names])
    return serialize(features)


def columns_of(serialized: bytes) -> tuple[dict[str, Any], dict[str, list]]:
    """The features of a serialised tf.Example as they are stored, nothing decoded.

    Returns:
      Of the image: feature key -> value, a list of the classes that it is annotated for if there
      are any; of its N objects: feature name without "image/object/" -> N values.

    Raises:
      UserError: it is not a tf.Example, or features are missing or differ in length.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        example = tf.train.Example.FromString(serialized)
    except DecodeError as error:
        raise UserError(
            f"A record of {len(serialized)} bytes is not a tf.Example: {error}."
        ) from None
    features = example.features.feature
    image = {}
    for key, kind in _IMAGE_FEATURES.items():
        values = _values(features[key], kind)
        if len(values) != 1:
            raise UserError(f"A record has {len(values)} values of {key} instead of one.")
        image[key] = values[0]
    image |= {key: _values(features[key], bytes) for key in FEDERATED_FEATURES if key in features}
    columns = {name: _values(features[_OBJECT + name], kind)
               for name, kind in _OBJECT_FEATURES.items()}  # fmt: skip
    if not columns["mask_source"]:  # records of before the key
        columns["mask_source"] = [HUMAN.encode() if has else b"" for has in columns["has_mask"]]
    weights = _values(features[WEIGHT_KEY], float)
    columns[_WEIGHT] = weights or [1.0] * len(columns["has_mask"])
    if len(set(map(len, columns.values()))) > 1:
        where = f"Record of image {image['image/source_id'].decode(errors='replace')}"
        counts = ", ".join(f"{name}: {len(values)}" for name, values in columns.items())
        raise UserError(f"{where}: its object features differ in length ({counts}).")
    return image, columns


def image_fault(image: Mapping[str, Any]) -> str | None:
    """What keeps training from decoding the image of a record, in words; None: nothing.

    Args:
      image: features as of `columns_of`.
    """
    from maskx_tf.data import decoding

    size = (image["image/height"], image["image/width"])
    try:
        height, width = decoding.to_array(image["image/encoded"]).shape[:2]
    except BadImageError as error:
        return f"{image['image/filename'].decode(errors='replace')}: {error}"
    if (height, width) != size:
        return f"the image is {height} x {width}, the record says {size[0]} x {size[1]}"
    return None


def from_example(serialized: bytes) -> ImageRecord:
    """The image of a serialised tf.Example; UserError naming the image where it is malformed."""
    image, columns = columns_of(serialized)
    height, width = image["image/height"], image["image/width"]
    try:
        objects = [
            _to_object(dict(zip(columns, row, strict=True)), height, width)
            for row in zip(*columns.values(), strict=True)
        ]
        image_id = int(image["image/source_id"])
    except (UserError, ValueError) as error:
        where = f"Record of image {image['image/source_id'].decode(errors='replace')}"
        raise UserError(f"{where}: {error}.") from None
    file_name = image["image/filename"].decode(errors="replace")
    federated = {
        attribute: tuple(name.decode(errors="replace") for name in image[key])
        for key, attribute in FEDERATED_FEATURES.items()
        if key in image
    }
    return ImageRecord(
        image_id, file_name, image["image/encoded"], height, width, objects, **federated
    )


def _to_object(row: dict[str, Any], height: int, width: int) -> ObjectRecord:
    corners = [row["bbox/ymin"], row["bbox/xmin"], row["bbox/ymax"], row["bbox/xmax"]]
    return ObjectRecord(
        box_yxyx=np.array(corners, np.float64) * [height, width, height, width],
        class_id=row["class/label"],
        class_name=row["class/text"].decode(),
        area=row["area"],
        is_crowd=bool(row["is_crowd"]),
        annotation_id=row["id"],
        mask=decode_mask(row["mask"]) if row["has_mask"] else None,
        mask_source=row["mask_source"].decode(),
        mask_weight=row[_WEIGHT],
    )


def _values(feature: Any, kind: type) -> list:
    lists = {bytes: feature.bytes_list, float: feature.float_list, int: feature.int64_list}
    return list(lists[kind].value)


def parse_example(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Graph-mode parsing of a scalar serialised tf.Example; nothing is decoded.

    Returns:
      encoded, file_name: string []; image_id: int64 []; original_size: int32 [2] (height, width);
      boxes_yxyx: float32 [N, 4], pixels of the original image; class_labels: int64 [N];
      class_names: string [N]; areas: float32 [N]; is_crowd, has_mask: bool [N];
      annotation_ids: int64 [N]; mask_pngs, mask_sources: string [N], empty without mask;
      mask_weights: float32 [N].
    """
    import tensorflow as tf

    dtypes = {bytes: tf.string, float: tf.float32, int: tf.int64}
    spec: dict[str, Any] = {
        key: tf.io.FixedLenFeature([], dtypes[kind]) for key, kind in _IMAGE_FEATURES.items()
    }
    for name, kind in _OBJECT_FEATURES.items():
        key = _OBJECT + name
        spec[key] = tf.io.FixedLenSequenceFeature([], dtypes[kind], allow_missing=True)
    spec[WEIGHT_KEY] = tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True)
    parsed = tf.io.parse_single_example(serialized, spec)
    size = tf.stack([parsed["image/height"], parsed["image/width"]])  # [2]
    corners = [parsed[f"{_OBJECT}bbox/{side}"] for side in ("ymin", "xmin", "ymax", "xmax")]
    boxes = tf.stack(corners, axis=-1) * tf.cast(tf.tile(size, [2]), tf.float32)  # [N, 4]
    return {
        "encoded": parsed["image/encoded"],
        "file_name": parsed["image/filename"],
        "image_id": tf.strings.to_number(parsed["image/source_id"], tf.int64),
        "original_size": tf.cast(size, tf.int32),
        "boxes_yxyx": boxes,
        "class_labels": parsed[_OBJECT + "class/label"],
        "class_names": parsed[_OBJECT + "class/text"],
        "areas": parsed[_OBJECT + "area"],
        "is_crowd": parsed[_OBJECT + "is_crowd"] > 0,
        "has_mask": parsed[_OBJECT + "has_mask"] > 0,
        "annotation_ids": parsed[_OBJECT + "id"],
        "mask_pngs": parsed[_OBJECT + "mask"],
        # Records of before the key have masks of people.
        "mask_sources": _stored_or(
            tf.where(parsed[_OBJECT + "has_mask"] > 0, HUMAN, ""), parsed[_OBJECT + "mask_source"]
        ),
        "mask_weights": _stored_or(
            tf.ones_like(parsed[_OBJECT + "has_mask"], tf.float32), parsed[WEIGHT_KEY]
        ),
    }


def _stored_or(default: tf.Tensor, stored: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.cond(tf.size(stored) > 0, lambda: stored, lambda: default)


def read_records(paths: Iterable[str | os.PathLike[str]]) -> Iterator[ImageRecord]:
    """The images of record files, in order; UserError naming file and record where damaged."""
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as file:
                for number, item in enumerate(framing.walk(path)):
                    where = f"{path}, record {number} at byte {item.offset}"
                    if isinstance(item, framing.Fault):
                        raise UserError(f"{where}: {item.message}")
                    payload, damage = framing.read_payload(file, item)
                    if damage:
                        raise UserError(f"{where}: {damage}")
                    try:
                        record = from_example(payload)
                    except UserError as error:
                        raise UserError(f"{where}: {error}") from None
                    yield record
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None
        except UserError as error:
            remedy = f"maskx records verify {pathlib.Path(path).parent} lists all damage."
            raise UserError(f"{error}; {remedy}") from None
