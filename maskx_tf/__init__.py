"""Mask^X R-CNN in TensorFlow: instance masks for every class that has boxes."""

import os

# What TensorFlow's C++ side logs tells a user nothing: errors arrive as exceptions too. Set the
# variable to 0 to see everything.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"
