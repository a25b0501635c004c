"""Averaged weights: their recursion, where they are used, and that they survive."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import checkpoints
from maskx_tf.assembly import build_model
from maskx_tf.checkpoints import LoadedModel
from maskx_tf.data.classes import Vocabulary
from maskx_tf.model import variable_key
from maskx_tf.training import validation
from maskx_tf.training.moving_average import MovingAverage
from tests import batches

NAMES = tuple(f"class{i}" for i in range(batches.NUM_CLASSES))
VOCABULARY = Vocabulary.from_names(NAMES)
STRATEGY = tf.distribute.get_strategy()


def by_name(model):
    return {variable_key(v): v.numpy() for v in model.weights}


def perturb(model, step):
    """In place of training: moves every trained weight."""
    rng = np.random.default_rng(step)
    for variable in model.trainable_variables:
        variable.assign_add(tf.constant(rng.normal(size=variable.shape), variable.dtype))


def averaged(config, steps=5, decay=0.3):
    """A model, its average after `steps` steps, and what NumPy says that is."""
    model = build_model(config, batches.NUM_CLASSES)
    average = MovingAverage(model, decay)
    start = by_name(model)
    wanted = {name: start[name].astype(np.float64) for name in average.values}
    for step in range(1, steps + 1):
        perturb(model, step)
        average.update(STRATEGY, tf.constant(step, tf.int64))
        keep = min(decay, (1 + step) / (10 + step))
        now = by_name(model)
        wanted = {name: keep * a + (1 - keep) * now[name] for name, a in wanted.items()}
    return model, average, wanted


@pytest.fixture(scope="module")
def trained():
    return averaged(batches.tiny_config(mode="stage1_boxes", ema_decay=0.3))


def test_equals_the_recursion_in_numpy(trained):
    model, average, wanted = trained
    assert {name.split("/")[0] for name in wanted} == {"backbone", "fpn", "rpn", "box_head"}
    now = by_name(model)
    for name, value in wanted.items():
        np.testing.assert_allclose(average.values[name], value, rtol=1e-4, atol=1e-5)
        assert not np.allclose(now[name], value, atol=1e-3), name


def test_in_use_and_back(trained):
    model, average, _ = trained
    before = by_name(model)
    averages = {name: v.numpy() for name, v in average.values.items()}
    with pytest.raises(KeyboardInterrupt), average.in_use():
        for name, value in by_name(model).items():
            np.testing.assert_array_equal(value, averages.get(name, before[name]))
        raise KeyboardInterrupt
    for name, value in by_name(model).items():
        np.testing.assert_array_equal(value, before[name])
    for name, value in average.values.items():
        np.testing.assert_array_equal(value, averages[name])


def test_it_starts_from_the_weights_that_the_run_starts_from(trained):
    model, average, _ = averaged(batches.tiny_config(), steps=1)
    average.start()
    now = by_name(model)
    for name, value in average.values.items():
        np.testing.assert_array_equal(value, now[name])


def test_evaluation_during_training_uses_it(trained, monkeypatch):
    model, average, _ = trained
    seen = {}

    class Evaluator:
        curves = results = None

        def __init__(self, model, *rest):
            self.model = model

        def evaluate(self, per_class):
            seen.update(by_name(self.model))
            return {}

    monkeypatch.setattr(validation.runner, "ModelEvaluator", Evaluator)
    monkeypatch.setattr(validation.report, "scalars", lambda results: {})
    monkeypatch.setattr(validation.curves, "draw", lambda found: None)
    monkeypatch.setattr(validation.curves, "pixels", lambda figure: np.zeros([2, 2, 3], np.uint8))
    loaded = LoadedModel(model, model.config.replace(panel_images=0), VOCABULARY, ())
    validation.Evaluator(loaded, average).evaluate(tf.constant(-1))
    for name, value in average.values.items():
        np.testing.assert_array_equal(seen[name], value)
    validation.Evaluator(loaded).evaluate(tf.constant(-1))
    np.testing.assert_array_equal(seen["fpn/output2/kernel"], by_name(model)["fpn/output2/kernel"])


def test_a_loaded_run_has_the_averages(trained, tmp_path):
    """What evaluation, prediction, export and --init_checkpoint load."""
    model, average, _ = trained
    config = model.config.replace(model_dir=str(tmp_path))
    checkpoints.save_run(config, VOCABULARY, ())
    saved = tf.train.Checkpoint(model=model, average=average.checkpoint)
    path = saved.save(str(tmp_path / "ckpt"))
    keys = tf.train.load_checkpoint(path).get_variable_to_shape_map()
    assert sum(key.startswith("average/") for key in keys) == len(average.values)
    assert sum(key.startswith("model/") for key in keys) == len(model.weights)
    averages = {name: v.numpy() for name, v in average.values.items()}
    wanted = by_name(model) | averages
    found = by_name(checkpoints.load_model(path).model)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)
    new = build_model(batches.tiny_config(seed=1), batches.NUM_CLASSES)
    checkpoints.initialize(new, VOCABULARY, path)
    np.testing.assert_array_equal(by_name(new)["fpn/output2/kernel"], wanted["fpn/output2/kernel"])
    raw = by_name(model)
    perturb(model, 99)
    for value in average.values.values():
        value.assign(tf.zeros_like(value))
    checkpoints.restore(saved, path)  # to go on training: both as they were
    for name, value in by_name(model).items():
        np.testing.assert_array_equal(value, raw[name])
    for name, value in average.values.items():
        np.testing.assert_array_equal(value, averages[name])
