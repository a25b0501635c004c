"""What a detector takes, and refuses: images of all kinds, lists of them, boxes and classes."""

import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import ImageError, UserError
from maskx_tf.inference import inputs
from maskx_tf.inference.detector import Detector
from tests import harness

VOCABULARY = Vocabulary(("ant", "bee", "cat"), (10, 20, 30))


def detect(images):
    """Two objects of an image, whose scores tell the image: its first pixel, and half of that."""
    batch, height, width, _ = images.shape
    first = tf.cast(images[:, 0, 0, 0], tf.float32)[:, None] / 255  # [B, 1]
    return {
        "num_detections": tf.fill([batch], 2),
        "detection_boxes": tf.tile([[[0, 0, height, width / 2], [0, 0, 1, 1]]], [batch, 1, 1]),
        "detection_scores": tf.concat([first, first / 2], axis=1),
        "detection_classes": tf.tile([[2, 1]], [batch, 1]),
        "detection_class_names": tf.tile([["bee", "ant"]], [batch, 1]),
        "detection_masks": tf.fill([batch, 2, 4, 4], tf.constant(255, tf.uint8)),
        "detection_mask_seen": tf.tile([[False, True]], [batch, 1]),
        "image_size": tf.tile([[height, width]], [batch, 1]),
    }


@pytest.fixture
def batches():
    return []


@pytest.fixture
def detector(batches):
    def recorded(images):
        batches.append(tuple(images.shape))
        return detect(images)

    return Detector(recorded, VOCABULARY, name="a model")


def array(first=200, height=12, width=20):
    image = harness.random_image(height, width)
    image[0, 0, 0] = first
    return image


class TestImages:
    @pytest.mark.parametrize("kind", ["array", "tensor", "PIL", "bytes", "str", "path", "grey"])
    def test_of_all_kinds(self, detector, tmp_path, kind):
        image = array()
        path = tmp_path / "a.png"
        path.write_bytes(harness.encode_image(image, ".png"))
        given = {
            "array": image,
            "tensor": tf.constant(image),
            "PIL": PIL.Image.fromarray(image),
            "bytes": path.read_bytes(),
            "str": str(path),
            "path": path,
            "grey": PIL.Image.fromarray(image[..., 0]),
        }[kind]
        found = detector(given, min_score=0)
        assert found.scores.tolist() == pytest.approx([200 / 255, 100 / 255])
        assert found.image_size == (12, 20) and found.category_ids.tolist() == [20, 10]
        assert found.name == (str(path) if kind in ("str", "path") else "")
        wanted = np.stack([image[..., 0]] * 3, axis=-1) if kind == "grey" else image
        np.testing.assert_array_equal(found.image, wanted)

    @pytest.mark.parametrize("kind", ["PIL", "bytes"])
    def test_photographs_are_upright(self, detector, kind):
        exif, buffer = PIL.Image.Exif(), io.BytesIO()
        exif[0x0112] = 6
        PIL.Image.fromarray(array()).save(buffer, "JPEG", exif=exif)
        given = buffer.getvalue() if kind == "bytes" else PIL.Image.open(buffer)
        assert detector(given, 0).image_size == (20, 12)

    def test_what_scores_below_is_left_out(self, detector):
        assert len(detector(array())) == 1  # 0.5 if not said
        assert len(detector(array(), min_score=0.9)) == 0
        for score in (-0.1, 50):
            with pytest.raises(UserError, match=f"min_score={score} must lie in"):
                detector(array(), score)

    @pytest.mark.parametrize(
        ("image", "remedy"),
        [
            (np.zeros((4, 5, 3)), r"float64 \[4, 5, 3\].*\* 255"),
            (np.full((4, 5, 3), 7, np.int32), r"int32 \[4, 5, 3\].*image\.astype"),
            (np.zeros((4, 5), np.uint8), r"uint8 \[4, 5\].*np\.stack"),
            (np.zeros((4, 5, 1), np.uint8), r"np\.stack"),
            (np.zeros((4, 5, 4), np.uint8), r"image\[\.\.\., :3\]"),
            (np.zeros((3, 40, 50), np.uint8), r"transpose\(1, 2, 0\)"),
            (np.zeros((2, 4, 5, 3), np.uint8), r"\[2, 4, 5, 3\].*into a list"),
            (np.zeros((0, 5, 3), np.uint8), r"\[0, 5, 3\]"),
            (7, "type int"),
            (None, "type NoneType"),
            (b"junk", "^image: "),
            ("absent.jpg", r"absent\.jpg cannot be read: No such file"),
            ("docs", "docs cannot be read: Is a directory"),
            ("README.md", r"README\.md: "),
        ],
    )
    def test_other_kinds_are_refused_with_the_remedy(self, detector, image, remedy, monkeypatch):
        monkeypatch.chdir(harness.REPOSITORY)
        for given in (image, [array(), image]):
            with pytest.raises(ImageError, match=remedy) as caught:
                detector(given)
            assert "\n" not in str(caught.value)

    def test_the_remedies_work(self, detector):
        image = array()
        grey = image[..., 0]
        for repaired in (
            np.stack([grey.squeeze()] * 3, axis=-1),
            np.dstack([image, grey])[..., :3],
            image.transpose(2, 0, 1).transpose(1, 2, 0),
            (image / 255 * 255).round().astype(np.uint8),
        ):
            assert len(detector(repaired, 0)) == 2


