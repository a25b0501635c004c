"""Evaluation: COCO's box and mask AP for set A, set B and all classes."""
