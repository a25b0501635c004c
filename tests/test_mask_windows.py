"""Masks over windows wider than their boxes (--mask_roi_scale), from targets to pasted masks."""

import numpy as np
import pytest
import tensorflow as tf

from export import comparison
from maskx_tf.checkpoints import LoadedModel
from maskx_tf.evaluation.runner import add_image
from maskx_tf.inference.detections import Detections
from maskx_tf.inference.module import DetectionModule
from maskx_tf.inference.segmenter import Segmenter
from maskx_tf.ops import boxes, masks
from maskx_tf.ops.mask_targets import mask_targets
from tests import stub_server, tiny

SCALE = 1.25


@pytest.mark.parametrize(
    ("side", "first", "count"), [(28, 3, 22), (32, 3, 26), (56, 6, 44), (64, 6, 52)]
)
def test_cells_of_a_window_whose_centres_lie_in_the_box(side, first, count):
    box = np.array([[10.0, 30, 50, 50]])
    cells = boxes.in_cells(box, boxes.mask_windows(box, SCALE), side).numpy()[0]
    centres = np.arange(side) + 0.5
    for low, high in (cells[[0, 2]], cells[[1, 3]]):
        inside = np.flatnonzero((low <= centres) & (centres < high))
        assert (inside[0], len(inside)) == (first, count)


def test_windows_by_hand():
    given = np.array([[[10.0, 20, 30, 60], [0, 0, 0, 0]]])
    found = boxes.mask_windows(given, 1.5)
    assert found.dtype == tf.float64
    np.testing.assert_allclose(found, [[[5, 10, 35, 70], [0, 0, 0, 0]]])
    odd = np.float32([[0.1, 1 / 3, 7.7, 1e-7]])
    np.testing.assert_array_equal(boxes.mask_windows(odd, 1.0), odd)


def test_a_target_of_a_window_pastes_to_the_objects_mask():
    """Beyond the box too: the window of a box that is too small shows the rest of its object."""
    y, x = np.mgrid[:100, :120] + 0.5
    truth = (((y - 47) / 25) ** 2 + ((x - 60) / 40) ** 2 <= 1).astype(np.uint8)
    object_box = np.float32([[22, 20, 72, 100]])
    mask = truth[None, 22:72, 20:100]
    mask = mask[:, np.arange(112) * 50 // 112][:, :, np.arange(112) * 80 // 112]
    small = np.float32([[26, 26, 68, 94]])
    for box, scale, least in ((object_box, SCALE, 0.97), (small, SCALE, 0.97), (small, 1.0, 0.0)):
        window = boxes.mask_windows(box, scale)
        target = mask_targets(tf.constant(mask), object_box, window, tf.constant([0]), 56)
        pasted = masks.paste_mask(target.numpy()[0], window.numpy()[0], 100, 120)
        iou = (pasted & truth).sum() / (pasted | truth).sum()
        assert iou > least
    assert iou < 0.95  # without a window the rest is cut off


def test_outputs_of_an_export_are_pasted_into_their_windows():
    """As the client reads them; chosen detections keep their own."""
    outputs = {key: value[0] for key, value in stub_server.outputs(count=3).items()}
    windows = boxes.mask_windows(outputs["detection_boxes"], 1.5).numpy()
    found = Detections.from_outputs(outputs | {"detection_mask_windows": windows})
    height, width = outputs["image_size"]
    for one, place in ((found[0], 0), (found[2], 2), (found[np.array([False, True, True])][0], 1)):
        mask = outputs["detection_masks"][place] / 255
        wanted = masks.paste_mask(mask, windows[place], height, width)
        np.testing.assert_array_equal(one.mask(), wanted)
        assert one.box_yxyx == tuple(outputs["detection_boxes"][place].tolist())
        assert (wanted != Detections.from_outputs(outputs)[place].mask()).any()


class Recorder:
    """Takes what an evaluator gets."""

    def add(self, image_id, boxes_yxyx, scores, classes, rles, mask_scores):
        self.boxes, self.rles = boxes_yxyx, rles

    def add_given_boxes(self, image_id, boxes_yxyx, classes, rles):
        self.given = rles


@pytest.mark.slow
def test_served_evaluated_and_labelled_masks_are_the_same():
    """Masks reach over the windows, whoever asks, and the box stays the detected one."""
    config = tiny.config(mask_roi_scale=1.5, convolutions="direct")
    model = tiny.model(config)
    image = tiny.images(1)[0]
    vocabulary, set_a = tiny.VOCABULARY, tiny.SET_A
    module = DetectionModule(model, config, vocabulary, set_a, rle=True)
    served = {k: v.numpy() for k, v in module.detect_images(tf.constant(image[None])).items()}
    assert comparison.rle_problem(served) == ""
    np.testing.assert_array_equal(
        served["detection_mask_windows"], boxes.mask_windows(served["detection_boxes"], 1.5)
    )
    count = int(served["num_detections"][0])
    assert count > 2

    detections = Detections.from_outputs({k: v[0] for k, v in served.items()})
    rles = [detection.rle() for detection in detections]
    assert [r["counts"].encode() for r in rles] == list(served["detection_rle_bytes"][0, :count])
    assert any(sticks_out(d) for d in detections)

    canvas, size, scale, *_ = module._to_canvas(tf.constant(image))
    outputs = model(canvas[None], size[None], scale[None])
    given = model.masks(
        model.pyramid(canvas[None], size[None]),
        outputs["detection_boxes"],
        outputs["detection_classes"],
    )
    example = {k: v[0].numpy() for k, v in outputs.items()} | {
        "original_size": image.shape[:2],
        "image_id": 1,
        "image_scale": scale.numpy(),
        "boxes_yxyx": outputs["detection_boxes"][0].numpy(),
        "classes": outputs["detection_classes"][0].numpy(),
        "is_crowd": np.zeros(len(outputs["detection_classes"][0]), bool),
        "given_masks": given[0].numpy(),
    }
    evaluated = Recorder()
    add_image(evaluated, example, mask_roi_scale=config.mask_roi_scale)
    for found in (evaluated.rles, evaluated.given):
        assert all(
            differing(*pair) <= comparison.RLE_TOLERANCE_PX
            for pair in zip(found, rles, strict=True)
        )

    loaded = LoadedModel(model, config, vocabulary, set_a)
    labelled = Segmenter(loaded).segment(image, detections.boxes_yxyx, detections.class_ids)
    for pair in zip(labelled, rles, strict=True):
        assert differing(pair[0].rle(), pair[1]) <= comparison.RLE_TOLERANCE_PX


def sticks_out(detection):
    """Whether a mask has pixels beyond its box."""
    y1, x1, y2, x2 = detection.box_yxyx
    mask = detection.mask()
    mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = 0
    return mask.any()


def differing(first, second):
    return int((masks.decode_rle(first) != masks.decode_rle(second)).sum())
