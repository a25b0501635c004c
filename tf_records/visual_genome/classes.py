"""The classes of Visual Genome records: COCO's 80 first, then the most frequent other synsets."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from maskx_tf.data.classes import Vocabulary, named_classes
from maskx_tf.errors import UserError
from maskx_tf.system.files import write_atomically
from tf_records.visual_genome.objects import SYNSET

# Classes of COCO whose name is not that of the synset which annotators used for them; the authors'
# table. `fire hydrant` and `suitcase` are no slips: they follow the annotations.
COCO_SYNSETS = {
    "cell phone": "cellular_telephone.n.01",
    "couch": "sofa.n.01",
    "dining table": "dinner_table.n.01",
    "donut": "doughnut.n.02",
    "fire hydrant": "water_faucet.n.01",
    "hair drier": "hand_blower.n.01",
    "handbag": "bag.n.04",
    "hot dog": "hotdog.n.01",
    "orange": "orange.n.01",
    "potted plant": "plant.n.01",
    "remote": "remote_control.n.01",
    "skis": "ski.n.01",
    "sports ball": "ball.n.01",
    "stop sign": "sign.n.02",
    "suitcase": "bag.n.06",
    "teddy bear": "teddy.n.01",
    "tv": "television.n.01",
    "wine glass": "wineglass.n.01",
}


class Classes(NamedTuple):
    """Class names, and the synset of each; None: no synset has the name of this class of COCO."""

    names: tuple[str, ...]
    synsets: tuple[str | None, ...]

    @property
    def vocabulary(self) -> Vocabulary:
        """The names with ids 1..K."""
        return Vocabulary.from_names(self.names)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a vocabulary file with a `synset` beside each name, atomically."""
        pairs = zip(self.vocabulary.categories(), self.synsets, strict=True)
        lines = ",\n".join(json.dumps(entry | {"synset": synset}) for entry, synset in pairs)
        write_atomically(path, f"[\n{lines}\n]\n")


def choose(counts: Mapping[str, int], num_classes: int) -> Classes:
    """COCO's 80 classes by name, in its order, then the other frequent synsets by alphabet.

    Args:
      counts: synset -> number of times it is named.
      num_classes: number of the most frequent synsets; of equally frequent ones, the first by
        alphabet are taken. A class of COCO whose synset is not among them is kept all the same.
    """
    if num_classes < 1:
        raise UserError(f"--num_classes={num_classes} must be positive.")
    mapped = coco_synsets(counts)
    others = sorted(set(rank(counts)[:num_classes]) - set(mapped.values()))
    return Classes((*mapped, *others), (*mapped.values(), *others))


def rank(counts: Mapping[str, int]) -> list[str]:
    """The synsets, most frequent first; equally frequent ones by alphabet."""
    return sorted(counts, key=lambda synset: (-counts[synset], synset))


def coco_synsets(counts: Mapping[str, int]) -> dict[str, str | None]:
    """COCO class -> synset, from `COCO_SYNSETS` or the most frequent synset of that name."""
    by_name: dict[str, str] = {}
    for synset in rank(counts):
        by_name.setdefault(plain_name(synset), synset)
    return {name: COCO_SYNSETS.get(name, by_name.get(name)) for name in named_classes("coco")}


def plain_name(synset: str) -> str:
    """`traffic light` of `traffic_light.n.01`."""
    return synset.rsplit(".", 2)[0].replace("_", " ")


def load(path: str, counts: Mapping[str, int]) -> Classes:
    """The classes of a file: what `save` wrote, or a list of names (.json, .txt).

    A name without a synset beside it is a synset itself, or one of COCO's classes.

    Raises:
      UserError: the file is not a class list, a name is neither, or two classes have one synset.
    """
    names = Vocabulary.load(path).names
    given = _given_synsets(path, names)
    mapped = coco_synsets(counts)
    synsets: list[str | None] = []
    for name in names:
        if name not in given and name not in mapped and not SYNSET.fullmatch(name):
            raise UserError(
                f"{path}: class {name!r} is neither a synset like 'bag.n.01' nor a class of COCO; "
                "name a synset, or give the class one: "
                '{"id": 1, "name": "my class", "synset": "bag.n.01"}.'
            )
        synsets.append(given[name] if name in given else mapped.get(name, name))
    first: dict[str, str] = {}
    for name, synset in zip(names, synsets, strict=True):
        if synset is not None and first.setdefault(synset, name) != name:
            raise UserError(
                f"{path}: classes {first[synset]!r} and {name!r} both have the synset {synset!r}; "
                "remove one."
            )
    return Classes(names, tuple(synsets))


def _given_synsets(path: str, names: Sequence[str]) -> dict[str, str | None]:
    """Name -> synset of the entries that have one, in a file that `Vocabulary` can read."""
    if pathlib.Path(path).suffix == ".txt":
        return {}
    content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    entries = content["categories"] if isinstance(content, dict) else content
    given = {}
    for name, entry in zip(names, entries, strict=True):
        if "synset" not in entry:
            continue
        synset = entry["synset"]
        if synset is not None and not (isinstance(synset, str) and SYNSET.fullmatch(synset)):
            raise UserError(f"{path}: class {name!r} has synset {synset!r}, not like 'bag.n.01'.")
        given[name] = synset
    return given


def notes(classes: Classes, counts: Mapping[str, int], num_classes: int | None) -> list[str]:
    """What is to be known about the classes, a line each.

    Args:
      classes: as chosen or loaded.
      counts: synset -> number of times it is named.
      num_classes: number of frequent synsets the classes were chosen by; None: from a file.
    """
    pairs = list(zip(classes.names, classes.synsets, strict=True))
    known = set(named_classes("coco"))
    coco = {name: synset for name, synset in pairs if name in known}
    frequent = set(counts if num_classes is None else rank(counts)[:num_classes])
    lines = [f"{len(pairs)} classes, {len(coco)} of them of COCO."]
    for name, synset in coco.items():
        if synset is None:
            lines.append(f"No synset has the name of {name!r}: the class has no boxes.")
        elif synset not in frequent:
            why = f"not among the {num_classes} most frequent" if num_classes else "not in the file"
            times = counts.get(synset, 0)
            lines.append(f"{name!r} is kept though {synset!r} is {why} (named {times} times).")
    return lines
