"""A save that is killed in any window, a damaged checkpoint, a full disk: what is left is whole."""

import contextlib
import errno
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys

import pytest
import tensorflow as tf

from maskx_tf import checkpoints
from maskx_tf.checkpoints import leftovers
from maskx_tf.checkpoints.listing import latest
from maskx_tf.checkpoints.saving import RunCheckpoints
from maskx_tf.errors import UserError
from tests import harness

SIZE = 50_000  # floats


def saved(directory, *steps, keep=2):
    """The manager of a run that saved at these steps; the value of its variable is the step."""
    checkpoint = tf.train.Checkpoint(value=tf.Variable(tf.zeros([SIZE])))
    manager = RunCheckpoints(checkpoint, str(directory), max_to_keep=keep)
    for step in steps:
        save(manager, step)
    return manager


def save(manager, step):
    manager.checkpoint.value.assign(tf.fill([SIZE], float(step)))
    return manager.save(step)


def resumed(directory):
    """The value that a restarted run goes on with; None if there is none."""
    leftovers.recover(str(directory))
    leftovers.set_damaged_aside(str(directory))
    path = latest(directory)
    if path is None:
        return None
    checkpoint = tf.train.Checkpoint(value=tf.Variable(tf.zeros([SIZE])))
    checkpoints.restore(checkpoint, path)
    values = checkpoint.value.numpy()
    assert (values == values[0]).all()
    return values[0]


def names(directory):
    return sorted(path.name for path in pathlib.Path(directory).iterdir())


def files_of(*steps):
    """All that a run with these checkpoints has."""
    kinds = ("data-00000-of-00001", "index")
    return sorted(["checkpoint", *(f"ckpt-{step}.{kind}" for step in steps for kind in kinds)])


@pytest.fixture(params=["run", "lr[0.08] *?"])
def run(tmp_path, request):
    """A run with the checkpoints 2 and 4, and beside it the same run with 4 and 6."""
    for name in ("next", "longer", request.param):
        (tmp_path / name).mkdir()
    saved(tmp_path / "next", 2, 4, 6)
    saved(tmp_path / request.param, 2, 4)
    return tmp_path / request.param


def take(run, name, size=None):
    """Copies the first bytes of a file of the next state of the run into it."""
    data = (run.parent / "next" / name).read_bytes()
    (run / name).write_bytes(data[:size])


class TestWindowsOfASave:
    """In the order in which a kill can leave them; the last ones are of removing checkpoint 2."""

    def test_values_in_the_temporary_directory(self, run, capsys):
        (run / "ckpt-6_temp").mkdir()
        (run / "ckpt-6_temp" / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"x" * 99)
        assert resumed(run) == 4 and names(run) == files_of(2, 4)
        assert capsys.readouterr().err == "Removed 1 leftovers of a killed save: ckpt-6_temp\n"

    def test_values_without_index(self, run):
        take(run, "ckpt-6.data-00000-of-00001")
        assert resumed(run) == 4 and names(run) == files_of(2, 4)

    @pytest.mark.parametrize("size", [0, 10, -1])
    def test_a_part_of_the_index(self, run, size):
        take(run, "ckpt-6.data-00000-of-00001")
        take(run, "ckpt-6.index", size)
        assert resumed(run) == 4 and names(run) == files_of(2, 4)

    def test_complete_but_not_listed(self, run):
        """Nothing is lost: it is the latest."""
        take(run, "ckpt-6.data-00000-of-00001")
        take(run, "ckpt-6.index")
        assert resumed(run) == 6 and names(run) == files_of(2, 4, 6)
        save(saved(run), 8)
        assert resumed(run) == 8 and names(run) == files_of(6, 8)

    def test_the_first_one_complete_but_not_listed(self, tmp_path):
        saved(tmp_path, 2)
        (tmp_path / "checkpoint").unlink()
        assert resumed(tmp_path) == 2 and names(tmp_path) == files_of(2)

    def test_the_list_half_written(self, run):
        (run / "checkpoint.tmp0123456789abcdef").write_text("model_ch")
        assert resumed(run) == 4 and names(run) == files_of(2, 4)

    def test_listed_and_the_oldest_not_removed(self, run):
        saved(run.parent / "longer", 2, 4, 6, keep=3)
        for name in ("ckpt-6.data-00000-of-00001", "ckpt-6.index", "checkpoint"):
            shutil.copy(run.parent / "longer" / name, run)
        assert resumed(run) == 6 and names(run) == files_of(2, 4, 6)
        save(saved(run), 8)
        assert resumed(run) == 8 and names(run) == files_of(6, 8)

    @pytest.mark.parametrize("removed", [["index"], ["index", "data-00000-of-00001"]])
    def test_the_oldest_listed_and_partly_removed(self, run, removed):
        for kind in removed:
            (run / f"ckpt-2.{kind}").unlink()
        assert resumed(run) == 4 and names(run) == files_of(4)
        save(saved(run), 6)
        assert resumed(run) == 6 and names(run) == files_of(4, 6)

    def test_nothing_there(self, tmp_path):
        assert resumed(tmp_path) is None and names(tmp_path) == []


