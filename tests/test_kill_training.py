"""Whole trainings that are killed, ended by SIGTERM or run out of disk, and go on."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import kill_training
from maskx_tf import config as config_lib
from tests import harness
from tests.test_checkpoint_files import small_file_system

pytestmark = pytest.mark.slow

STEPS = 60
KILLS = int(os.environ.get("MASKX_TF_TEST_KILLS", "3"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The configuration of a finished run."""
    root = tmp_path_factory.mktemp("kills")
    config = kill_training.make_config(
        kill_training.make_data(root / "data"), root / "undisturbed", STEPS
    )
    process, _ = begin(config)
    assert process.wait(timeout=600) == 0, log_of(config)
    return config


def log_of(config):
    return pathlib.Path(config.model_dir + ".log").read_text()


def begin(config):
    """The command, running, and the file with its stderr."""
    path = pathlib.Path(config.model_dir)
    flagfile = path.with_suffix(".flags")
    flagfile.write_text(config_lib.to_text(config))
    log = open(f"{path}.log", "w")  # noqa: SIM115
    command = [sys.executable, "-m", "maskx_tf.train", f"--flagfile={flagfile}"]
    return subprocess.Popen(command, cwd=harness.REPOSITORY, stderr=log), log


def wait_for(process, config, pattern):
    end = time.monotonic() + 600
    while not re.search(pattern, log_of(config), re.MULTILINE):
        assert process.poll() is None and time.monotonic() < end, log_of(config)
        time.sleep(0.005)


def assert_same(config, undisturbed):
    assert kill_training.differences(undisturbed.model_dir, config.model_dir) == []
    assert kill_training.stray_files(config.model_dir) == []


def test_kills(undisturbed, tmp_path):
    """In processes of their own: forks, of a process in which TensorFlow has not started."""
    code = (
        "import pathlib, sys; from maskx_tf import config; from benchmarks import kill_training;"
        "options, log = config.read_flagfile(sys.argv[1]), pathlib.Path(sys.argv[2]);"
        "kill_training.run_killed(options, log, int(sys.argv[3]), 0)"
    )
    config = undisturbed.replace(model_dir=str(tmp_path / "killed"))
    (tmp_path / "flags").write_text(config_lib.to_text(config))
    arguments = [str(tmp_path / "flags"), str(tmp_path / "log"), str(KILLS)]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=harness.REPOSITORY, capture_output=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count(b"killed in step") == KILLS
    assert_same(config, undisturbed)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals(undisturbed, tmp_path, number, status):
    config = undisturbed.replace(model_dir=str(tmp_path / "run"), summary_interval=17)
    process, _ = begin(config)
    wait_for(process, config, "^step +17/")
    process.send_signal(number)
    start = time.monotonic()
    assert process.wait(timeout=120) == status, log_of(config)
    seconds = time.monotonic() - start
    text = log_of(config)
    step = int(
        re.search(rf"^{number.name}: saved .*/ckpt-(\d+); repeat the", text, re.MULTILINE)[1]
    )
    assert 17 <= step < STEPS and seconds < 30 and "Traceback" not in text
    process, _ = begin(config)
    assert process.wait(timeout=600) == 0, log_of(config)
    assert f"at step {step}." in log_of(config)
    assert_same(config, undisturbed)


def test_full_disk(undisturbed, tmp_path):
    (tmp_path / "disk").mkdir()
    with small_file_system(tmp_path / "disk", 6_000_000):
        config = undisturbed.replace(model_dir=str(tmp_path / "disk" / "run"))
        process, _ = begin(config)
        wait_for(process, config, "^step +9/")
        with pytest.raises(OSError), open(tmp_path / "disk" / "filler", "wb", 0) as filler:
            while True:
                filler.write(b"x" * 10_000)
        assert process.wait(timeout=120) == 2
        text = log_of(config)
        assert re.search(r"^error: .*(is kept).*: the disk is full \(a checkpoint takes .* MB, ",
                         text, re.MULTILINE), text  # fmt: skip
        assert "Traceback" not in text
        assert kill_training.stray_files(config.model_dir) == []
        (tmp_path / "disk" / "filler").unlink()
        process, _ = begin(config)
        assert process.wait(timeout=600) == 0, log_of(config)
        assert "Resuming" in log_of(config)
        assert_same(config, undisturbed)
