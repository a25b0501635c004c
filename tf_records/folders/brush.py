"""Masks drawn with Label Studio's brush: its run-length code.

Source: label-studio-converter's brush.py
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maskx_tf.ops import masks as mask_ops
from tf_records.folders.shapes import NO_MASK


def segmentation(code: Any, size: tuple[int, int]) -> Any:
    """COCO's run-length code of a brush mask, or text that is none."""
    width, height = size
    values = decode_rle(code, 4 * width * height)
    if values is None:
        return NO_MASK
    alpha = values.reshape(height, width, 4)[..., 3]
    return dict(mask_ops.encode_rle(alpha > 0)) if alpha.any() else NO_MASK


def decode_rle(code: Any, expected: int) -> np.ndarray | None:
    """The values, uint8 [expected], of Label Studio's run-length code; None if it is damaged.

    It is a bit stream: the number of values (32 bits), bits of a value - 1 (5), four sizes of
    lengths - 1 (4 each), then blocks: 1, which size (2), length - 1 and one value that is repeated;
    or 0, which size, length - 1 and that many values.
    """
    if not isinstance(code, list) or not all(
        isinstance(byte, int) and not isinstance(byte, bool) and 0 <= byte < 256 for byte in code
    ):
        return None
    bits = np.unpackbits(np.array(code, np.uint8))
    position = 0

    def take(count: int) -> int:
        nonlocal position
        if position + count > len(bits):
            raise ValueError
        word = 0
        for bit in bits[position : position + count].tolist():
            word = word << 1 | bit
        position += count
        return word

    pieces: list[np.ndarray] = []
    done = 0
    try:
        total, word = take(32), take(5) + 1
        sizes = [take(4) + 1 for _ in range(4)]
        if total != expected or word > 8:
            return None
        while done < total:
            is_run, which = take(1), take(2)
            length = take(sizes[which]) + 1
            done += length
            if is_run:
                pieces.append(np.full(length, take(word), np.uint8))
            else:
                pieces.append(np.array([take(word) for _ in range(length)], np.uint8))
    except ValueError:
        return None
    values = np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)
    return values if len(values) == expected else None
