"""Box head: two fully connected layers, class scores and class-specific box regression."""

import itertools

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers
from maskx_tf.ops import boxes

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def box_head_name(stage: int) -> str:
    """The name of the layer of a stage of a cascade, from 1 on: the second is box_head_2."""
    return "box_head" if stage == 1 else f"box_head_{stage}"


class BoxHead(tf_keras.layers.Layer):
    """Fast R-CNN head whose last layers are laid out by class; one stage of a cascade.

    Row c of `cls_kernel` is the paper's w_cls of class c, row c of `box_kernel` its w_box: what
    belongs to a class is read with one gather, whatever the number of classes.

    Args:
      num_classes: K, without background (row 0).
      units: D, of both hidden layers.
      groups: sizes of the groups of classes, K in all; empty: one group. The logits of a group are
        a product of their own, so that adding a group leaves those of the others the same bits.
      positive_iou: IoU with an object from which a RoI is trained as foreground.
      delta_weights: factors on the deltas (dy, dx, dh, dw) that the head gives.
    """

    def __init__(
        self,
        num_classes: int,
        units: int = 1024,
        groups: tuple[int, ...] = (),
        positive_iou: float = 0.5,
        delta_weights: tuple[float, ...] = DELTA_WEIGHTS,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes, self.units = num_classes, units
        self.positive_iou, self.delta_weights = positive_iou, delta_weights
        starts = list(itertools.accumulate(groups[:-1], initial=1))
        self.groups = tuple(
            range(start, start + size)
            for start, size in zip(starts, groups or (num_classes,), strict=True)
        )

    def build(self, input_shape) -> None:
        """Creates the per-class rows: cls_kernel [K + 1, D] and box_kernel [K + 1, 4, D]."""
        self.add_hidden_layers(input_shape[-1])
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

    def add_hidden_layers(self, channels: int) -> None:
        """Makes the layers between RoI features of C `channels` and box features."""
        del channels

        def dense(name: str) -> tf_keras.layers.Layer:
            return tf_keras.layers.Dense(
                self.units,
                activation="relu",
                kernel_initializer=initializers.xavier_fill(),
                name=name,
            )

        self.fc1, self.fc2 = dense("fc1"), dense("fc2")

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

    def decode(
        self, box_features: tf.Tensor, classes: tf.Tensor, rois_yxyx: tf.Tensor
    ) -> tf.Tensor:
        """The box of one class for each RoI. [N, D], [N], [N, 4] -> float32 [N, 4], unclipped."""
        return boxes.decode(self.class_deltas(box_features, classes), rois_yxyx, self.delta_weights)

    def refine(
        self,
        box_features: tf.Tensor,
        class_logits: tf.Tensor,
        rois_yxyx: tf.Tensor,
        image_sizes: tf.Tensor,
        gradient: bool = False,
    ) -> tf.Tensor:
        """The RoIs where the head sees their objects, for the next stage.

        Args:
          box_features: [B * S, D] of the RoIs.
          class_logits: [B * S, K + 1]; the most probable class but the background counts.
          rois_yxyx: float32 [B, S, 4].
          image_sizes: float32 [B, 2] (height, width), to clip to.
          gradient: whether there is one, to the deltas; else the RoIs are constants.

        Returns:
          float32 [B, S, 4]; padding stays empty.
        """
        classes = tf.argmax(class_logits[:, 1:], axis=-1, output_type=tf.int32) + 1
        moved = self.decode(box_features, classes, tf.reshape(rois_yxyx, [-1, 4]))
        moved = tf.reshape(moved, tf.shape(rois_yxyx))
        moved = boxes.clip(moved, image_sizes)
        return moved if gradient else tf.stop_gradient(moved)

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
