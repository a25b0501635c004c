"""Where records go, who writes them, and what happens to what is there already."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import pathlib
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from maskx_tf.data.records import manifest as manifest_lib
from maskx_tf.data.records.manifest import Manifest
from maskx_tf.errors import UserError
from maskx_tf.system.locks import open_locked
from tf_records.plan import num_shards
from tf_records.shards import SIDECAR, STEM, TEMPORARY, sidecar_of

RUNNERS = ("local", "beam")
_LOCK = "writing.lock"
_SHARDS = f"{STEM}.tfrecord"
_LEFTOVERS = (
    f"{STEM}{SIDECAR}", f"{STEM}.*{TEMPORARY}", f"{manifest_lib.FILE_NAME}{TEMPORARY}"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Output:
    """Where records go and who writes them.

    Attributes:
      directory: made if absent.
      name: start of the shards' names.
      num_shards: number of files, at most one per item; 0: one per 1000 items.
      workers: processes; 0: one per core.
      reuse: keep finished records whose manifest tells the same source, instead of an error.
      overwrite: replace records that are there, instead of an error.
      runner: "local" (processes of this machine) or "beam" (Apache Beam).
      beam_options: Beam's own options as on a command line.
      most_dropped: share of images, objects or masks that may be dropped for one reason; 1: any.
    """

    directory: str
    name: str
    num_shards: int = 0
    workers: int = 0
    reuse: bool = False
    overwrite: bool = False
    runner: str = "local"
    beam_options: str = ""
    most_dropped: float = 0.5

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise UserError(f"--name={self.name!r} cannot start a file name; give another.")
        if self.num_shards < 0:
            raise UserError(f"--num_shards={self.num_shards} must not be negative.")
        if not 0 <= self.most_dropped <= 1:
            raise UserError(f"--most_dropped={self.most_dropped} must lie in [0, 1].")
        if self.runner not in RUNNERS:
            raise UserError(f"--runner={self.runner} must be one of {', '.join(RUNNERS)}.")
        if self.beam_options and self.runner != "beam":
            raise UserError(f"--beam_options={self.beam_options} needs --runner=beam.")
        if self.runner == "beam":
            arguments_of(self.beam_options, self.workers)  # now, not after hours of reading

    def reusable(self, source: Mapping[str, Any], items: int) -> Manifest | None:
        """The finished records if they may be kept; None if they are to be written.

        They may be kept if `reuse` says so, or if a run was killed just after its manifest.

        Args:
          source: what the manifest has to tell.
          items: how many there are to write.

        Raises:
          UserError: records are there and neither `overwrite` nor `reuse` allows to go on.
        """
        directory = pathlib.Path(self.directory)
        if directory.exists() and not directory.is_dir():
            raise UserError(f"--output_dir={self.directory} is a file; name a directory.")
        if self.overwrite:
            return None
        if not (directory / manifest_lib.FILE_NAME).exists():
            self._refuse_unknown_shards()
            return None
        if not self.reuse and not self.leftovers():
            raise UserError(
                f"{directory} holds finished records; add --reuse to keep them, --overwrite to "
                "replace them, or name another directory."
            )
        found = Manifest.load(directory)
        manifest_lib.find_shards([self.directory])
        wanted_shards = self.num_shards and num_shards(items, self.num_shards)
        same_shards = wanted_shards in (0, len(found.shards))
        if found.name != self.name or dict(found.source) != dict(source) or not same_shards:
            raise UserError(
                f"{directory} holds records of another source or other settings; add --overwrite "
                "to replace them or name another directory."
            )
        return found

    def _refuse_unknown_shards(self) -> None:
        for path in pathlib.Path(self.directory).glob(_SHARDS):
            if not sidecar_of(path).exists():
                raise UserError(
                    f"{self.directory} holds records without a manifest, of another program or an "
                    f"older version ({path.name}); add --overwrite to replace them or name "
                    "another directory."
                )

    def leftovers(self) -> list[pathlib.Path]:
        """What a run that has not ended has there besides shards and manifest."""
        directory = pathlib.Path(self.directory)
        found = [path for pattern in _LEFTOVERS for path in directory.glob(pattern)]
        return found + [path for path in [directory / _LOCK] if path.exists()]

    def remove_old(self) -> None:
        """Removes records to be replaced, the manifest first."""
        directory = pathlib.Path(self.directory)
        (directory / manifest_lib.FILE_NAME).unlink(missing_ok=True)
        for pattern in (_SHARDS, *_LEFTOVERS):
            for path in directory.glob(pattern):
                path.unlink(missing_ok=True)

    def sweep(self, *, finished: bool) -> None:
        """Removes temporary files, and once the manifest is there (`finished`) the sidecars."""
        for pattern in _LEFTOVERS[not finished :]:
            for path in pathlib.Path(self.directory).glob(pattern):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the directory and keeps other processes from writing to it.

        The lock goes with the process, however it ends; the file of a killed one does no harm.

        Raises:
          UserError: another process is writing there, or nobody can.
        """
        directory = pathlib.Path(self.directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            file = open_locked(directory / _LOCK)
        except BlockingIOError:
            raise UserError(
                f"Another process is writing to {directory}; wait until it ends or name another "
                "directory."
            ) from None
        except OSError as error:
            raise UserError(
                f"--output_dir={self.directory} cannot be written: {error.strerror}."
            ) from None
        try:
            yield
        finally:
            (directory / _LOCK).unlink(missing_ok=True)
            file.close()


def define_flags() -> None:
    """The flags of an `Output`, but for its directory and name."""
    flags.DEFINE_integer("num_shards", 0, "Number of files; 0: one per 1000 images.")
    flags.DEFINE_integer("workers", 0, "Processes; 0: one per core. Records do not depend on it.")
    flags.DEFINE_bool("reuse", False, "Keep finished records of the same source and settings.")
    flags.DEFINE_bool(
        "overwrite", False, "Replace existing records, including those of an unfinished run."
    )
    flags.DEFINE_float(
        "most_dropped",
        0.5,
        "Share of images, objects or masks that may be dropped for one reason; above it, or if no "
        "object is left, nothing is written. 1: write what is left.",
    )
    flags.DEFINE_enum(
        "runner", "local", RUNNERS, "local: processes on this machine; beam: Apache Beam."
    )
    flags.DEFINE_string(
        "beam_options", "", 'Beam\'s own options, like "--runner=FlinkRunner --flink_master=…".'
    )


def from_flags(directory: str, name: str) -> Output:
    """The `Output` that the flags of `define_flags` describe."""
    values = flags.FLAGS
    return Output(
        directory,
        name,
        num_shards=values.num_shards,
        workers=values.workers,
        reuse=values.reuse,
        overwrite=values.overwrite,
        runner=values.runner,
        beam_options=values.beam_options,
        most_dropped=values.most_dropped,
    )


def arguments_of(beam_options: str, workers: int) -> list[str]:
    """Beam's arguments: those given; without a runner, processes of this machine.

    Raises:
      UserError: Beam is absent, or the options cannot be told apart.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError(
            '--runner=beam needs Apache Beam: pip install -e ".[beam]" in the checkout, best in an '
            "environment of its own."
        )
    try:
        given = shlex.split(beam_options)
    except ValueError as error:
        raise UserError(f"--beam_options={beam_options!r}: {error}.") from None
    if any(argument.startswith("--runner") for argument in given):
        return given
    local = ["--runner=DirectRunner", f"--direct_num_workers={workers}"]
    if workers != 1:
        local += ["--direct_running_mode=multi_processing"]
    return [*local, "--default_sdk_harness_log_level=WARNING", *given]
