"""Records with a model's masks: what stays, what is replaced, what is left out."""

import types

import numpy as np
import pytest

from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.records.manifest import Manifest, find_shards
from maskx_tf.data.records.schema import read_records
from maskx_tf.errors import UserError
from maskx_tf.labeling.of_records import Usable, labelled_and_kept
from maskx_tf.ops import masks
from tests import harness
from tf_records import coco, label, verify
from tf_records.output import Output

PETS = Vocabulary.from_names(("bird", "cat", "dog"))  # the model's own order
CATS = Usable({"cat"}, (), {})
SCORE = 0.625


class Segmenter:
    """Fills the upper part of each box, of a share that its height in pixels stands for."""

    shares = types.MappingProxyType({20: 1.0, 21: 0.9, 22: 0.5, 23: 0.0})
    classes = frozenset({1, 3})  # birds and dogs, as the model counts them

    def __init__(self, loaded):
        del loaded

    def segment(self, image, boxes_yxyx, class_ids):
        assert set(class_ids) <= self.classes
        for y1, x1, y2, x2 in boxes_yxyx.round().astype(int):
            mask = np.zeros(image.shape[:2], np.uint8)
            mask[y1 : y1 + round(self.shares[y2 - y1] * (y2 - y1)), x1:x2] = 1
            rle = masks.encode_rle(mask)
            score = SCORE if x1 < 9 else 2 * SCORE - 0.5
            yield types.SimpleNamespace(rle=lambda rle=rle: rle, score=score)


TRIANGLE = [[4, 4, 30, 4, 4, 24]]
ANNOTATIONS = [
    harness.annotation(1, [4, 4, 30, 20], category_id=1, segmentation=TRIANGLE),
    harness.annotation(1, [4, 4, 30, 20], category_id=2, segmentation=TRIANGLE),
    harness.annotation(1, [6, 4, 30, 21], category_id=2, segmentation=[]),
    harness.annotation(1, [8, 4, 30, 22], category_id=3, segmentation=TRIANGLE),
    harness.annotation(2, [9, 4, 30, 20], category_id=3, segmentation=[]),
    harness.annotation(2, [8, 4, 30, 23], category_id=3, segmentation=[]),
    harness.annotation(2, [4, 4, 40, 23], category_id=3, iscrowd=1, segmentation=TRIANGLE),
]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """(records of cats with masks, dogs and birds; what `label` needs besides)."""
    monkeypatch.setattr(label, "Segmenter", Segmenter)
    paths = harness.write_coco(tmp_path / "coco", ANNOTATIONS, sizes=[(40, 60), (50, 50)])
    coco.convert(*paths, Output(str(tmp_path / "records"), "pets", 2, workers=1))
    (tmp_path / "ckpt-1.index").write_bytes(b"of a model")
    loaded = types.SimpleNamespace(vocabulary=PETS, config=Config())
    return str(tmp_path / "records"), str(tmp_path / "ckpt-1"), loaded


def run(made, directory, usable=CATS, min_agreement=0.8, min_quality=0.0, **options):
    records, checkpoint, loaded = made
    output = Output(str(directory), "labelled", 2, workers=1, **options)
    least = (min_agreement, min_quality)
    manifest = label.label([records], checkpoint, loaded, usable, output, *least)
    return manifest, [o for r in read_records(find_shards([str(directory)])) for o in r.objects]


def test_masks_of_set_a_stay_and_others_are_the_models_where_they_agree(made, tmp_path):
    before = [item for r in read_records(find_shards([made[0]])) for item in r.objects]
    manifest, after = run(made, tmp_path / "new")
    for old, new in zip(before, after, strict=True):
        assert old.annotation_id == new.annotation_id
        np.testing.assert_array_equal(old.box_yxyx, new.box_yxyx)
    for number in (0, 6):  # a cat, and a crowd
        np.testing.assert_array_equal(after[number].mask, before[number].mask)
        assert (after[number].mask_source, after[number].mask_weight) == ("human", 1)
    found = [None if item.mask is None else item.mask.mean() for item in after[1:6]]
    assert found == [1, pytest.approx(0.9, abs=0.01), None, 1, None]
    assert {item.mask_source for item in after[1:6]} == {"maskx_tf", ""}
    assert [item.mask_weight for item in after[1:6]] == [SCORE, SCORE, 1, 0.75, 1]
    assert manifest == Manifest.load(tmp_path / "new")
    assert manifest.vocabulary.names == ("cat", "dog", "bird")
    assert manifest.mask_sources == {"human": 1, "maskx_tf": 3}
    assert manifest.weighted_masks == {"maskx_tf": 3}
    assert labelled_and_kept(manifest) == {"bird": (3, 1), "dog": (2, 2)}
    assert verify.verify([str(tmp_path / "new")], workers=1).faults == []


def test_agreement_and_score_decide_how_many_are_kept(made, tmp_path):
    kept = []
    for least in ((0.0, 0.0), (0.5, 0.0), (0.95, 0.0), (0.95, 0.7)):
        manifest, _ = run(made, tmp_path / str(least), CATS, *least)
        kept.append(manifest.mask_sources["maskx_tf"])
    assert kept == [4, 4, 2, 1], "an empty mask is none"


def test_masks_of_other_sources_and_of_weight_0_are_replaced(made, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmenter, "classes", {1, 2, 3})
    for number, others in enumerate([(("sam",), {}), ((), {"human": 0})]):
        _, objects = run(made, tmp_path / str(number), Usable({"cat"}, *others))
        assert objects[0].mask_source == "maskx_tf" and objects[0].mask.all()


def test_where_no_mask_agrees_nothing_is_written(made, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmenter, "shares", dict.fromkeys(Segmenter.shares, 0.5))
    with pytest.raises(
        UserError, match="None of the 5 masks is good enough for --min_agreement=0.8"
    ):
        run(made, tmp_path / "new")
    assert not [path for path in (tmp_path / "new").iterdir() if path.is_file()]


def test_where_every_object_has_a_mask_there_is_nothing_to_label(made, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmenter, "segment", None)
    paths = harness.write_coco(tmp_path / "cats", ANNOTATIONS[:1])
    coco.convert(*paths, Output(str(tmp_path / "cats" / "records"), "cats", workers=1))
    with pytest.raises(UserError, match="nothing to label. Set B"):
        run((str(tmp_path / "cats" / "records"), *made[1:]), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_class_that_the_model_lacks_is_named(made, tmp_path):
    made[2].vocabulary = Vocabulary.from_names(("cat", "dog"))
    with pytest.raises(UserError, match="bird"):
        run(made, tmp_path / "new")


def test_finished_records_are_kept_and_those_of_another_model_refused(made, tmp_path, monkeypatch):
    run(made, tmp_path / "new")
    monkeypatch.setattr(Segmenter, "segment", None)
    run(made, tmp_path / "new", reuse=True)
    for change in ({"min_agreement": 0.9}, {"usable": Usable({"cat", "dog"}, (), {})}):
        with pytest.raises(UserError, match="another source or other settings"):
            run(made, tmp_path / "new", reuse=True, **change)
    (tmp_path / "ckpt-1.index").write_bytes(b"of another model")
    with pytest.raises(UserError, match="another source or other settings"):
        run(made, tmp_path / "new", reuse=True)
