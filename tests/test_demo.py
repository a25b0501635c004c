"""The demo's steps: what is done is not done again, what was cut off is."""

import os
import pathlib

import pytest

from maskx_tf import demo

ROOT = pathlib.Path(__file__).parents[1]


def evaluation(a: float, b: float) -> dict:
    subsets = {"A": {"AP": a}, "B": {"AP": b}}
    return {"mask": subsets, "mask_given_boxes": subsets}


def test_a_step_is_done_when_no_output_is_missing_or_older_than_an_input(tmp_path):
    source, first, second = (tmp_path / name for name in ("source", "first", "second"))
    step = demo.Step("", (), (source,), (first, second))
    source.touch()
    first.touch()
    assert not step.is_done()
    second.touch()
    assert step.is_done()
    os.utime(first, (0, 0))
    assert not step.is_done()


def test_data_cut_off_before_their_last_file_are_made_again(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    data = demo.Plan(tmp_path, 0, ("class_agnostic", "cls_box")).steps()[0]
    for split in ("train", "val"):
        assert not data.is_done()
        manifest = tmp_path / "data" / "records" / split / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.touch()
    assert not data.is_done()
    (tmp_path / "data" / "set_a.txt").touch()
    assert data.is_done()


def test_an_export_that_was_cut_off_is_made_again(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    directory = tmp_path / "with [brackets]"
    *_, export, predict = demo.Plan(directory, 0, ("cls_box",)).steps()
    evaluation_file = directory / "cls_box" / "evaluation.json"
    for path in (evaluation_file, directory / "saved_model" / ".export-x" / "saved_model.pb"):
        path.parent.mkdir(parents=True)
        path.touch()
    assert not export.is_done()
    models = [directory / "saved_model" / version / "saved_model.pb" for version in ("1", "2")]
    models[0].parent.mkdir()
    models[0].touch()
    assert export.is_done() and not predict.is_done()
    os.utime(evaluation_file, (models[0].stat().st_mtime + 5,) * 2)  # trained on
    assert not export.is_done()
    models[1].parent.mkdir()
    models[1].touch()
    os.utime(models[1], (models[0].stat().st_mtime + 9,) * 2)
    assert export.is_done()


def test_table():
    evaluations = {"class_agnostic": evaluation(0.107, 0.10), "cls_box": evaluation(0.179, 0.15)}
    assert demo.gain(evaluations) == pytest.approx(0.5)
    assert demo.table(evaluations).splitlines() == [
        "                                  mask AP       given boxes",
        "                                 A        B        A        B",
        "class-agnostic baseline       10.7     10.0     10.7     10.0",
        "Mask^X R-CNN                  17.9     15.0     17.9     15.0",
        "Gain of Mask^X on B, classes without any mask: +50 %",
    ]