class TestLists:
    def test_a_list_gives_a_list_in_its_order(self, detector, batches, tmp_path):
        sizes = [(12, 20), (20, 12)]
        images = [array(i, *sizes[i % 3 == 0]) for i in range(40)]
        path = tmp_path / "a.png"
        path.write_bytes(harness.encode_image(images[5], ".png"))
        given = [path if i == 5 else image for i, image in enumerate(images)]
        found = detector(given, min_score=0)
        assert [one.scores[0] * 255 for one in found] == pytest.approx(range(40))
        assert [one.image_size for one in found] == [image.shape[:2] for image in images]
        assert all(len({shape[1:3]} & set(sizes)) == 1 for shape in batches)
        assert sum(shape[0] for shape in batches) == 40 and max(s[0] for s in batches) == 4
        assert len(batches) < 16  # several at a time
        assert found[5].image == path and found[5].name == str(path)  # read when it is drawn
        np.testing.assert_array_equal(found[6].image, images[6])

    def test_of_none_and_one(self, detector):
        assert detector([]) == detector(()) == []
        (one,) = detector((array(),))
        assert len(one) == 1


class TestBoxes:
    def test_they_are_clipped_and_may_be_whole_numbers(self):
        found = inputs.read_boxes([[-3, 2, 8, 30]], 12, 20)
        assert found.dtype == np.float64 and found.tolist() == [[0, 2, 8, 20]]
        assert inputs.read_boxes([], 12, 20).shape == (0, 4)

    @pytest.mark.parametrize(
        ("boxes", "message"),
        [
            ([1, 2, 3, 4], r"shape \[4\].*\[N, 4\]"),
            ([[1, 2, 3]], r"shape \[1, 3\]"),
            ([[1, 2, 3, 4], [1, 2]], "cannot be read"),
            ([["a", 2, 3, 4]], "cannot be read"),
            ([[0.1, 0.2, 0.3, 1.0]], r"pixels.*\(12, 20, 12, 20\)"),
            ([[1, 2, 5, 6], [5, 2, 1, 6]], r"boxes_yxyx\[1\].*12 × 20.*y1 < y2"),
            ([[12, 2, 15, 6]], r"boxes_yxyx\[0\]"),
            ([[1, 2, np.nan, 6]], r"boxes_yxyx\[0\]"),
        ],
    )
    def test_other_ones_are_refused(self, boxes, message):
        with pytest.raises(UserError, match=message):
            inputs.read_boxes(boxes, 12, 20)


class TestClasses:
    @pytest.mark.parametrize(
        ("classes", "count", "ids"),
        [
            (["cat", "ant"], 2, [3, 1]),
            ([3, "ant", np.int32(2)], 3, [3, 1, 2]),
            (np.array([1, 3]), 2, [1, 3]),
            ("bee", 3, [2, 2, 2]),
            (1, 1, [1]),
            ([], 0, []),
        ],
    )
    def test_names_and_ids(self, classes, count, ids):
        assert inputs.read_classes(classes, count, VOCABULARY).tolist() == ids

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            (["cat"], "1 classes for 2 boxes"),
            (["cat", "cats"], "'cats'.*Did you mean: 'cat'"),
            ([0, 1], "no class 0.*1 to 3"),
            ([1, 4], "no class 4"),
            ([1, 2.0], r"no class 2\.0"),
            ([True, 1], "no class True"),
        ],
    )
    def test_other_ones_are_refused(self, classes, message):
        with pytest.raises(UserError, match=message):
            inputs.read_classes(classes, 2, VOCABULARY)


def test_an_exported_model_says_that_it_takes_no_boxes(detector):
    with pytest.raises(UserError, match="no signature for given boxes.*load the run"):
        detector.masks(array(), [[0, 0, 5, 5]], "cat")


def test_the_text_of_a_detector_is_short(detector):
    assert repr(detector) == "<Detector of 3 classes, a model>"
    assert detector.class_names == ("ant", "bee", "cat")
