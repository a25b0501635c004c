"""Planted faults: each stops training in the step in which it has an effect, and is named."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.assembly import build_model
from maskx_tf.errors import UserError
from maskx_tf.training.diagnosis import BadStep, causes_of
from maskx_tf.training.optimizer import build_optimizer
from maskx_tf.training.step_guard import StepGuard, is_stop
from maskx_tf.training.steps import Trainer
from tests import batches, harness

IDS = np.array([139, 285], np.int64)


def batch():
    """A good batch that can be written to, with pixels as floats."""
    features = {name: value.numpy() for name, value in batches.random_features().items()}
    features["image"] = features["image"].astype(np.float32)
    return features | {"image_id": IDS}, batches.random_labels()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """With a learning rate a thousand times too high."""
    directory = tmp_path_factory.mktemp("run")
    config = batches.tiny_config(
        model_dir=str(directory), learning_rate=20.0, warmup_steps=0, pixel_std=(57.0, 57.0, 57.0)
    )
    model = build_model(config, batches.NUM_CLASSES)
    dataset = tf.data.Dataset.from_tensors(batch())
    return Trainer(model, build_optimizer(config), dataset, tf.distribute.get_strategy())


def variables(trainer):
    """All that a step may change, but the statistics of batch norms."""
    found = [*trainer.model.weights, *trainer.optimizer.variables]
    return [v.numpy() for v in found if "moving_" not in v.name]


def train(trainer, features, labels):
    """One step on a batch."""
    tensors = [{k: tf.constant(v) for k, v in part.items()} for part in (features, labels)]
    trainer.train_step(iter([tuple(tensors)]))


def stopped(trainer, features, labels):
    """The message of a step that must be stopped and change nothing; the batch that it saved."""
    before = variables(trainer)
    with pytest.raises(UserError) as error:
        train(trainer, features, labels)
    for value, old in zip(variables(trainer), before, strict=True):
        np.testing.assert_array_equal(value, old)
    message = str(error.value)
    (path,) = pathlib.Path(trainer.model.config.model_dir).glob("bad_batch_*.npz")
    assert f"The batch is in {path}; the last checkpoint is kept." in message
    saved = dict(np.load(path))
    path.unlink()
    return message, saved


def plant_infinite_box(features, labels):
    labels["boxes_yxyx"][1, 0, 2] = np.inf


def plant_nan_image(features, labels):
    features["image"][1, 3:5, 7, 0] = np.nan


def plant_class_id(features, labels):
    labels["classes"][0, 2] = batches.NUM_CLASSES + 1


def plant_flat_box(features, labels):
    labels["boxes_yxyx"][0, 1] = [5, 5, 30, 5]


CANNOT = "the batch has values that cannot be trained on in step 1"


@pytest.mark.parametrize(
    ("plant", "what", "cause"),
    [
        (plant_infinite_box, CANNOT, "object 0 of image 285 has a box that is not finite, ["),
        (plant_nan_image, CANNOT, "2 pixel values of image 285 are NaN or infinite"),
        (plant_class_id, CANNOT, "object 2 of image 139 has class id 8, outside 1..7"),
    ],
)
def test_a_fault_in_the_batch(trainer, plant, what, cause):
    features, labels = batch()
    plant(features, labels)
    message, saved = stopped(trainer, features, labels)
    assert message.startswith(what + ", which was not applied; images: 139, 285. Likely cause: ")
    assert cause in message and "learning rate" not in message
    for name, value in (features | labels).items():
        np.testing.assert_array_equal(saved[name], value)


def test_weights_that_are_not_finite(trainer):
    bias = trainer.model.mask_head.body.deconv.bias
    before = bias.numpy()
    bias.assign(np.full(bias.shape, np.nan))
    message, saved = stopped(trainer, *batch())
    bias.assign(before)
    assert message.startswith("loss mask is not finite in step 1")
    assert "weights are not finite before the step (mask_head/deconv/bias)" in message
    names, last = list(saved["recent_steps_columns"]), saved["recent_steps"][0, -1]
    assert np.isnan(last[names.index("mask")]) and np.isfinite(last[names.index("class")])


def test_a_learning_rate_that_is_too_high(trainer):
    """After the other tests on this trainer: it changes the weights."""
    trainer.guard.recent.assign(tf.zeros_like(trainer.guard.recent))
    features, labels = batch()
    with pytest.raises(UserError) as error:
        for _ in range(60):
            train(trainer, features, labels)
    message = str(error.value)
    assert re.match("(loss .* not finite|the gradient is not finite though .*) in step", message)
    assert "images: 139, 285" in message
    assert "the learning rate, 20 in this step, 8e+03 times what is usual" in message
    assert "lower --learning_rate" in message and "object" not in message
    assert all(np.isfinite(value).all() for value in variables(trainer))
    history = trainer.guard.history(trainer.strategy)[0]
    assert f"in step {int(trainer.optimizer.iterations) + 1}," in message and len(history) > 1
    assert np.isfinite(history[:-1]).all() and not np.isfinite(history[-1]).all()


class TestCauses:
    def step(self, features, labels, history=None, **changes):
        columns = ("batch", "class", "gradient norm")
        history = np.ones([1, 3, 3], np.float32) if history is None else history
        values = {"number": 4, "learning_rate": 0.001, "bad_weights": ()} | changes
        return BadStep(batch=features | labels, history=history, names=columns, **values)

    def causes(self, step, **changes):
        return "; ".join(causes_of(step, batches.tiny_config(**changes), batches.NUM_CLASSES))

    def test_a_box_without_area(self):
        features, labels = batch()
        plant_flat_box(features, labels)
        assert self.causes(self.step(features, labels)) == (
            "object 1 of image 139 has a box without area, [5.0, 5.0, 30.0, 5.0]"
        )

    def test_many_of_a_kind_are_counted(self):
        features, labels = batch()
        labels["classes"][:] = -3
        text = self.causes(self.step(features, labels))
        assert text.count("has class id -3") == 4 and text.endswith("6 more objects like it")

    def test_a_normalisation_that_divides_by_zero(self):
        text = self.causes(self.step(*batch()), pixel_std=(57.0, 0.0, 57.0))
        assert text.startswith("--pixel_mean=") and "--pixel_std=57.0,0.0,57.0" in text

    def test_growth_blames_the_learning_rate(self):
        history = np.array([[[0, 2.5, 8.0], [0, 70, 9e5], [0, np.nan, np.nan]]], np.float32)
        text = self.causes(
            self.step(*batch(), history), learning_rate=0.002, warmup_steps=500, batch_size=2
        )
        assert text == (
            "the loss grew from 2.5 to 70 and the gradient norm grew from 8 to 9e+05 in the last 3 "
            "steps; the learning rate, 0.001 in this step of a warm-up over 500 to 0.002, is too "
            "high for this model: lower --learning_rate, lengthen --warmup_steps or set --clip_norm"
        )

    def test_nothing_found(self):
        text = self.causes(self.step(*batch()), learning_rate=0.001, warmup_steps=0)
        assert text.startswith(
            "none found in batch, weights or the steps before; the learning rate"
        )


class TestCheck:
    def run(self, losses, gradients, scaled=False):
        guard = StepGuard(("class", "mask"), 7)
        losses = dict(zip(("class", "mask"), map(tf.constant, losses), strict=True))
        step = tf.function(lambda: guard.check(tf.constant(0.0), losses, gradients, scaled=scaled))
        return step()

    def test_what_is_finite_passes(self):
        sparse = tf.IndexedSlices(tf.constant([[3.0]]), tf.constant([1]), tf.constant([2, 1]))
        dense, none, slices = self.run([1.0, 2.0], [tf.constant([4.0]), None, sparse])
        assert none is None and dense.numpy() == [4.0] and slices.values.numpy() == [[3.0]]

    @pytest.mark.parametrize(
        ("losses", "gradient", "scaled", "stops"),
        [
            ([1.0, 2.0], np.inf, False, True),
            ([1.0, 2.0], np.inf, True, False),  # the optimizer of a scaled loss skips the step
            ([1.0, np.nan], 1.0, False, True),
            ([np.inf, 2.0], 1.0, True, True),
        ],
    )
    def test_what_is_not(self, losses, gradient, scaled, stops):
        gradients = [tf.constant([gradient], tf.float32)]
        if not stops:
            self.run(losses, gradients, scaled)
            return
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            self.run(losses, gradients, scaled)
        assert is_stop(error.value)


TWO_DEVICES = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import numpy as np
from maskx_tf.training.step_guard import StepGuard, is_stop

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    guard, weight = StepGuard(("class",), 7), tf.Variable(1.0)

@tf.function
def step(bad):
    def replica():
        context = tf.distribute.get_replica_context()
        here = bad & (context.replica_id_in_sync_group == 1)
        loss = {"class": tf.where(here, float("nan"), 2.0)}
        (gradient,) = guard.check(tf.constant(0.0), loss, [tf.constant(3.0)], scaled=False)
        weight.assign(context.all_reduce("SUM", gradient))
    strategy.run(replica)

step(tf.constant(False))
assert weight.numpy() == 6
weight.assign(1.0)
try:
    step(tf.constant(True))
except tf.errors.InvalidArgumentError as error:
    assert is_stop(error)
assert [value.numpy() for value in weight.values] == [1, 1]
history = guard.history(strategy)
assert history.shape == (2, 2, 3) and np.isnan(history).nonzero()[0].tolist() == [1]
print("stopped")
"""


@pytest.mark.slow
def test_one_replica_stops_all():
    command = [sys.executable, "-c", TWO_DEVICES]
    result = subprocess.run(command, cwd=harness.REPOSITORY, capture_output=True, text=True)
    assert result.stdout == "stopped\n", result.stderr[-3000:]
