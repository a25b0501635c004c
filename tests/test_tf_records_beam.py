"""Records written on Apache Beam are those of the process pool, to the byte."""

import functools
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.coco.issues import Issue
from maskx_tf.errors import UserError
from tests import harness
from tests import visual_genome_data as vg
from tests.harness import annotation
from tf_records import beam, shards, writer
from tf_records.output import Output, arguments_of
from tf_records.plan import Plan
from tf_records.shards import Encoded

BEAM = importlib.util.find_spec("apache_beam") is not None
needs_beam = pytest.mark.skipif(not BEAM, reason="Apache Beam is absent: pip install '.[beam]'")


def make(item: int, log: str = "", fail_at: int = -1) -> Encoded:
    """No image, but a record all the same."""
    if log:
        with open(log, "a") as file:
            file.write(f"{item}\n")
    if item == fail_at:
        raise UserError(f"item {item} is bad")
    if item == 5:
        return Encoded(None, issues=(Issue("image_corrupt", item),))
    return Encoded(b"record %d" % item, (("cat", False),) * (item % 3))


def write(directory, function=make, **options):
    output = Output(str(directory), "x", num_shards=4, **({"workers": 1} | options))
    vocabulary = Vocabulary.from_names(["cat"])
    return writer.write(function, range(10), output, vocabulary=vocabulary, source={"a": 1})


def contents(directory):
    return {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}


@needs_beam
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bytes_are_those_of_the_pool(tmp_path, workers):
    expected = write(tmp_path / "pool")
    assert write(tmp_path / "beam", runner="beam", workers=workers) == expected
    assert contents(tmp_path / "beam") == contents(tmp_path / "pool")


@needs_beam
def test_an_error_ends_the_run_and_a_repeated_one_goes_on(tmp_path):
    write(tmp_path / "whole")
    function = functools.partial(make, log=str(tmp_path / "log"), fail_at=3)
    with pytest.raises(UserError, match="^item 3 is bad$"):
        write(tmp_path / "x", function, runner="beam")
    names = set(contents(tmp_path / "x"))
    assert "x-00001-of-00004.tfrecord" not in names
    assert "x-00003-of-00004.tfrecord" in names
    (tmp_path / "log").unlink()
    write(tmp_path / "x", functools.partial(make, log=str(tmp_path / "log")), runner="beam")
    assert (tmp_path / "log").read_text().split() == ["2", "3", "4"]
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")


@needs_beam
def test_beam_goes_on_where_the_pool_stopped(tmp_path):
    write(tmp_path / "whole")
    with pytest.raises(UserError, match="item 8"):
        write(tmp_path / "x", functools.partial(make, fail_at=8))
    write(tmp_path / "x", functools.partial(make, fail_at=1), runner="beam")
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")


def crash(item: int) -> Encoded:
    """What a bug does."""
    raise ValueError(f"no idea what {item} is")


@needs_beam
def test_what_fails_in_beam_is_one_line(tmp_path):
    with pytest.raises(UserError, match="Beam's run failed: .*no idea what") as error:
        write(tmp_path / "x", crash, runner="beam")
    assert "\n" not in str(error.value)
    for options, message in (
        ("--runner=Nonesuch", "Nonesuch"),
        ("--direct_num_workers=x", "refus"),
    ):
        with pytest.raises(UserError, match=message):
            write(tmp_path / "y", runner="beam", beam_options=options)


