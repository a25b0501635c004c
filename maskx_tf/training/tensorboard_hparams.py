"""Hyperparameters and scores for TensorBoard's HParams tab."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import summary as hparams_summary
from tensorboard.plugins.hparams import summary_v2 as hparams_v2
from tensorboard.plugins.scalar import summary_v2 as scalar_v2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from maskx_tf.config import Config, text_of
from maskx_tf.system.interruption import Interrupted

Value = bool | int | float | str
SUFFIX = ".hparams"
SCORES = ("mask/A/AP", "mask/B/AP", "mask_given_boxes/B/AP", "box/all/AP")


def of_config(config: Config) -> dict[str, Value]:
    """The effective options; lists as comma-separated text."""
    values = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.metadata["scope"] != "bookkeeping"
    }
    return {name: text_of(v) if isinstance(v, tuple) else v for name, v in values.items()}


@contextlib.contextmanager
def session(config: Config) -> Iterator[None]:
    """Writes the options of a training into `model_dir`, whose `validation` has the scores.

    Those of before it was resumed are removed. How it ended is written when it has; one that was
    interrupted or killed has no end.
    """
    directory = pathlib.Path(config.model_dir)
    for file in directory.glob(f"*{SUFFIX}"):
        file.unlink()
    write(directory, of_config(config), {}, "validation", status=None)
    try:
        yield
    except Interrupted:
        raise
    except BaseException:
        with contextlib.suppress(OSError):  # the disk may be full
            _append(directory, hparams_summary.session_end_pb(api_pb2.STATUS_FAILURE))
        raise
    _append(directory, hparams_summary.session_end_pb(api_pb2.STATUS_SUCCESS))


def write(
    directory: pathlib.Path,
    values: Mapping[str, Value],
    scores: Mapping[str, float],
    group: str = "",
    status: int | None = api_pb2.STATUS_SUCCESS,
) -> None:
    """Writes one line of the HParams tab.

    Args:
      directory: one for each run, below TensorBoard's --logdir.
      values: its hyperparameters.
      scores: its metrics, by tag; those of `SCORES` are columns.
      group: sub-directory with the metrics, where they are not given.
      status: how the run ended; None: it has not.
    """
    directory.mkdir(parents=True, exist_ok=True)
    metrics = [hparams_v2.Metric(tag, group=group or None) for tag in SCORES]
    parameters = [hparams_v2.HParam(name) for name in values]
    summaries = [
        hparams_v2.hparams_config_pb(parameters, metrics),
        hparams_v2.hparams_pb(dict(values), trial_id=str(directory)),
        *(scalar_v2.scalar_pb(tag, score) for tag, score in scores.items()),
    ]
    if status is not None:
        summaries.append(hparams_summary.session_end_pb(status))
    _append(directory, *summaries)


def _append(directory: pathlib.Path, *summaries) -> None:
    writer = EventFileWriter(str(directory), filename_suffix=SUFFIX)
    for summary in summaries:
        event = Event(wall_time=time.time(), step=0)
        event.summary.CopyFrom(Summary.FromString(summary.SerializeToString()))
        writer.add_event(event)
    writer.close()
