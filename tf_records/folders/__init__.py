"""Readers of labelled folders: YOLO, Pascal VOC, CVAT, Label Studio, COCO; one file a format."""
