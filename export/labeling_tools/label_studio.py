"""An ML back end for Label Studio: masks of all objects, or of boxes that are drawn.

Example:
  maskx label-studio --url=http://localhost:8501 --port=9090

The project's labelling interface says what is returned: brush masks where it has BrushLabels, else
polygons where it has PolygonLabels, and boxes where it has RectangleLabels. A label is the model's
class of the same name, or one that its attribute `predicted_values` lists.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from export.client.client import Client
from maskx_tf.errors import UserError
from maskx_tf.inference.detections import Detection
from maskx_tf.labeling.formats.label_studio import box_value, mask_values
from maskx_tf.system import cli

try:
    from label_studio_ml import api
    from label_studio_ml.model import LabelStudioMLBase
except ImportError as error:  # `main` says so
    LabelStudioMLBase, _MISSING = object, str(error)
else:
    _MISSING = ""

_MASK_TAGS = ("BrushLabels", "PolygonLabels")
_BOX_TAG = "RectangleLabels"


class MaskXBackend(LabelStudioMLBase):
    """Label Studio's base class over a served model.

    Args:
      label_config: the project's labelling interface.
      client: of the server.
      min_score: objects below it are left out.
      polygon_iou: IoU with their mask that polygons keep.
      **others: of the base class.

    Raises:
      UserError: the interface has nothing to fill, or no label that is a class of the model.
    """

    def __init__(
        self,
        label_config: str | None = None,
        *,
        client: Client,
        min_score: float = 0.5,
        polygon_iou: float = 0.99,
        **others: Any,
    ):
        super().__init__(label_config=label_config, **others)
        self._client, self._min_score, self._polygon_iou = client, min_score, polygon_iou
        self._tags = {tag["type"]: (name, tag) for name, tag in self.parsed_label_config.items()}
        self._mask_tag = next((tag for tag in _MASK_TAGS if tag in self._tags), "")
        usable = [tag for tag in (self._mask_tag, _BOX_TAG) if tag in self._tags]
        if not usable:
            raise UserError(f"The labelling interface has none of {(*_MASK_TAGS, _BOX_TAG)}.")
        classes = self._client.classes()
        tags = [self._tags[name][1] for name in usable]
        self._labels = [label for tag in tags for label in tag["labels"]]
        self._label_of = {  # by class
            name: label
            for tag in tags
            for label in tag["labels"]
            for name in reversed(_names(tag, label))
            if name in classes
        }
        self._class_of = {label: name for name, label in self._label_of.items()}
        if not self._label_of:
            raise UserError(
                f"No label of the labelling interface ({', '.join(self._labels)}) is a class of "
                f"the model ({', '.join(list(classes)[:10])}, …). Name them in predicted_values."
            )

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None, **_: Any
    ) -> list[dict[str, Any]]:
        """A prediction for each task.

        Args:
          tasks: of Label Studio, with `data`.
          context: what a person has drawn (`result`): of its boxes, the last is given a mask.
        """
        drawn = (context or {}).get("result") or []
        boxes = [region for region in drawn if {"x", "y", "width"} <= region["value"].keys()]
        return [self._predict(task, boxes[-1] if boxes else None) for task in tasks]

    def _predict(self, task: Mapping[str, Any], box: Mapping[str, Any] | None) -> dict[str, Any]:
        _, tag = next(iter(self._tags.values()))
        image = self.get_local_path(task["data"][tag["inputs"][0]["value"]])
        if box:
            objects = self._of_box(image, box)
        else:
            found = self._client.detect(image)
            found = found[found.scores >= self._min_score]
            objects = [(d, self._label_of.get(d.class_name, "")) for d in found]
            objects = [(detection, label) for detection, label in objects if label]
        results = [
            result
            for number, (detection, label) in enumerate(objects)
            for result in self._results(detection, label, str(number), with_box=not box)
        ]
        scores = [detection.score for detection, _ in objects]
        return {"result": results, "score": statistics.fmean(scores) if scores else 0.0}

    def _of_box(self, image: str, region: Mapping[str, Any]) -> list[tuple[Detection, str]]:
        """The mask of a box with its label; without one, that of the class found there."""
        value, labels = region["value"], region["value"].get("rectanglelabels") or [""]
        width, height = region["original_width"] / 100, region["original_height"] / 100
        top, left = value["y"] * height, value["x"] * width
        corners = [top, left, top + value["height"] * height, left + value["width"] * width]
        (detection,) = self._client.masks(image, [corners], self._class_of.get(labels[0], ""))
        label = labels[0] or self._label_of.get(detection.class_name, self._labels[0])
        return [(detection, label)]

    def _results(
        self, detection: Detection, label: str, number: str, with_box: bool
    ) -> Iterator[dict[str, Any]]:
        height, width = detection.image_size
        values = []
        if with_box and _BOX_TAG in self._tags:
            values.append((_BOX_TAG, box_value(detection.box_xywh, height, width)))
        if self._mask_tag and detection.mask().any():
            iou = self._polygon_iou if self._mask_tag == "PolygonLabels" else None
            values += [(self._mask_tag, value) for value in mask_values(detection.rle(), iou)]
        for index, (kind, value) in enumerate(values):
            name, tag = self._tags[kind]
            yield {
                "id": f"maskx-{number}-{index}",
                "from_name": name,
                "to_name": tag["to_name"][0],
                "type": kind.lower(),
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": round(detection.score, 6),
                "value": value | {kind.lower(): [label]},
            }


def _names(tag: Mapping[str, Any], label: str) -> list[str]:
    """Names that the model may have for a label."""
    attributes = tag.get("labels_attrs", {}).get(label, {})
    return [label, *(name.strip() for name in attributes.get("predicted_values", "").split(","))]


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("url", "http://localhost:8501", "Server's REST interface.")
    flags.DEFINE_string("model_name", "maskx", "Name that the model is served under.")
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0: every network.")
    flags.DEFINE_integer("port", 9090, "Port for Label Studio.", 1, 65535)
    flags.DEFINE_float("min_score", 0.5, "Objects below this score are left out.", 0, 1)
    flags.DEFINE_float("polygon_iou", 0.99, "Least IoU of polygons with their mask.", 0, 1)


def main() -> None:
    """Answers Label Studio until it is stopped."""
    values = flags.FLAGS
    if _MISSING:
        raise UserError(
            f"label-studio-ml is not complete ({_MISSING}): pip install label-studio-ml redis rq."
        )
    client = Client(values.url, values.model_name)
    client.classes()  # fails now rather than with the first task
    options = {"min_score": values.min_score, "polygon_iou": values.polygon_iou}
    app = api.init_app(MaskXBackend, client=client, **options)
    app.run(host=values.host, port=values.port)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
