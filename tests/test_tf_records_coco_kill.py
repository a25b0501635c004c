"""A conversion that is killed and repeated gives the files of one that was not."""

import hashlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest

from tests import harness
from tests.harness import annotation, thorough
from tf_records import coco
from tf_records.output import Output

IMAGES, SHARDS = 300, 12
LINUX = pathlib.Path("/proc/self/environ").exists()


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """(json, image directory) of 300 tiny images."""
    rng = np.random.default_rng(0)
    items = [
        annotation(image_id, [*rng.integers(0, 30, 2).tolist(), *rng.integers(3, 25, 2).tolist()])
        for image_id in range(1, IMAGES + 1)
        for _ in range(image_id % 4)
    ]
    return harness.write_coco(tmp_path_factory.mktemp("coco"), items, sizes=[(40, 60)] * IMAGES)


@pytest.fixture(scope="module")
def undisturbed(data_set, tmp_path_factory):
    """The digest of each file of a run that nobody kills."""
    directory = tmp_path_factory.mktemp("undisturbed") / "records"
    name = pathlib.Path(data_set[0]).stem
    coco.convert(*data_set, Output(str(directory), name, SHARDS, workers=1))
    return digests(directory)


def begin(data_set, directory, **environment):
    command = [
        sys.executable, "-m", "tf_records.coco", f"--annotations={data_set[0]}",
        f"--images={data_set[1]}", f"--output_dir={directory}", f"--num_shards={SHARDS}",
        "--workers=2",
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        cwd=harness.REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def digests(directory):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


def processes_with(marker):
    """Ids of living processes that have the marker in their environment."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker.encode() in (entry / "environ").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found


def kill(process, directory, moment):
    """Kills the process after so many seconds, or once a file of that name is there."""
    end = time.monotonic() + (moment if isinstance(moment, float) else 60)
    while time.monotonic() < end and process.poll() is None:
        if isinstance(moment, str) and list(directory.glob(moment)):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()


def finished_shards(directory):
    """Shards with a sidecar -> (inode, time of the last change)."""
    if not directory.exists() or (directory / "manifest.json").exists():
        return {}
    shards = [path.with_name(path.name.replace(".done.json", ".tfrecord"))
              for path in directory.glob("*.done.json")]  # fmt: skip
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards if path.exists()}


def begin_and_kill(data_set, directory, moment):
    """The finished shards it left, see `finished_shards`; nothing of it goes on."""
    marker = f"maskx-{uuid.uuid4().hex}"
    process = begin(data_set, directory, MASKX_TF_TEST_MARKER=marker)
    kill(process, directory, moment)
    end = time.monotonic() + 20
    while LINUX and (orphans := processes_with(marker)):
        assert time.monotonic() < end, orphans
        time.sleep(0.02)
    return finished_shards(directory)


def finish(data_set, directory, kept, undisturbed):
    """Repeats the command; nothing may be written again or left over."""
    complete = directory.exists() and set(digests(directory)) == set(undisturbed)
    assert begin(data_set, directory).wait(timeout=120) == (2 if complete else 0)
    assert digests(directory) == undisturbed
    for path, before in kept.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


@pytest.mark.thorough
def test_two_kills(data_set, undisturbed, tmp_path):
    directory = tmp_path / "records"
    first = begin_and_kill(data_set, directory, "*-00005-of-*.tfrecord")
    second = begin_and_kill(data_set, directory, "*-00010-of-*.done.json")
    assert 5 <= len(first) < len(second)
    assert first.items() <= second.items()
    finish(data_set, directory, second, undisturbed)


@pytest.mark.slow
def test_ten_kills(data_set, undisturbed, tmp_path):
    start = time.monotonic()
    assert begin(data_set, tmp_path / "timed").wait(timeout=120) == 0
    seconds = time.monotonic() - start
    assert digests(tmp_path / "timed") == undisturbed
    rng = random.Random(0)
    moments = [rng.uniform(0.4, 1.0) * seconds for _ in range(5)]
    moments += ["*-00000-of-*.tmp", "*-00000-of-*.done.json", f"*-{rng.randrange(12):05d}-of-*.tmp"]
    moments += ["manifest.json.tmp", "manifest.json"]
    for number, moment in enumerate(moments):
        kept = begin_and_kill(data_set, tmp_path / str(number), moment)
        finish(data_set, tmp_path / str(number), kept, undisturbed)


@pytest.mark.parametrize("step", [thorough(5), pytest.param(1, marks=pytest.mark.slow)])
def test_kill_before_a_file_operation(tmp_path, step):
    """Two shards of a few items: killed before the n-th file operation, for every n-th."""
    result = subprocess.run(
        [sys.executable, "-c", EVERY_OPERATION, str(tmp_path), str(step)],
        cwd=harness.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.splitlines()[-1]) > 20  # operations


# Forks, so that TensorFlow is imported once; the audit hook sees operations before they are done.
EVERY_OPERATION = """
import hashlib, os, pathlib, signal, sys
import tensorflow
from maskx_tf.data.classes import Vocabulary
from tests.test_writer import make
from tf_records import writer
from tf_records.output import Output

root = pathlib.Path(sys.argv[1])
WATCHED = {"open", "os.rename", "os.remove", "os.mkdir", "fcntl.flock"}

def convert(directory, kill_at=None):
    "Runs in a process of its own; its exit status, negative for a signal."
    if (child := os.fork()) == 0:
        seen = 0
        def hook(event, arguments):
            nonlocal seen
            if event in WATCHED and (event == "fcntl.flock" or str(directory) in str(arguments[0])):
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1
        if kill_at is not None:
            sys.addaudithook(hook)
        output = Output(str(directory), "x", num_shards=2, workers=1)
        status = 1
        try:
            writer.write(make, range(7), output, vocabulary=Vocabulary.from_names(("cat", "dog")),
                         source={})
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def digests(directory):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}

assert convert(root / "whole") == 0
for number in range(0, 1000, int(sys.argv[2])):
    directory = root / str(number)
    status = convert(directory, number)
    if status == 0:
        break
    assert status == -signal.SIGKILL, (number, status)
    again = convert(directory)
    finished = again == 1 and set(digests(directory)) == set(digests(root / "whole"))
    assert again == 0 or finished, (number, again, digests(directory))
    assert digests(directory) == digests(root / "whole"), (number, digests(directory))
print(number)
"""
