"""Controls of T: kernels and class weights that say nothing of their class."""

import types

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import checkpoints
from maskx_tf.assembly import build_model
from maskx_tf.checkpoints import class_weights
from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.evaluation import controls
from maskx_tf.layers.weight_transfer import WeightTransfer
from maskx_tf.model import variable_key
from tests import runs


@pytest.mark.parametrize("count", [2, 3, 7, 36])
def test_nothing_keeps_its_place(count):
    places = class_weights.deranged(count, seed=count)
    assert sorted(places) == list(range(count)) and (places != np.arange(count)).all()
    assert (places == class_weights.deranged(count, seed=count)).all()


def test_one_class_cannot_be_permuted():
    with pytest.raises(UserError, match="1 class"):
        class_weights.deranged(1, seed=0)


class Identity(WeightTransfer):
    def call(self, w_det):
        return w_det


def stub(table):
    """A model as far as `replace_kernels` looks at it: each T gives the table's rows."""
    return types.SimpleNamespace(
        transfers=[Identity(table.shape[1]), Identity(table.shape[1])],
        num_classes=len(table) - 1,
        w_det=lambda classes: tf.gather(tf.constant(table), classes),
        config=Config(),
    )


def kernels_of(model):
    every = tf.range(model.num_classes + 1)
    first, second = (transfer.kernels(every, None)[0].numpy() for transfer in model.transfers)
    assert (first == second).all()
    return first


def test_kernels_of_b_are_replaced_and_those_of_a_stay():
    table = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    set_a, set_b = [1, 4, 6], [2, 3, 5]
    model = stub(table)
    controls.replace_kernels(model, "permuted_b", set_a, seed=1)
    found = kernels_of(model)
    assert (found[[0, *set_a]] == table[[0, *set_a]]).all()
    assert (found[set_b] != table[set_b]).all()
    assert sorted(map(tuple, found[set_b])) == sorted(map(tuple, table[set_b]))
    model = stub(table)
    controls.replace_kernels(model, "mean_a", set_a, seed=1)
    found = kernels_of(model)
    assert (found[set_a] == table[set_a]).all()
    np.testing.assert_allclose(found[set_b], [table[set_a].mean(axis=0)] * 3, rtol=1e-6)


def test_a_model_without_transfer_is_refused():
    model = stub(np.zeros((3, 2), np.float32))
    model.transfers = []
    model.config = Config(mask_output="class_agnostic")
    with pytest.raises(UserError, match="--kernels=mean_a.*class_agnostic"):
        controls.replace_kernels(model, "mean_a", [1], seed=0)


def test_permuted_class_weights_need_a_detector():
    with pytest.raises(UserError, match="--init_checkpoint"):
        class_weights.permuted("", "cls", [1, 2], seed=0)


@pytest.mark.thorough
def test_runs_with_controls(shapes_data, stage_1, tmp_path):
    options = runs.config(
        shapes_data,
        tmp_path / "run",
        mode="stage2_masks",
        init_checkpoint=str(stage_1),
        train_steps=1,
        transfer_input="embedding",
        transfer_embeddings="permuted_cls",
        transfer_trained=False,
        learning_rate=0.1,
        eval_records=(),
    )
    runs.train(options)
    loaded = checkpoints.load_model(str(tmp_path / "run"))
    weights, rows = class_weights.read(str(stage_1), "cls"), loaded.model.class_embeddings
    set_a = np.array(loaded.mask_class_ids) - 1
    is_own = (rows == weights).all(axis=1)
    assert not is_own[set_a].any() and np.delete(is_own, set_a).all()
    assert sorted(map(tuple, rows)) == sorted(map(tuple, weights))
    fresh = build_model(loaded.config, loaded.vocabulary.num_classes, rows)
    changed = {
        variable_key(after): not np.array_equal(before, after)
        for before, after in zip(fresh.variables, loaded.model.variables, strict=True)
    }
    of_transfer = {key for key in changed if key.startswith("weight_transfer/")}
    assert of_transfer and not any(changed[key] for key in of_transfer)
    assert any(changed[key] for key in changed if key.startswith("mask_head/"))
