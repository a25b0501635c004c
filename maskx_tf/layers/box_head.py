"""Box head: two fully connected layers, class scores and class-specific box regression."""

import itertools

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class BoxHead(tf_keras.layers.Layer):
    """Fast R-CNN head whose last layers are laid out by class.

    Row c of `cls_kernel` is the paper's w_cls of class c, row c of `box_kernel` its w_box: what
    belongs to a class is read with one gather, whatever the number of classes.

    Args:
      num_classes: K, without background (row 0).
      units: D, of both hidden layers.
      groups: sizes of the groups of classes, K in all; empty: one group. The logits of a group are
        a product of their own, so that adding a group leaves those of the others the same bits.
    """

    def __init__(self, num_classes: int, units: int = 1024, groups: tuple[int, ...] = (), **kwargs):
        super().__init__(**kwargs)
        self.num_classes, self.units = num_classes, units
        starts = list(itertools.accumulate(groups[:-1], initial=1))
        self.groups = tuple(
            range(start, start + size)
            for start, size in zip(starts, groups or (num_classes,), strict=True)
        )

        def dense(name: str) -> tf_keras.layers.Layer:
            return tf_keras.layers.Dense(
                units, activation="relu", kernel_initializer=initializers.xavier_fill(), name=name
            )

        self.fc1, self.fc2 = dense("fc1"), dense("fc2")

    def build(self, input_shape) -> None:
        """Creates the per-class rows: cls_kernel [K + 1, D] and box_kernel [K + 1, 4, D]."""
        rows = self.num_classes + 1
        self.cls_kernel = self.add_weight(
            "cls_kernel", [rows, self.units], initializer=initializers.gaussian_fill(0.01)
        )
        self.cls_bias = self.add_weight("cls_bias", [rows], initializer="zeros")
        self.box_kernel = self.add_weight(
            "box_kernel", [rows, 4, self.units], initializer=initializers.gaussian_fill(0.001)
        )
        self.box_bias = self.add_weight("box_bias", [rows, 4], initializer="zeros")
        super().build(input_shape)

    def call(self, roi_features: tf.Tensor) -> tf.Tensor:
        """RoI features [N, S, S, C] -> box features float32 [N, D]."""
        side_by_side = roi_features.shape[1] * roi_features.shape[2] * roi_features.shape[3]
        features = self.fc2(self.fc1(tf.reshape(roi_features, [-1, side_by_side])))
        return tf.cast(features, tf.float32)  # also in mixed precision: so are class and box output

    def class_logits(self, box_features: tf.Tensor) -> tf.Tensor:
        """Box features [N, D] -> float32 logits [N, K + 1], background first."""
        logits: list[tf.Tensor] = []
        for group in self.groups:
            rows = slice(group.start if logits else 0, group.stop)  # the first has the background
            kernel, bias = self.cls_kernel[rows], self.cls_bias[rows]
            logits.append(tf.matmul(box_features, kernel, transpose_b=True) + bias)
        return tf.concat(logits, axis=-1)

    def class_deltas(self, box_features: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """Deltas (dy, dx, dh, dw) of each RoI for one class only. [N, D], [N] -> float32 [N, 4]."""
        kernels = tf.gather(self.box_kernel, classes)  # [N, 4, D]
        return tf.linalg.matvec(kernels, box_features) + tf.gather(self.box_bias, classes)

    def class_weights(self, classes: tf.Tensor, kind: str) -> tf.Tensor:
        """w_det of the given classes (paper §3.2): raw weights without biases.

        Args:
          classes: int32 [U].
          kind: `cls`, `box` or `cls+box`.

        Returns:
          [U, D], [U, 4 D] (blocks dy, dx, dh, dw) or [U, 5 D] (cls first).
        """
        parts = []
        if kind in ("cls", "cls+box"):
            parts.append(tf.gather(self.cls_kernel, classes))
        if kind in ("box", "cls+box"):
            parts.append(tf.reshape(tf.gather(self.box_kernel, classes), [-1, 4 * self.units]))
        return tf.concat(parts, axis=-1)
