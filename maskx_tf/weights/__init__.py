"""Weights of other programs: Detectron, detectron2, torchvision, ImageNet classifiers."""
