"""ONNX models ready to run; needs the package onnxruntime."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskx_tf.errors import UserError

MODEL_FILE = "model.onnx"


def require() -> Any:
    """The package onnxruntime; a UserError that says how to install it."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            "ONNX Runtime is not installed: pip install onnxruntime, or with the checkout "
            'pip install -c requirements.lock -e ".[onnx]".'
        ) from None
    return onnxruntime


class Session:
    """A model; arguments and attributes are those of `openvino_model.Session`."""

    def __init__(self, directory: pathlib.Path, path: pathlib.Path, threads: int):
        onnxruntime = require()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common base
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{path} cannot be loaded: {reason}") from None
        self.shapes = {
            output.name: [side if isinstance(side, int) else None for side in output.shape]
            for output in self._session.get_outputs()
        }

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        return dict(zip(self.shapes, self._session.run(None, dict(inputs)), strict=True))
