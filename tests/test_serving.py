"""The served function: inputs, outputs in original pixels, independence of the neighbours."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.data import preprocessing
from maskx_tf.inference.batching import Batching
from maskx_tf.inference.module import DetectionModule
from tests import tiny
from tests.harness import image_file

KEYS = {
    "num_detections": ((), tf.int32),
    "detection_boxes": ((6, 4), tf.float32),
    "detection_scores": ((6,), tf.float32),
    "detection_classes": ((6,), tf.int32),
    "detection_class_names": ((6,), tf.string),
    "detection_masks": ((6, 14, 14), tf.uint8),
    "detection_mask_seen": ((6,), tf.bool),
    "image_size": ((2,), tf.int32),
}


@pytest.fixture(scope="module")
def module():
    config = tiny.config()
    return DetectionModule(tiny.model(config), config, tiny.VOCABULARY, tiny.SET_A)


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for key in found:
        if key == "detection_boxes":
            np.testing.assert_allclose(found[key], wanted[key], atol=1e-4)
        elif key == "detection_scores":
            np.testing.assert_allclose(found[key], wanted[key], atol=1e-6)
        elif key == "detection_masks":
            gap = np.abs(found[key].numpy().astype(int) - wanted[key].numpy())
            assert gap.max() <= 1
        else:
            np.testing.assert_array_equal(found[key], wanted[key])


def test_shapes_and_types(module):
    outputs = module.detect_images(np.stack([tiny.images()[0]] * 2))
    assert outputs.keys() == KEYS.keys()
    for key, (shape, dtype) in KEYS.items():
        assert outputs[key].shape == (2, *shape) and outputs[key].dtype == dtype, key


def test_the_scale_reaches_a_model_of_detectrons_conventions():
    config = tiny.config(conventions="detectron")
    model = tiny.model(config)
    image = tiny.images()[0]
    module = DetectionModule(model, config, tiny.VOCABULARY, tiny.SET_A)
    found = module.detect_images(image[None])
    resized, size, scale = preprocessing.resize_and_pad(image, 64, 96)
    assert np.all(scale > 1.5)
    boxes = model(resized[None], size[None], scale[None])["detection_boxes"]
    np.testing.assert_allclose(found["detection_boxes"], boxes / np.tile(scale, 2), atol=1e-4)
    without = model(resized[None], size[None])["detection_boxes"]
    assert np.abs(boxes - without).max() > 1e-2


def test_results_are_the_models_in_original_pixels(module):
    model = tiny.model(tiny.config())
    for image in tiny.images():
        resized, size, scale = preprocessing.resize_and_pad(image, 64, 96)
        direct = model(resized[None], size[None], training=False)
        served = module.detect_images(image[None])
        count = int(served["num_detections"][0])
        assert count == direct["num_detections"][0] > 0
        boxes = direct["detection_boxes"][0].numpy() / np.tile(scale, 2)
        np.testing.assert_allclose(served["detection_boxes"][0], boxes, atol=1e-3)
        assert served["detection_boxes"].numpy().max() > 10
        limits = [*image.shape[:2]] * 2
        assert (served["detection_boxes"][0].numpy() <= limits).all()
        masks = direct["detection_masks"][0].numpy()
        gap = served["detection_masks"][0].numpy() / 255 - masks
        assert np.abs(gap).max() < 1.01 / 255 and masks[:count].std() > 0.01
        assert served["image_size"][0].numpy().tolist() == [*image.shape[:2]]


def test_class_names_and_mask_seen(module):
    outputs = {k: v.numpy()[0] for k, v in module.detect_images(tiny.images()[0][None]).items()}
    for i, class_id in enumerate(outputs["detection_classes"]):
        name = "background" if class_id == 0 else tiny.VOCABULARY.names[class_id - 1]
        assert outputs["detection_class_names"][i].decode() == name
        assert outputs["detection_mask_seen"][i] == (class_id in tiny.SET_A)
        assert (class_id > 0) == (i < outputs["num_detections"])


def test_an_image_does_not_depend_on_its_neighbours(module):
    """Landscape, portrait and square images, whose canvases differ, in one batch."""
    encoded = [image_file(image, "PNG") for image in tiny.images()]
    together = module.detect_bytes(encoded)
    for i, one in enumerate(encoded):
        alone = module.detect_bytes([one])
        assert_equal({key: value[i : i + 1] for key, value in together.items()}, alone)


def test_bytes_equal_decoded_images(module):
    image = tiny.images()[0]
    from_bytes = module.detect_bytes([image_file(image, "PNG")])
    assert_equal(from_bytes, module.detect_images(image[None]))


def test_empty_batch(module):
    outputs = module.detect_bytes(tf.zeros([0], tf.string))
    assert outputs["detection_boxes"].shape == (0, 6, 4)


def test_undecodable_bytes_are_an_error(module):
    with pytest.raises(tf.errors.InvalidArgumentError):
        module.detect_bytes([b"this is no image"])


def test_too_many_images_are_refused_before_the_first_is_decoded():
    """Each would take a canvas of memory. What is no image fails as such up to the limit only."""
    config = tiny.config()
    batching = Batching((1, 2), timeout_us=1000, max_enqueued=2)
    module = DetectionModule(tiny.model(config), config, tiny.VOCABULARY, tiny.SET_A, batching)
    with pytest.raises(tf.errors.InvalidArgumentError, match="5 images; at most 4 are accepted"):
        module.detect_bytes([b"this is no image"] * 5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="5 images; at most 4 are accepted"):
        module.detect_images(np.zeros([5, 8, 8, 3], np.uint8))
    with pytest.raises(tf.errors.InvalidArgumentError, match="bytes are not a JPEG"):
        module.detect_bytes([b"this is no image"] * 4)
    assert len(module.detect_images(np.zeros([4, 8, 8, 3], np.uint8))["image_size"]) == 4
