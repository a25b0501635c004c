"""Pure functions on boxes, anchors, samples and masks."""
