"""Precision-recall curves of set A and B."""

import numpy as np
import pytest

from maskx_tf.evaluation import curves
from maskx_tf.evaluation.coco import CocoEvaluator
from tests import test_evaluation as evaluation


@pytest.fixture(scope="module", params=["faster_coco_eval", "pycocotools"])
def scored(request):
    truth = evaluation.random_ground_truth()
    evaluator = CocoEvaluator(truth, evaluation.VOCABULARY, evaluation.SET_A, request.param)
    evaluation.add_noisy_predictions(evaluator, truth)
    return evaluator.evaluate(), evaluator.curves


def test_the_area_under_a_curve_is_ap50(scored):
    results, found = scored
    for section in found:
        for subset in ("A", "B", "all"):
            precision = found[section][subset]
            assert precision.shape == (101,) and np.all(np.diff(precision) <= 1e-12)
            assert precision.mean() == pytest.approx(results[section][subset]["AP50"])


def test_subsets_without_ground_truth_have_none():
    truth = evaluation.random_ground_truth()
    evaluator = CocoEvaluator(truth, evaluation.VOCABULARY, range(1, 7))
    evaluation.add_truth_as_predictions(evaluator, truth)
    evaluator.evaluate()
    assert set(evaluator.curves["mask"]) == {"A", "all"}
    np.testing.assert_allclose(evaluator.curves["mask"]["A"], 1.0)


def test_the_picture_shows_both_sets(scored):
    picture = curves.pixels(curves.draw(scored[1]))
    assert picture.dtype == np.uint8 and picture.shape[1] > picture.shape[0] > 200
    for color in ([44, 160, 44], [214, 39, 40]):  # Matplotlib's green and red
        assert np.any(np.all(picture == color, axis=-1))
