"""COCO json: annotations, masks, boxes and images, read with one set of rules."""
