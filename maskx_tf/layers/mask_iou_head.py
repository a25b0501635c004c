"""How good a mask is: the MaskIoU head of Mask Scoring R-CNN."""

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers
from maskx_tf.layers.backbone import ConvNorm
from maskx_tf.layers.mask_bodies.body import convolution


class MaskIoUHead(tf_keras.layers.Layer):
    """RoI features and a mask -> the IoU of mask and object (Huang et al., CVPR 2019).

    Three 3x3 convolutions and one of stride 2, two fully connected layers, and the kernel of the
    RoI's class. The mask is max-pooled to the side of the features.

    Args:
      filters: of the convolutions.
      units: of the fully connected layers; length of a class's kernel.
    """

    def __init__(self, filters: int = 256, units: int = 1024, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.convs = [convolution(filters, "none", f"conv{i}") for i in (1, 2, 3)]
        self.convs.append(ConvNorm(filters, 3, 2, "none", name="conv4"))
        self.fc1, self.fc2 = (
            tf_keras.layers.Dense(
                units, "relu", kernel_initializer=initializers.xavier_fill(), name=name
            )
            for name in ("fc1", "fc2")
        )

    def call(
        self,
        roi_features: tf.Tensor,
        masks: tf.Tensor,
        kernels: tf.Tensor,
        biases: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Predicted IoUs of masks.

        Args:
          roi_features: [N, S, S, C].
          masks: probabilities [N, m, m]; m is a multiple of S.
          kernels: of each RoI's class, [N, units].
          biases: [N], or None as with T, which predicts none.

        Returns:
          float32 [N]; of no bounds, as they are trained.
        """
        factor = masks.shape[1] // roi_features.shape[1]
        masks = tf.cast(masks, roi_features.dtype)[..., None]
        x = tf.concat([roi_features, tf.nn.max_pool2d(masks, factor, factor, "VALID")], axis=-1)
        for conv in self.convs:
            x = conv(x)
        x = self.fc2(self.fc1(tf.reshape(x, [-1, x.shape[1] * x.shape[2] * x.shape[3]])))
        ious = tf.cast(tf.reduce_sum(x * tf.cast(kernels, x.dtype), axis=-1), tf.float32)
        return ious if biases is None else ious + tf.cast(biases, tf.float32)
