"""Pictures: colours of the sets, sizes, labels that stay legible, grids and panels."""

import numpy as np
import pytest
from PIL import Image

from maskx_tf import visualize
from maskx_tf.ops import masks

NAMES = ("ant", "bee", "cat")
SET_A = (1, 3)


def grey(height, width, value=128):
    return np.full((height, width, 3), value, np.uint8)


def full_mask(box, height, width):
    return masks.paste_mask(np.ones((2, 2)), box, height, width)


def test_colors_tell_the_sets_and_the_instances_apart():
    colors = visualize.instance_colors([1, 2, 3, 2, 1, 2], SET_A).astype(int)
    in_a = np.isin([1, 2, 3, 2, 1, 2], SET_A)
    assert (colors[in_a, 1] > colors[in_a, 0] + 60).all()  # green
    assert (colors[~in_a, 0] > colors[~in_a, 1] + 60).all()  # red
    assert (colors[~in_a, 0] > colors[~in_a, 2] + 60).all()
    assert len(np.unique(colors, axis=0)) == 6
    assert visualize.instance_colors([], SET_A).shape == (0, 3)


@pytest.mark.parametrize(("class_id", "channel"), [(1, 1), (2, 0)])
@pytest.mark.parametrize("kind", ["array", "bool", "rle"])
def test_masks_are_green_in_a_and_red_in_b(class_id, channel, kind):
    image, box = grey(500, 600), (200, 220, 400, 480)
    mask = full_mask(box, 500, 600)
    mask = {"array": mask, "bool": mask.astype(bool), "rle": masks.encode_rle(mask)}[kind]
    picture = visualize.draw_detections(image, [box], [class_id], [mask], NAMES, SET_A)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    inside, outside = picture[300, 350].astype(int), picture[100, 100]
    assert inside[channel] == inside.max() > np.delete(inside, channel).max() + 30
    np.testing.assert_array_equal(outside, 128)
    assert (image == 128).all()  # the input is not changed


def test_box_without_mask_leaves_the_inside_alone():
    picture = visualize.draw_detections(
        grey(500, 600), [(200, 220, 400, 480)], [1], None, NAMES, ()
    )
    np.testing.assert_array_equal(picture[300, 350], 128)
    assert picture[300, 220, 0] > 150  # the box's left side, red: set A is empty


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((48, 96), (240, 480)), ((500, 300), (500, 300)), ((300, 200), (600, 400))],
)
def test_small_images_are_enlarged(size, wanted):
    mask = full_mask((5, 5, 20, 20), *size)
    picture = visualize.draw_detections(grey(*size), [(5, 5, 20, 20)], [1], [mask], NAMES, SET_A)
    assert picture.shape[:2] == wanted


def test_score_threshold_padding_and_labels(monkeypatch):
    written, draw_labels = [], visualize.draw_labels

    def recorded(picture, boxes, labels, colors):
        written.extend(labels)
        return draw_labels(picture, boxes, labels, colors)

    monkeypatch.setattr(visualize, "draw_labels", recorded)
    visualize.draw_detections(
        grey(64, 64),
        np.tile([4.0, 4, 30, 30], (4, 1)),
        np.array([3, 1, 2, 0]),
        None,
        NAMES,
        SET_A,
        scores=np.array([0.934, 0.2, 0.5, 0.0]),
    )
    assert written == ["cat 0.93", "bee 0.50"]


def test_no_objects():
    picture = visualize.draw_detections(grey(500, 500), np.zeros((0, 4)), [], [], NAMES, SET_A)
    np.testing.assert_array_equal(picture, 128)


def test_labels_are_inside_and_apart():
    taken: list[tuple[int, int, int, int]] = []
    boxes = [(0, 0, 50, 50), (2, 1, 60, 50), (2, 3, 60, 50), (90, 190, 100, 200)]
    for box in boxes:
        place = visualize._place(np.array(box, float), 60, 16, (200, 100), taken)
        left, top, right, bottom = place
        assert 0 <= left < right <= 200 and 0 <= top < bottom <= 100
        assert not any(visualize._overlap(place, other) for other in taken)
        taken.append(place)


