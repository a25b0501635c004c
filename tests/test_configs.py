"""Every flagfile under configs/ parses, says what it stands for, and is listed in the index."""

import re

import pytest
from absl import flags

from maskx_tf.training.optimizer import learning_rate_schedule
from tests import documentation
from tests.flagfiles import (
    EXPERIMENTS,
    FLAGFILES,
    HEADS,
    ROOT,
    ROWS,
    SCORE,
    SHAPES,
    commands_of,
    head_of,
    on_one_line,
    parse,
)
from tests.harness import check_each


@pytest.fixture(autouse=True)
def _repository_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # nested flagfiles are relative to it


def test_there_are_flagfiles():
    assert len(ROWS) > 90 and len(SHAPES) > 15
    files = [path for path in (ROOT / "configs").rglob("*") if path.is_file()]
    others = {path.name for path in files if path.suffix != ".flags"}
    assert others == {"README.md", "study.toml", "demo.toml", "ladder.toml", "carparts.toml"}


def test_flagfiles_parse_and_have_a_schedule():
    check_each(lambda path: learning_rate_schedule(parse(path)), FLAGFILES)


def test_flagfiles_start_with_a_comment():
    def check(path):
        assert head_of(path), f"{path} has to start with what it stands for"
        assert not [line for line in (ROOT / path).read_text().splitlines() if len(line) > 100]

    check_each(check, FLAGFILES)


def test_heads_have_the_exact_command():
    def check(path):
        commands = commands_of(head_of(path))
        assert commands
        assert all(list(documentation.commands_in(command)) for command in commands)

    check_each(check, EXPERIMENTS)


def test_heads_name_row_hardware_and_command():
    def check(path):
        head = on_one_line(head_of(path))
        entries = ["# Row:  ", "# Hardware: "]
        entries += ["# Published: ", "# Hours:  "] if path in ROWS else []
        for entry in entries:
            assert entry in head, f"{path}: the head lacks {entry!r}"
        (command,) = re.findall(r"# Command: +(.*)", head)
        assert command == f"maskx train --flagfile={path}"

    check_each(check, ROWS + SHAPES)


def test_runs_have_the_names_of_their_flagfiles():
    def check(path):
        name = str(path.with_suffix("")).removeprefix("configs/")
        assert parse(path).model_dir == f"runs/{name}"
        for command in commands_of(head_of(path)):
            assert "maskx evaluate" not in command or f"--model_dir=runs/{name} " in command

    check_each(check, ROWS + SHAPES)


def test_second_stages_start_from_a_first_one():
    rows = [parse(path) for path in ROWS + SHAPES]
    first = {config.model_dir for config in rows if config.mode == "stage1_boxes"}
    second = [config for config in rows if config.mode == "stage2_masks"]
    assert second
    assert [config.model_dir for config in second if config.init_checkpoint not in first] == []


def test_second_stages_name_the_first_one():
    def check(path):
        config = parse(path)
        wanted = config.init_checkpoint.replace("runs/", "configs/") + ".flags"
        assert (f"# After:     {wanted}." in head_of(path)) == (config.mode == "stage2_masks")

    check_each(check, ROWS + SHAPES)


INDEX = (ROOT / "configs" / "README.md").read_text()


def test_index_lists_every_flagfile_with_its_scores():
    def check(path):
        name = str(path).removeprefix("configs/")
        if path.parts[2] == "fig3":  # fifty files, listed by their pattern
            assert re.fullmatch(r"coco/fig3/E\d_A\d0B\d0_(class_agnostic|cls_box)\.flags", name)
            return
        lines = [line for line in INDEX.splitlines() if f"]({name})" in line]
        assert lines, f"configs/README.md lacks {name}"
        assert (ROOT / path).is_file()
        published = re.search(r"# Published: (.*)", on_one_line(head_of(path)))
        scores = {score for _, score in SCORE.findall(published[1])} if published else set()
        for score in scores - {"36.7"}:
            assert any(re.search(rf"\b{re.escape(score)}\b", line) for line in lines), (name, score)

    check_each(check, ROWS + SHAPES)


def test_index_lists_the_heads_with_their_scores():
    def check(path):
        name = path.relative_to("configs")
        (line,) = (line for line in INDEX.splitlines() if f"]({name})" in line)
        published = re.search(r"# Published: +(.*)", head_of(path))[1]
        scores = re.findall(r"on B (\d+\.\d)", published)
        assert line.rstrip(" |").split()[-1] == (scores or ["–"])[0]
        assert parse(path).model_dir == f"runs/heads/{path.stem}"

    assert len(HEADS) >= 10
    check_each(check, HEADS)


def test_index_links_to_files_that_exist():
    links = re.findall(r"\]\(([\w/.-]+\.flags)\)", INDEX)
    assert links and not [link for link in links if not (ROOT / "configs" / link).is_file()]


def test_unknown_option_in_a_flagfile_fails(tmp_path):
    (tmp_path / "typo.flags").write_text("--flagfile=configs/coco/base.flags\n--batch_sise=2\n")
    with pytest.raises(flags.UnrecognizedFlagError, match="batch_sise"):
        parse(tmp_path / "typo.flags")


def test_command_line_overrides_a_flagfile():
    assert parse(ROWS[0], "--batch_size=3").batch_size == 3
