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
