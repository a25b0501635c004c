"""Precision over recall for set A and set B, as a picture."""

from __future__ import annotations

import io

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from maskx_tf.evaluation.coco import CURVE_IOU, RECALLS
from maskx_tf.evaluation.report import SECTIONS

# As in the overlays: classes with masks green, those without red.
COLORS = {"A": "tab:green", "B": "tab:red"}


def draw(curves: dict[str, dict[str, np.ndarray]]) -> bytes:
    """A PNG with a panel for each section: boxes, masks, masks of given boxes.

    Args:
      curves: of `CocoEvaluator`.
    """
    figure = Figure(figsize=(4 * len(curves), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (section, subsets) in zip(panels, curves.items(), strict=True):
        for subset, color in COLORS.items():
            if subset in subsets:
                precision = subsets[subset]
                label = f"{subset}, AP50 {100 * precision.mean():.1f}"
                axes.plot(RECALLS, precision, color=color, label=label)
        axes.set(title=SECTIONS[section], xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right")
    panels[0].set_ylabel(f"precision at IoU {CURVE_IOU}")
    stream = io.BytesIO()
    figure.savefig(stream, dpi=80, format="png", metadata={"Software": None})
    return stream.getvalue()


def pixels(png: bytes) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a PNG."""
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None, "not a PNG"
    return picture[..., ::-1]
