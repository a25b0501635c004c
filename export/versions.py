"""The versions 1, 2, 3, … of an exported model, none of them ever half written."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

from maskx_tf.data.classes import Vocabulary

CLASSES_FILE = "classes.json"


@contextlib.contextmanager
def unfinished(output_dir: str) -> Iterator[pathlib.Path]:
    """A path for a version that is being made; what is left there, or beside it, is removed.

    Args:
      output_dir: directory of the versions.
    """
    root = pathlib.Path(output_dir)
    root.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=".export-", dir=root))
    try:
        yield temporary / "model"
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(source: pathlib.Path, output_dir: str) -> pathlib.Path:
    """Moves a finished version to the next free number."""
    source.chmod(0o755)
    root = pathlib.Path(output_dir)
    version = max((int(path.name) for path in root.iterdir() if path.name.isdecimal()), default=0)
    while True:
        version += 1
        target = root / str(version)
        try:
            return source.rename(target)
        except OSError:
            if not target.exists():  # else another export took the number
                raise


def write_classes(
    directory: pathlib.Path, vocabulary: Vocabulary, mask_class_ids: Sequence[int]
) -> pathlib.Path:
    """Writes the classes of a model, and which of them are of set A, into a directory."""
    categories = [
        {**category, "mask_seen": class_id in set(mask_class_ids)}
        for class_id, category in enumerate(vocabulary.categories(), start=1)
    ]
    path = directory / CLASSES_FILE
    path.write_text(json.dumps(categories, indent=1) + "\n")
    return path
