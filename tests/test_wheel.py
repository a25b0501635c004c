"""The wheel, built, installed into an environment of its own and used from an empty directory."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from tests.harness import REPOSITORY

pytestmark = pytest.mark.slow
PACKAGES = ("maskx_tf", "tf_records", "export")


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    subprocess.run(list(map(str, command)), check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of the wheel, built from copies: setuptools leaves files beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", source / "dist", source)
    (path,) = (source / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Runs a program of an environment with the wheel and the libraries of this one."""
    root = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    python = root / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    (site_packages,) = root.glob("lib/python*/site-packages")
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    empty = tmp_path_factory.mktemp("empty")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program, *arguments):
        result = subprocess.run(
            [root / "bin" / program, *arguments],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    run.directory, run.root = empty, root
    return run


def test_the_wheel_has_every_file_of_the_packages_and_no_other(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        str(path.relative_to(REPOSITORY))
        for package in PACKAGES
        for folder in (REPOSITORY / package, REPOSITORY / package / "configs")
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".proto"
    }
    assert names == files
    assert "maskx_tf/configs/shapes/cls_box.flags" in names


def test_the_commands_work_in_an_empty_directory(run):
    where = run("python", "-c", "import maskx_tf; print(maskx_tf.__file__)")
    assert pathlib.Path(where).is_relative_to(run.root)
    assert "records verify" in run("maskx", "--help")
    run("maskx", "records", "shapes", "--output_dir=data", "--train_images=3", "--val_images=1")
    assert "no faults" in run("maskx", "records", "verify", "data/records/train")
    run(
        "maskx", "train", "--flagfile=configs/shapes/stage1_boxes.flags", "--num_gpus=0",
        "--train_records=data/records/train", "--eval_records=", "--model_dir=run",
        "--mask_classes=data/set_a.txt", "--train_steps=1", "--batch_size=1",
    )  # fmt: skip
    assert (run.directory / "run" / "ckpt-1.index").is_file()
