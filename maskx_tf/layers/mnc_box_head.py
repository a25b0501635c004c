"""The box head of Multi-task Network Cascades, which sees RoIs with and without what is around."""

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers
from maskx_tf.layers.box_head import BoxHead


class MNCBoxHead(BoxHead):
    """MNC's third stage (Dai, He & Sun, CVPR 2016): classes from features inside the mask as well.

    Two paths of two fully connected layers, one on the features times the mask, one on the features
    alone. Both together are the box features [N, 2 D], in this order: all rows of a class are as
    long. `cls_kernel` tells the class of the mask, which scores detections; `box_cls_kernel`, only
    trained, that of the box.

    Args:
      num_classes: K.
      units: D, of the layers of each path.
      **options: of `BoxHead`.
    """

    def __init__(self, num_classes: int, units: int = 1024, **options):
        super().__init__(num_classes, 2 * units, **options)

    def build(self, input_shape) -> None:
        """Creates the rows of `BoxHead`, box_cls_kernel [K + 1, 2 D] and box_cls_bias [K + 1]."""
        super().build(input_shape)
        rows = self.num_classes + 1
        self.box_cls_kernel = self.add_weight(
            "box_cls_kernel", [rows, self.units], initializer=initializers.gaussian_fill(0.01)
        )
        self.box_cls_bias = self.add_weight("box_cls_bias", [rows], initializer="zeros")

    def add_hidden_layers(self, channels: int) -> None:
        """Makes the layers of both paths; those without the mask have the names of `BoxHead`."""
        del channels

        def dense(name: str) -> tf_keras.layers.Layer:
            return tf_keras.layers.Dense(
                self.units // 2,
                activation="relu",
                kernel_initializer=initializers.xavier_fill(),
                name=name,
            )

        self.fc1, self.fc2 = dense("fc1"), dense("fc2")
        self.masked_fc1, self.masked_fc2 = dense("masked_fc1"), dense("masked_fc2")

    def call(self, roi_features: tf.Tensor, masks: tf.Tensor | None = None) -> tf.Tensor:
        """Box features of RoIs.

        Args:
          roi_features: [N, 2 S, 2 S, C]; each path max-pools them to S x S.
          masks: probabilities float32 [N, m, m].

        Returns:
          float32 [N, 2 D].
        """
        assert masks is not None
        masked = self.fc_path(inside(roi_features, masks), self.masked_fc1, self.masked_fc2)
        whole = self.fc_path(roi_features, self.fc1, self.fc2)
        return tf.cast(tf.concat([masked, whole], axis=-1), tf.float32)

    def fc_path(self, x: tf.Tensor, first, second) -> tf.Tensor:
        """[N, 2 S, 2 S, C] -> [N, D]: max pooling and two layers."""
        side, channels = x.shape[1] // 2, x.shape[3]
        # As `roi_warp` pools.
        x = tf.reduce_max(tf.reshape(x, [-1, side, 2, side, 2, channels]), axis=[2, 4])
        return second(first(tf.reshape(x, [-1, side * side * channels])))

    def box_class_logits(self, box_features: tf.Tensor) -> tf.Tensor:
        """Logits [N, K + 1] of the classes of the boxes, of features [N, 2 D]."""
        return tf.matmul(box_features, self.box_cls_kernel, transpose_b=True) + self.box_cls_bias


def inside(roi_features: tf.Tensor, masks: tf.Tensor) -> tf.Tensor:
    """RoI features [N, S, S, C] times masks [N, m, m], resized bilinearly."""
    side = roi_features.shape[1]
    if masks.shape[1] != side:
        masks = tf.image.resize(masks[..., None], [side, side])[..., 0]
    return roi_features * tf.cast(masks, roi_features.dtype)[..., None]
