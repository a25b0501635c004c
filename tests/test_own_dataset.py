"""Training on a tf.data.Dataset of one's own: what its batches have to be, what is made of them."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import checkpoints, training
from maskx_tf.data import batch
from maskx_tf.data.pipeline import make_dataset
from maskx_tf.data.records.manifest import vocabulary_of
from maskx_tf.errors import UserError
from tests import batches
from tf_records.shapes import dataset as shapes
from tf_records.shapes.objects import SceneOptions


def one_batch(**changes):
    """A dataset of the right structure; of `changes`, None leaves a field out."""
    features, labels = batches.random_features(), batches.to_tensors(batches.random_labels())
    for fields in (features, labels):
        for name in changes.keys() & fields.keys():
            fields[name] = changes[name]
    present = [{k: v for k, v in fields.items() if v is not None} for fields in (features, labels)]
    return tf.data.Dataset.from_tensors(tuple(present))


class TestStructure:
    def test_that_of_records_and_of_what_they_share_passes(self):
        batch.check(one_batch(), 2, with_masks=True)
        batch.check(one_batch(is_crowd=None), 2, with_masks=True)
        batch.check(one_batch(masks=None, has_mask=None), 2, with_masks=False)

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"image": None}, ["features", "'image'", "uint8 [B, H, W, 3]", "'image_size'"]),
            ({"masks": None}, ["labels", "'masks'", "uint8 [B, M, S, S]"]),
            (
                {"classes": tf.zeros([2, 5], tf.int64)},
                ["labels['classes']", "int64 [2, 5]", "int32 [B, M]"],
            ),
            ({"boxes_yxyx": tf.zeros([2, 5, 5])}, ["[2, 5, 5]", "float32 [B, M, 4]"]),
            ({"image": tf.zeros([2, 60, 64, 3], tf.uint8)}, ["60 x 64", "multiples of 32"]),
            (
                {"image": tf.zeros([4, 64, 64, 3], tf.uint8)},
                ["4 images", "batch_size=2"],
            ),
        ],
    )
    def test_the_first_difference_is_named(self, changes, named):
        with pytest.raises(UserError) as error:
            batch.check(one_batch(**changes), 2, with_masks=True)
        assert all(part in str(error.value) for part in [*named, "dataset"]), error.value
        assert "--" not in str(error.value) and "\n" not in str(error.value)

    def test_what_is_no_dataset_of_pairs(self):
        for wrong, named in (([1], "list"), (tf.data.Dataset.range(3), "int64 []")):
            with pytest.raises(UserError, match="dataset") as error:
                batch.check(wrong, 2, with_masks=True)
            assert named in str(error.value) and "maskx_tf.data.batch" in str(error.value)

    def test_masks_may_have_weights(self):
        def weighted(dtype):
            weights = {"mask_weight": tf.fill([2, 5], tf.constant(0.5, dtype))}
            return one_batch().map(lambda features, labels: (features, labels | weights))

        batch.check(weighted(tf.float32), 2, with_masks=True)
        ((_, labels),) = batch.train_on(weighted(tf.float32), 7, (1, 2), 0).take(1)
        np.testing.assert_array_equal(labels["mask_weight"], np.full([2, 5], 0.5))
        with pytest.raises(UserError, match=r"labels\['mask_weight'\] of dataset is float64"):
            batch.check(weighted(tf.float64), 2, with_masks=True)

    def test_masks_beyond_set_a_and_of_crowds_are_withheld(self):
        classes = tf.constant([[1, 2, 3, 99, 0]] * 2)
        crowd = tf.constant([[False, True, False, False, False]] * 2)
        dataset = one_batch(classes=classes, is_crowd=crowd, has_mask=tf.ones([2, 5], tf.bool))
        ((_, labels),) = batch.train_on(dataset, 7, (1, 2), 3).take(1)
        np.testing.assert_array_equal(labels["has_mask"][0], [True, False, False, False, False])
        np.testing.assert_array_equal(labels["classes"], classes)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shapes")
    options = SceneOptions(image_size=64, side=(20, 36))
    shapes.generate(str(directory), train_images=4, val_images=1, workers=1, options=options)
    records = (str(directory / "records" / "train"),)
    vocabulary_of(records).save(str(directory / "names.json"))
    return batches.tiny_config(
        model_dir=str(directory / "run"),
        train_records=records,
        vocabulary=str(directory / "names.json"),
        mask_classes=str(directory / "set_a.txt"),
        num_gpus=0,
        train_steps=3,
    )


@pytest.mark.thorough
def test_the_batches_of_records_train_as_the_records_do(config, tmp_path):
    """Through a resume, too; masks beyond set A, which the dataset has, are not used."""
    training.train(config)
    vocabulary = vocabulary_of(config.train_records)
    every_class = range(1, vocabulary.num_classes + 1)
    dataset = make_dataset(
        config.train_records, config, vocabulary, every_class, training=True, seed=config.seed
    )
    own = config.replace(model_dir=str(tmp_path), train_records=())
    training.train(own.replace(train_steps=2), dataset)
    training.train(own, dataset)
    both = [
        checkpoints.load_model(path).model.weights for path in (config.model_dir, own.model_dir)
    ]
    for one, other in zip(*both, strict=True):
        np.testing.assert_array_equal(one, other, one.name)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocabulary": ""}, "vocabulary"),
        ({}, "train_records"),
        ({"train_records": (), "batch_size": 4}, "batch_size=4"),
        ({"train_records": (), "mask_classes": "none"}, "mask_classes"),
    ],
)
def test_options_that_do_not_go_with_a_dataset(config, tmp_path, changes, named):
    with pytest.raises(UserError, match=named):
        training.train(config.replace(model_dir=str(tmp_path / "run"), **changes), one_batch())
    assert not (tmp_path / "run").exists()
