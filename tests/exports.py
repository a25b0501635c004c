"""A tiny model exported once for several test files, and clients that know TensorFlow only."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import textwrap

import tensorflow as tf

import maskx_tf
from maskx_tf import checkpoints
from tests import commands, harness, tiny

# -I keeps the repository off the path; an editable install has to be taken off by hand.
GUARD = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path = [path for path in sys.path if path != {repository!r}]
import importlib.util
assert importlib.util.find_spec("maskx_tf") is None, "maskx_tf can be imported"
"""


def save_run(directory: pathlib.Path, **changes) -> None:
    """A model directory of the tiny model, as training leaves it."""
    config = tiny.config(model_dir=str(directory), **changes)
    checkpoints.save_run(config, tiny.VOCABULARY, tiny.SET_A)
    tf.train.Checkpoint(model=tiny.model(config)).save(str(directory / "ckpt"))


def export(directory: pathlib.Path) -> None:
    """Writes directory/run and, by the command, directory/export/1 with run-length codes."""
    save_run(directory / "run", seed=1)
    (directory / "image.png").write_bytes(harness.image_file(tiny.images(1)[0]))
    done = commands.in_process(
        "export.command",
        f"--model_dir={directory / 'run'}",
        f"--output_dir={directory / 'export'}",
        f"--images={directory / 'image.png'}",
        "--allowed_batch_sizes=1,2,4",
        "--batch_timeout_micros=20000",
        "--rle",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (directory / "stdout.txt").write_text(done.stdout)


def run_without_the_project(script: str, arguments: list[str], directory: pathlib.Path) -> str:
    """Runs a script in a directory where only installed packages can be imported; its output."""
    repository = str(pathlib.Path(maskx_tf.__file__).parents[1])
    path = directory / "client.py"
    path.write_text(GUARD.format(repository=repository) + textwrap.dedent(script))
    command = [sys.executable, "-I", str(path), *arguments]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout
