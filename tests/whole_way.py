"""A run through all that a model can go through, for what a model may be made of."""

import pathlib

import numpy as np

from export import saved_model
from maskx_tf import add_classes, checkpoints, training
from maskx_tf.config import Config
from tests import harness, runs


def stage_2(data: pathlib.Path, directory: pathlib.Path, detector: pathlib.Path, **changes):
    """Options for `check`: masks on a detector, without a threshold of scores."""
    return runs.config(
        data,
        directory / "plain",
        mode="stage2_masks",
        init_checkpoint=str(detector),
        train_steps=2,
        checkpoint_interval=1,
        score_threshold=0.0,
        **changes,
    )


def check(
    config: Config,
    data: pathlib.Path,
    directory: pathlib.Path,
    cache: str,
    atol: float,
    grows: bool = True,
):
    """Trains, resumes, evaluates, takes a class, is exported; the export compares itself.

    Args:
      config: of two steps with a checkpoint after each, its model_dir `directory`/plain.
      data: what `runs.write_data` wrote.
      directory: for all that arises.
      cache: --feature_cache of the run that resumes, or "".
      atol: of its weights, against those of the run that was not cut and had no cache.
      grows: whether it takes a class.
    """
    training.train(config)
    resumed = config.replace(
        model_dir=str(directory / "run"),
        feature_cache=cache,
        eval_records=(str(data / "records" / "val"),),
    )
    training.train(resumed.replace(train_steps=1, eval_records=()))
    results = training.train(resumed)
    assert np.isfinite(results["mask_given_boxes"]["all"]["AP"])
    loaded, plain = (checkpoints.load_model(str(directory / name)) for name in ("run", "plain"))
    for a, b in zip(loaded.model.get_weights(), plain.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)
    if grows:
        annotations = [harness.annotation(1, [5, 8, 25, 20], category_id=1, segmentation=[])]
        boxes, images = harness.write_coco(directory, annotations, sizes=[(40, 60)], names=("emu",))
        add_classes.add_classes(str(directory / "run"), boxes, images, str(directory / "grown"))
        loaded = checkpoints.load_model(str(directory / "grown"))
        assert loaded.vocabulary.names[-1] == "emu"
    saved_model.export(*loaded, str(directory / "export"))