def test_other_files_stay(run):
    others = ["notes.tmp", "ckpt-best.index", "my-ckpt-4.index", "evaluation.json.tmp"]
    for name in others:
        (run / name).write_text("mine")
    assert resumed(run) == 4 and names(run) == sorted([*files_of(2, 4), *others])


def test_an_earlier_checkpoint_put_beside_stays(run):
    for name in names(run):
        if name.startswith("ckpt-2"):
            (run / name).rename(run / name.replace("2", "1", 1))
    manager = saved(run)
    assert resumed(run) == 4
    for step in (6, 8):
        save(manager, step)
    assert names(run) == files_of(1, 6, 8) and resumed(run) == 8


def test_own_files_half_written_are_removed(run):
    whole = ("train.flags", "vocabulary.json", "mask_classes.json", "mask_classes.txt")
    for name in (*whole, "parameters.txt", "validation.json", "bad_batch_12.npz"):
        (run / f"{name}.tmp").write_text("half")
    assert resumed(run) == 4 and names(run) == files_of(2, 4)


def test_going_back_to_an_earlier_checkpoint(run):
    """Who names another latest in TensorFlow's list gets that one, also after the next save."""
    text = (run / "checkpoint").read_text()
    (run / "checkpoint").write_text(text.replace('model_checkpoint_path: "ckpt-4"',
                                                 'model_checkpoint_path: "ckpt-2"', 1))  # fmt: skip
    assert resumed(run) == 2
    save(saved(run, keep=3), 3)
    assert resumed(run) == 3


