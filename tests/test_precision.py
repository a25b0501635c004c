"""Mixed precision: what stays float32, how far losses move, and the scaled loss of float16."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from maskx_tf import checkpoints
from maskx_tf.assembly import build_model
from maskx_tf.data.classes import Vocabulary
from maskx_tf.objective import training_losses
from maskx_tf.training.optimizer import build_optimizer
from maskx_tf.training.steps import Trainer
from tests import batches

SEED = tf.constant([0, 0])
# Of the losses of an untrained model; bfloat16 has 8 bits of mantissa, float16 11.
TOLERANCE = {"bfloat16": 0.02, "float16": 0.004}
HALVES = list(TOLERANCE)


@pytest.fixture(scope="module", autouse=True)
def exact_gradients():
    """As training does, see `devices.make_strategy`."""
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


def make(precision, **changes):
    # All candidates are sampled, and only ground-truth boxes are foreground: which proposals come
    # first, and on which side of a threshold they fall, must make no difference.
    options = {
        "roi_positive_iou": 1.0,
        "precision": precision,
        "pixel_std": (57.0, 57.0, 57.0),
        "rpn_batch_size": 4096,
        "roi_batch_size": 512,
        "normalization": "group_norm",
        "warmup_steps": 0,
    }
    return build_model(batches.tiny_config(**options | changes), batches.NUM_CLASSES)


def losses(model):
    labels = batches.to_tensors(batches.random_labels())
    found = training_losses(model, batches.random_features(), labels, SEED)
    assert all(value.dtype == tf.float32 for value, _ in found.values())
    return {name: float(value) for name, (value, _) in found.items()}


@pytest.fixture(scope="module")
def wanted():
    return losses(make("float32"))


@pytest.mark.parametrize("precision", HALVES)
def test_losses_are_close_to_those_of_float32(precision, wanted):
    found = losses(make(precision))
    assert found != wanted
    for name, value in found.items():
        assert value == pytest.approx(wanted[name], rel=TOLERANCE[precision], abs=1e-5), name


@pytest.mark.parametrize("precision", HALVES)
def test_what_is_float32_in_any_precision(precision):
    model = make(precision)
    assert {v.dtype for v in model.weights} == {tf.float32}
    half = tf.dtypes.as_dtype(precision)
    features, sizes = batches.random_features()["image"], tf.fill([2, 2], 64.0)
    pyramid = model.pyramid(features, sizes, training=True)
    assert {level.dtype for level in pyramid.values()} == {half}
    outputs = [tensor for level in model.rpn(pyramid).values() for tensor in level.values()]
    detections = model.detect(pyramid, sizes)
    rois = model.roi_features(pyramid, detections["detection_boxes"], 7)
    assert rois.dtype == half
    box_features = model.box_head(rois)
    classes = tf.reshape(detections["detection_classes"], [-1])
    logits = [
        model.box_head.class_logits(box_features),
        model.box_head.class_deltas(box_features, classes),
    ]
    floats = [v for v in detections.values() if v.dtype.is_floating]
    assert {tensor.dtype for tensor in outputs + logits + floats} == {tf.float32}
    assert tf_keras.mixed_precision.global_policy().name == "float32"  # other models' stays


def trainer_of(model):
    labels = batches.to_tensors(batches.random_labels())
    dataset = tf.data.Dataset.from_tensors((batches.random_features(), labels)).repeat()
    optimizer = build_optimizer(model.config)
    return Trainer(model, optimizer, dataset, tf.distribute.get_strategy())


@pytest.mark.thorough
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_training_and_loading_in_float32(precision, tmp_path):
    model = make(precision, model_dir=str(tmp_path))
    before = [v.numpy() for v in model.trainable_variables]
    trainer = trainer_of(model)
    first = trainer.train(tf.constant(1))
    last = trainer.train(tf.constant(7))
    assert last["loss"] < first["loss"]
    after = [v.numpy() for v in trainer.trained]
    assert all(np.isfinite(value).all() for value in after)
    assert sum(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)) == len(after)
    assert int(trainer.optimizer.iterations) == 8
    vocabulary = Vocabulary.from_names([f"class{i}" for i in range(batches.NUM_CLASSES)])
    checkpoints.save_run(model.config, vocabulary, ())
    tf.train.Checkpoint(model=model).save(str(tmp_path / "ckpt"))
    loaded = checkpoints.load_model(str(tmp_path))
    assert loaded.config == model.config.replace(precision="float32")
    images, sizes = batches.random_features()["image"], tf.fill([2, 2], 64.0)
    assert loaded.model.pyramid(images, sizes)[2].dtype == tf.float32
    for mine, its in zip(model.weights, loaded.model.weights, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_a_step_whose_gradients_overflow_is_left_out_and_counted():
    model = make("float16", mode="stage1_boxes")
    trainer = trainer_of(model)
    scale = trainer.optimizer._loss_scale.current_loss_scale
    assert float(scale) == 2**15
    scale.assign(2.0**120)
    before = [v.numpy() for v in model.trainable_variables]
    loss = trainer.train(tf.constant(1))["loss"]
    assert np.isfinite(loss)
    assert float(scale) == 2.0**119 and int(trainer.optimizer.iterations) == 1
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
