"""Detectron's SGD against a NumPy simulation of its own form, the schedule, and AdamW."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.training.optimizer import (
    DetectronSGD,
    build_optimizer,
    is_bias,
    learning_rate_schedule,
)
from tests import batches

NAMES = ["fc/kernel", "fc/bias", "norm/gamma", "norm/beta", "head/box_kernel", "head/box_bias"]
SHAPES = [[3, 2], [2], [2], [2], [3, 4, 2], [3, 4]]
BIASES = [False, True, True, True, False, True]


def make_variables(seed=0):
    rng = np.random.default_rng(seed)
    return [
        tf.Variable(rng.normal(size=shape), dtype=tf.float32, name=name)
        for name, shape in zip(NAMES, SHAPES, strict=True)
    ]


def make_gradients(step):
    rng = np.random.default_rng(100 + step)
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]


def detectron_sgd(values, rates, momentum, decay, factor):
    """Detectron's update: the learning rate lies in the velocity, which is rescaled at each cut.

    V <- momentum * V + rate * g;  w <- w - V.  When the rate changes, V is multiplied by new / old.
    """
    values = [value.astype(np.float64) for value in values]
    velocities = [np.zeros_like(value) for value in values]
    for step, rate in enumerate(rates):
        if step and rate != rates[step - 1]:
            velocities = [v * rate / rates[step - 1] for v in velocities]
        for i, gradient in enumerate(make_gradients(step)):
            gradient = gradient * factor if BIASES[i] else gradient + decay * values[i]
            velocities[i] = momentum * velocities[i] + rate * gradient
            values[i] = values[i] - velocities[i]
    return values


@pytest.fixture
def variables():
    return make_variables()


def test_what_a_bias_is(variables):
    assert [is_bias(v) for v in variables] == BIASES


def test_equals_detectron_across_learning_rate_cuts(variables):
    rates = [0.1] * 4 + [0.01] * 3 + [0.001] * 3
    schedule = tf_keras.optimizers.schedules.PiecewiseConstantDecay([3, 6], [0.1, 0.01, 0.001])
    wanted = detectron_sgd([v.numpy() for v in variables], rates, 0.9, 0.05, 2.0)
    optimizer = DetectronSGD(schedule, momentum=0.9, l2=0.05, bias_factor=2.0)
    for step in range(len(rates)):
        optimizer.apply_gradients(zip(make_gradients(step), variables, strict=True))
    for variable, value in zip(variables, wanted, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-4, atol=1e-5)


def test_equals_detectron_in_a_graph_with_warm_up(variables):
    config = Config(
        learning_rate=0.1, weight_decay=0.05, warmup_steps=4, warmup_factor=0.2, lr_steps=(6, 8)
    )
    rates = [0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.01, 0.01, 0.001]
    wanted = detectron_sgd([v.numpy() for v in variables], rates, 0.9, 0.05, 2.0)
    optimizer = build_optimizer(config)
    optimizer.build(variables)

    @tf.function
    def update(gradients):
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    for step in range(len(rates)):
        update([tf.constant(g) for g in make_gradients(step)])
    for variable, value in zip(variables, wanted, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-4, atol=1e-5)


def test_slices_of_a_row_used_twice_add_up(variables):
    """What gathering class rows gives: unnamed rows still have momentum and decay."""
    rows = tf.constant([2, 0, 2])
    slices = tf.IndexedSlices(tf.ones([3, 4, 2]), rows, tf.constant([3, 4, 2]))
    dense = np.zeros([3, 4, 2], np.float32)
    dense[0], dense[2] = 1, 2
    results = []
    for gradient in (slices, tf.constant(dense)):
        variable = make_variables()[4]
        optimizer = DetectronSGD(0.1, momentum=0.9, l2=0.05, bias_factor=2.0)
        for _ in range(3):
            optimizer.apply_gradients([(gradient, variable)])
        results.append(variable.numpy())
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm(variables):
    config = Config(clip_norm=0.5, warmup_steps=0, learning_rate=1.0, weight_decay=0.0)
    gradients = make_gradients(0)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    before = [v.numpy() for v in variables]
    build_optimizer(config).apply_gradients(zip(gradients, variables, strict=True))
    for i, variable in enumerate(variables):
        wanted = before[i] - gradients[i] * 0.5 / norm * (2 if BIASES[i] else 1)
        np.testing.assert_allclose(variable, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1 / 3),
        (250, 2 / 3),
        (499, 1 / 3 + 2 / 3 * 499 / 500),
        (500, 1),
        (59_999, 1),
        (60_000, 0.1),
        (79_999, 0.1),
        (80_000, 0.01),
        (90_000, 0.01),
    ],
)
def test_published_schedule(step, factor):
    rate = learning_rate_schedule(Config())(tf.constant(step, tf.int64))
    assert float(rate) == pytest.approx(0.02 * factor, rel=1e-5)


def test_a_cut_within_the_warm_up_is_refused():
    """The warm-up would go to the rate after the cut."""
    assert learning_rate_schedule(Config(warmup_steps=300, lr_steps=(301,)))
    with pytest.raises(UserError, match=r"^--lr_steps=300,900 cuts .* --warmup_steps=300; "):
        learning_rate_schedule(Config(warmup_steps=300, lr_steps=(300, 900)))


def test_schedule_without_warm_up_and_without_cuts():
    schedule = learning_rate_schedule(Config(warmup_steps=0, lr_steps=(), learning_rate=0.3))
    for step in (0, 10, 89_999):
        assert float(schedule(tf.constant(step, tf.int64))) == pytest.approx(0.3)


def test_adamw_decays_kernels_alone(variables):
    config = Config(
        optimizer="adamw", learning_rate=0.01, weight_decay=0.5, warmup_steps=0, lr_steps=()
    )
    before = [v.numpy() for v in variables]
    zeros = [tf.zeros(shape) for shape in SHAPES]
    build_optimizer(config).apply_gradients(zip(zeros, variables, strict=True))
    for i, variable in enumerate(variables):
        wanted = before[i] * (1 if BIASES[i] else 1 - 0.01 * 0.5)
        np.testing.assert_allclose(variable, wanted, rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_state_is_restored_from_a_checkpoint(optimizer, tmp_path):
    """Three steps, save, restore elsewhere, two more: as five in a row."""
    config = batches.tiny_config(optimizer=optimizer, warmup_steps=3, lr_steps=(4,))

    def run(variables, made, steps):
        for step in steps:
            made.apply_gradients(zip(make_gradients(step), variables, strict=True))

    whole, wanted = build_optimizer(config), make_variables()
    run(wanted, whole, range(5))
    first, variables = build_optimizer(config), make_variables()
    run(variables, first, range(3))
    path = tf.train.Checkpoint(optimizer=first, variables=variables).write(str(tmp_path / "c"))
    second, restored = build_optimizer(config), make_variables(seed=1)
    second.build(restored)
    tf.train.Checkpoint(optimizer=second, variables=restored).read(path).assert_consumed()
    run(restored, second, range(3, 5))
    assert int(second.iterations) == 5
    for ours, theirs in zip(restored, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
