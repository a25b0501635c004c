"""An OpenVINO export as a function of images; needs the package openvino."""

from __future__ import annotations

import json
import pathlib
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError

MODEL_FILE = "model.xml"
CONFIG_FILE = "config.json"  # of OpenVINO Model Server


def require() -> Any:
    """The package openvino; a UserError that says how to install it."""
    try:
        import openvino
    except ImportError:
        raise UserError(
            "OpenVINO is not installed: pip install openvino, or with the checkout "
            'pip install -c requirements.lock -e ".[openvino]".'
        ) from None
    return openvino


class OpenVINOModel:
    """A loaded version: images uint8 [B, H, W, 3] -> outputs as of `module.DetectionModule`.

    Several threads may call it; they take turns.

    Args:
      directory: the version.
      vocabulary: its classes.
      threads: that it computes in; 0: OpenVINO's choice.

    Attributes:
      shapes: of the outputs by name, None where a dimension is that of the images.

    Raises:
      UserError: OpenVINO is missing, or cannot read the model.
    """

    def __init__(self, directory: pathlib.Path, vocabulary: Vocabulary, threads: int = 0):
        openvino = require()
        settings = json.loads((directory / CONFIG_FILE).read_text())["model_config_list"][0]
        options = dict(settings["config"]["plugin_config"])
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = openvino.Core().compile_model(
                str(directory / MODEL_FILE), "CPU", options
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{directory / MODEL_FILE} cannot be loaded: {reason}") from None
        names = (name.encode() for name in ("background", *vocabulary.names))
        self._names = np.array(list(names), object)  # [K + 1]
        self._busy = threading.Lock()
        self.shapes = {
            output.any_name: [d.get_length() if d.is_static else None for d in output.partial_shape]
            for output in self._compiled.outputs
        }
        self.shapes["detection_class_names"] = self.shapes["detection_classes"]

    def __call__(self, images: npt.ArrayLike) -> dict[str, np.ndarray]:
        """The detections of images uint8 [B, H, W, 3]."""
        with self._busy:
            results = self._compiled(np.asarray(images))
            found = {output.any_name: np.array(value) for output, value in results.items()}
        return found | {"detection_class_names": self._names[found["detection_classes"]]}
