"""Word vectors for the class names of Shapes, in GloVe's text format: what stands in for GloVe.

Real word vectors tell how words are used. So do these: words that are used alike ("striped" and
"barred") have similar vectors, though what they name looks different, and a word means the same in
every class name. T can learn from A what the words of B mean, but nothing that only a look at the
images tells.
"""

from __future__ import annotations

import numpy as np

from tf_records.shapes.objects import SHAPES, TEXTURE_NAMES

SIZE = 50
_STDDEV = 0.4  # of a value, as in GloVe
_SHARED = 0.7  # of the variance, between words that are used alike
_USED_ALIKE = (
    ("striped", "barred"), ("dotted", "speckled"), ("disc", "ring"), ("square", "diamond"),
    ("triangle", "arrow"), ("star", "cross"), ("heart", "crescent"), ("hourglass", "ell"),
)  # fmt: skip


def to_text(seed: int) -> str:
    """A word and its 50 numbers a line, for each texture and shape; a function of the seed."""
    rng = np.random.default_rng([seed, 2])  # 0 and 1 are the splits'
    own = {word: rng.normal(0, _STDDEV, SIZE) for word in (*TEXTURE_NAMES, *SHAPES)}
    for words in _USED_ALIKE:
        together = rng.normal(0, _STDDEV, SIZE)
        for word in words:
            own[word] = (1 - _SHARED) ** 0.5 * own[word] + _SHARED**0.5 * together
    lines = (f"{word} {' '.join(f'{x:.5f}' for x in vector)}" for word, vector in own.items())
    return "\n".join(lines) + "\n"
