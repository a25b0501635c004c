"""Weights of other programs: Detectron, detectron2, and ImageNet classifiers for the backbone."""