@needs_beam
def test_coco(tmp_path):
    """The command line, with the options of Beam that run workers as processes."""
    items = [annotation(1 + index % 5, [index, 5, 9, 9]) for index in range(12)]
    paths = harness.write_coco(tmp_path, items, sizes=[(40, 60)] * 5)
    for name, extra in (
        ("pool", ["--workers=1"]),
        ("beam", ["--runner=beam", "--workers=1"]),
        ("beam2", ["--runner=beam", "--beam_options=--runner=DirectRunner --direct_num_workers=2 "
                   "--direct_running_mode=multi_processing"]),
    ):  # fmt: skip
        command = [
            sys.executable, "-m", "tf_records.coco", f"--annotations={paths[0]}",
            f"--images={paths[1]}", f"--output_dir={tmp_path / name}", "--num_shards=3", *extra,
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(harness.REPOSITORY)}
        done = subprocess.run(
            command, cwd=harness.REPOSITORY, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert contents(tmp_path / name) == contents(tmp_path / "pool")


@needs_beam
def test_visual_genome(tmp_path):
    entries = [vg.vg_entry(i, vg.vg_object("tree.n.01", (i, 2, 10, 10), i)) for i in range(1, 10)]
    paths = vg.write(tmp_path, entries, [vg.vg_image(i) for i in range(1, 10)], coco=[{"id": 9}])
    vg.convert(paths, tmp_path / "pool", {"num_shards": 3}, test_images=2)
    vg.convert(paths, tmp_path / "beam", {"num_shards": 3, "runner": "beam"}, test_images=2)
    assert vg.contents(tmp_path / "beam") == vg.contents(tmp_path / "pool")
    assert len([name for name in vg.contents(tmp_path / "beam") if ".tfrecord" in name]) > 3


def job(directory, fail_at=-1):
    """The shard of a plan, ready to be written by `beam.write_one`."""
    function = functools.partial(make, log=str(directory / "log"), fail_at=fail_at)
    plan = Plan.make(str(directory), "x", 4, 1, {})
    beam.save_job(function, list(range(4)), plan, 0)
    return plan


def test_a_shard_that_is_tried_again_is_left_alone(tmp_path):
    plan = job(tmp_path)
    beam.write_one(str(plan.path(0)))
    first = shards.load_part(plan.path(0), plan.fingerprint)
    assert first.shard.count == 4
    before = plan.path(0).stat()
    beam.write_one(str(plan.path(0)))
    assert plan.path(0).stat() == before
    assert (tmp_path / "log").read_text().split() == ["0", "1", "2", "3"]
    shards.sidecar_of(plan.path(0)).unlink()  # as if the first attempt died before that
    beam.write_one(str(plan.path(0)))
    assert shards.load_part(plan.path(0), plan.fingerprint) == first


def test_two_workers_may_write_one_shard_at_once(tmp_path):
    """The second begins and ends while the first is half-way through."""
    plan = job(tmp_path)
    path = plan.path(0)

    def results():
        for item in range(4):
            if item == 2:
                beam.write_one(str(path))
            yield make(item)

    part = shards.write_shard(path, results(), plan.fingerprint)
    assert shards.load_part(path, plan.fingerprint) == part
    assert not list(tmp_path.glob(f"x-00000-of-00001.*{shards.SIDECAR}{shards.TEMPORARY}"))


def test_a_user_error_is_left_for_the_driver(tmp_path):
    plan = job(tmp_path, fail_at=2)
    beam.write_one(str(plan.path(0)))
    assert not plan.path(0).exists()
    (left,) = tmp_path.glob("*.error.tmp")
    assert left.read_text() == "item 2 is bad"


@pytest.mark.skipif(BEAM, reason="Apache Beam is there")
def test_without_beam_the_extra_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^--runner=beam needs Apache Beam: ") as error:
        Output(str(tmp_path), "x", runner="beam")
    (command,) = re.findall(r"pip install .*?]\"", str(error.value))
    assert f"`{command}`" in (harness.REPOSITORY / "README.md").read_text()


@needs_beam
def test_arguments():
    given = arguments_of("--runner=FlinkRunner --flink_master='a b:1'", 3)
    assert given == ["--runner=FlinkRunner", "--flink_master=a b:1"]
    made = arguments_of("--temp_location=/x", 2)
    assert made[:2] == ["--runner=DirectRunner", "--direct_num_workers=2"]
    assert made[-1] == "--temp_location=/x"
    with pytest.raises(UserError, match="No closing quotation"):
        Output("x", "x", runner="beam", beam_options="'")
