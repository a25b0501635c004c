"""A tiny model exported once for several test files, and clients that know TensorFlow only."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import textwrap

import tensorflow as tf

import maskx_tf
from export import saved_model
from maskx_tf import checkpoints
from maskx_tf.inference.batching import Batching
from tests import tiny

BATCHING = Batching((1, 2, 4), timeout_us=20_000)
# -I keeps the repository off the path; an editable install has to be taken off by hand.
GUARD = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path = [path for path in sys.path if path != {repository!r}]
import importlib.util
assert importlib.util.find_spec("maskx_tf") is None, "maskx_tf can be imported"
"""


def make(run: pathlib.Path, output_dir: pathlib.Path) -> str:
    """A run with one checkpoint, exported with run-length codes; returns the version's path."""
    config = tiny.config(model_dir=str(run), seed=1)
    checkpoints.save_run(config, tiny.VOCABULARY, tiny.SET_A)
    tf.train.Checkpoint(model=tiny.model(config)).save(str(run / "ckpt"))
    options = saved_model.Options(batching=BATCHING, rle=True)
    model = checkpoints.load_model(str(run))
    return saved_model.export(*model, str(output_dir), tiny.images(1), options)


def run_without_the_project(script: str, arguments: list[str], directory: pathlib.Path) -> str:
    """Runs a script in a directory where only installed packages can be imported; its output."""
    repository = str(pathlib.Path(maskx_tf.__file__).parents[1])
    path = directory / "client.py"
    path.write_text(GUARD.format(repository=repository) + textwrap.dedent(script))
    command = [sys.executable, "-I", str(path), *arguments]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout
