"""Layers in int8, calibrated on the images of records and compared in AP; needs nncf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov

from export.openvino_ir.network import Graph
from maskx_tf.errors import UserError
from maskx_tf.evaluation import detector as scoring
from maskx_tf.evaluation.report import percent
from maskx_tf.inference.detector import Detector

# Where there are layers to quantise; all else chooses boxes, in float32.
_LAYERS = ("features/", "box_head", "mask_head/", "cam/")
MOST_IMAGES = 300  # that are calibrated on


def require() -> Any:
    """The package nncf; a UserError that says how to install it."""
    try:
        import nncf
    except ImportError:
        raise UserError(
            "--int8 needs NNCF: pip install nncf, or with the checkout "
            'pip install -c requirements.lock -e ".[openvino]".'
        ) from None
    return nncf


def quantize(graph: Graph, images: Sequence[np.ndarray]) -> ov.Model:
    """The graph with convolutions and fully connected layers in int8.

    The last layers of the heads, and masks' products with the kernels of T, stay in float32.

    Args:
      graph: of `network.detector`.
      images: uint8 RGB [H, W, 3], on which activations are measured.
    """
    nncf = require()
    products = [
        operation.get_friendly_name()
        for operation in graph.model.get_ordered_ops()
        if operation.get_type_name() in ("Convolution", "MatMul")
    ]
    kept = [name for name in products if not name.startswith(_LAYERS)]
    nncf.set_log_level("ERROR")
    return nncf.quantize(
        graph.model,
        nncf.Dataset([image[None] for image in images]),
        ignored_scope=nncf.IgnoredScope(names=sorted({*kept, *graph.last_layers})),
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(images),
    )


def calibration_images(records: Sequence[str]) -> list[np.ndarray]:
    """The first `MOST_IMAGES` images of records, uint8 RGB [H, W, 3]."""
    return [pixels for _, pixels in scoring.images(records, MOST_IMAGES)]


def compare(
    before: Detector,
    after: Detector,
    records: Sequence[str],
    mask_class_ids: Sequence[int],
    max_drop: float,
) -> str:
    """A table of AP on records, of float32 and int8.

    Args:
      before: the detector in float32.
      after: the same in int8.
      records: with the classes of the detectors.
      mask_class_ids: set A.
      max_drop: points of box or mask AP, of A or B, that int8 may cost.

    Raises:
      UserError: it costs more.
    """
    scores = [
        scoring.evaluate(one, records, mask_class_ids, given_boxes=False).evaluate()
        for one in (before, after)
    ]
    lines, problems = [f"{'AP':<10}{'float32':>8}{'int8':>8}"], []
    for kind in ("box", "mask"):
        for subset in ("A", "B"):
            values = [score[kind][subset]["AP"] for score in scores]
            if None in values:
                continue
            lines.append(f"{kind + ' ' + subset:<10}{percent(values[0]):>8}{percent(values[1]):>8}")
            if 100 * (values[0] - values[1]) > max_drop:
                problems.append(lines[-1])
    table = "\n".join(lines)
    if problems:
        raise UserError(
            f"The int8 model is not kept: it loses more than --max_ap_drop={max_drop:g} points of "
            f"AP on --calibration. Calibrate on more images, or export without --int8.\n{table}"
        )
    return table
