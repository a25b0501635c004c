"""PointRend's points (Kirillov et al., CVPR 2020): which are asked again, and what maps say there.

Points are (y, x), either in cells of a map, whose centres are at 0.5, 1.5, …, or as shares of a
mask's sides, from 0 to 1.
"""

from collections.abc import Callable

import tensorflow as tf

# Of P points in training, this share are the least certain of this many candidates for each of P.
UNCERTAIN_SHARE = 0.75
CANDIDATES = 3


def sample(maps: tf.Tensor, points_yx: tf.Tensor, map_indices: tf.Tensor) -> tf.Tensor:
    """Bilinear values of maps at points; those of the border beyond the outermost centres.

    Args:
      maps: [M, H, W, C].
      points_yx: float32 [R, P, 2], in cells; they get no gradient.
      map_indices: int32 [R] into M.

    Returns:
      float32 [R, P, C].
    """
    last = tf.cast(tf.shape(maps)[1:3] - 1, tf.float32)
    shares = tf.clip_by_value(points_yx - 0.5, 0.0, last) / tf.maximum(last, 1.0)
    shares = tf.stop_gradient(tf.reshape(shares, [-1, 2]))
    count = tf.shape(points_yx)[1]
    values = tf.image.crop_and_resize(
        tf.cast(maps, tf.float32),
        tf.concat([shares, shares], axis=-1),
        tf.repeat(map_indices, count),
        [1, 1],
    )
    return tf.reshape(values, [-1, count, maps.shape[-1]])


def sample_masks(masks: tf.Tensor, shares_yx: tf.Tensor) -> tf.Tensor:
    """Bilinear values of masks [R, m, m], each at its own points [R, P, 2] -> float32 [R, P]."""
    indices = tf.range(tf.shape(masks)[0])
    return sample(masks[..., None], masks.shape[1] * shares_yx, indices)[..., 0]


def draws(count: int) -> int:
    """How many random points `for_training` takes to choose `count`."""
    return CANDIDATES * count + count - int(UNCERTAIN_SHARE * count)


def for_training(logits: tf.Tensor, random: tf.Tensor, count: int) -> tf.Tensor:
    """Points where masks are uncertain, and some that are anywhere.

    Args:
      logits: [R, m, m].
      random: float32 [R, draws(count), 2] in [0, 1).
      count: P.

    Returns:
      Points float32 [R, P, 2], shares of the sides.
    """
    candidates, anywhere = tf.split(random, [CANDIDATES * count, -1], axis=1)
    doubt = -tf.abs(sample_masks(tf.stop_gradient(logits), candidates))
    chosen = tf.math.top_k(doubt, int(UNCERTAIN_SHARE * count)).indices
    return tf.concat([tf.gather(candidates, chosen, batch_dims=1), anywhere], axis=1)


def subdivide(
    logits: tf.Tensor, predict: Callable[[tf.Tensor], tf.Tensor], steps: int, count: int
) -> tf.Tensor:
    """Doubles the side of masks step by step, and has the least certain pixels predicted anew.

    Args:
      logits: float32 [R, m, m].
      predict: points [R, P, 2], shares of the sides -> logits float32 [R, P].
      steps: how often.
      count: P of each step; all pixels where a mask has fewer.

    Returns:
      float32 [R, 2^steps m, 2^steps m].
    """
    side = logits.shape[1]
    for _ in range(steps):
        side *= 2
        pixels = tf.reshape(tf.image.resize(logits[..., None], [side, side]), [-1, side * side])
        places = tf.math.top_k(-tf.abs(pixels), min(count, side * side)).indices  # [R, P]
        at = tf.stack([places // side, places % side], axis=-1)
        new = predict((tf.cast(at, tf.float32) + 0.5) / side)
        rows = tf.broadcast_to(tf.range(tf.shape(places)[0])[:, None], tf.shape(places))
        pixels = tf.tensor_scatter_nd_update(pixels, tf.stack([rows, places], axis=-1), new)
        logits = tf.reshape(pixels, [-1, side, side])
    return logits
