"""CVAT for images 1.1: an XML file of boxes and masks (or polygons)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

import numpy as np
from pycocotools import mask as mask_api

from maskx_tf.labeling.objects import OURS, LabelledImage, LabelledObject
from maskx_tf.labeling.source import Problem
from maskx_tf.ops import polygons

_NOT_IN_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def writable(images: Sequence[LabelledImage]) -> tuple[list[LabelledImage], list[Problem]]:
    """The images whose file names XML can hold, and what is wrong with the others."""
    odd = [bool(_NOT_IN_XML.search(image.entry.file_name)) for image in images]
    problems = [
        Problem("file_name_not_in_xml", image.entry.image_id)
        for image, is_odd in zip(images, odd, strict=True)
        if is_odd
    ]
    return [image for image, is_odd in zip(images, odd, strict=True) if not is_odd], problems


def to_text(
    images: Sequence[LabelledImage], names: Sequence[str], polygon_iou: float | None
) -> str:
    """The XML.

    An object is a box and, if it has a mask, a mask or polygons of the same group_id. `source` is
    "auto" for masks of ours and "manual" for all else.

    Args:
      images: what to write.
      names: of all classes.
      polygon_iou: None: masks; else polygons, see `polygons.from_rle`.
    """
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    lines += ["  <meta>", "    <task>", f"      <size>{len(images)}</size>", "      <labels>"]
    for name in names:
        text = quoteattr(name)[1:-1].replace("&quot;", '"')
        lines.append(f"        <label><name>{text}</name><attributes></attributes></label>")
    lines += ["      </labels>", "    </task>", "  </meta>"]
    for number, image in enumerate(images):
        name = quoteattr(image.entry.file_name)
        lines.append(
            f'  <image id="{number}" name={name} width="{image.width}" height="{image.height}">'
        )
        for group, item in enumerate(image.objects, start=1):
            lines += [f"    {line}" for line in _shapes(item, group, polygon_iou)]
        lines.append("  </image>")
    return "\n".join([*lines, "</annotations>"]) + "\n"


def _shapes(item: LabelledObject, group: int, polygon_iou: float | None) -> list[str]:
    x, y, width, height = item.bbox
    label = f'label={quoteattr(item.class_name)} occluded="0" z_order="0" group_id="{group}"'
    corners = f'xtl="{x:f}" ytl="{y:f}" xbr="{x + width:f}" ybr="{y + height:f}"'
    shapes = [f'<box {label} source="manual" {corners}></box>']
    if item.rle is None:
        return shapes
    label += f' source="{"auto" if item.source == OURS else "manual"}"'
    if polygon_iou is None:
        shapes += [f"<mask {label} {attributes}></mask>" for attributes in _mask(item.rle)]
    else:
        for polygon in polygons.from_rle(item.rle, polygon_iou):
            points = ";".join(f"{px:g},{py:g}" for px, py in np.reshape(polygon, (-1, 2)))
            shapes.append(f'<polygon {label} points="{points}"></polygon>')
    return shapes


def _mask(rle: dict) -> list[str]:
    """The attributes of a mask; none for an empty one."""
    left, top, width, height = (int(v) for v in mask_api.toBbox(rle))
    if not width:
        return []
    region = mask_api.decode(rle)[top : top + height, left : left + width]
    counts = ", ".join(map(str, row_runs(region)))
    return [f'rle="{counts}" left="{left}" top="{top}" width="{width}" height="{height}"']


def row_runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of a mask {0, 1} [h, w], row by row and zeros first."""
    flat = np.concatenate([[0], np.asarray(mask, np.uint8).ravel()])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(edges, prepend=0, append=mask.size).tolist()
