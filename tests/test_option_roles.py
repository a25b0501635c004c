"""What an option takes part in: resuming, caches, studies, evaluation, scaling with the batch."""

import types

import pytest

from maskx_tf import config as config_lib
from maskx_tf import evaluate
from maskx_tf.checkpoints import resuming
from maskx_tf.checkpoints.initialize import DETECTOR
from maskx_tf.config import Config
from maskx_tf.frozen import training as feature_cache
from maskx_tf.study import plan
from maskx_tf.training import scaling

# Runs, caches and studies on people's disks were made under these; options added later may join.
ROLES = {
    "bookkeeping": "model_dir checkpoint_interval keep_checkpoints summary_interval eval_interval "
    "panel_images num_gpus feature_cache eval_records",
    "changeable on resuming": "train_steps batch_size learning_rate warmup_steps warmup_factor "
    "lr_steps clip_norm ema_decay train_records skip_corrupt_records precision convolutions",
    "compared by content on resuming": "vocabulary mask_classes",
    "meaning of the detector's weights": "channel_order pixel_mean pixel_std conventions backbone "
    "backbone_width stride_on backbone_padding normalization fpn_filters min_level max_level "
    "anchor_size anchor_ratios anchor_offset rpn_filters roi_canonical_size box_roi_size "
    "box_fc_units",
    "free of the frozen features": "model_dir checkpoint_interval keep_checkpoints "
    "summary_interval eval_interval panel_images num_gpus feature_cache eval_records "
    "init_checkpoint backbone_weights vocabulary mask_classes train_records train_steps "
    "mask_output transfer_input transfer_layers transfer_activation transfer_units "
    "transfer_stop_gradient transfer_embeddings mask_mlp mask_filters mask_convs optimizer "
    "learning_rate momentum weight_decay bias_learning_rate_factor warmup_steps warmup_factor "
    "lr_steps clip_norm ema_decay",
    "data of an evaluation": "model_dir eval_records batch_size image_min_side image_max_side "
    "max_objects mask_classes",
    "detections of an evaluation": "precision rpn_nms_iou rpn_pre_nms_test rpn_post_nms_test "
    "score_threshold nms_iou nms_candidates max_detections",
    "steps of a schedule": "train_steps warmup_steps lr_steps checkpoint_interval eval_interval",
    "neutral to a study": "model_dir checkpoint_interval keep_checkpoints summary_interval "
    "eval_interval panel_images num_gpus feature_cache eval_records init_checkpoint",
}
OTHERS = Config(
    *("runs/x", "stage2_masks", "runs/detector"),
    **{"seed": 3, "batch_size": 2, "lr_steps": (4, 5), "mask_filters": 8, "backbone": "small"},
    **{"train_records": ("a", "b"), "max_level": 5, "learning_rate": 0.1},
)


def now() -> dict[str, tuple[str, ...]]:
    return {
        "bookkeeping": config_lib.BOOKKEEPING,
        "changeable on resuming": resuming.CHANGEABLE,
        "compared by content on resuming": resuming.BY_CONTENT,
        "meaning of the detector's weights": DETECTOR,
        "free of the frozen features": tuple(feature_cache.FREE),
        "data of an evaluation": evaluate.DATA_OPTIONS,
        "detections of an evaluation": evaluate.TEST_OPTIONS,
        "steps of a schedule": scaling._STEPS,
        "neutral to a study": plan.NEUTRAL,
    }


@pytest.mark.parametrize("role", ROLES)
def test_options_keep_their_roles(role):
    assert set(now()[role]) == set(ROLES[role].split())


@pytest.mark.parametrize(
    ("config", "digest"), [(Config(), "e3b0c44298fc"), (OTHERS, "88c3d37ff491")]
)
def test_studies_of_before_know_their_runs(config, digest):
    assert plan.digest(config) == digest


@pytest.mark.parametrize(
    ("config", "key"), [(Config(), "787e3be73a5090d9a819"), (OTHERS, "fb648372b58c5b80df05")]
)
def test_feature_caches_of_before_are_of_use(tmp_path, config, key):
    (tmp_path / "a.tfrecord").write_bytes(b"records")
    model = types.SimpleNamespace(weights=[])
    assert feature_cache.key(model, config, [str(tmp_path / "*")], ["train", 1]) == key
