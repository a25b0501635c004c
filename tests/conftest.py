"""What several test files share, built once for all processes that run tests.

Imports are inside the fixtures: a test that needs no TensorFlow does not wait for it.
"""

import fcntl
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable

import pytest

import maskx_tf  # noqa: F401 (sets TensorFlow up as the commands do)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Callable[[str, Callable[[pathlib.Path], object]], pathlib.Path]:
    """`shared(name, write)`: a directory that `write` has filled, once in a run of pytest.

    Tests only read it; one that writes takes a copy.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def directory(name: str, write: Callable[[pathlib.Path], object]) -> pathlib.Path:
        path, done = root / name, root / f"{name}.done"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                write(path)
                done.touch()
        return path

    return directory


@pytest.fixture(scope="session")
def shapes_data(shared) -> pathlib.Path:
    """records/train, records/val and the class lists of `runs.write_data`."""
    from tests import runs

    return shared("shapes", runs.write_data)


@pytest.fixture(scope="session")
def stage_1(shapes_data, shared) -> pathlib.Path:
    """A run of 5 steps in mode stage1_boxes on `shapes_data`; stderr.txt has what it printed."""
    from tests import runs

    def train(path: pathlib.Path) -> None:
        options = runs.config(shapes_data, path, mode="stage1_boxes", train_steps=5)
        (path / "stderr.txt").write_text(runs.train(options))

    return shared("stage_1", train)


@pytest.fixture(scope="session")
def exported(shared) -> pathlib.Path:
    """run/, a model directory of `tests.tiny`, and export/1, its SavedModel with masks as RLE."""
    from tests import exports

    return shared("exported", exports.export)


@pytest.fixture
def toy_losses(monkeypatch) -> None:
    """Runs without a network: for what concerns steps, checkpoints, intervals and signals.

    A run takes a quarter of the time, as only the losses' place in it is traced.
    """
    from maskx_tf import objective
    from tests import runs

    monkeypatch.setattr(objective, "training_losses", runs.toy_losses)


@pytest.fixture(params=["in_process", pytest.param("as_process", marks=pytest.mark.thorough)])
def run_command(request) -> Callable[..., subprocess.CompletedProcess]:
    """`run_command(module, *arguments)`: `python -m module …` and what came of it."""
    from tests import commands

    return getattr(commands, request.param)
