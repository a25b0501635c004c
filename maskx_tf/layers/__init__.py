"""Keras layers of the detector and the mask head; they know nothing of files or flags."""
