"""Mask^X R-CNN in TensorFlow: instance masks for every class that has boxes.

    import maskx_tf as mx

    model = mx.load("runs/mine")
    model("photo.jpg").show()

docs/python.md has the rest. The import itself is fast: TensorFlow is loaded when it is needed.
"""

import importlib
import os
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskx_tf.api import build, evaluate, load, train
    from maskx_tf.config import Config
    from maskx_tf.errors import UserError
    from maskx_tf.inference.detections import Detections

# What TensorFlow's C++ side logs tells a user nothing: errors arrive as exceptions too. Set the
# variable to 0 to see everything.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A GPU's memory is taken as it is needed, so that an evaluation fits beside a training.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

__version__ = "0.1.0"
__all__ = ["Config", "Detections", "UserError", "build", "evaluate", "load", "train"]

_FUNCTIONS = ("build", "evaluate", "load", "train")
_HOMES = {
    "Config": "config",
    "Detections": "inference.detections",
    "UserError": "errors",
} | dict.fromkeys(_FUNCTIONS, "api")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """Keeps `train` and `evaluate` the functions when the commands of these names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _FUNCTIONS and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
