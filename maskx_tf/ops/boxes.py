"""Box arithmetic: areas, IoU, encoding, decoding, clipping; yxyx, exclusive corners."""

import math

import tensorflow as tf

# Upper bound on dh and dw before exp(), so that a wild delta gives a large box and not infinity.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)


def area(boxes_yxyx: tf.Tensor) -> tf.Tensor:
    """Areas in square pixels; 0 for boxes with a negative side. [..., N, 4] -> [..., N]."""
    y1, x1, y2, x2 = tf.unstack(boxes_yxyx, axis=-1)
    return tf.maximum(y2 - y1, 0.0) * tf.maximum(x2 - x1, 0.0)


def intersection(a_yxyx: tf.Tensor, b_yxyx: tf.Tensor) -> tf.Tensor:
    """Pairwise intersection areas. [..., N, 4] and [..., M, 4] -> [..., N, M]."""
    a, b = a_yxyx[..., :, None, :], b_yxyx[..., None, :, :]
    height = tf.minimum(a[..., 2], b[..., 2]) - tf.maximum(a[..., 0], b[..., 0])
    width = tf.minimum(a[..., 3], b[..., 3]) - tf.maximum(a[..., 1], b[..., 1])
    return tf.maximum(height, 0.0) * tf.maximum(width, 0.0)


def iou(a_yxyx: tf.Tensor, b_yxyx: tf.Tensor) -> tf.Tensor:
    """Pairwise IoU, 0 where both are empty. [..., N, 4] and [..., M, 4] -> [..., N, M]."""
    common = intersection(a_yxyx, b_yxyx)
    union = area(a_yxyx)[..., :, None] + area(b_yxyx)[..., None, :] - common
    return tf.math.divide_no_nan(common, union)


def overlap_fraction(a_yxyx: tf.Tensor, b_yxyx: tf.Tensor) -> tf.Tensor:
    """Share of each a that lies inside each b. [..., N, 4] and [..., M, 4] -> [..., N, M]."""
    return tf.math.divide_no_nan(intersection(a_yxyx, b_yxyx), area(a_yxyx)[..., :, None])


