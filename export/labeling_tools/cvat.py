"""Auto-annotation functions for CVAT, which `cvat-cli` runs with a served model.

Example:
  cvat-cli task auto-annotate 137 --function-module=export.labeling_tools.cvat \
      -p url=str:http://localhost:8501
"""

from __future__ import annotations

import cvat_sdk.auto_annotation as cvataa
import numpy as np
import PIL.Image
from cvat_sdk import models
from cvat_sdk.masks import encode_mask

from export.client.client import Client
from maskx_tf.data import image_formats
from maskx_tf.errors import UserError
from maskx_tf.ops import polygons

_MIN_SCORE = 0.5  # where the caller names none


def create(
    url: str = "http://localhost:8501",
    model_name: str = "maskx",
    interactive: bool = False,
    polygon_iou: float = 0.99,
) -> DetectionFunction | InteractionFunction:
    """What `cvat-cli` calls with its parameters (-p NAME=TYPE:VALUE).

    Args:
      url: of the server's REST interface.
      model_name: name that the model is served under.
      interactive: masks of boxes that a person draws, in place of those of all objects found.
      polygon_iou: IoU with their mask that polygons keep, where they are asked for.

    Raises:
      ServerError: the server cannot be reached, has no such model, or does not name its classes.
    """
    client = Client(url, model_name)
    return InteractionFunction(client) if interactive else DetectionFunction(client, polygon_iou)


class DetectionFunction:
    """CVAT's `DetectionFunction`: all objects of an image, as masks or as polygons.

    Attributes:
      spec: the model's classes.
    """

    def __init__(self, client: Client, polygon_iou: float = 0.99):
        self._client, self._polygon_iou = client, polygon_iou
        names = client.classes()
        self._ids = {name: number for number, name in enumerate(names, start=1)}
        labels = [cvataa.label_spec(name, number) for name, number in self._ids.items()]
        self.spec = cvataa.DetectionFunctionSpec(labels=labels)

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: PIL.Image.Image
    ) -> list[models.LabeledShapeRequest]:
        """The objects whose score is at least the context's threshold, by default 0.5."""
        threshold = context.conf_threshold
        least = _MIN_SCORE if threshold is None else threshold
        detections = self._client.detect(_png(image), context.frame_name)
        shapes: list[models.LabeledShapeRequest] = []
        for number, detection in enumerate(detections[detections.scores >= least], start=1):
            mask = detection.mask().astype(bool)
            if not mask.any():
                continue
            label, score = self._ids[detection.class_name], min(detection.score, 1.0)
            if not context.conv_mask_to_poly:
                shapes.append(cvataa.mask(label, encode_mask(mask), score=score))
                continue
            outlines = polygons.from_rle(detection.rle(), self._polygon_iou)
            group = number if len(outlines) > 1 else 0
            shapes += [cvataa.polygon(label, o, group=group, score=score) for o in outlines]
        return shapes


class InteractionFunction:
    """CVAT's `InteractionFunction`: the mask of a box, of the class that the model finds there."""

    spec = cvataa.InteractionFunctionSpec(min_pos_points=0, min_bounding_boxes=1)

    def __init__(self, client: Client):
        self._client = client

    def preprocess_image(
        self, context: cvataa.InteractionFunctionContext, image: PIL.Image.Image
    ) -> bytes:
        """The image as it is sent; the server keeps its features between boxes."""
        return _png(image)

    def detect(
        self,
        context: cvataa.InteractionFunctionContext,
        pp_image: bytes,
        prompts: cvataa.InteractionPrompts,
    ) -> list[cvataa.InteractionResultShape]:
        """The mask of the prompts' box; points are not looked at."""
        if prompts.bounding_box is None:
            raise UserError("Draw a box: masks are made of boxes, not of points.")
        (x1, y1), (x2, y2) = prompts.bounding_box
        (detection,) = self._client.masks(pp_image, [[y1, x1, y2, x2]])
        mask = detection.mask().astype(bool)
        if not mask.any():
            return []
        confidence = cvataa.InteractionResultAttributes.CONFIDENCE
        attribute = models.AttributeValRequest(spec_id=confidence, value=str(detection.score))
        return [
            cvataa.InteractionResultShape(
                type="mask", points=encode_mask(mask), attributes=[attribute]
            )
        ]


def _png(image: PIL.Image.Image) -> bytes:
    """The pixels as CVAT gives them, without EXIF."""
    return image_formats.png(np.asarray(image_formats.to_rgb(image)))
