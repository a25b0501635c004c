"""Keras layers of the detector and the mask head; they know nothing of files or flags."""

from maskx_tf.layers import cost_model

cost_model.silence()
