"""The geometric conventions a model may live by: ours, Detectron's and torchvision's."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

STRIDE = 32  # Detectron pads an image to multiples of it


@dataclasses.dataclass(frozen=True)
class Conventions:
    """What a model's boxes, anchors and RoIs mean.

    Weights are fitted to the convention they were trained in: an imported model keeps its own. Box
    coordinates are the same in all, `boxes_yxyx` with exclusive corners: Detectron's box of the
    pixels x1..x2 is written [x1, x2 + 1), so that its widths, areas, IoU and deltas, all with
    "+ 1", are the plain ones here. What remains different:

    Attributes:
      keep_border_pixel: clipping leaves every box at least the image's last pixel; otherwise a box
        outside the image becomes empty and is dropped.
      anchor_rounding: see `ops.anchors.cell_anchors`.
      half_pixel: RoIAlign takes pixel centres at half-integers. Without, the centre of cell (i, j)
        is at (i, j), a RoI reaches from its first to its last pixel, and is at least one cell long.
      to_corner: without half_pixel, a RoI reaches to its exclusive corner, not to its last pixel.
      suppress_equal: NMS also removes a box whose IoU is exactly the threshold.
      propose_in_padding: at test time, proposals are clipped to the image padded to multiples of
        32, not to the image.
      decode_in_original: the box head's deltas are applied in pixels of the original image, where
        a last pixel is of another size than in the network input.
      paste_whole_pixels: evaluation and labeling paste masks into boxes of whole pixels, see
        `ops.masks`; predictions and exports paste them at exact positions.
    """

    keep_border_pixel: bool
    anchor_rounding: str
    half_pixel: bool
    to_corner: bool
    suppress_equal: bool
    propose_in_padding: bool
    decode_in_original: bool
    paste_whole_pixels: bool

    def nms_threshold(self, iou: float) -> float:
        """The threshold for an NMS that removes boxes whose IoU is above it."""
        return float(np.nextafter(np.float32(iou), np.float32(0))) if self.suppress_equal else iou

    def proposal_limits(self, image_sizes: tf.Tensor) -> tf.Tensor:
        """(height, width) that proposals are clipped to at test time. float32 [B, 2] -> [B, 2]."""
        if not self.propose_in_padding:
            return image_sizes
        return tf.math.ceil(image_sizes / STRIDE) * STRIDE

    def mask_regions(self, rois_yxyx: tf.Tensor) -> tf.Tensor:
        """The parts of the image that the masks of RoIs [N, 4] reach over, [N, 4]."""
        if self.to_corner:
            return rois_yxyx
        top_left, bottom_right = rois_yxyx[:, :2], rois_yxyx[:, 2:] - 1.0
        return tf.concat([top_left, tf.maximum(bottom_right, top_left + 1.0)], axis=-1)


CONVENTIONS = {
    "aligned": Conventions(
        keep_border_pixel=False,
        anchor_rounding="none",
        half_pixel=True,
        to_corner=True,
        suppress_equal=False,
        propose_in_padding=False,
        decode_in_original=False,
        paste_whole_pixels=False,
    ),
    "detectron": Conventions(
        keep_border_pixel=True,
        anchor_rounding="sides",
        half_pixel=False,
        to_corner=False,
        suppress_equal=True,
        propose_in_padding=True,
        decode_in_original=True,
        paste_whole_pixels=True,
    ),
    "torchvision": Conventions(
        keep_border_pixel=False,
        anchor_rounding="corners",
        half_pixel=False,
        to_corner=True,
        suppress_equal=False,
        propose_in_padding=False,
        decode_in_original=False,
        paste_whole_pixels=False,
    ),
}
