"""3 x 3 convolutions of stride 1 with half the multiplications, for processors.

Winograd's minimal filtering F(4, 3) (Lavin & Gray, "Fast Algorithms for Convolutional Neural
Networks", §3), along rows only: four neighbouring outputs of a filter row of 3 take 6 products
instead of 12, and what remains are six convolutions 3 high and 1 wide over a quarter of the
columns. Along both axes it would be a quarter of the products, but the transforms would move more
memory than that saves, and rounding would grow. The points ±√½, ±√2 keep the errors in float32
within three times those of the direct convolution; the usual ±1, ±2 make them half as large again.
"""

import math

import numpy as np
import tensorflow as tf

TILE = 4  # outputs of a tile
# Squares of the four points that are neither 0 nor infinity: ±√P, ±√Q. Their product is 1.
P, Q = 0.5, 2.0
_ROOT_P, _ROOT_Q = math.sqrt(P), math.sqrt(Q)


def _kernel_matrix() -> np.ndarray:
    """G, float32 [6, 3]: a filter row's values at the six points."""
    points = (_ROOT_P, -_ROOT_P, _ROOT_Q, -_ROOT_Q)
    others = (Q, Q, P, P)
    rows = [
        [power / (2 * p * p * (p * p - other)) for power in (1, p, p * p)]
        for p, other in zip(points, others, strict=True)
    ]
    return np.array([[1, 0, 0], *rows, [0, 0, 1]], np.float32)


def transform_kernel(kernel: tf.Tensor) -> tf.Tensor:
    """[3, 3, C, K] -> six kernels of 3 x 1, [6, 3, 1, C, K]."""
    return tf.einsum("mw,hwck->mhck", tf.constant(_kernel_matrix()), kernel)[:, :, None]


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
            turned = tf.transpose(kernel[::-1, ::-1], [0, 1, 3, 2])
            of_x = conv3x3(upstream, turned)
            # One after the other: each needs memory for six parts of its inputs.
            with tf.control_dependencies([of_x]):
                inputs = tf.identity(x), tf.identity(upstream)
            return of_x, _kernel_gradient(*inputs, kernel.shape)

        return conv3x3_transformed(x, transform_kernel(kernel)), gradients

    return convolution(x, kernel)


def conv3x3_transformed(x: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
    """`conv3x3` with the result of `transform_kernel`; the gradient takes more memory."""
    products = [
        tf.nn.conv2d(part, kernel, 1, "SAME")
        for part, kernel in zip(_input_parts(x), tf.unstack(kernels), strict=True)
    ]
    return _outputs(products, tf.shape(x)[2])


def _tiles(width: tf.Tensor) -> tf.Tensor:
    return (width + TILE - 1) // TILE


def _phases(x: tf.Tensor, left: int, tiles: tf.Tensor) -> tf.Tensor:
    """[B, H, W, C] -> [B, H, tiles, 4 C], padded with zeros on both sides."""
    batch, height, width, _ = tf.unstack(tf.shape(x))
    x = tf.pad(x, [[0, 0], [0, 0], [left, TILE * tiles - left - width], [0, 0]])
    return tf.reshape(x, [batch, height, tiles, TILE * x.shape[3]])


def _input_parts(x: tf.Tensor) -> list[tf.Tensor]:
    """The six inputs of the products, [B, H, tiles, C] each (Bᵀd)."""
    tiles = _tiles(tf.shape(x)[2])
    phases = _phases(x, 1, tiles + 1)
    own, following = tf.split(phases[:, :, :-1], TILE, axis=3), phases[:, :, 1:]
    channels = x.shape[3]
    d0, d1, d2, d3 = own
    d4, d5 = following[..., :channels], following[..., channels : 2 * channels]
    even_p, odd_p = d4 - Q * d2, _ROOT_P * (d3 - Q * d1)
    even_q, odd_q = d4 - P * d2, _ROOT_Q * (d3 - P * d1)
    return [
        d0 + d4 - (P + Q) * d2,
        even_p + odd_p,
        even_p - odd_p,
        even_q + odd_q,
        even_q - odd_q,
        d1 + d5 - (P + Q) * d3,
    ]


def _outputs(products: list[tf.Tensor], width: tf.Tensor) -> tf.Tensor:
    """Six [B, H, tiles, K] -> [B, H, W, K] (Aᵀm)."""
    m0, p_plus, p_minus, q_plus, q_minus, m5 = products
    even_p, odd_p = p_plus + p_minus, _ROOT_P * (p_plus - p_minus)
    even_q, odd_q = q_plus + q_minus, _ROOT_Q * (q_plus - q_minus)
    y = tf.concat(
        [
            m0 + even_p + even_q,
            odd_p + odd_q,
            P * even_p + Q * even_q,
            P * odd_p + Q * odd_q + m5,
        ],
        axis=3,
    )
    batch, height, tiles, _ = tf.unstack(tf.shape(y))
    y = tf.reshape(y, [batch, height, TILE * tiles, m0.shape[3]])
    return y[:, :, :width]


def _kernel_gradient(x: tf.Tensor, upstream: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Of the kernel, [3, 3, C, K]: the transposed transforms of upstream and of the products."""
    y0, y1, y2, y3 = tf.split(_phases(upstream, 0, _tiles(tf.shape(x)[2])), TILE, axis=3)
    even_p, odd_p = y0 + P * y2, _ROOT_P * (y1 + P * y3)
    even_q, odd_q = y0 + Q * y2, _ROOT_Q * (y1 + Q * y3)
    of_products = [
        y0, even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, y3
    ]  # fmt: skip
    gradients = [
        tf.raw_ops.Conv2DBackpropFilter(
            input=part,
            filter_sizes=[3, 1, *shape[2:]],
            out_backprop=of_product,
            strides=[1, 1, 1, 1],
            padding="SAME",
        )[:, 0]
        for part, of_product in zip(_input_parts(x), of_products, strict=True)
    ]
    return tf.einsum("mw,mhck->hwck", tf.constant(_kernel_matrix()), tf.stack(gradients))
