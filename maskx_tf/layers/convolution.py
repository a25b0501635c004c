"""2-D convolution by the faster of two algorithms."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf
import tf_keras

from maskx_tf.ops import winograd

# Below, Winograd's transforms cost more than they save.
LEAST_CHANNELS = 64
# oneDNN computes in blocks of that many channels.
ONEDNN_BLOCK = 16
# What a new layer uses; see `algorithm`.
_algorithm = "direct"


@contextlib.contextmanager
def algorithm(choice: str) -> Iterator[None]:
    """Layers made within compute 3x3 convolutions by `choice`, as they take over Keras' policy.

    Args:
      choice: `direct`; `winograd`, where it pays; or `auto`: winograd unless there is a GPU, whose
        library chooses itself.
    """
    global _algorithm
    before = _algorithm
    if choice == "auto":
        choice = "direct" if tf.config.list_physical_devices("GPU") else "winograd"
    _algorithm = choice
    try:
        yield
    finally:
        _algorithm = before


class Conv2D(tf_keras.layers.Conv2D):
    """Keras' layer with padding "same", computed by the algorithm that it was made under.

    Winograd's takes half the products of a 3x3 convolution of stride 1. In half precision it is
    not used: its transforms would round too much.

    Args:
      filters, kernel_size: of the Keras layer.
      pad: rows and columns of zeros before and after, in place of TensorFlow's "same", which with
        stride 2 pads even inputs more at the bottom and the right.
      **kwargs: of the Keras layer.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        *,
        pad: tuple[int, int] | None = None,
        **kwargs,
    ):
        super().__init__(filters, kernel_size, padding="same", **kwargs)
        self._pad = "SAME" if pad is None else [[0, 0], pad, pad, [0, 0]]
        is_plain = pad is None and {self.strides, self.dilation_rate} == {(1, 1)}
        self._may_use_winograd = (
            _algorithm == "winograd" and is_plain and self.kernel_size == (3, 3)
        )
        self._folded: tf.Variable | None = None

    def fold(self, kernel: tf.Tensor | None = None) -> None:
        """Keeps a kernel in the form that is computed with. For inference only.

        Args:
          kernel: float32 [h, w, C, K], used from now on in place of the layer's own. None: that,
            if it gains from being kept and none is kept yet.
        """
        if kernel is not None:
            pays = self._pays(kernel.shape, self.compute_dtype)
            value = winograd.transform_kernel(kernel) if pays else kernel
        elif self._folded is None and self._pays(self.kernel.shape, self.compute_dtype):
            value = winograd.transform_kernel(tf.convert_to_tensor(self.kernel))
        else:
            return
        self._folded = tf.Variable(value, trainable=False, name="kernel")

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The convolution itself, [B, H, W, C] with a kernel [h, w, C, K], unless one is kept."""
        kernel = tf.cast(kernel if self._folded is None else self._folded, inputs.dtype)
        if kernel.shape.rank == 5:
            return winograd.conv3x3_transformed(inputs, kernel)
        if self._pays(kernel.shape, inputs.dtype):
            return winograd.conv3x3(inputs, kernel)
        strides = self.strides
        if self.kernel_size == (1, 1) and kernel.shape[2] < ONEDNN_BLOCK:
            # Given strides, oneDNN's gradient of such a kernel writes beyond its memory.
            inputs = inputs[:, :: strides[0], :: strides[1]]
            strides = (1, 1)
        return tf.nn.conv2d(inputs, kernel, strides, self._pad, dilations=self.dilation_rate)

    def _pays(self, shape: tf.TensorShape, dtype: tf.DType | str) -> bool:
        is_wide = min(shape[2:]) >= LEAST_CHANNELS
        return self._may_use_winograd and is_wide and dtype == tf.float32
