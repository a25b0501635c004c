"""Backbones: ResNet-50/101 as published, and a small residual network for small images."""

import functools
import math
from typing import Any

import tensorflow as tf
import tf_keras

from maskx_tf.layers import initializers
from maskx_tf.layers.convolution import Conv2D

# Blocks of each stage, from stage 2 on.
STAGES = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "small": (1, 1, 1)}
EPSILON = 1e-5


def normalization_layer(kind: str, name: str) -> tf_keras.layers.Layer:
    """The layer after a convolution.

    Args:
      kind: `frozen_batch_norm` (a fixed affine map), `batch_norm`, `sync_batch_norm` (statistics
        over all replicas) or `group_norm` (16 channels a group, where that divides them).
      name: name of the layer.
    """
    if kind == "group_norm":
        # Keras computes its moments in the input's precision.
        return _GroupNorm(dtype="float32", name=name)
    return tf_keras.layers.BatchNormalization(
        epsilon=EPSILON,
        momentum=0.95,
        synchronized=kind == "sync_batch_norm",
        trainable=kind != "frozen_batch_norm",
        name=name,
    )


class _GroupNorm(tf_keras.layers.GroupNormalization):
    """Group normalisation with a group size in place of a group count."""

    def build(self, input_shape):
        self.groups = math.gcd(input_shape[-1], max(1, input_shape[-1] // 16))
        super().build(input_shape)


class ConvNorm(tf_keras.layers.Layer):
    """Convolution without bias, normalisation, optional ReLU; with norm "none" only a bias between.

    With stride 2, Keras' "same" pads even inputs more at the bottom and the right, which shifts the
    features. Model Garden's weights are trained with it; the published ones and Keras' are trained
    with the same padding on all sides. See `padding` of `ResNet`.

    Where it is `dense`, the outputs that a stride of 2 leaves out are computed too: every second of
    its outputs is one with the stride.
    """

    def __init__(
        self,
        filters: int,
        size: int | tuple[int, int],
        stride: int,
        norm: str,
        relu: bool = True,
        padding: str = "symmetric",
        dilation: int = 1,
        dense: bool = False,
        initializer: str | tf_keras.initializers.Initializer | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        pad = None
        if isinstance(size, int) and size > 1 and stride > 1:  # 1x1 kernels need none either way
            if dense and padding == "same":
                pad = (0, (size - 1) * dilation)  # as with the stride on even inputs
            elif not dense and padding == "symmetric":
                pad = (size // 2, size // 2)
        self.conv = Conv2D(
            filters,
            size,
            strides=1 if dense else stride,
            pad=pad,
            dilation_rate=dilation,
            use_bias=norm == "none",
            kernel_initializer=initializer or initializers.msra_fill(),
            name="conv",
        )
        self.norm: Any = None if norm == "none" else normalization_layer(norm, "norm")
        self.relu = relu
        self._is_fixed = norm == "frozen_batch_norm"
        self._folded_bias: tf.Variable | None = None

    def build(self, input_shape) -> None:
        """Creates the weights of both parts, which are not always called as layers."""
        with tf.name_scope(self.conv.name):
            self.conv.build(input_shape)
        if self.norm is not None:
            with tf.name_scope(self.norm.name):
                self.norm.build([*input_shape[:3], self.conv.filters])
        super().build(input_shape)

    def _merged(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Kernel and bias of the convolution that has batch norm's fixed map in it."""
        scale = self.norm.gamma * tf.math.rsqrt(self.norm.moving_variance + self.norm.epsilon)
        return self.conv.kernel * scale, self.norm.beta - self.norm.moving_mean * scale

    def fold(self) -> None:
        """Keeps the merged kernel and bias, now also of trained batch norm. For inference only."""
        if isinstance(self.norm, tf_keras.layers.BatchNormalization):
            kernel, bias = self._merged()
            self.conv.fold(kernel)
            self._folded_bias = tf.Variable(bias, trainable=False, name="bias")

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), filters]; dense, [B, H, W, …]."""
        # Merging costs a product of the kernel's size and saves two of the features', forward and
        # backward. In half precision it would round the statistics.
        if self._folded_bias is not None:
            x = self.conv.convolution_op(x, self.conv.kernel)  # with the merged one, which it keeps
            x = tf.nn.bias_add(x, tf.cast(self._folded_bias, x.dtype))
        elif self._is_fixed and self.compute_dtype == "float32":
            kernel, bias = self._merged()
            x = tf.nn.bias_add(self.conv.convolution_op(x, kernel), bias)
        elif self.norm is None:
            x = self.conv.convolution_op(x, self.conv.kernel)
            x = tf.nn.bias_add(x, tf.cast(self.conv.bias, x.dtype))
        else:
            x = self.conv.convolution_op(x, self.conv.kernel)
            x = tf.cast(self.norm(x, training=training and self.norm.trainable), x.dtype)
        return tf.nn.relu(x) if self.relu else x


class ResidualBlock(tf_keras.layers.Layer):
    """Bottleneck (1x1, 3x3, 1x1) or basic (3x3, 3x3) block, projected where shapes differ.

    Its 3x3 convolutions have dilation `rate`; if it is `dense` (see `ConvNorm`), those after the
    one with the stride have `stride` times that.
    """

    def __init__(
        self,
        filters: int,
        stride: int,
        norm: str,
        *,
        bottleneck: bool,
        project: bool,
        stride_on: str = "1x1",
        padding: str = "symmetric",
        rate: int = 1,
        dense: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        outer = 4 * filters if bottleneck else filters
        after = rate * stride if dense else rate
        conv = functools.partial(ConvNorm, norm=norm, padding=padding, dense=dense)
        if bottleneck:
            first = stride_on == "1x1"
            strides, rate = (stride, 1) if first else (1, stride), after if first else rate
            self.convs = [
                conv(filters, 1, strides[0], name="conv1"),
                conv(filters, 3, strides[1], dilation=rate, name="conv2"),
                conv(outer, 1, 1, relu=False, name="conv3"),
            ]
        else:
            self.convs = [
                conv(filters, 3, stride, dilation=rate, name="conv1"),
                conv(outer, 3, 1, dilation=after, relu=False, name="conv2"),
            ]
        self.shortcut = conv(outer, 1, stride, relu=False, name="shortcut") if project else None

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B, H, W, C] -> [B, H / stride, W / stride, outer filters]."""
        shortcut = x if self.shortcut is None else self.shortcut(x, training=training)
        for conv in self.convs:
            x = conv(x, training=training)
        return tf.nn.relu(x + shortcut)


class ResNet(tf_keras.layers.Layer):
    """Residual network; the last feature map of every stage.

    Args:
      variant: a key of `STAGES`. `small` has basic blocks, and two 3x3 convolutions of stride 2 as
        its stem; the others have bottlenecks, and a 7x7 convolution with max-pooling.
      width: stage i has width * 2**(i - 2) filters, times 4 in bottlenecks.
      stem_width: filters of the stem; 0: width.
      output_stride: stages whose stride would exceed it are dilated in place of strided; their
        features are those of a network without dilation, with others between. The last of them has
        the level.
      normalization: see `normalization_layer`.
      stride_on: `1x1` or `3x3`, the convolution of a bottleneck that has the stride.
      frozen_stages: 0: none, 1: the stem, 2: stem and stage 2, …; no gradient enters these.
      padding: how convolutions and pooling with stride 2 pad: `symmetric`, `same`, or `caffe`:
        convolutions symmetric, pooling at the bottom and the right.
    """

    def __init__(
        self,
        variant: str,
        width: int = 64,
        normalization: str = "frozen_batch_norm",
        stride_on: str = "1x1",
        frozen_stages: int = 2,
        padding: str = "symmetric",
        stem_width: int = 0,
        output_stride: int = 32,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.frozen_stages, self.last_level = frozen_stages, int(math.log2(output_stride))
        self.pool_padding = padding
        padding = "symmetric" if padding == "caffe" else padding  # of the convolutions
        stem_width = stem_width or width
        bottleneck = variant != "small"
        if bottleneck:
            self.stem = [ConvNorm(stem_width, 7, 2, normalization, padding=padding, name="stem")]
        else:
            self.stem = [
                ConvNorm(stem_width // 2, 3, 2, normalization, padding=padding, name="stem1"),
                ConvNorm(stem_width, 3, 2, normalization, padding=padding, name="stem2"),
            ]
        self.pool = bottleneck
        self.stages: dict[str, list[ResidualBlock]] = {}
        for stage, count in enumerate(STAGES[variant], start=2):
            before, rate = (2 ** max(0, s - self.last_level) for s in (stage - 1, stage))
            self.stages[str(stage)] = [
                ResidualBlock(
                    width * 2 ** (stage - 2),
                    2 if index == 0 and stage > 2 else 1,
                    normalization,
                    bottleneck=bottleneck,
                    project=index == 0 and (bottleneck or stage > 2),
                    stride_on=stride_on,
                    padding=padding,
                    rate=rate if index else before,
                    dense=index == 0 and rate > before,
                    name=f"res{stage}_{index}",
                )
                for index in range(count)
            ]
        frozen = self.stem if frozen_stages else []
        frozen = frozen + [b for s in range(2, frozen_stages + 1) for b in self.stages[str(s)]]
        for layer in frozen:
            layer.trainable = False

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of the feature maps: stride 2**level."""
        return tuple(level for level in map(int, self.stages) if level <= self.last_level)

    def call(self, images: tf.Tensor, training: bool = False) -> dict[int, tf.Tensor]:
        """Normalised images [B, H, W, 3] -> {level: [B, H / 2**level, W / 2**level, C]}."""
        x = images
        for conv in self.stem:
            x = conv(x, training=training)
        if self.pool and self.pool_padding == "symmetric":
            # 0 stands in for -inf because the input has passed a ReLU.
            x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
        elif self.pool:
            x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        if self.frozen_stages == 1:
            x = tf.stop_gradient(x)
        features = {}
        for stage, blocks in self.stages.items():
            for block in blocks:
                x = block(x, training=training)
            if int(stage) <= self.frozen_stages:
                x = tf.stop_gradient(x)
            features[min(int(stage), self.last_level)] = x
        return features


resnet50 = functools.partial(ResNet, "resnet50")
resnet101 = functools.partial(ResNet, "resnet101")
small = functools.partial(ResNet, "small")
