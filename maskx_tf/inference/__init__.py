"""From an image to its detections."""
