"""Objects that the borders of tiles cut come back whole, and once."""

import io
import itertools

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.client import Client
from maskx_tf.data.image_formats import png
from maskx_tf.errors import ImageError, UserError
from maskx_tf.inference import tiles, tiling
from maskx_tf.inference.detections import Detections
from tests import harness

SIDE = 28


def scene(generator, size=(900, 1100), count=30):
    """An image whose channels are the number of the object at a pixel, from 1 on."""
    numbers = np.zeros(size, np.int32)
    for number in range(1, count + 1):
        axes = generator.integers(8, 170, 2)
        centre = [int(generator.integers(0, side)) for side in size[::-1]]
        shape = np.zeros(size, np.uint8)
        cv2.ellipse(shape, centre, axes.tolist(), float(generator.uniform(0, 180)), 0, 360, 1, -1)
        if not numbers[cv2.dilate(shape, np.ones([9, 9])) > 0].any():
            numbers[shape > 0] = number
    return numbers[..., None].repeat(3, axis=-1).astype(np.uint8)


def detect(images):
    """A perfect detector of `scene`: a box and a mask of 28 x 28 for what is seen of each."""
    return [of_numbers(image[..., 0]) for image in images]


def of_numbers(numbers: np.ndarray) -> Detections:
    present = [number for number in np.unique(numbers) if number]
    boxes, masks = [], []
    for number in present:
        rows, columns = np.nonzero(numbers == number)
        y1, x1, y2, x2 = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        boxes.append([y1, x1, y2, x2])
        crop = (numbers[y1:y2, x1:x2] == number).astype(np.float32)
        masks.append(cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    ids = np.array(present, int)
    cells = np.array(masks, np.float32).reshape(-1, SIDE, SIDE)
    return Detections(
        boxes_yxyx=np.array(boxes, np.float32).reshape(-1, 4),
        scores=0.5 + 0.4 * (ids % 7) / 7,
        class_ids=ids % 3 + 1,
        class_names=np.array(["a", "b", "c"])[ids % 3],
        category_ids=ids % 3 + 1,
        mask_seen=np.ones(len(ids), bool),
        box_masks=np.round(255 * cells).astype(np.uint8),
        image_size=numbers.shape,
    )


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / max(np.count_nonzero(a | b), 1)


def whole_again(image: np.ndarray, tile: int, overlap: float) -> tuple[int, int]:
    """How many objects are cut by all tiles, and how many of these come back as one mask."""
    (wanted,), found = detect([image]), tiles.detect(detect, image, tile, overlap)
    assert len(found) >= len(wanted)
    places = tiling.tiles(*image.shape[:2], tile, overlap)
    masks = [one.mask().astype(bool) for one in found]
    cut = good = 0
    for one in wanted:
        y1, x1, y2, x2 = one.box_yxyx
        if any(t[0] <= y1 and t[1] <= x1 and t[2] >= y2 and t[3] >= x2 for t in places):
            continue
        cut += 1
        mask = one.mask().astype(bool)
        of_it = [m for m in masks if np.count_nonzero(m & mask) > 0.1 * min(m.sum(), mask.sum())]
        good += len(of_it) == 1 and iou(of_it[0], mask) >= 0.95
    return cut, good


@pytest.mark.parametrize("least_cut", [20, harness.thorough(300)])
def test_cut_objects_come_back_as_one_mask(least_cut):
    generator, cut, good = np.random.default_rng(0), 0, 0
    while cut < least_cut:
        more = whole_again(scene(generator), 256, 0.25)
        cut, good = cut + more[0], good + more[1]
    assert good >= 0.99 * cut, f"{good} of {cut}"


def test_objects_that_are_whole_in_a_tile_stay_as_they_are():
    image = scene(np.random.default_rng(1), count=12)
    (wanted,) = detect([image])
    found = tiles.detect(detect, image, 700, 0.5)
    assert len(found) == len(wanted) > 3
    order, by = np.lexsort(wanted.boxes_yxyx.T), np.lexsort(found.boxes_yxyx.T)
    np.testing.assert_array_equal(wanted.boxes_yxyx[order], found.boxes_yxyx[by])
    np.testing.assert_array_equal(wanted.class_ids[order], found.class_ids[by])
    assert (np.diff(found.scores) <= 0).all()


def test_an_image_of_one_tile_is_not_changed():
    image = scene(np.random.default_rng(2), (200, 300), 6)
    (wanted,), found = detect([image]), tiles.detect(detect, image, 300, 0.25)
    order = np.argsort(-wanted.scores, kind="stable")
    np.testing.assert_array_equal(found.box_masks, wanted.box_masks[order])


def test_an_image_without_objects():
    assert len(tiles.detect(detect, np.zeros([500, 400, 3], np.uint8), 200, 0.25)) == 0


def test_the_client_cuts_tiles_itself():
    class Server:
        name = "a server"
        images = 0

        def predict(self, inputs, signature_name=""):
            with PIL.Image.open(io.BytesIO(inputs["image_bytes"][0])) as picture:
                (found,) = detect([np.asarray(picture)])
            self.images += 1
            return {
                "num_detections": len(found),
                "detection_boxes": found.boxes_yxyx.tolist(),
                "detection_scores": found.scores.tolist(),
                "detection_classes": found.class_ids.tolist(),
                "detection_class_names": list(found.class_names),
                "detection_masks": found.box_masks.tolist(),
                "detection_mask_seen": found.mask_seen.tolist(),
                "image_size": list(found.image_size),
            }

    image = scene(np.random.default_rng(4), (300, 500), 9)
    client = Client()
    client._transport = Server()
    found = client.detect(png(image), "x", tiling.Tiling(256, 0.25))
    wanted = tiles.detect(detect, image, 256, 0.25)
    assert client._transport.images == len(tiling.tiles(300, 500, 256, 0.25)) > 1
    np.testing.assert_allclose(found.boxes_yxyx, wanted.boxes_yxyx)
    np.testing.assert_array_equal(found.box_masks, wanted.box_masks)
    assert found.name == "x" and len(found) == len(wanted) > 1
    with pytest.raises(ImageError, match="x: "):
        client.detect(png(image)[:200], "x", tiling.Tiling(256, 0.25))


def test_boxes_without_masks_are_merged_too():
    numbers = np.zeros([100, 300], int)
    numbers[20:60, 40:260] = 1  # longer than a tile

    def boxes_only(images):
        return [Detections(**{**vars(one), "box_masks": None}) for one in detect(images)]

    image = numbers[..., None].repeat(3, axis=-1).astype(np.uint8)
    found = tiles.detect(boxes_only, image, 100, 0.3)
    assert found.boxes_yxyx.tolist() == [[20, 40, 60, 260]] and found.box_masks is None


def test_masks_of_boxes_come_from_the_tile_that_holds_the_box():
    image, seen = scene(np.random.default_rng(3)), []
    (wanted,) = detect([image])

    class Perfect:
        def segment(self, image, boxes_yxyx, class_ids):
            seen.append((image.shape[:2], len(boxes_yxyx)))
            (found,) = detect([image])
            gaps = found.boxes_yxyx[None] - boxes_yxyx[:, None]
            nearest = np.abs(gaps).sum(-1).argmin(1) if len(boxes_yxyx) else np.array([], int)
            return found[nearest]

    segmenter = tiles.TiledSegmenter(Perfect(), tiling.Tiling(256, 0.25))
    order = np.random.default_rng(0).permutation(len(wanted))
    boxes, classes = wanted.boxes_yxyx[order].astype(float), wanted.class_ids[order]
    found = segmenter.segment(image, boxes, classes, name="x")
    assert found.name == "x" and found.image_size == image.shape[:2]
    np.testing.assert_array_equal(found.boxes_yxyx, boxes)
    np.testing.assert_array_equal(found.class_ids, classes)
    for one, other in zip(found, wanted[order], strict=True):
        assert iou(one.mask() > 0, other.mask() > 0) > 0.95
    counts = [count for size, count in seen if size == image.shape[:2]]
    is_small = (boxes[:, 2:] - boxes[:, :2] <= 64).all(1)  # the overlap: whole in a tile
    assert len(counts) == 1 and 0 < counts[0] <= (~is_small).sum() and is_small.any()
    assert len(segmenter.segment(image, boxes[:0], classes[:0])) == 0


@given(st.integers(1, 3000), st.integers(1, 1100), st.floats(0, 0.9))
def test_tiles_cover_a_side_with_the_overlap_asked_for(length, tile, overlap):
    found = tiling.starts(length, tile, overlap)
    assert found[0] == 0 and found[-1] + min(tile, length) == length
    for before, after in itertools.pairwise(found):
        assert before < after or tile == 1
        assert before + tile - after >= int(tile * overlap) - 1


@pytest.mark.parametrize(
    ("tile", "overlap", "text"), [(0, 0.25, "--tile=0"), (9, 1.0, "--overlap=1.0")]
)
def test_what_is_no_tile(tile, overlap, text):
    with pytest.raises(UserError, match=text):
        tiling.tiles(10, 10, tile, overlap)
