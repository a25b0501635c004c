"""A training run: `train`."""

from maskx_tf.training.run import train

__all__ = ["train"]