def test_labels_contrast_with_their_background():
    """Dark ink on light colours, light ink on dark ones."""
    colors = np.array([[60, 235, 60], [170, 20, 30]], np.uint8)
    boxes = np.array([[100, 50, 180, 200], [300, 50, 380, 200]], float)
    picture = visualize.draw_labels(grey(500, 500), boxes, ["cat 0.93"] * 2, colors)
    for color, top, wanted in zip(colors, (100, 300), (0, 255), strict=True):
        label = picture[top - 14 : top, 50:100].reshape(-1, 3)
        assert (label == color).all(axis=1).any()
        assert (label == wanted).all(axis=1).any()


@pytest.mark.parametrize(("ending", "kind"), [("jpg", "JPEG"), ("JPEG", "JPEG"), ("png", "PNG")])
def test_pictures_are_what_their_names_say(tmp_path, ending, kind):
    path = tmp_path / f"picture.{ending}"
    visualize.write_picture(grey(10, 20), path)
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == (kind, (20, 10))


def test_side_by_side_and_grid():
    both = visualize.side_by_side(grey(100, 50, 0), grey(100, 50, 200))
    assert both.shape == (124, 106, 3)
    assert both[60, 20, 0] == 0 and both[60, 80, 0] == 200
    assert (both[:24, :50] < 100).any()  # the caption
    grid = visualize.grid([grey(10, 20), grey(30, 10), grey(5, 5)], columns=2)
    assert grid.shape == (30 + 6 + 5, 20 + 6 + 20, 3)
    assert visualize.grid([grey(10, 20)], columns=3).shape == (10, 20, 3)


def test_panel():
    boxes = np.array([[8, 8, 40, 40], [0, 0, 0, 0]], np.float32)
    same = {
        "image": np.full((64, 96, 3), 90, np.uint8),
        "boxes_yxyx": boxes,
        "classes": np.array([1, 0], np.int32),
        "has_mask": np.array([True, False]),
        "masks": np.ones((2, 16, 16), np.uint8),
        "num_detections": np.array(1, np.int32),
        "detection_boxes": boxes,
        "detection_mask_windows": boxes,
        "detection_classes": np.array([2, 0], np.int32),
        "detection_masks": np.ones((2, 28, 28), np.float32),
    }
    examples = [
        {**same, "image_size": np.array(size), "detection_scores": np.array([score, 0])}
        for size, score in (((48.0, 96.0), 0.9), ((64.0, 64.0), 0.4))
    ]
    picture = visualize.panel(examples, NAMES, SET_A)
    assert picture.dtype == np.uint8
    # 96 x 48 becomes 480 x 240, 64 x 64 becomes 512 x 512; two of each and their captions.
    assert picture.shape == (240 + 24 + 6 + 512 + 24, 2 * 512 + 6, 3)
    truth, found = picture[24 + 120, 120].astype(int), picture[24 + 120, 480 + 6 + 120].astype(int)
    assert truth[1] > truth[0] + 30 and found[0] > found[1] + 30  # green, and red for class 2
    second_found = picture[240 + 24 + 6 + 24 + 200, 512 + 6 + 200]
    np.testing.assert_array_equal(second_found, 90)  # below the threshold


def test_a_long_caption_loses_its_beginning():
    picture = visualize.captioned(grey(20, 120), "folder/" * 20 + "x.jpg", " · image 7", below=True)
    assert picture.shape == (44, 120, 3)
    np.testing.assert_array_equal(picture[:20], 128)
    same = visualize.captioned(grey(20, 120), "other/" * 30 + "x.jpg", " · image 7", below=True)
    np.testing.assert_array_equal(picture[:, 60:], same[:, 60:])
    assert (picture[20:, :116] < 128).any() and (picture[20:, 116:] == 255).all()
