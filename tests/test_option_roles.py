"""What an option takes part in: resuming, caches, studies, evaluation, scaling with the batch."""

import dataclasses
import types
import typing

import pytest
from absl import flags

from maskx_tf import config as config_lib
from maskx_tf.config import Config
from maskx_tf.evaluation import checkpoint
from maskx_tf.frozen import training as feature_cache
from maskx_tf.study import plan
from maskx_tf.system import options

# Runs, caches and studies on people's disks were made under these.
SCOPES = {
    "bookkeeping": "model_dir checkpoint_interval keep_checkpoints summary_interval eval_interval "
    "panel_images num_gpus feature_cache eval_records",
    "source": "init_checkpoint train_records vocabulary mask_classes backbone_weights",
    "detector": "channel_order pixel_mean pixel_std conventions backbone backbone_width stride_on "
    "backbone_padding normalization fpn_filters min_level max_level anchor_size anchor_ratios "
    "anchor_offset rpn_filters roi_canonical_size box_roi_size box_fc_units",
    "mask_head": "mask_output transfer_input transfer_layers transfer_activation transfer_units "
    "transfer_stop_gradient transfer_embeddings mask_body mask_mlp mask_filters mask_convs",
    "optimizer": "train_steps optimizer learning_rate momentum weight_decay "
    "bias_learning_rate_factor warmup_steps warmup_factor lr_steps clip_norm ema_decay",
    "training": "mode seed precision convolutions mask_sources batch_size image_min_side "
    "image_max_side horizontal_flip scale_jitter_min scale_jitter_max max_objects mask_crop_size "
    "skip_corrupt_records frozen_stages rpn_batch_size rpn_positive_fraction rpn_positive_iou "
    "rpn_negative_iou rpn_straddle_threshold rpn_pre_nms_train rpn_post_nms_train roi_batch_size "
    "roi_positive_fraction roi_positive_iou mask_rois mask_roi_size class_groups",
    "detections": "rpn_nms_iou rpn_pre_nms_test rpn_post_nms_test score_threshold nms_iou "
    "nms_candidates max_detections point_steps box_passes mask_voting",
}
ROLES = {
    "on_resume=may_change": "train_steps precision convolutions train_records batch_size "
    "skip_corrupt_records learning_rate warmup_steps warmup_factor lr_steps clip_norm ema_decay",
    "on_resume=by_content": "vocabulary mask_classes",
    "at_test=data": "model_dir num_gpus eval_records mask_classes batch_size image_min_side "
    "image_max_side max_objects",
    "at_test=detections": "precision rpn_nms_iou rpn_pre_nms_test rpn_post_nms_test "
    "score_threshold nms_iou nms_candidates max_detections point_steps box_passes mask_voting",
    "scales=steps": "train_steps checkpoint_interval eval_interval warmup_steps lr_steps",
    "scales=rate": "learning_rate",
    "scales=decay": "ema_decay",
}
OTHERS = Config(
    *("runs/x", "stage2_masks", "runs/detector"),
    **{"seed": 3, "batch_size": 2, "lr_steps": (4, 5), "mask_filters": 8, "backbone": "small"},
    **{"train_records": ("a", "b"), "max_level": 5, "learning_rate": 0.1},
)


def roles_of(options: set[str]) -> dict[str, set[str]]:
    """What of `options` has each role, now."""
    roles = [role.split("=") for role in ROLES] + [["scope", scope] for scope in SCOPES]
    return {f"{r}={value}": options & set(config_lib.names(**{r: value})) for r, value in roles}


def test_options_keep_their_roles():
    """Options that are added later may have any."""
    scopes = {f"scope={scope}": set(text.split()) for scope, text in SCOPES.items()}
    assert roles_of(set().union(*scopes.values())) == scopes | {
        role: set(text.split()) for role, text in ROLES.items()
    }


def test_every_option_has_roles_that_something_reads():
    for field in dataclasses.fields(Config):
        assert field.metadata["scope"] in SCOPES, field.name
        for role, values in typing.get_type_hints(options.option).items():
            if typing.get_origin(values) is typing.Literal:
                assert field.metadata[role] in typing.get_args(values), (field.name, role)


def test_bookkeeping_has_no_say_in_resuming_features_and_studies():
    assert "bookkeeping" in feature_cache.FREE
    changes = {"model_dir": "x", "num_gpus": 0, "eval_records": ("y",), "summary_interval": 7}
    assert plan.digest(OTHERS.replace(**changes)) == plan.digest(OTHERS)


def test_help_of_evaluate_lists_what_has_an_effect_there():
    """A flagfile of training may still be given: the others are defined, too."""
    values = flags.FlagValues()
    config_lib.define_flags(values, shown=checkpoint.changeable())
    shown = values.get_flags_for_module("maskx_tf.config")
    assert len(shown) == 19
    assert {flag.name for flag in shown} == set(
        " ".join(text for role, text in ROLES.items() if role.startswith("at_test")).split()
    )
    assert set(values) >= set(Config.__dataclass_fields__)


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
