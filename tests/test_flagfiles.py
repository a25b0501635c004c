"""Flagfiles: where they are looked for, and what is read of them."""

import os
import pathlib

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from maskx_tf import config
from maskx_tf.errors import UserError
from maskx_tf.system.flagfiles import expand, resolve
from tests.harness import REPOSITORY

ROW = "configs/shapes/cls_box.flags"  # includes configs/shapes/base_stage2.flags


def test_names_mean_the_same_in_every_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    there = config.read_flagfile(ROW)
    monkeypatch.chdir(tmp_path)
    assert config.read_flagfile(ROW) == there != config.Config()


def test_the_working_directory_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("configs/shapes").mkdir(parents=True)
    pathlib.Path("configs/shapes/base_stage2.flags").write_text("--batch_size=77\n")
    assert "--batch_size=77" in expand([f"--flagfile={ROW}"])  # included by the package's own
    assert resolve("configs/shapes/base_stage2.flags") == "configs/shapes/base_stage2.flags"
    assert resolve("absent/x.flags") == "absent/x.flags"
    assert resolve("~/x.flags") == os.path.expanduser("~/x.flags")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--flagfile=absent.flags"], ["absent.flags", "No such file"]),
        (["--flagfile", "absent.flags"], ["absent.flags", "No such file"]),
        (["--flagfile=outer.flags"], ["absent.flags", "included in outer.flags", "No such file"]),
        (["--flagfile=loop.flags"], ["loop.flags", "includes itself"]),
        (["--flagfile=."], ["flagfile .", "Is a directory"]),
        (["--flagfile=binary.flags"], ["binary.flags", "not text"]),
    ],
)
def test_a_file_that_cannot_be_read_is_named(arguments, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("outer.flags").write_text("--flagfile=absent.flags\n")
    pathlib.Path("loop.flags").write_text("--flagfile=loop.flags\n")
    pathlib.Path("binary.flags").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError) as error:
        expand(arguments)
    assert all(name in str(error.value) for name in names)


LINES = st.lists(
    st.sampled_from(
        ["", "  ", "# note", "// note", "--a=1", "--noflag", "  --b=x y", "--flagfile=inner.flags"]
    )
)


@given(outer=LINES, inner=LINES.map(lambda lines: [line for line in lines if "file" not in line]))
def test_files_are_read_as_absl_reads_them(outer, inner, tmp_path_factory):
    directory = tmp_path_factory.mktemp("flags")
    for name, lines in (("outer", outer), ("inner", inner)):
        text = "\n".join(lines).replace("inner.flags", f"{directory}/inner.flags") + "\n"
        (directory / f"{name}.flags").write_text(text)
    arguments = ["--first", f"--flagfile={directory}/outer.flags", "--last=2"]
    assert expand(arguments) == flags.FlagValues().read_flags_from_files(arguments)


def test_nothing_after_two_dashes_is_read():
    arguments = ["--a", "--", "--flagfile=absent.flags"]
    assert expand(arguments) == arguments
