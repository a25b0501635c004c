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
        assert result.returncode == 0, (arguments, result.stderr[-3000:])
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
    data = "runs/demo/seed0/data"
    run("maskx", "records", "shapes", f"--output_dir={data}", "--train_images=3", "--val_images=2")
    assert "no faults" in run("maskx", "records", "verify", f"{data}/records/train")
    # A shorter demo: a file of the working directory goes before the package's own.
    declaration = (REPOSITORY / "configs" / "shapes" / "demo.toml").read_text()
    steps = '"--train_steps=1", "--lr_steps=", "--warmup_steps=0", "--batch_size=1",\n]'
    shorter = run.directory / "configs" / "shapes" / "demo.toml"
    shorter.parent.mkdir(parents=True)
    shorter.write_text(declaration.replace("\n]", f"\n{steps}", 1))
    assert "Gain of Mask^X" in run("maskx", "demo")
    assert (run.directory / "runs/demo/seed0/pictures/overlays/000001.jpg").is_file()
