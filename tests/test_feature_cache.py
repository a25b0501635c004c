"""Runs on cached features give what runs without a cache give."""

import concurrent.futures
import errno
import json
import os
import pathlib
import shutil
import threading
import time

import numpy as np
import pytest

from maskx_tf import checkpoints, training
from maskx_tf.errors import UserError
from maskx_tf.frozen import training as feature_cache
from maskx_tf.frozen.row_store import Array, RowStore
from tests import runs

ARRAYS = (Array("a", "float32", (2,)), Array("b", "uint8"))


def entry(rows, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(rows, 2)).astype(np.float32), np.arange(rows + 1, dtype=np.uint8)]


class TestRowStore:
    def test_entries_come_back(self, tmp_path):
        entries = [entry(3), entry(1, 1), entry(0, 2), entry(2, 3)]
        store = RowStore(tmp_path, ARRAYS)
        store.append(entries[:2])
        assert [len(store), store.total("a"), store.total("b")] == [2, 4, 6]
        np.testing.assert_array_equal(store.read(1)[0], entries[1][0])
        store.append(entries[2:])
        again = RowStore(tmp_path, ARRAYS)
        for number, wanted in enumerate(entries):
            for found, value in zip(again.read(number), wanted, strict=True):
                np.testing.assert_array_equal(found, value)

    def test_what_a_killed_process_left_is_cut_off(self, tmp_path):
        RowStore(tmp_path, ARRAYS).append([entry(3)])
        with open(tmp_path / "a.bin", "ab") as file:
            file.write(b"half an entr")
        store = RowStore(tmp_path, ARRAYS)
        store.append([entry(2, 7)])
        np.testing.assert_array_equal(store.read(1)[0], entry(2, 7)[0])
        assert (tmp_path / "a.bin").stat().st_size == 5 * 2 * 4

    def test_an_error_in_between_keeps_what_was_committed(self, tmp_path):
        def entries():
            for number in range(30):
                yield entry(1, number)
            raise KeyError

        store = RowStore(tmp_path, ARRAYS)
        with pytest.raises(KeyError):
            store.append(entries())
        again = RowStore(tmp_path, ARRAYS)
        assert len(again) == 25
        again.append([entry(1, 99)])
        np.testing.assert_array_equal(again.read(24)[0], entry(1, 24)[0])
        np.testing.assert_array_equal(again.read(25)[0], entry(1, 99)[0])

    def test_a_full_disk_is_said_of_the_cache(self, tmp_path):
        def entries():
            yield entry(1, 0)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        store = RowStore(tmp_path, ARRAYS)
        with (
            pytest.raises(UserError, match=f"^--feature_cache: {tmp_path} .* disk is full"),
            store.filling(),
        ):
            store.append(entries())

    def test_rows_are_on_the_disk_before_the_index_names_them(self, tmp_path, monkeypatch):
        synced = []

        def fsync(descriptor):
            synced.append(pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

        monkeypatch.setattr(os, "fsync", fsync)
        RowStore(tmp_path, ARRAYS).append([entry(3)])
        assert synced[:3] == ["a.bin", "b.bin", "entries.json.tmp"]

    def test_two_that_fill_it_take_turns(self, tmp_path, capsys):
        """The second has what the first added, and adds behind it."""
        first, second = RowStore(tmp_path, ARRAYS), RowStore(tmp_path, ARRAYS)
        found = []

        def fill():
            with second.filling():
                found.append(len(second))
                second.append([entry(1, 2)])

        other = threading.Thread(target=fill)
        with first.filling():
            other.start()
            first.append([entry(2, 0), entry(3, 1)])
            time.sleep(0.2)
        other.join()
        assert found == [2] and len(first) == 2
        assert f"Waiting for another process that fills {tmp_path}" in capsys.readouterr().err
        np.testing.assert_array_equal(first.read(1)[0], entry(3, 1)[0])
        again = RowStore(tmp_path, ARRAYS)
        for number, rows in enumerate((2, 3, 1)):
            np.testing.assert_array_equal(again.read(number)[0], entry(rows, number)[0])

    def test_several_threads_may_read(self, tmp_path, monkeypatch):
        """The first reads come at once, while the files are not mapped yet."""
        RowStore(tmp_path, ARRAYS).append([entry(3), entry(2, 1)])
        make = np.memmap

        def slow(*arguments, **options):
            time.sleep(0.02)
            return make(*arguments, **options)

        monkeypatch.setattr(np, "memmap", slow)
        store = RowStore(tmp_path, ARRAYS)

        def read(delay_s):
            time.sleep(delay_s)
            return store.read(1)

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            for found in threads.map(read, np.linspace(0, 0.06, 8)):
                for one, wanted in zip(found, entry(2, 1), strict=True):
                    np.testing.assert_array_equal(one, wanted)


@pytest.fixture(scope="module")
def base(shapes_data, stage_1):
    """Options of 4 steps of stage 2 on the shared stage 1, without model_dir and evaluation."""
    return runs.config(
        shapes_data,
        "",
        mode="stage2_masks",
        init_checkpoint=str(stage_1),
        train_steps=4,
        checkpoint_interval=1,
        score_threshold=0.0,
    )


@pytest.fixture(scope="module")
def with_evaluation(base, shapes_data):
    return base.replace(eval_records=(str(shapes_data / "records" / "val"),))


def weights(model_dir):
    return checkpoints.load_model(str(model_dir)).model.get_weights()


def run(base, model_dir, **changes):
    results = training.train(base.replace(model_dir=str(model_dir), **changes))
    return results, weights(model_dir)


def files(cache):
    return {path: path.stat().st_mtime_ns for path in pathlib.Path(cache).rglob("*.*")}


def assert_equal_weights(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def uncached(with_evaluation, tmp_path_factory):
    """(results, weights) of the run without a cache."""
    return run(with_evaluation, tmp_path_factory.mktemp("uncached"))


def test_a_cached_run_equals_an_uncached_one(with_evaluation, uncached, tmp_path):
    cache = str(tmp_path / "cache")
    results, cached = run(with_evaluation, tmp_path / "run", feature_cache=cache)
    assert_equal_weights(cached, uncached[1])
    assert results == uncached[0] and json.loads(json.dumps(results)) == results
    assert {"box", "mask", "mask_given_boxes"} <= results.keys()
    assert len(list(pathlib.Path(cache).iterdir())) == 2  # of training and of evaluation
    # A cache is no option of what the run is.
    assert checkpoints.load_model(str(tmp_path / "run")).config.feature_cache == ""


@pytest.mark.thorough
def test_a_cached_run_has_the_weights_of_masks(base, uncached, tmp_path):
    """Those of a source, which all masks have; with them another loss than without."""
    weighted = base.replace(mask_source_weights=("human:0.25",))
    _, wanted = run(weighted, tmp_path / "plain")
    _, cached = run(weighted, tmp_path / "cached", feature_cache=str(tmp_path / "cache"))
    assert_equal_weights(cached, wanted)
    assert any(np.abs(a - b).max() > 1e-6 for a, b in zip(cached, uncached[1], strict=True))
    ones = base.replace(mask_source_weights=("human:1",))
    _, cached = run(ones, tmp_path / "ones", feature_cache=str(tmp_path / "cache"))
    assert_equal_weights(cached, uncached[1])


@pytest.mark.thorough
def test_another_head_reads_the_same_features(with_evaluation, tmp_path):
    cache = str(tmp_path / "cache")
    run(with_evaluation, tmp_path / "first", feature_cache=cache)
    before = files(cache)
    other = with_evaluation.replace(mask_output="class_agnostic")
    wanted_results, wanted = run(other, tmp_path / "plain")
    results, cached = run(other, tmp_path / "cached", feature_cache=cache)
    assert_equal_weights(cached, wanted)
    assert results == wanted_results
    assert files(cache) == before


@pytest.mark.thorough
def test_a_longer_run_adds_steps_and_a_cut_off_one_goes_on(base, uncached, tmp_path):
    cache = str(tmp_path / "cache")
    run(base, tmp_path / "run", train_steps=2, feature_cache=cache)
    _, cached = run(base, tmp_path / "run", feature_cache=cache)
    assert_equal_weights(cached, uncached[1])


class TestKey:
    @pytest.fixture(scope="class")
    def loaded(self, base):
        return checkpoints.load_model(base.init_checkpoint)

    def key(self, base, model, *what, **changes):
        return feature_cache.key(model, base.replace(**changes), base.train_records, what)

    @pytest.mark.parametrize(
        "changes",
        [
            {"mask_output": "class_agnostic"},
            {"transfer_layers": 3},
            {"learning_rate": 1.0},
            {"train_steps": 99},
            {"ema_decay": 0.99},
            {"mask_mlp": False},
        ],
    )
    def test_is_the_same_whatever_the_head(self, base, loaded, changes):
        assert self.key(base, loaded.model, **changes) == self.key(base, loaded.model)

    @pytest.mark.parametrize(
        "changes",
        [
            {"seed": 1},
            {"batch_size": 4},
            {"roi_batch_size": 8},
            {"mask_rois": "ground_truth"},
            {"horizontal_flip": False},
            {"mask_roi_size": 5},
            {"mask_roi_op": "warp"},
            {"mask_roi_scale": 1.25},
            {"mask_upsampling": 4},
            {"mask_source_weights": ("human:0.5",)},
        ],
    )
    def test_is_another_where_features_are_others(self, base, loaded, changes):
        assert self.key(base, loaded.model, **changes) != self.key(base, loaded.model)

    def test_knows_set_a_records_and_weights(self, base, with_evaluation, loaded):
        wanted = self.key(base, loaded.model, 1)
        assert self.key(base, loaded.model, 1) == wanted
        assert self.key(base, loaded.model, 2) != wanted
        assert feature_cache.key(loaded.model, base, with_evaluation.eval_records, [1]) != wanted
        bias = loaded.model.box_head.cls_bias
        before = bias.numpy()
        bias.assign_add(np.full(bias.shape, 1e-3, np.float32))
        assert self.key(base, loaded.model, 1) != wanted
        bias.assign(before)

    def test_knows_which_files_in_which_order(self, with_evaluation, loaded, tmp_path):
        def key_of(*records):
            return feature_cache.key(loaded.model, with_evaluation, [str(path) for path in records])

        (val,) = with_evaluation.eval_records
        whole = pathlib.Path(with_evaluation.train_records[0])
        for name in ("a", "b"):
            shutil.copytree(whole, tmp_path / name)
        (first, *_) = sorted((tmp_path / "b").glob("*.tfrecord*"))
        shutil.copy(first, tmp_path / "b" / f"{first.name}.more")  # no shard of the manifest
        bare = tmp_path / "bare"
        bare.mkdir()
        for path in whole.glob("*.tfrecord*"):
            shutil.copy(path, bare)
        assert key_of(tmp_path / "a") == key_of(whole) == key_of(bare / "*")  # wherever it is
        assert key_of(f"{first}*") != key_of(whole)
        assert key_of(whole, val) != key_of(val, whole)
        (bare_first, *_) = sorted(bare.iterdir())
        bare_first.write_bytes(bare_first.read_bytes() * 2)
        assert key_of(bare / "*") != key_of(whole)


@pytest.mark.parametrize("mode", ["end_to_end", "stage1_boxes"])
def test_only_frozen_features_can_be_kept(base, tmp_path, mode):
    config = base.replace(mode=mode, model_dir=str(tmp_path), feature_cache=str(tmp_path))
    with pytest.raises(UserError, match="stage2_masks"):
        training.train(config)
