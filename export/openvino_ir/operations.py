"""Selection in OpenVINO's own operations: the best of many, NMS and RoIAlign."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset15 as ops

from export.openvino_ir.graph import constant

LOWEST = float(np.finfo(np.float32).min)  # scores of what is left out


def _size(x: ov.Output, axis: int) -> ov.Output:
    """A side of a tensor, int32 []."""
    shape = ops.shape_of(x, output_type="i32")
    return ops.gather(shape, constant(axis, np.int32), constant(0, np.int32)).output(0)


def largest(scores: ov.Output, count: int) -> tuple[ov.Output, ov.Output]:
    """The largest of each row, best first; among equal ones any.

    Args:
      scores: float32 [B, N].
      count: k; fewer if N is.

    Returns:
      Scores [B, k] and their places int32 [B, k].
    """
    k = ops.minimum(constant(count, np.int32), _size(scores, 1))
    best = ops.topk(scores, k, 1, "max", "value", index_element_type="i32")
    return best.output(0), best.output(1)


def places_of_largest(scores: ov.Output, count: int) -> ov.Output:
    """Places of the largest of each row, ascending; of equal ones the first, as TensorFlow does.

    OpenVINO's stable top-k takes a second for an image's anchors; its plain one, of which only the
    smallest score is used here, a millisecond.

    Args:
      scores: float32 [B, N].
      count: k; fewer if N is.

    Returns:
      int32 [B, k].
    """
    best, _ = largest(scores, count)
    last = ops.reduce_min(best, constant([1], np.int32), keep_dims=True)  # [B, 1]
    above, at = ops.greater(scores, last), ops.equal(scores, last)
    kept = _size(best, 1)
    room = ops.subtract(
        kept, ops.reduce_sum(ops.convert(above, "i32"), constant([1], np.int32), keep_dims=True)
    )
    nth = ops.cumsum(ops.convert(at, "i32"), constant(1, np.int32))
    chosen = ops.logical_or(above, ops.logical_and(at, ops.less_equal(nth, room)))
    places = ops.non_zero(chosen, output_type="i32")  # [2, B * k], row by row
    columns = ops.gather(places, constant(1, np.int32), constant(0, np.int32))
    rows = _size(scores, 0)
    shape = ops.concat([ops.unsqueeze(v, constant(0, np.int32)) for v in (rows, kept)], 0)
    return ops.reshape(columns, shape, special_zero=False).output(0)


def where(mask: ov.Output) -> ov.Output:
    """Places of the true entries of mask [N], int32 [R]."""
    places = ops.non_zero(mask, output_type="i32")
    return ops.squeeze(places, constant(0, np.int32)).output(0)


def where_equal(values: ov.Output, wanted: int) -> ov.Output:
    """Places of a value among int32 [N], int32 [R]."""
    return where(ops.equal(values, constant(wanted, np.int32)).output(0))


def rows(values: ov.Output, places: ov.Output) -> ov.Output:
    """Values [N, ...] at places int32 [...] -> [..., ...]."""
    return ops.gather(values, places, constant(0, np.int32)).output(0)


def in_order(values: ov.Output, order: ov.Output) -> ov.Output:
    """Rows [N, ...], of which row i has its place at order[i], in the order of the places."""
    zero, one = constant(0, np.int32), constant(1, np.int32)
    count = ops.squeeze(ops.shape_of(order, output_type="i32"), zero)
    numbers = ops.range(zero, count, one, "i32")
    return rows(values, ops.scatter_elements_update(order, order, numbers, zero).output(0))


def put(values: ov.Output, places: ov.Output, updates: ov.Output) -> ov.Output:
    """Values [N, ...] with rows [R, ...] put at places int32 [R]."""
    at = ops.unsqueeze(places, constant(1, np.int32))
    return ops.scatter_nd_update(values, at, updates).output(0)


def divide(values: ov.Output, divisor: int) -> ov.Output:
    """Whole numbers, rounded down, of int32 values that are not negative."""
    return ops.divide(values, constant(divisor, np.int32)).output(0)


def take(values: ov.Output, places: ov.Output) -> ov.Output:
    """Values [B, N, ...] at places int32 [B, k] -> [B, k, ...]."""
    return ops.gather(values, places, constant(1, np.int32), batch_dims=1).output(0)


def with_sides(values: ov.Output, *sides: int) -> ov.Output:
    """Values [B, ...] whose other sides are known: the model's outputs tell clients of them."""
    shape = constant([0, *sides], np.int32)
    return ops.reshape(values, shape, special_zero=True).output(0)


def suppress(boxes_yxyx: ov.Output, scores: ov.Output, iou: float, least: float) -> ov.Output:
    """NMS of each row of boxes.

    Args:
      boxes_yxyx: float32 [R, N, 4].
      scores: float32 [R, N].
      iou: a box is removed whose IoU with a better one is above.
      least: a box is removed whose score is not above.

    Returns:
      The scores, `LOWEST` where a box is removed.
    """
    count = ops.convert(_size(scores, 1), "i64")
    # OpenVINO also removes at the threshold itself.
    above = float(np.nextafter(np.float32(iou), np.float32(2)))
    kept = ops.non_max_suppression(
        boxes_yxyx,
        ops.unsqueeze(scores, constant(1, np.int32)),
        count,
        constant(above, np.float32),
        constant(least, np.float32),
        box_encoding="corner",
        sort_result_descending=False,
        output_type="i32",
    ).output(0)  # [M, 3]: row, 0, place
    at = ops.gather(kept, constant([0, 2], np.int32), constant(1, np.int32))
    removed = ops.broadcast(constant(LOWEST, np.float32), ops.shape_of(scores))
    return ops.scatter_nd_update(removed, at, ops.gather_nd(scores, at)).output(0)


def roi_align(
    features: ov.Output,
    boxes_yxyx: ov.Output,
    image_indices: ov.Output,
    size: int,
    stride: int,
    half_pixel: bool,
    to_last_pixel: bool,
) -> ov.Output:
    """As `maskx_tf.layers.roi_align.roi_align`, of features [B, C, H, W] -> [N, C, S, S].

    Where it is `to_last_pixel`, RoIs reach from their first to their last pixel.
    """
    order = [1, 0, 3, 2]
    boxes = ops.gather(boxes_yxyx, constant(order, np.int32), constant(1, np.int32))
    if to_last_pixel:
        boxes = ops.subtract(boxes, constant([0, 0, 1, 1], np.float32))
    return ops.roi_align(
        features,
        boxes,
        image_indices,
        size,
        size,
        2,
        1 / stride,
        "avg",
        aligned_mode="half_pixel_for_nn" if half_pixel else "asymmetric",
    ).output(0)
