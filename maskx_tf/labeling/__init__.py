"""Masks for the boxes of a COCO json: reading, segmenting, keeping, writing."""
