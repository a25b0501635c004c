"""Detections from a served model, over REST or gRPC, without TensorFlow.

    from export.client import Client

    with Client("http://localhost:8501", "maskx") as client:
        for detection in client.detect("photo.jpg"):
            print(detection.class_name, detection.score, detection.mask().sum())

The same as a command: `maskx client --help`. See docs/client.md.
"""

from export.client.client import Client
from export.client.errors import ServerError
from maskx_tf.errors import ImageError
from maskx_tf.inference.detections import Detection, Detections

ImageDetections = Detections  # its former name

__all__ = ["Client", "Detection", "Detections", "ImageDetections", "ImageError", "ServerError"]
