"""3 x 3 convolutions of stride 1 with half the multiplications, for processors.

Winograd's minimal filtering F(4, 3) (Lavin & Gray, "Fast Algorithms for Convolutional Neural
Networks", §3), along columns only: four outputs below each other take 6 products with a filter
column of 3 instead of 12, and what remains are six convolutions 1 high and 3 wide over a quarter of
the rows. Along both axes it would be a quarter of the products, but the transforms would move more
memory than that saves, and rounding would grow. The points ±√½, ±√2 keep the errors in float32
within three times those of the direct convolution; the usual ±1, ±2 make them half as large again.

Computed in stripes, so that what lies between transforms and products stays in the cache. A stripe
is a part of the outermost dimension, which TensorFlow takes without a copy.
"""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

TILE = 4  # outputs of a tile
STRIPE_BYTES = 8 << 20  # of a stripe's input or output, whichever has more channels
# Squares of the four points that are neither 0 nor infinity: ±√P, ±√Q. Their product is 1.
P, Q = 0.5, 2.0
_ROOT_P, _ROOT_Q = math.sqrt(P), math.sqrt(Q)


def _kernel_matrix() -> np.ndarray:
    """G, float32 [6, 3]: a filter column's values at the six points."""
    points = (_ROOT_P, -_ROOT_P, _ROOT_Q, -_ROOT_Q)
    others = (Q, Q, P, P)
    rows = [
        [power / (2 * p * p * (p * p - other)) for power in (1, p, p * p)]
        for p, other in zip(points, others, strict=True)
    ]
    return np.array([[1, 0, 0], *rows, [0, 0, 1]], np.float32)


def transform_kernel(kernel: tf.Tensor) -> tf.Tensor:
    """[3, 3, C, K] -> six kernels of 1 x 3, [6, 1, 3, C, K]."""
    return tf.einsum("mh,hwck->mwck", tf.constant(_kernel_matrix()), kernel)[:, None]


