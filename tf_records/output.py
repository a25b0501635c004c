"""Where records go, and what happens to records that are there already."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from maskx_tf.data import manifest as manifest_lib
from maskx_tf.data.manifest import Manifest
from maskx_tf.errors import UserError

TEMPORARY = ".tfrecord.tmp"
_SHARDS = "*-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].tfrecord"


@dataclasses.dataclass(frozen=True)
class Output:
    """Where records go.

    Attributes:
      directory: made if absent.
      name: start of the shards' names.
      num_shards: number of files, at most one per item; 0: one per 1000 items.
      workers: processes; 0: one per core.
      reuse: keep finished records whose manifest tells the same source, instead of an error.
      overwrite: replace records that are there, instead of an error.
    """

    directory: str
    name: str
    num_shards: int = 0
    workers: int = 0
    reuse: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise UserError(f"--name={self.name!r} cannot start a file name; give another.")
        if self.num_shards < 0:
            raise UserError(f"--num_shards={self.num_shards} must not be negative.")

    def reusable(self, source: Mapping[str, Any]) -> Manifest | None:
        """The finished records if they may be kept; None if they are to be written.

        Raises:
          UserError: records are there and neither `overwrite` nor `reuse` allows to go on.
        """
        directory = pathlib.Path(self.directory)
        if directory.exists() and not directory.is_dir():
            raise UserError(f"--output_dir={self.directory} is a file; name a directory.")
        has_manifest = (directory / manifest_lib.FILE_NAME).exists()
        if self.overwrite or not (has_manifest or any(directory.glob(_SHARDS))):
            return None
        if not has_manifest:
            raise UserError(
                f"{directory} holds records without a manifest, of an interrupted run or another "
                "program; add --overwrite to replace them or name another directory."
            )
        if not self.reuse:
            raise UserError(
                f"{directory} holds finished records; add --reuse to keep them, --overwrite to "
                "replace them, or name another directory."
            )
        found = Manifest.load(directory)
        manifest_lib.find_shards([self.directory])
        same_shards = self.num_shards in (0, len(found.shards))
        if found.name != self.name or dict(found.source) != dict(source) or not same_shards:
            raise UserError(
                f"{directory} holds records of another source or other settings; add --overwrite "
                "to replace them or name another directory."
            )
        return found

    def remove_old(self) -> None:
        """Removes records to be replaced, the manifest first, and leftovers of a killed run."""
        directory = pathlib.Path(self.directory)
        (directory / manifest_lib.FILE_NAME).unlink(missing_ok=True)
        for pattern in (_SHARDS, f"*{TEMPORARY}", f"{manifest_lib.FILE_NAME}.tmp"):
            for path in directory.glob(pattern):
                path.unlink()
