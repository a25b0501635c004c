"""Every flagfile under configs/ parses, says what it stands for, and spells known options only."""

import pathlib
import re

import pytest
from absl import flags

from maskx_tf import config as config_lib
from maskx_tf.config import Config

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAGFILES = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.flags"))
EXPERIMENTS = [path for path in FLAGFILES if not path.name.startswith("base")]
COCO_BASE = "--flagfile=configs/coco/base.flags\n"  # what the published rows are built on
COCO_ROWS = [path for path in EXPERIMENTS if COCO_BASE in (ROOT / path).read_text()]


def parse(path: pathlib.Path, *arguments: str) -> Config:
    values = flags.FlagValues()
    config_lib.define_flags(values)
    values(["test", f"--flagfile={path}", *arguments])
    return config_lib.from_flags(values)


def head_of(path: pathlib.Path) -> str:
    lines = (ROOT / path).read_text().splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:count])


@pytest.fixture(autouse=True)
def _repository_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # nested flagfiles are relative to it


def test_there_are_flagfiles():
    assert COCO_ROWS
    assert all(path.suffix == ".flags" for path in (ROOT / "configs").rglob("*") if path.is_file())


@pytest.mark.parametrize("path", FLAGFILES, ids=str)
def test_flagfile_parses(path):
    parse(path)


@pytest.mark.parametrize("path", FLAGFILES, ids=str)
def test_flagfile_starts_with_a_comment(path):
    assert head_of(path), f"{path} has to start with what it stands for"
    assert not [line for line in (ROOT / path).read_text().splitlines() if len(line) > 100]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_head_has_the_exact_command(path):
    assert "python -m " in head_of(path)


@pytest.mark.parametrize("path", COCO_ROWS, ids=str)
def test_coco_head_names_row_score_hardware_and_command(path):
    command = f"# Command:   python -m maskx_tf.train --flagfile={path}\n"
    for entry in ("# Row: ", "# Published: ", "# Hardware: ", command):
        assert entry in head_of(path) + "\n", f"{path}: the head lacks {entry!r}"


@pytest.mark.parametrize("path", COCO_ROWS, ids=str)
def test_coco_run_has_the_name_of_its_flagfile(path):
    assert parse(path).model_dir == f"runs/coco/{path.stem}"


def test_second_stages_start_from_a_first_one():
    rows = [parse(path) for path in COCO_ROWS]
    first = {config.model_dir for config in rows if config.mode == "stage1_boxes"}
    second = [config for config in rows if config.mode == "stage2_masks"]
    assert second
    assert [config.model_dir for config in second if config.init_checkpoint not in first] == []


@pytest.mark.parametrize("path", COCO_ROWS, ids=str)
def test_coco_rows_have_the_published_schedule(path):
    config = parse(path)
    assert (config.batch_size, config.learning_rate) == (16, 0.02)
    assert (config.train_steps, config.lr_steps) == (90_000, (60_000, 80_000))


@pytest.mark.parametrize("path", COCO_ROWS, ids=str)
def test_coco_file_name_says_what_it_sets(path):
    config = parse(path)
    words = set(re.split("_", path.stem))
    assert config.mode.split("_")[0] == ("end" if "e2e" in words else path.stem.split("_")[0])
    if "to" in words:
        assert config.mask_classes == path.stem.split("_to_")[0].split("_")[-1]
    outputs = {"maskx": "transfer", "agnostic": "class_agnostic", "oracle": "class_specific"}
    for word in words & outputs.keys():
        assert config.mask_output == outputs[word]
        assert config.mask_mlp == (word == "maskx")


def test_unknown_option_in_a_flagfile_fails(tmp_path):
    (tmp_path / "typo.flags").write_text("--flagfile=configs/coco/base.flags\n--batch_sise=2\n")
    with pytest.raises(flags.UnrecognizedFlagError, match="batch_sise"):
        parse(tmp_path / "typo.flags")


def test_command_line_overrides_a_flagfile():
    assert parse(COCO_ROWS[0], "--batch_size=3").batch_size == 3
