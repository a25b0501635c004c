"""Mask^X R-CNN in TensorFlow: instance masks for every class that has boxes."""

import os

# TensorFlow's start-up lines tell a user nothing; set the variable to 0 to see them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__version__ = "0.1.0"
