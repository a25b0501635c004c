"""New classes of a trained detector from a few boxes: examples, fit, the grown model."""
