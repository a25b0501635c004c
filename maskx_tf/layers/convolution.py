"""2-D convolution by the faster of two algorithms."""

import tensorflow as tf
import tf_keras

from maskx_tf.ops import winograd

# Below, Winograd's transforms cost more than they save.
LEAST_CHANNELS = 64


def uses_winograd(choice: str) -> bool:
    """Whether layers shall use Winograd's algorithm where it pays.

    Args:
      choice: `direct`, `winograd`, or `auto`: unless there is a GPU, whose library chooses itself.
    """
    return choice == "winograd" or (choice == "auto" and not tf.config.list_physical_devices("GPU"))


def prepare(
    kernel: tf.Tensor, stride: int, dtype: tf.DType | str, *, use_winograd: bool
) -> tf.Tensor:
    """What `convolve` takes in place of a kernel [h, w, C, K] that will not change.

    Transformed where Winograd's algorithm pays for inputs of `dtype`, else the kernel itself.
    """
    pays = use_winograd and _pays(kernel.shape, stride, dtype)
    return winograd.transform_kernel(kernel) if pays else kernel


def convolve(
    x: tf.Tensor, kernel: tf.Tensor, stride: int, padding="SAME", *, use_winograd: bool
) -> tf.Tensor:
    """`tf.nn.conv2d` of x [B, H, W, C] with a kernel [h, w, C, K] or one of `prepare`.

    In half precision always directly: Winograd's transforms would round too much.
    """
    if kernel.shape.rank == 5:
        return winograd.conv3x3_transformed(x, kernel)
    if use_winograd and padding == "SAME" and _pays(kernel.shape, stride, x.dtype):
        return winograd.conv3x3(x, kernel)
    return tf.nn.conv2d(x, kernel, stride, padding)


def _pays(shape: tf.TensorShape, stride: int, dtype: tf.DType | str) -> bool:
    height, width, *channels = shape
    is_wide = min(channels) >= LEAST_CHANNELS
    return (height, width, stride) == (3, 3, 1) and is_wide and dtype == tf.float32


class Conv2D(tf_keras.layers.Conv2D):
    """Keras' layer with padding "same", computed by `convolve`.

    Args:
      filters, kernel_size: of the Keras layer.
      use_winograd: whether Winograd's algorithm is used where it pays.
      **kwargs: of the Keras layer.
    """

    def __init__(self, filters: int, kernel_size: int, *, use_winograd: bool, **kwargs):
        super().__init__(filters, kernel_size, padding="same", **kwargs)
        self.use_winograd = use_winograd
        self._prepared: tf.Variable | None = None

    def fold(self) -> None:
        """Keeps the kernel as `prepare` makes it. For inference only."""
        kernel = tf.convert_to_tensor(self.kernel)
        value = prepare(kernel, self.strides[0], self.compute_dtype, use_winograd=self.use_winograd)
        if value is not kernel:
            self._prepared = tf.Variable(value, trainable=False, name="kernel")

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """What Keras calls for the convolution itself."""
        kernel = tf.convert_to_tensor(kernel if self._prepared is None else self._prepared)
        return convolve(inputs, kernel, self.strides[0], use_winograd=self.use_winograd)