def _centre_and_size(boxes_yxyx: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    top_left, bottom_right = boxes_yxyx[..., :2], boxes_yxyx[..., 2:]
    return 0.5 * (top_left + bottom_right), bottom_right - top_left


def encode(boxes_yxyx: tf.Tensor, anchors_yxyx: tf.Tensor, weights: tuple[float, ...]) -> tf.Tensor:
    """Deltas (dy, dx, dh, dw) that turn anchors into boxes, times `weights`; inverse of `decode`.

    Args:
      boxes_yxyx: [..., 4].
      anchors_yxyx: [..., 4], the same leading shape.
      weights: factors on (dy, dx, dh, dw); (10, 10, 5, 5) in the box head.

    Returns:
      float32 [..., 4]; 0 where a box or an anchor has an empty side (padding).
    """
    centre, size = _centre_and_size(boxes_yxyx)
    anchor_centre, anchor_size = _centre_and_size(anchors_yxyx)
    valid = tf.reduce_all((size > 0) & (anchor_size > 0), axis=-1, keepdims=True)
    size, anchor_size = tf.where(valid, size, 1.0), tf.where(valid, anchor_size, 1.0)
    shift = (centre - anchor_centre) / anchor_size
    deltas = tf.concat([shift, tf.math.log(size / anchor_size)], axis=-1) * tf.constant(weights)
    return tf.where(valid, deltas, 0.0)


def decode(deltas: tf.Tensor, anchors_yxyx: tf.Tensor, weights: tuple[float, ...]) -> tf.Tensor:
    """Applies deltas (dy, dx, dh, dw) to anchors; both [..., 4]. dh and dw are bounded above."""
    centre, size = _centre_and_size(anchors_yxyx)
    deltas = tf.cast(deltas, tf.float32) / tf.constant(weights)
    centre = centre + deltas[..., :2] * size
    half = 0.5 * size * tf.exp(tf.minimum(deltas[..., 2:], MAX_LOG_SCALE))
    return tf.concat([centre - half, centre + half], axis=-1)


def clip(
    boxes_yxyx: tf.Tensor, image_sizes: tf.Tensor, keep_border_pixel: bool = False
) -> tf.Tensor:
    """Clips boxes to their image.

    Args:
      boxes_yxyx: [..., N, 4].
      image_sizes: [..., 2] (height, width) in pixels.
      keep_border_pixel: leaves a box at least the first or last pixel, as Detectron does; otherwise
        a box outside the image becomes empty.
    """
    limits = tf.concat([image_sizes, image_sizes], axis=-1)[..., None, :]
    pixel = [0.0, 0.0, 1.0, 1.0] if keep_border_pixel else [0.0] * 4
    return tf.clip_by_value(boxes_yxyx, pixel, limits - pixel[::-1])


def mask_windows(boxes_yxyx: tf.Tensor, scale: float) -> tf.Tensor:
    """What masks of boxes reach over: the boxes, `scale` times as long about their centres.

    Args:
      boxes_yxyx: float [..., 4], a tensor or an array; those of padding, of zeros, stay.
      scale: `--mask_roi_scale`; at 1.0 the boxes come back bit for bit.

    Returns:
      [..., 4] in the dtype of the boxes; windows may leave the image.
    """
    boxes_yxyx = tf.convert_to_tensor(boxes_yxyx)
    if scale == 1.0:
        return boxes_yxyx
    centre, size = _centre_and_size(boxes_yxyx)
    half = 0.5 * scale * size
    return tf.concat([centre - half, centre + half], axis=-1)


def in_cells(boxes_yxyx: tf.Tensor, regions_yxyx: tf.Tensor, size: int) -> tf.Tensor:
    """Boxes [R, 4] in cells of a grid of size x size over each region [R, 4], clipped to it."""
    top_left, bottom_right = regions_yxyx[:, :2], regions_yxyx[:, 2:]
    cells = (boxes_yxyx - tf.tile(top_left, [1, 2])) * size
    sides = tf.tile(bottom_right - top_left, [1, 2])
    return tf.clip_by_value(tf.math.divide_no_nan(cells, sides), 0.0, float(size))


def cells_in(boxes_yxyx: tf.Tensor, size: int | tf.Tensor) -> tf.Tensor:
    """Which cells of a grid have their centre in boxes.

    Args:
      boxes_yxyx: float32 [..., 4], in cells.
      size: side of the grid, or int32 [2], its height and width.

    Returns:
      bool [..., H, W].
    """

    def along(axis: int, count: tf.Tensor) -> tf.Tensor:
        centres = tf.range(tf.cast(count, tf.float32)) + 0.5
        low, high = boxes_yxyx[..., axis, None], boxes_yxyx[..., 2 + axis, None]
        return (low <= centres) & (centres < high)

    height, width = tf.unstack(tf.broadcast_to(size, [2]))
    return along(0, height)[..., :, None] & along(1, width)[..., None, :]


def to_original(boxes_yxyx: tf.Tensor, image_scales: tf.Tensor) -> tf.Tensor:
    """Boxes of network-input pixels as boxes of original pixels, as Detectron rescales them.

    The first and the last pixel are scaled, and the box reaches to the end of the last: it is
    larger than a box scaled as a whole by a part of a pixel.

    Args:
      boxes_yxyx: float32 [B, N, 4].
      image_scales: float32 [B, 2] (y, x), network-input pixels per original pixel.
    """
    scales = tf.tile(image_scales, [1, 2])[:, None]  # [B, 1, 4]
    pixel = [0.0, 0.0, 1.0, 1.0]
    return (boxes_yxyx - pixel) / scales + pixel
