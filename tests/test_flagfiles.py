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


def test_what_shells_expand(tmp_path, monkeypatch):
    """Nothing is written into ./~, ./$HOME or a directory whose name has quotes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("UNSET", raising=False)
    written = {
        "--model_dir=~/runs/a": f"--model_dir={tmp_path}/runs/a",
        "--model_dir=$HOME/b": f"--model_dir={tmp_path}/b",
        "--model_dir=${HOME}/b": f"--model_dir={tmp_path}/b",
        '--model_dir="my runs/c"': "--model_dir=my runs/c",
        "--model_dir='$HOME/c'": f"--model_dir={tmp_path}/c",
        "--images=~/a.jpg,b~.jpg,~/c.jpg": f"--images={tmp_path}/a.jpg,b~.jpg,{tmp_path}/c.jpg",
        '--train_records="a,b",c': '--train_records="a,b",c',
        "--model_dir=a~/b": "--model_dir=a~/b",
    }
    file = tmp_path / "mine.flags"
    file.write_text("\n".join(written))
    assert expand([f"--flagfile={file}"]) == list(written.values())
    assert expand(["--model_dir=~/x", "--output=$HOME/y", "~"]) == [
        f"--model_dir={tmp_path}/x",
        f"--output={tmp_path}/y",
        "~",
    ]
    assert config.Config(model_dir="~/x").model_dir == f"{tmp_path}/x"
    file.write_text("--model_dir=$UNSET/x")
    with pytest.raises(UserError, match=r"mine.flags: \$UNSET in .* has no value"):
        expand([f"--flagfile={file}"])
    assert expand(["--images=$UNSET.jpg"]) == ["--images=$UNSET.jpg"]  # perhaps a file's name


class TestOfARun:
    """A run may be moved or copied: its file then means the directory that it is in."""

    @pytest.fixture
    def run(self, tmp_path):
        here = tmp_path / "new place [1]"
        here.mkdir()
        config.save(config.Config(model_dir=str(tmp_path / "old"), seed=3), str(here))
        (here / "vocabulary.json").write_text("{}")
        return here

    def test_moved_or_copied(self, run):
        assert config.load(str(run)) == config.Config(model_dir=str(run), seed=3)
        notes = []
        assert f"--model_dir={run}" in expand([f"--flagfile={run}/train.flags"], notes.append)
        (text,) = notes
        assert text.endswith(f"--model_dir={run}") and "old; the run is taken to be" in text

    def test_from_within_and_by_a_link(self, run, tmp_path, monkeypatch):
        monkeypatch.chdir(run)
        assert config.read_flagfile("train.flags").model_dir == "."
        (tmp_path / "old").symlink_to(run)  # where it was written still leads to it
        notes = []
        expanded = expand([f"--flagfile={run}/train.flags"], notes.append)
        assert f"--model_dir={tmp_path}/old" in expanded and notes == []

    def test_a_later_option_counts(self, run):
        arguments = expand([f"--flagfile={run}/train.flags", "--model_dir=third"])
        assert arguments[-1] == "--model_dir=third"

    def test_a_copy_of_the_file_alone(self, run, tmp_path):
        """It may be there to start another run with the same options."""
        (run / "vocabulary.json").unlink()
        assert config.load(str(run)).model_dir == str(tmp_path / "old")

    def test_characters_of_shells_stay(self, run):
        written = config.Config(model_dir=str(run), vocabulary="a $UNSET \"b\"'c'")
        config.save(written, str(run))
        assert config.load(str(run)) == written


def test_nothing_after_two_dashes_is_read():
    arguments = ["--a", "--", "--flagfile=absent.flags"]
    assert expand(arguments) == arguments
