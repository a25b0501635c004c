"""What a run that is resumed has to keep: set A, and the options that its weights follow from."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from maskx_tf import config as config_lib
from maskx_tf.checkpoints.model_dir import load_set_a
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError


def check(config: Config, vocabulary: Vocabulary, mask_class_ids: Sequence[int]) -> None:
    """Compares a run with what its model directory says of it; names changed options on stderr.

    The schedule may be prolonged and a diverging run calmed; records may have moved, and are held
    to the run's vocabulary. Bookkeeping may change without a word.

    Raises:
      UserError: the run has another set A, or another value of an option that it has to keep.
    """
    directory = pathlib.Path(config.model_dir)
    if not (directory / config_lib.FLAGFILE).is_file():
        return
    saved = config_lib.load(config.model_dir)
    differences = [_set_a(directory, vocabulary, mask_class_ids)]
    for field in dataclasses.fields(Config):
        name, before, now = field.name, getattr(saved, field.name), getattr(config, field.name)
        on_resume = field.metadata["on_resume"]
        if before == now or field.metadata["scope"] == "bookkeeping" or on_resume == "by_content":
            continue
        if on_resume == "may_change":
            was, is_now = (config_lib.text_of(value) or "empty" for value in (before, now))
            print(f"{config.model_dir} resumes with --{name}={is_now}, was {was}.", file=sys.stderr)
        else:
            differences.append(config_lib.difference(name, saved, config))
    if texts := [text for text in differences if text]:
        raise UserError(
            f"{config.model_dir} holds a run with other options ({'; '.join(texts)}); give those "
            "to resume it, or choose another --model_dir."
        )


def _set_a(directory: pathlib.Path, vocabulary: Vocabulary, mask_class_ids: Sequence[int]) -> str:
    """How the run's set A differs; empty if it does not."""
    before, now = set(load_set_a(directory, vocabulary)), set(mask_class_ids)
    if before == now:
        return ""
    return (
        f"set A, --mask_classes, has {len(before)} classes there, now {len(now)}"
        f"{_only('there', before - now, vocabulary)}{_only('now', now - before, vocabulary)}"
    )


def _only(where: str, class_ids: set[int], vocabulary: Vocabulary, most: int = 3) -> str:
    if not class_ids:
        return ""
    names = vocabulary.names_of(sorted(class_ids))
    return f", only {where}: {', '.join(names[:most])}{', …' if len(names) > most else ''}"
