"""Position-sensitive inside and outside maps as a body: FCIS, Li et al., CVPR 2017."""

import tensorflow as tf

from maskx_tf.layers import initializers
from maskx_tf.layers.backbone import ConvNorm
from maskx_tf.layers.mask_bodies.body import Body, in_rows

PARTS = 7  # k, of each side of a RoI, as published


class FCIS(Body):
    """A class sees a RoI by two maps, inside and outside; each of k x k parts has other kernels.

    A 1x1 convolution with ReLU, then the 1x1 kernels of the parts. Published, these are
    convolutions of the whole image, of whose maps a RoI reads those of its parts
    (`roi_pooling.position_sensitive_roi_pool`). Here they see averages of the RoI
    (`roi_pooling.roi_average`): for the parts' kernels, which are linear, that is the same.

    The parts' kernels yield C features that all classes share, and a class has two kernels [C],
    inside and outside, the same in all parts. With `output="class_specific"` it has 2 k k of them,
    as published, and nothing is shared.

    The mask's logits are inside - outside: their sigmoid is the softmax over both.

    Args:
      filters: C; of `class_specific` the width of the convolution.
      upsampling: u, bilinear; published 1.
      norm: of the convolution, see `body.Deconvolution`; published without.
      output: --mask_output.
    """

    def __init__(
        self,
        filters: int = 32,
        upsampling: int = 2,
        norm: str = "none",
        output: str = "transfer",
        **kwargs,
    ):
        self.is_shared = output != "class_specific"
        # Of a class's kernel: inside or outside, parts, features.
        self.kernel_shape = (2, 1 if self.is_shared else PARTS**2, filters)
        super().__init__(2 * self.kernel_shape[1] * filters, upsampling, norm, **kwargs)

    def build(self, input_shape) -> None:
        """Creates the convolution and the kernels of the parts that all classes share."""
        *_, features = self.kernel_shape
        width = input_shape[-1] if self.is_shared else features
        self.reduce = ConvNorm(width, 1, 1, self.norm, name="reduce")
        with tf.name_scope(self.reduce.name):
            self.reduce.build(input_shape)
        if self.is_shared:
            initializer = initializers.gaussian_fill(width**-0.5)
            shape = [PARTS**2, width, features]
            self.part_kernels = self.add_weight("part_kernels", shape, initializer=initializer)
            shape[1] = 1
            self.part_biases = self.add_weight("part_biases", shape, initializer="zeros")
        super().build(input_shape)

    def call(self, roi_features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """RoI features [N, S, S, C'] -> [N, k, k, p, p, C], p x p pixels of each part."""
        x = self.reduce(roi_features)
        side = self.upsampling * x.shape[1]
        if self.upsampling > 1:
            x = tf.cast(tf.image.resize(x, [side, side]), x.dtype)
        pixels, channels = side // PARTS, x.shape[3]
        x = tf.reshape(x, [-1, PARTS, pixels, PARTS, pixels, channels])
        if not self.is_shared:
            return tf.transpose(x, [0, 1, 3, 2, 4, 5])
        x = tf.reshape(tf.transpose(x, [1, 3, 0, 2, 4, 5]), [PARTS**2, -1, channels])
        x = tf.matmul(x, tf.cast(self.part_kernels, x.dtype)) + tf.cast(self.part_biases, x.dtype)
        x = tf.reshape(x, [PARTS, PARTS, -1, pixels, pixels, self.kernel_shape[2]])
        return tf.transpose(x, [2, 0, 1, 3, 4, 5])

    def logits(self, x: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
        """What `call` returned and a kernel for each RoI, [N, length] -> float32 [N, u S, u S]."""
        _, parts, features = self.kernel_shape
        inside, outside = tf.unstack(tf.reshape(kernels, [-1, *self.kernel_shape]), axis=1)
        pixels = x.shape[1:5].num_elements() // parts
        maps = tf.linalg.matvec(
            tf.reshape(x, [-1, parts, pixels, features]), tf.cast(inside - outside, x.dtype)
        )
        return in_rows(tf.reshape(tf.cast(maps, tf.float32), [-1, *x.shape[1:5]]))

    def scores(self, x: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
        """Joint class scores: the mean over pixels of the larger of inside and outside.

        Args:
          x: what `call` returned, of N RoIs.
          kernels: [N, U, length] of U classes for each RoI; or, of `class_specific`, those of the
            same U classes for all, [U, length].

        Returns:
          float32 [N, U].
        """
        larger = tf.reduce_max(self._maps(x, kernels), axis=0)
        return tf.cast(tf.reduce_mean(larger, axis=2), tf.float32)

    def masks(self, x: tf.Tensor, kernels: tf.Tensor, biases: tf.Tensor | None = None) -> tf.Tensor:
        """Probabilities of the masks of several classes of each RoI, as of `scores`.

        With `class_specific` there are biases [U] too.

        Returns:
          float32 [N, U, u S, u S].
        """
        inside, outside = tf.unstack(self._maps(x, kernels))
        logits = tf.cast(inside - outside, tf.float32)  # [N, U, k k p p]
        if biases is not None:
            logits += biases[:, None]
        rows = in_rows(tf.reshape(logits, [-1, *x.shape[1:5]]))
        shape = tf.concat([tf.shape(logits)[:2], rows.shape[1:]], axis=0)
        return tf.reshape(tf.sigmoid(rows), shape)

    def _maps(self, x, kernels) -> tf.Tensor:
        """Inside and outside maps [2, N, U, k k p p]; arguments as of `scores`."""
        _, parts, features = self.kernel_shape
        kernels, count = tf.cast(kernels, x.dtype), tf.shape(x)[0]
        pixels = x.shape[1:5].num_elements() // parts
        x = tf.reshape(x, [count, parts, pixels, features])
        if self.is_shared:
            kernels = tf.reshape(kernels, [count, -1, features])  # [N, U 2, C]
            maps = tf.matmul(kernels, x[:, 0], transpose_b=True)
            return tf.transpose(tf.reshape(maps, [count, -1, 2, pixels]), [2, 0, 1, 3])
        kernels = tf.transpose(tf.reshape(kernels, [-1, 2, parts, features]), [2, 1, 0, 3])
        x = tf.reshape(tf.transpose(x, [1, 0, 2, 3]), [parts, 1, count * pixels, features])
        maps = tf.matmul(kernels, x, transpose_b=True)  # [k k, 2, U, N p p]
        maps = tf.reshape(maps, [parts, 2, -1, count, pixels])
        maps = tf.transpose(maps, [1, 3, 2, 0, 4])
        return tf.reshape(maps, [2, count, -1, parts * pixels])
