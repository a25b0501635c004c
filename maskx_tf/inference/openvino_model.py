"""An OpenVINO export as a function of images; needs the package openvino."""

from __future__ import annotations

import json
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

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


def load(
    directory: pathlib.Path, vocabulary: Vocabulary
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Loads a version, for the CPU and with the settings of its `CONFIG_FILE`.

    Args:
      directory: the version.
      vocabulary: its classes.

    Returns:
      Images uint8 [B, H, W, 3] -> outputs as of `module.DetectionModule`; for several threads too,
      one after another.

    Raises:
      UserError: OpenVINO is missing, or cannot read the model.
    """
    openvino = require()
    config = json.loads((directory / CONFIG_FILE).read_text())["model_config_list"][0]["config"]
    try:
        compiled = openvino.Core().compile_model(
            str(directory / MODEL_FILE), "CPU", config["plugin_config"]
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{directory / MODEL_FILE} cannot be loaded: {reason}") from None
    names = np.array([name.encode() for name in ("background", *vocabulary.names)], object)
    busy = threading.Lock()

    def detect(images) -> dict[str, np.ndarray]:
        with busy:
            results = compiled(np.asarray(images))
            found = {output.any_name: np.array(value) for output, value in results.items()}
        return found | {"detection_class_names": names[found["detection_classes"]]}

    return detect