def conv3x3(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """What `tf.nn.conv2d(x, kernel, 1, "SAME")` gives, but for rounding.

    Args:
      x: float32 [B, H, W, C].
      kernel: float32 [3, 3, C, K].

    Returns:
      float32 [B, H, W, K]. Gradients pass to both, by the same algorithm.
    """

    @tf.custom_gradient
    def convolution(x: tf.Tensor, kernel: tf.Tensor):
        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with tf.control_dependencies([upstream]):
                of_kernel = _kernel_gradient(tf.identity(x), upstream, kernel.shape)
            # One after the other: each keeps all cores busy and wants the cache for itself. The
            # kernel's first: x may need none, as below a frozen detector, and is then left out.
            with tf.control_dependencies([of_kernel]):
                turned = tf.transpose(tf.identity(kernel)[::-1, ::-1], [0, 1, 3, 2])
                of_x = conv3x3(tf.identity(upstream), turned)
            return of_x, of_kernel

        # Not before x is there, and in the gradient not before upstream is: what depends on nothing
        # else is made for all layers at once and waits in memory.
        with tf.control_dependencies([x]):
            kernels = transform_kernel(tf.identity(kernel))
        return conv3x3_transformed(x, kernels), gradients

    return convolution(x, kernel)


def conv3x3_transformed(x: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
    """`conv3x3` with the result of `transform_kernel`; the gradient takes more memory."""
    filters = kernels.shape[4]
    stripes = _Stripes(x, max(x.shape[3], filters))
    inputs, row_kernels = stripes.inputs(x), tf.unstack(kernels)

    def convolved(i: tf.Tensor) -> tf.Tensor:
        products = [
            tf.nn.conv2d(part, kernel, 1, "SAME")
            for part, kernel in zip(_input_parts(inputs(i)), row_kernels, strict=True)
        ]
        return _outputs(products)

    results = tf.TensorArray(tf.float32, stripes.count, infer_shape=False)
    results = _for_each(stripes.count, lambda i, a: a.write(i, convolved(i)), results)
    return tf.ensure_shape(stripes.joined(results.concat(), filters), [*x.shape[:3], filters])


def _kernel_gradient(x: tf.Tensor, upstream: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Of the kernel, [3, 3, C, K]: the transposed transforms of upstream and of the products."""
    stripes = _Stripes(x, max(shape[2:]))
    inputs, outputs = stripes.inputs(x), stripes.outputs(upstream)

    def add(i: tf.Tensor, sums: list[tf.Tensor]) -> list[tf.Tensor]:
        of_inputs, of_products = _input_parts(inputs(i)), _output_parts(outputs(i))
        gradients = [
            tf.raw_ops.Conv2DBackpropFilter(
                input=of_input,
                filter_sizes=[1, 3, *shape[2:]],
                out_backprop=of_product,
                strides=[1, 1, 1, 1],
                padding="SAME",
            )
            for of_input, of_product in zip(of_inputs, of_products, strict=True)
        ]
        return [a + b for a, b in zip(sums, gradients, strict=True)]

    sums = _for_each(stripes.count, add, [tf.zeros([1, 3, *shape[2:]])] * 6)
    return tf.einsum("mh,mwck->hwck", tf.constant(_kernel_matrix()), tf.concat(sums, axis=0))


def _for_each(count: tf.Tensor, step: Callable, state):
    """`step(i, state)`, the next state, for each i below count in turn."""
    _, state = tf.while_loop(
        lambda i, _: i < count,
        lambda i, state: (i + 1, step(i, state)),
        (0, state),
        parallel_iterations=1,
    )
    return state


class _Stripes:
    """How the rows of images [B, H, W, C] are cut into parts that fit the cache.

    The images make one tall image, with a row of zeros between them. Its outputs are cut into tiles
    of 4 rows, and these into stripes. A stripe's inputs are [tiles + 1, 4, W, C], its outputs
    [tiles, 4, W, K].
    """

    def __init__(self, x: tf.Tensor, channels: int):
        self._batch, self._height, self._width, _ = tf.unstack(tf.shape(x))
        self._pitch = self._height + tf.where(self._batch == 1, 0, 1)  # rows from image to image
        self._tiles = tf.maximum(_ceil_div(self._batch * self._pitch, TILE), 1)
        fitting = STRIPE_BYTES // (4 * TILE * channels * tf.maximum(self._width, 1))
        self._of_a_stripe = _even_share(self._tiles, fitting)
        self.count = _ceil_div(self._tiles, self._of_a_stripe)

    def inputs(self, x: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """Of stripe i, the rows of x that its outputs depend on."""
        tiled = self._tiled(x, above=1)
        return lambda i: tiled[i * self._of_a_stripe : (i + 1) * self._of_a_stripe + 1]

    def outputs(self, y: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """Of stripe i, the rows of y [B, H, W, K] that are its outputs."""
        tiled = self._tiled(y, above=0)
        return lambda i: tiled[i * self._of_a_stripe : (i + 1) * self._of_a_stripe]

    def joined(self, tiled: tf.Tensor, filters: int) -> tf.Tensor:
        """The outputs of all stripes, [tiles, 4, W, K] -> [B, H, W, K]."""
        rows = tf.reshape(tiled, [-1, self._width, filters])[: self._batch * self._pitch]
        images = tf.reshape(rows, [self._batch, self._pitch, self._width, filters])
        return images[:, : self._height]

    def _tiled(self, x: tf.Tensor, above: int) -> tf.Tensor:
        """The tall image with `above` rows of zeros on top, [tiles + above, 4, W, C]."""
        rows = (self._tiles + above) * TILE
        # In one pass: zeros that the end lacks are rows below one image, further images of several.
        below = tf.where(self._batch == 1, rows - above - self._height, 1 - above)
        images = _ceil_div(rows, above + self._height + below)
        x = tf.pad(x, [[0, images - self._batch], [above, below], [0, 0], [0, 0]])
        channels = x.shape[3]
        x = tf.reshape(x, [-1, self._width, channels])[:rows]
        return tf.reshape(x, [-1, TILE, self._width, channels])


def _ceil_div(a: tf.Tensor, b: tf.Tensor | int) -> tf.Tensor:
    return -(-a // b)


def _even_share(total: tf.Tensor, most: tf.Tensor) -> tf.Tensor:
    """The size of the fewest equal parts of total that have at most `most` each; at least 1."""
    total = tf.maximum(total, 1)
    return _ceil_div(total, _ceil_div(total, tf.maximum(most, 1)))


def _input_parts(tiled: tf.Tensor) -> list[tf.Tensor]:
    """[tiles + 1, 4, W, C] -> the six inputs of the products, [1, tiles, W, C] each (Bᵀd)."""
    split = tf.unstack(tiled, axis=1)
    d0, d1, d2, d3 = (d[:-1] for d in split)
    d4, d5 = (d[1:] for d in split[:2])
    even_p, odd_p = d4 - Q * d2, _ROOT_P * (d3 - Q * d1)
    even_q, odd_q = d4 - P * d2, _ROOT_Q * (d3 - P * d1)
    parts = [
        d0 + d4 - (P + Q) * d2,
        even_p + odd_p,
        even_p - odd_p,
        even_q + odd_q,
        even_q - odd_q,
        d1 + d5 - (P + Q) * d3,
    ]
    return [part[None] for part in parts]


def _outputs(products: list[tf.Tensor]) -> tf.Tensor:
    """Six [1, tiles, W, K] -> [tiles, 4, W, K] (Aᵀm)."""
    m0, p_plus, p_minus, q_plus, q_minus, m5 = (product[0] for product in products)
    even_p, odd_p = p_plus + p_minus, _ROOT_P * (p_plus - p_minus)
    even_q, odd_q = q_plus + q_minus, _ROOT_Q * (q_plus - q_minus)
    rows = [
        m0 + even_p + even_q,
        odd_p + odd_q,
        P * even_p + Q * even_q,
        P * odd_p + Q * odd_q + m5,
    ]
    return tf.stack(rows, axis=1)


def _output_parts(tiled: tf.Tensor) -> list[tf.Tensor]:
    """[tiles, 4, W, K] -> the gradients of the six products, [1, tiles, W, K] each (A dy)."""
    y0, y1, y2, y3 = tf.unstack(tiled, axis=1)
    even_p, odd_p = y0 + P * y2, _ROOT_P * (y1 + P * y3)
    even_q, odd_q = y0 + Q * y2, _ROOT_Q * (y1 + Q * y3)
    parts = [y0, even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, y3]
    return [part[None] for part in parts]