class TestDamage:
    def damage(self, path, kind):
        data = bytearray(path.read_bytes())
        if kind == "cut":
            del data[len(data) // 2 :]
        elif kind == "empty":
            data.clear()
        else:
            data[len(data) // 2] ^= 1
        path.write_bytes(data)

    @pytest.mark.parametrize("kind", ["cut", "empty", "changed"])
    @pytest.mark.parametrize("file", ["data-00000-of-00001", "index"])
    def test_the_one_before_is_taken(self, run, capsys, kind, file):
        self.damage(run / f"ckpt-4.{file}", kind)
        assert resumed(run) == 2
        text = capsys.readouterr().err
        assert re.search(r"warning: checkpoint .*/ckpt-4 is damaged \(.+\) and set aside as ", text)
        assert f"damaged-ckpt-4; resuming from {run}/ckpt-2.\n" in text
        aside = ["damaged-ckpt-4.data-00000-of-00001", "damaged-ckpt-4.index"]
        assert names(run) == sorted([*files_of(2), *aside])
        assert resumed(run) == 2 and capsys.readouterr().err == ""

    def test_values_that_are_gone(self, run):
        (run / "ckpt-4.data-00000-of-00001").unlink()
        assert resumed(run) == 2

    def test_all_damaged(self, run):
        """What would start anew is refused, now and when the command is repeated."""
        for step in (2, 4):
            self.damage(run / f"ckpt-{step}.data-00000-of-00001", "changed")
        before = names(run)
        for _ in range(2):
            with pytest.raises(UserError, match=r"damaged are ckpt-4, ckpt-2 .*Put a good copy"):
                resumed(run)
        assert names(run) == before


class TestNotLookedAt:
    """What cannot be read now may be whole: it is named, and every file stays as it is."""

    @pytest.mark.parametrize("has_list", [True, False])
    @pytest.mark.parametrize("file", ["ckpt-4.index", "ckpt-4.data-00000-of-00001"])
    def test_unreadable(self, run, file, has_list):
        if not has_list:
            (run / "checkpoint").unlink()
        self.refused(run, file)

    def test_the_list_unreadable(self, run):
        self.refused(run, "checkpoint")

    def refused(self, run, file):
        (run / file).unlink()
        (run / file).symlink_to(file)  # to itself: not even root can open it
        before = names(run)
        with pytest.raises(UserError, match=rf"{file} cannot be read: Too many levels"):
            resumed(run)
        assert set(names(run)) - set(before) <= {"checkpoint"} >= set(before) - set(names(run))

    def test_error_in_the_middle_of_a_file(self, run, monkeypatch):
        """TensorFlow would call it damage."""

        def failing(path, *arguments, real=open, **options):
            if str(path).endswith("ckpt-4.data-00000-of-00001"):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return real(path, *arguments, **options)

        monkeypatch.setattr("builtins.open", failing)
        before = names(run)
        with pytest.raises(UserError, match=r"ckpt-4\.data.* cannot be read: Input/output error"):
            resumed(run)
        assert names(run) == before

    def test_a_list_whose_checkpoints_have_lost_their_indexes(self, run):
        for step in (2, 4):
            (run / f"ckpt-{step}.index").unlink()
        before = names(run)
        with pytest.raises(UserError, match=r"names ckpt-4, and no checkpoint .* \.index"):
            resumed(run)
        assert names(run) == before


class TestLatest:
    def test_without_a_list(self, run):
        (run / "checkpoint").unlink()
        assert latest(run) == f"{run}/ckpt-4" == checkpoints.latest_checkpoint(str(run))

    def test_a_list_of_another_place(self, run):
        """As older versions of TensorFlow wrote it, with whole paths."""
        text = (run / "checkpoint").read_text().replace("ckpt-", "/gone/elsewhere/ckpt-")
        (run / "checkpoint").write_text(text)
        assert latest(run) == f"{run}/ckpt-4" and resumed(run) == 4

    def test_a_list_that_names_what_is_gone(self, run):
        text = (run / "checkpoint").read_text()
        (run / "checkpoint").write_text(
            text.replace("ckpt-4", "ckpt-8").replace("ckpt-2", "ckpt-6")
        )
        assert latest(run) == f"{run}/ckpt-4" and resumed(run) == 4
        assert names(run) == files_of(2, 4)

    def test_none(self, tmp_path):
        assert latest(tmp_path) is None and latest(tmp_path / "absent") is None


def test_checkpoints_are_removed_by_the_path_as_it_is(run):
    """`keep` is obeyed where TensorFlow would look for a pattern, and in no other directory."""
    other = run.parent / "lr0 x"  # which the pattern lr[0.08] *? matches
    shutil.copytree(run, other)
    manager = saved(run)
    for step in (6, 8):
        save(manager, step)
    assert names(run) == files_of(6, 8) and resumed(run) == 8
    assert names(other) == files_of(2, 4)


class TestFullDisk:
    def check(self, manager, directory):
        with pytest.raises(UserError) as error:
            save(manager, 6)
        text = re.sub(r"[\d,.]+ MB are free", "N MB are free", str(error.value))
        assert text == (
            f"no checkpoint could be saved in {directory} ({directory}/ckpt-4 is kept): the disk "
            "is full (a checkpoint takes 0.2 MB, N MB are free). Make room or lower "
            "--keep_checkpoints, then repeat the command to resume from the last checkpoint."
        )
        assert [name for name in names(directory) if name != "filler"] == files_of(2, 4)
        assert resumed(directory) == 4

    @pytest.mark.parametrize("room", [0, 4096, 100_000])
    def test_file_system(self, tmp_path, room):
        with small_file_system(tmp_path, 1_000_000):
            manager = saved(tmp_path, 2, 4)
            filler = tmp_path / "filler"
            filler.write_bytes(b"x" * (shutil.disk_usage(tmp_path).free - room))
            self.check(manager, tmp_path)
            filler.unlink()
            assert save(manager, 8) and resumed(tmp_path) == 8

    def test_limit_of_file_size(self, tmp_path):
        manager = saved(tmp_path, 2, 4)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            self.check(manager, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert save(manager, 8) and resumed(tmp_path) == 8

    def test_another_error_is_told_as_it_is(self, tmp_path):
        manager = saved(tmp_path / "run", 2)
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").write_text("a file")
        with pytest.raises(UserError, match=r"there is no earlier one\): .*run"):
            save(manager, 4)


@contextlib.contextmanager
def small_file_system(directory, size):
    """A file system of so many bytes, in memory; skips the test where it cannot be made."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


class TestLock:
    def test_a_second_training_is_refused(self, tmp_path):
        directory = str(tmp_path / "run")
        with (
            leftovers.locked(directory),
            pytest.raises(UserError, match="another process is training in .*run"),
            leftovers.locked(directory),
        ):
            pass

    def test_it_leaves_nothing(self, tmp_path):
        with leftovers.locked(str(tmp_path / "run")):
            pass
        assert names(tmp_path) == []
        with leftovers.locked(str(tmp_path / "run")):
            (tmp_path / "run" / "file").write_text("")
        assert names(tmp_path / "run") == ["file"]


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    """Processes that save without pause, each killed: the last save that ended is never lost."""
    result = subprocess.run(
        [sys.executable, "-c", KILLED_SAVES, str(tmp_path), "40"],
        cwd=harness.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    saves, leftovers = map(int, result.stdout.split()[-2:])
    assert saves > 40 and leftovers > 0  # kills did fall into saves


# Forks, so that TensorFlow is imported once; each child starts TensorFlow's runtime of its own.
KILLED_SAVES = """
import os, pathlib, random, signal, sys, time
import tensorflow as tf
from maskx_tf import checkpoints
from maskx_tf.checkpoints.listing import steps_of
from maskx_tf.checkpoints.saving import RunCheckpoints
from tests.test_checkpoint_files import files_of, names, resumed, saved, save

directory, kills = sys.argv[1], int(sys.argv[2])
rng, done, leftovers = random.Random(0), 0, 0

def child(work):
    "Forks; (process id, file that it writes to)."
    read_end, write_end = os.pipe()
    if not (process_id := os.fork()):
        status = 1
        try:
            work(write_end)
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    return process_id, os.fdopen(read_end)

def save_without_pause(pipe):
    step = int(resumed(directory) or 0)
    manager = saved(directory)
    os.write(pipe, f"{step}\\n".encode())
    while True:
        step += 1
        save(manager, step)
        os.write(pipe, f"{step}\\n".encode())

def check(pipe):
    os.write(pipe, f"{resumed(directory)}\\n".encode())
    steps = steps_of(pathlib.Path(directory))
    assert names(directory) == (files_of(*steps) if steps else []), names(directory)
    assert len(steps) <= 3, steps

for number in range(kills):
    process_id, pipe = child(save_without_pause)
    pipe.readline()
    start = time.monotonic()
    pipe.readline()  # the first save has ended
    time.sleep(rng.uniform(0, time.monotonic() - start))
    os.kill(process_id, signal.SIGKILL)
    os.waitpid(process_id, 0)
    steps = [int(line) for line in pipe]
    done = max([done, *steps])
    left = set(names(directory))
    process_id, pipe = child(check)
    found = pipe.read()
    assert os.waitpid(process_id, 0)[1] == 0, number
    leftovers += bool(left - set(names(directory)))
    assert float(found.replace("None", "0")) >= done, (number, found, done)
print(done, leftovers)
"""
