"""What benchmarks compare runs, and has the shapes that make the comparison fair."""

import pytest

from benchmarks import class_count


@pytest.mark.parametrize("make", [class_count.gathered_masks, class_count.all_masks])
def test_masks_of_detections(make):
    masks = make(num_classes=5)()
    side = 2 * class_count.SIDE
    assert masks.shape == (class_count.DETECTIONS, side, side)
    assert 0 <= masks.numpy().min() < 0.5 < masks.numpy().max() <= 1
