"""Serving an exported model: with TensorFlow Serving, or locally without Docker."""
