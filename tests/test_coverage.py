"""Cover of classes by those with masks, against the posterior of a Gaussian process."""

import json

import numpy as np
import pytest

from maskx_tf import checkpoints
from maskx_tf.checkpoints import class_weights
from maskx_tf.data.classes import Vocabulary
from maskx_tf.evaluation.coverage import NOISE, Coverage, expected_iou
from tests.commands import in_process


def factor_weights(shapes=4, textures=3, width=16, noise=0.0, seed=0):
    """Class weights [shapes * textures, width] that are sums of two parts, and a bit of noise."""
    rng = np.random.default_rng(seed)
    of_shape, of_texture = rng.normal(size=(shapes, 1, width)), rng.normal(size=(textures, width))
    weights = (of_shape + of_texture).reshape(-1, width)
    return weights + noise * rng.normal(size=weights.shape)


def remaining(weights, known):
    """Posterior over prior variance of every class, by the textbook formula."""
    centred = weights - weights.mean(axis=0)
    kernel = centred @ centred.T
    kernel *= len(kernel) / kernel.trace()
    prior = kernel.diagonal()
    kernel = kernel + 100.0
    if not known:
        return kernel.diagonal() / prior
    of_known = kernel[np.ix_(known, known)] + NOISE * np.eye(len(known))
    posterior = kernel - kernel[:, known] @ np.linalg.solve(of_known, kernel[known])
    return posterior.diagonal() / prior


@pytest.mark.parametrize("known", [[], [3], [0, 5, 7, 2]])
def test_cover_is_that_of_the_posterior(known):
    weights = factor_weights(noise=0.5)
    wanted = np.clip(1 - remaining(weights, known), 0, 1)
    np.testing.assert_allclose(Coverage(weights, known).covered, wanted, atol=1e-9)


def test_classes_that_are_made_of_known_parts_are_covered():
    weights = factor_weights()
    known = [0, 1, 2, 3, 6, 9]  # every texture of the first shape, every shape of one texture
    assert Coverage(weights, known, noise=1e-6).covered.min() > 0.99
    without_last_shape = Coverage(weights, known[:-1], noise=1e-6).covered
    assert without_last_shape[:9].min() > 0.8 > without_last_shape[9:].max()


def test_the_first_choice_is_the_best_of_all():
    weights = factor_weights(noise=0.3, seed=2)
    rest = [i for i in range(len(weights)) if i != 4]
    left = [remaining(weights, [4, i])[rest].mean() for i in rest]
    (choice,) = Coverage(weights, [4]).choose(1)
    assert choice.row == rest[int(np.argmin(left))]
    covered = Coverage(weights, [4, choice.row]).covered
    assert choice.mean_after == pytest.approx(covered[rest].mean())


def test_choices_are_new_and_cover_more_and_more():
    coverage = Coverage(factor_weights(noise=0.3), [1, 2])
    choices = coverage.choose(100)
    assert sorted([1, 2, *(c.row for c in choices)]) == list(range(12))
    means = [choice.mean_after for choice in choices]
    assert means == sorted(means) and coverage.choose(1) == []


def advised(monkeypatch, tmp_path, *arguments):
    names = [f"{t} {s}" for s in ("disc", "ring", "star", "ell") for t in ("a", "b", "c")]
    Vocabulary.from_names(names).save(str(tmp_path / "vocabulary.json"))
    monkeypatch.setattr(checkpoints, "latest_checkpoint", lambda path: f"{path}/ckpt-1")
    monkeypatch.setattr(class_weights, "read", lambda path, kind: factor_weights())
    return names, in_process("maskx_tf.advise", f"--model_dir={tmp_path}", *arguments)


def test_command_writes_names_for_mask_classes(monkeypatch, tmp_path):
    (tmp_path / "a.txt").write_text("a disc\n")
    output = tmp_path / "outline.txt"
    names, result = advised(
        monkeypatch, tmp_path, "--count=3", f"--mask_classes={tmp_path}/a.txt", f"--output={output}"
    )
    written = output.read_text().split("\n")[:-1]
    assert written[0] == "a disc" and len(set(written)) == 4 and set(written) <= set(names)
    assert result.returncode == 0
    assert all(name in result.stdout for name in written[1:])
    assert "12 classes, 1 with masks" in result.stdout


def test_nothing_left_to_outline_is_refused(monkeypatch, tmp_path):
    _, result = advised(monkeypatch, tmp_path, "--mask_classes=all")
    assert result.returncode == 2 and "--mask_classes=all" in result.stderr


def test_expected_iou_follows_what_is_hard_in_a():
    """One shape is hard in A; it is expected to be hard with other textures too."""
    weights = factor_weights(shapes=6, textures=4, width=40, noise=0.1)
    known = [i for i in range(24) if (i // 4 + i % 4) % 2]
    ious = {i: 0.4 if i // 4 == 2 else 0.8 for i in known}
    expected = expected_iou(weights, ious)
    rest = [i for i in range(24) if i not in known]
    hard = [i for i in rest if i // 4 == 2]
    assert expected[hard].max() < min(expected[i] for i in rest if i not in hard)
    assert 0.4 < expected[rest].mean() < 0.8


def test_command_says_what_to_expect(monkeypatch, tmp_path):
    section = {"iou_per_class": {"a disc": 0.8, "b ring": 0.6, "c star": None}}
    evaluation = {"mask_classes": ["a disc", "b ring", "c star"], "mask_given_boxes": section}
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation))
    names, result = advised(monkeypatch, tmp_path, f"--evaluation={path}")
    # "c star" has masks too, if none to score: it is not to be outlined.
    assert "12 classes, 3 with masks" in result.stdout
    assert "Expected mean IoU of the 9 classes" in result.stdout and result.returncode == 0
    evaluation["mask_classes"] = names
    path.write_text(json.dumps(evaluation))
    _, result = advised(monkeypatch, tmp_path, f"--evaluation={path}")
    assert result.returncode == 2 and f"--evaluation={path}" in result.stderr
    path.write_text("{}")
    _, result = advised(monkeypatch, tmp_path, f"--evaluation={path}")
    assert result.returncode == 2 and str(path) in result.stderr
