"""Adds classes to a trained model from a few boxes, without training.

Example:
  maskx add-classes --model_dir=runs/mine --boxes=new.json --images=photos --output_dir=runs/more
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from maskx_tf import checkpoints
from maskx_tf.adding import examples, fit, grow, known, prior
from maskx_tf.adding.frozen_detector import FrozenDetector
from maskx_tf.checkpoints import LoadedModel
from maskx_tf.data.coco import instances
from maskx_tf.data.coco.categories import spelling
from maskx_tf.data.coco.objects import CROWDS, IGNORED
from maskx_tf.data.records.manifest import find_records
from maskx_tf.errors import UserError, first_of
from maskx_tf.system import cli

KNOWN_IMAGES = 500
_FEW = 5  # examples of a class, below which its rows are little more than a guess


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("model_dir", None, "Run, or checkpoint of a run.", required=True)
    flags.DEFINE_string(
        "boxes", None, "COCO json with boxes of the new classes; masks are not read.", required=True
    )
    flags.DEFINE_string("images", None, "Directory of its image files.", required=True)
    flags.DEFINE_string("output_dir", None, "Model directory to write.", required=True)
    flags.DEFINE_list(
        "known_records",
        None,
        "Records with boxes of the known classes, which new ones are compared with. Default: the "
        "records that the run was trained on. Empty: none, which costs quality.",
    )
    flags.DEFINE_integer(
        "known_images", KNOWN_IMAGES, "Images of known_records to use.", lower_bound=1
    )
    flags.DEFINE_float(
        "prior_strength",
        fit.PRIOR_STRENGTH,
        "Weight of the prior that makes new weights resemble the old ones.",
    )
    flags.DEFINE_bool(
        "similar_names", False, "Also add classes spelled almost as ones that the model knows."
    )
    flags.DEFINE_enum(
        "crowds", IGNORED, CROWDS, "iscrowd: 1 counts neither way, or is taken for a single object."
    )
    flags.DEFINE_integer("seed", 0, "Seed of the boxes drawn around the examples.", lower_bound=0)


def add_classes(
    model_dir: str,
    boxes: str,
    images: str,
    output_dir: str,
    known_records: tuple[str, ...] | None = None,
    known_images: int = KNOWN_IMAGES,
    prior_strength: float = fit.PRIOR_STRENGTH,
    seed: int = 0,
    similar_names: bool = False,
    crowds: str = IGNORED,
) -> str:
    """Writes a model that also knows the classes of a json; returns what to tell the user.

    Args:
      model_dir: the old model.
      boxes: COCO json. Categories that the model does not know are the new classes; boxes of the
        others are told apart from them.
      images: directory of its images.
      output_dir: gets the new model.
      known_records: records with boxes of classes that the model knows; None: those that it was
        trained on; empty: do without.
      known_images: see `known.class_means`.
      prior_strength: see `fit.fit`.
      seed: see `examples.collect`.
      similar_names: new classes may have names that differ from those of known ones in case,
        blanks and the like alone.
      crowds: see `examples.collect`.

    Raises:
      UserError: there are no new classes, they are known under other spellings, there are no
        examples of one, the model cannot have any, or `output_dir` holds a model or cannot be
        written.
    """
    if not pathlib.Path(images).is_dir():
        raise UserError(f"--images={images} is not a directory.")
    if not prior_strength > 0:
        raise UserError(f"--prior_strength={prior_strength} must be positive.")
    checkpoints.check_new(output_dir)
    loaded = checkpoints.load_model(model_dir)
    checkpoints.require_masks(loaded, model_dir)
    grow.check(loaded)
    source = instances.read(boxes, "--boxes")
    names = [name for name in source.vocabulary.names if name not in loaded.vocabulary.names]
    if not names:
        raise UserError(f"--boxes={boxes} has no category that the model does not know already.")
    if not similar_names:
        _check_spelling(names, loaded.vocabulary.names, boxes)
    records = _known_records(loaded, known_records)
    rows: list[fit.Rows] = []
    for stage in range(1, len(loaded.model.box_heads) + 1):
        detector = FrozenDetector(loaded, stage)
        samples, counts = examples.collect(
            detector, source, pathlib.Path(images), names, seed, crowds
        )
        if stage == 1:
            _check_counts(counts, names, boxes)
        expected = None
        if records:
            means = known.class_means(detector, records, known_images, seed)
            expected = prior.mix_of(means, samples.means(len(names)))
        rows.append(fit.fit(detector.head, samples, len(names), expected, prior_strength))
    category_ids = [source.vocabulary.external_ids[source.vocabulary.names.index(n)] for n in names]
    grown = grow.grow(loaded, names, category_ids, rows)
    checkpoints.save_new(grown, output_dir)
    listed = ", ".join(f"{name} ({counts[name]} boxes)" for name in names)
    return f"added: {listed}\nwritten: {output_dir}, {grown.vocabulary.num_classes} classes"


def _check_counts(counts: Mapping[str, int], names: Sequence[str], boxes: str) -> None:
    """Refuses new classes without examples, and warns of those with few."""
    if missing := [name for name in names if not counts[name]]:
        raise UserError(
            f"--boxes={boxes} has no usable box of {', '.join(map(repr, missing))}; add some, or "
            "leave the category out."
        )
    if few := [name for name in names if counts[name] < _FEW]:
        print(f"warning: few examples, expect poor results: {', '.join(few)}", file=sys.stderr)


def _check_spelling(new: Sequence[str], known: Sequence[str], boxes: str) -> None:
    """Refuses new classes that are probably known ones spelled otherwise."""
    by_spelling = {spelling(name): name for name in known}
    pairs = [
        f"{name!r} ({by_spelling[spelling(name)]!r})"
        for name in new
        if spelling(name) in by_spelling
    ]
    if pairs:
        raise UserError(
            f"--boxes={boxes} has {len(pairs)} categories that the model knows by almost the same "
            f"name: {first_of(pairs, 4)}. Give them the model's names; if they are other classes, "
            "set --similar_names."
        )


def _known_records(loaded: LoadedModel, named: tuple[str, ...] | None) -> tuple[str, ...]:
    """Records of the known classes; UserError if they were named and are not there."""
    if named is not None:
        if named:
            find_records(named)
        return named
    try:
        if not loaded.config.train_records:
            raise UserError("The model names none.")
        find_records(loaded.config.train_records)
    except UserError as error:
        print(
            f"warning: the model's training records cannot be used. {error} Continuing without; "
            "masks of new classes will be worse. Name records with --known_records.",
            file=sys.stderr,
        )
        return ()
    return tuple(loaded.config.train_records)


def main() -> None:
    """Adds the classes and prints what was written."""
    values = flags.FLAGS
    print(
        add_classes(
            values.model_dir,
            values.boxes,
            values.images,
            values.output_dir,
            None if values.known_records is None else tuple(values.known_records),
            values.known_images,
            values.prior_strength,
            values.seed,
            values.similar_names,
            values.crowds,
        )
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
