"""RoI operators from before RoIAlign: pooling in whole cells, by maximum or mean, and warping.

All have the signature of `roi_align.roi_align`.
"""

import tensorflow as tf

from maskx_tf.layers.roi_align import roi_align


def roi_pool(
    features: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    image_indices: tf.Tensor,
    output_size: int,
    stride: int,
    half_pixel: bool = True,
) -> tf.Tensor:
    """RoI max pooling (Fast R-CNN, Girshick 2015): the largest value of each bin of whole cells.

    A RoI reaches from the cell of its first pixel to that of its last, both rounded. Bin i of S
    over h cells has the cells from floor(i h / S) to ceil((i + 1) h / S): bins overlap where S does
    not divide h. A bin without a cell of the map is 0. The gradient goes to one largest cell, none
    to the boxes.

    Arguments and result are those of `roi_align`; half_pixel has no effect, as cells are whole.
    """
    del half_pixel
    _, height, width, channels = tf.unstack(tf.shape(features))
    first, last = _rounded(boxes_yxyx[:, :2] / stride), _rounded((boxes_yxyx[:, 2:] - 1.0) / stride)
    size = tf.maximum(last - first + 1, 1)[:, None]  # [N, 1, 2]
    bins = tf.range(output_size)[:, None]  # [S, 1]
    limits = tf.stack([height, width])
    start = tf.clip_by_value(first[:, None] + bins * size // output_size, 0, limits)  # [N, S, 2]
    end = tf.clip_by_value(first[:, None] - (-(bins + 1) * size // output_size), 0, limits)
    length = tf.maximum(end - start, 0)
    most = tf.maximum(tf.reduce_max(length, axis=(0, 1)), 0)  # [2]; of no RoI it is negative
    cells = tf.stop_gradient(tf.reshape(features, [-1, channels]))
    images = tf.cast(image_indices, tf.int32)[:, None, None]

    def cell(offset):
        """Index of each bin's cell at an offset [2], [N, S, S]; its last ones are met again."""
        places = tf.clip_by_value(start + tf.minimum(offset, length - 1), 0, limits - 1)
        return _index(images, places, limits)

    def take_larger(step, largest, found):
        index = cell(tf.stack([step // most[1], step % most[1]]))
        values = tf.gather(cells, index)  # [N, S, S, C]
        is_larger = values > largest
        return (
            step + 1,
            tf.where(is_larger, values, largest),
            tf.where(is_larger, index[..., None], found),
        )

    at_first = cell(tf.zeros([2], tf.int32))
    values = tf.gather(cells, at_first)
    found = tf.broadcast_to(at_first[..., None], tf.shape(values))
    _, _, found = tf.while_loop(
        lambda step, *_: step < most[0] * most[1], take_larger, (tf.constant(1), values, found)
    )
    places = tf.cast(found, tf.int64) * tf.cast(channels, tf.int64)
    places += tf.range(tf.cast(channels, tf.int64))
    pooled = tf.gather(tf.reshape(features, [-1]), places)
    has_cells = _on_both_sides(length > 0)
    return tf.where(has_cells[..., None], pooled, tf.zeros([], features.dtype))


def position_sensitive_roi_pool(
    features: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    image_indices: tf.Tensor,
    output_size: int,
    stride: int,
    half_pixel: bool = True,
    parts: int = 7,
) -> tf.Tensor:
    """Position-sensitive RoI pooling (FCIS, Li et al. 2017): means of bins of whole cells.

    The output has `parts` x `parts` parts, and each reads maps of its own. Corners are rounded to
    pixels; bin i of S over h cells from y on has the cells from floor(y + i h / S) to
    ceil(y + (i + 1) h / S), with y and h not rounded. A RoI is at least a tenth of a cell long. A
    bin without a cell of the map is 0. The gradient goes to the cells, none to the boxes.

    Args:
      features: [B, H, W, C k k] with k = parts; channel (c k + y) k + x is that of part (y, x).
      boxes_yxyx, image_indices, output_size, stride: as of `roi_align`.
      half_pixel: has no effect, as cells are whole.
      parts: k.

    Returns:
      [N, S, S, C] in the dtype of `features`.
    """
    del half_pixel
    _, height, width, _ = tf.unstack(tf.shape(features))
    channels = features.shape[-1] // parts**2
    # In units of 1 / (10 stride S) cells everything is whole: no bin reaches a cell too far.
    unit = 10 * stride * output_size
    low, high = 10 * _rounded(boxes_yxyx[:, :2]), 10 * (_rounded(boxes_yxyx[:, 2:] - 1.0) + 1)
    length = tf.maximum(high - low, stride)[:, None]  # [N, 1, 2]
    low = low[:, None] * output_size
    bins = tf.range(output_size)[:, None]  # [S, 1]
    limits = tf.stack([height, width])
    start = tf.clip_by_value((low + bins * length) // unit, 0, limits)  # [N, S, 2]
    end = tf.clip_by_value(-(-(low + (bins + 1) * length) // unit), 0, limits)
    count = tf.maximum(end - start, 0)
    most = tf.maximum(tf.reduce_max(count, axis=(0, 1)), 0)  # [2]; of no RoI it is negative
    part = tf.range(output_size) * parts // output_size
    parts_of_bins = part[:, None] * parts + part  # [S, S]
    of_parts = tf.reshape(features, [-1, height, width, channels, parts**2])
    of_parts = tf.transpose(of_parts, [0, 1, 2, 4, 3]) if parts > 1 else of_parts
    cells = tf.reshape(of_parts, [-1, channels])
    images = tf.cast(image_indices, tf.int32)[:, None, None]

    def add_cell(step, total):
        offset = tf.stack([step // most[1], step % most[1]])
        inside = _on_both_sides(offset < count)
        places = tf.minimum(start + offset, limits - 1)
        index = _index(images, places, limits)
        values = tf.gather(cells, index * parts**2 + parts_of_bins)  # [N, S, S, C]
        zero = tf.zeros([], features.dtype)
        return step + 1, total + tf.where(inside[..., None], values, zero)

    shape = [tf.shape(boxes_yxyx)[0], output_size, output_size, channels]
    _, total = tf.while_loop(
        lambda step, _: step < most[0] * most[1],
        add_cell,
        (tf.constant(0), tf.zeros(shape, features.dtype)),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, *shape[1:]])),
    )
    areas = tf.maximum(count[:, :, None, 0] * count[:, None, :, 1], 1)
    return total / tf.cast(areas, features.dtype)[..., None]


def roi_average(
    features: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    image_indices: tf.Tensor,
    output_size: int,
    stride: int,
    half_pixel: bool = True,
) -> tf.Tensor:
    """`position_sensitive_roi_pool` whose parts read the same maps; as `roi_align`."""
    return position_sensitive_roi_pool(
        features, boxes_yxyx, image_indices, output_size, stride, half_pixel, parts=1
    )


def _index(images: tf.Tensor, places: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    """Index [N, S, S] of cells at places [N, S, 2] (row, column) of images [N, 1, 1], flat."""
    rows, columns = places[:, :, None, 0], places[:, None, :, 1]
    return (images * limits[0] + rows) * limits[1] + columns


def _on_both_sides(is_so: tf.Tensor) -> tf.Tensor:
    """What holds of rows and columns of bins, bool [N, S, 2], as of bins [N, S, S]."""
    return is_so[:, :, None, 0] & is_so[:, None, :, 1]


def _rounded(x: tf.Tensor) -> tf.Tensor:
    """Halves away from zero, as C does; int32."""
    return tf.cast(tf.sign(x) * tf.floor(tf.abs(x) + 0.5), tf.int32)


def roi_warp(
    features: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    image_indices: tf.Tensor,
    output_size: int,
    stride: int,
    half_pixel: bool = True,
) -> tf.Tensor:
    """RoI warping (MNC, Dai et al. 2016): 2S x 2S bilinear samples, max-pooled to S x S.

    As in the paper, corners are not rounded and the gradient reaches the boxes. Arguments and
    result are those of `roi_align`.
    """
    size = 2 * output_size
    samples = roi_align(features, boxes_yxyx, image_indices, size, stride, 1, half_pixel)
    # oneDNN's gradient of max_pool2d ends the process where a level has no RoI.
    windows = tf.reshape(samples, [-1, output_size, 2, output_size, 2, features.shape[-1]])
    return tf.reduce_max(windows, axis=[2, 4])
