"""OpenVINO's models ready to run; needs the package openvino."""

from __future__ import annotations

import json
import pathlib
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

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


class Session:
    """A model of a version, in the precision that the version asks for.

    Several threads may call it; they take turns.

    Args:
      directory: the version.
      path: of the model in it.
      threads: that it computes in; 0: OpenVINO's choice.

    Attributes:
      shapes: of the outputs by name, None where a dimension follows from the inputs.

    Raises:
      UserError: OpenVINO is missing, or cannot read the model.
    """

    def __init__(self, directory: pathlib.Path, path: pathlib.Path, threads: int):
        openvino = require()
        settings = json.loads((directory / CONFIG_FILE).read_text())["model_config_list"][0]
        options = dict(settings["config"]["plugin_config"])
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = openvino.Core().compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{path} cannot be loaded: {reason}") from None
        self._busy = threading.Lock()
        self.shapes = {
            output.any_name: [d.get_length() if d.is_static else None for d in output.partial_shape]
            for output in self._compiled.outputs
        }

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        with self._busy:
            results = self._compiled(dict(inputs))
            return {output.any_name: np.array(value) for output, value in results.items()}
