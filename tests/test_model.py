"""The assembled model: valid detections, masks of given boxes, batches, padding."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.assembly import build_model
from maskx_tf.errors import UserError
from maskx_tf.inference import folding
from tests import batches, tiny

CONFIG = batches.tiny_config(score_threshold=0.05, max_detections=20, pixel_std=(57.0, 57.0, 57.0))


def awake(config, num_classes=batches.NUM_CLASSES):
    """A model whose outputs vary: the published initial weights of the last layers are tiny."""
    model = build_model(config, num_classes)
    rng = np.random.default_rng(0)
    for layer in (model.rpn.objectness, model.rpn.deltas):
        kernel, bias = layer.get_weights()
        layer.set_weights([rng.normal(0, 0.1, kernel.shape), bias])
    model.box_head.cls_kernel.assign(rng.normal(0, 3, model.box_head.cls_kernel.shape))
    model.box_head.box_kernel.assign(rng.normal(0, 2, model.box_head.box_kernel.shape))
    return model


@pytest.fixture(scope="module")
def model():
    return awake(CONFIG)


@pytest.fixture(scope="module")
def images():
    """Two images of 64 x 64 and 50 x 60 pixels on a canvas of 64 x 64, garbage in the padding."""
    image = batches.random_features()["image"]
    return image, tf.constant([[64.0, 64.0], [50.0, 60.0]])


@pytest.fixture(scope="module")
def detections(model, images):
    return {name: value.numpy() for name, value in model(*images).items()}


def test_shapes_and_types(detections):
    wanted = {
        "num_detections": ((2,), np.int32),
        "detection_boxes": ((2, 20, 4), np.float32),
        "detection_scores": ((2, 20), np.float32),
        "detection_classes": ((2, 20), np.int32),
        "detection_masks": ((2, 20, 14, 14), np.float32),
    }
    assert {name: (v.shape, v.dtype) for name, v in detections.items()} == wanted


def test_detections_are_valid(detections, images):
    for i, (height, width) in enumerate(images[1].numpy()):
        count = detections["num_detections"][i]
        boxes, scores, classes, masks = (
            detections[f"detection_{name}"][i] for name in ("boxes", "scores", "classes", "masks")
        )
        assert 5 < count <= 20
        y1, x1, y2, x2 = boxes[:count].T
        assert np.all((y1 >= 0) & (x1 >= 0) & (y1 < y2) & (x1 < x2))
        assert np.all((y2 <= height) & (x2 <= width))
        assert np.all(np.diff(scores[:count]) <= 0) and scores[count - 1] > 0.05 and scores[0] <= 1
        assert np.all((classes[:count] >= 1) & (classes[:count] <= batches.NUM_CLASSES))
        assert masks.min() >= 0 and masks.max() <= 1 and masks[:count].std() > 0.1
        for padding in (boxes[count:], scores[count:], classes[count:], masks[count:]):
            np.testing.assert_array_equal(padding, 0)


def test_segment_gives_the_masks_of_call_for_the_same_boxes(model, images, detections):
    boxes, classes = detections["detection_boxes"], detections["detection_classes"]
    masks = tiny.segment(model, *images, boxes, classes)
    np.testing.assert_allclose(masks, detections["detection_masks"], atol=1e-5)


def test_segment_depends_on_the_class(model, images):
    boxes = tf.constant([[[5.0, 5, 40, 40], [5, 5, 40, 40], [5, 5, 40, 40]]] * 2)
    masks = tiny.segment(model, *images, boxes, tf.constant([[1, 2, 0]] * 2)).numpy()
    assert np.abs(masks[:, 0] - masks[:, 1]).max() > 1e-3
    np.testing.assert_array_equal(masks[:, 2], 0)  # no class, no mask


def test_without_any_box_segment_is_all_zeros(model, images):
    masks = tiny.segment(model, *images, tf.zeros([2, 3, 4]), tf.zeros([2, 3], tf.int32))
    np.testing.assert_array_equal(masks, np.zeros([2, 3, 14, 14]))


def test_a_batch_of_two_is_two_batches_of_one(model, images, detections):
    for i in range(2):
        alone = model(*(part[i : i + 1] for part in images))
        for name, value in detections.items():
            np.testing.assert_allclose(alone[name][0], value[i], atol=1e-4, err_msg=name)


def test_what_lies_in_the_padding_of_the_canvas_does_not_matter(model, images, detections):
    image = images[0].numpy()
    image[1, 50:] = 255
    image[1, :, 60:] = 7
    found = model(tf.constant(image), images[1])
    for name, value in detections.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_no_detections(images):
    model = awake(CONFIG.replace(score_threshold=1.0))
    for name, value in model(*images).items():
        np.testing.assert_array_equal(value, tf.zeros_like(value), err_msg=name)


def test_folded_transfer_gives_the_same_masks(model, images, detections):
    folded = awake(CONFIG)
    folding.fold_transfer(folded)
    for name, value in folded(*images).items():
        np.testing.assert_allclose(value, detections[name], atol=1e-5, err_msg=name)
    # From now on T is a table: its weights have no effect.
    for variable in folded.weight_transfer.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    masks = folded(*images)["detection_masks"]
    np.testing.assert_allclose(masks, detections["detection_masks"], atol=1e-5)


def test_a_graph_gives_what_eager_gives(model, images, detections):
    found = tf.function(model, autograph=False)(*images)
    for name, value in detections.items():
        np.testing.assert_allclose(found[name], value, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(("order", "channels"), [("bgr", [2, 1, 0]), ("rgb", [0, 1, 2])])
def test_normalisation(order, channels):
    config = CONFIG.replace(
        channel_order=order, pixel_mean=(1.0, 2.0, 3.0), pixel_std=(2.0, 4.0, 5.0)
    )
    model = build_model(config, 2)
    image = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3)).astype(np.uint8)
    wanted = (image[..., channels] - np.array([1.0, 2, 3])) / [2, 4, 5]
    wanted[:, 3:], wanted[:, :, 5:] = 0, 0
    normalized = model.normalize(tf.constant(image), tf.constant([[3.0, 5.0]]))
    np.testing.assert_allclose(normalized, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["x.keras", "x.h5", "x"])
def test_files_that_could_not_be_loaded_are_refused(model, tmp_path, name):
    with pytest.raises(UserError, match=f"{name} would be .*save_new.*export"):
        model.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["w.h5", "w"])
def test_weights_are_saved_whole_or_not_at_all(model, tmp_path, name):
    with pytest.raises(UserError, match=r"w\.weights\.h5 would be"):
        model.save_weights(tmp_path / "w.weights.h5")  # Keras leaves out most of the backbone's
    model.save_weights(str(tmp_path / name))
    other = build_model(CONFIG.replace(seed=1), batches.NUM_CLASSES)
    other.load_weights(str(tmp_path / name))
    for one, again in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, again)


def test_the_seed_decides_the_weights():
    first, again, other = (build_model(CONFIG.replace(seed=s), 2).get_weights() for s in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("transfer_input", "parts"), [("cls", 1), ("box", 4), ("cls+box", 5)])
def test_w_seg_is_t_of_the_class_weights(transfer_input, parts):
    model = awake(CONFIG.replace(transfer_input=transfer_input, transfer_layers=1))
    head, classes = model.box_head, tf.constant([3, 1, 3, 7])
    rows = {
        "cls": head.cls_kernel.numpy(),
        "box": head.box_kernel.numpy().reshape(8, -1),
        "cls+box": np.concatenate(
            [head.cls_kernel.numpy(), head.box_kernel.numpy().reshape(8, -1)], axis=1
        ),
    }[transfer_input][[3, 1, 3, 7]]
    kernel, bias = model.weight_transfer.get_weights()
    assert kernel.shape[0] == parts * 32
    kernels, biases = model.mask_kernels(classes)
    np.testing.assert_allclose(kernels, rows @ kernel + bias, atol=1e-4)
    assert biases is None


def test_w_seg_of_embeddings():
    rows = np.random.default_rng(0).normal(size=(7, 9))
    config = CONFIG.replace(
        transfer_input="embedding", transfer_embeddings="rows.npy", transfer_layers=1
    )
    model = build_model(config, 7, rows)
    kernel, bias = model.weight_transfer.get_weights()
    found = model.w_seg(tf.constant([7, 1, 0]))
    wanted = np.stack([rows[6], rows[0], np.zeros(9)]) @ kernel + bias
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not any(v.name.startswith("embeddings") for v in model.trainable_variables)


@pytest.mark.parametrize("rows", [None, np.zeros([6, 9]), np.zeros(7)])
def test_embeddings_have_a_row_for_each_class(rows):
    config = CONFIG.replace(transfer_input="embedding", transfer_embeddings="rows.npy")
    with pytest.raises(UserError, match="one row for each of the 7 classes"):
        build_model(config, 7, rows)


@pytest.mark.parametrize("mask_output", ["class_agnostic", "class_specific"])
def test_learned_masks(images, mask_output):
    model = awake(CONFIG.replace(mask_output=mask_output))
    rng = np.random.default_rng(0)
    for variable in model.mask_weights.weights:
        variable.assign(rng.normal(size=variable.shape))
    boxes = tf.constant([[[5.0, 5, 40, 40], [5, 5, 40, 40]]] * 2)
    masks = tiny.segment(model, *images, boxes, tf.constant([[1, 2]] * 2)).numpy()
    assert np.allclose(masks[:, 0], masks[:, 1]) == (mask_output == "class_agnostic")
