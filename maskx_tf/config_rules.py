"""What the options of `Config` need of each other; those of one option alone stand beside it.

Messages name an option as Python does; `config.from_flags` adds the dashes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from maskx_tf.errors import UserError
from maskx_tf.layers.choices import BACKBONES, MASK_BODIES, SEMANTIC_HEADS
from maskx_tf.system.options import text_of

Config = Any  # of `config`, which imports this file
# By option: the values that it may have, and why.
Needs = Mapping[str, tuple[Sequence[Any], str]]


def check(config: Config) -> None:
    """Raises UserError for the first options that do not go together."""
    _check_ranges(config)
    _check_levels(config)
    _check_box_heads(config)
    _check_mask_head(config)
    _check_voting(config)
    if config.has_mnc:
        _need(config, "box_head", _mnc_needs(config))
    if config.loss_joint:
        _need(config, "loss_joint", _joint_scores_need(config))
    _check_semantic_head(config)


def _need(config: Config, option: str, needs: Needs) -> None:
    for name, (values, why) in needs.items():
        if getattr(config, name) not in values:
            allowed = " or ".join(text_of(value) or "empty" for value in values)
            raise UserError(
                f"{option}={text_of(getattr(config, option))} needs {name}={allowed}"
                f"{', ' if why else ''}{why}; it is {text_of(getattr(config, name)) or 'empty'}."
            )


def _check_ranges(config: Config) -> None:
    if config.transfer_input == "embedding" and not config.transfer_embeddings:
        raise UserError("transfer_input=embedding needs transfer_embeddings=FILE.")
    for low in ("scale_jitter_min", "image_min_side"):
        high = low.replace("min", "max")
        if getattr(config, low) > getattr(config, high):
            raise UserError(
                f"{low}={getattr(config, low)} is larger than {high}={getattr(config, high)}."
            )
    _ = config.source_weights  # raises if it is none
    if config.patience and not (config.keep_best and config.eval_interval):
        raise UserError(f"patience={config.patience} needs keep_best and eval_interval.")
    if config.mode == "stage1_boxes" and config.keep_best.startswith("mask"):
        raise UserError(f"keep_best={config.keep_best} is of masks; mode=stage1_boxes has none.")


def _check_levels(config: Config) -> None:
    stage = BACKBONES[config.backbone].last_stage
    last = config.last_level
    allowed = {
        "frozen_stages": (config.frozen_stages <= stage, f"at most {stage}"),
        "min_level": (2 <= config.min_level <= last, f"from 2 to {last}"),
        "max_level": (config.max_level >= last, f"at least {last}"),
    }
    for name, (is_allowed, must) in allowed.items():
        if not is_allowed:
            raise UserError(
                f"{name}={getattr(config, name)} must be {must}: the last stage of "
                f"backbone={config.backbone} is {stage}"
                + (f", of level {last} here." if last < stage else ".")
            )


def _check_box_heads(config: Config) -> None:
    ious, weights = config.cascade_ious, config.cascade_loss_weights
    if ious and config.roi_positive_iou not in (0.5, ious[0]):
        raise UserError(
            f"roi_positive_iou={config.roi_positive_iou} has no meaning beside "
            f"cascade_ious={text_of(ious)}, which begins with the first head's."
        )
    if len(weights) not in (0, len(ious)):
        raise UserError(
            f"cascade_loss_weights={text_of(weights)} must have a weight for each of "
            f"cascade_ious={text_of(ious)}, or be empty."
        )
    if "cam" in config.mask_branches and config.box_head != "conv":
        raise UserError(
            f"mask_branches={text_of(config.mask_branches)} needs box_head=conv, not "
            f"box_head={config.box_head}, in whose features a class has no place. Train a "
            "detector with it (mode=stage1_boxes) first."
        )


def _check_mask_head(config: Config) -> None:
    divisor = MASK_BODIES[config.mask_body].divisor
    if config.mask_roi_size % divisor:
        raise UserError(
            f"mask_roi_size={config.mask_roi_size} must be a multiple of {divisor} with "
            f"mask_body={config.mask_body}."
        )
    if config.hard_rois != 1 and not config.loss_joint:
        raise UserError(
            f"hard_rois={config.hard_rois} needs loss_joint: RoIs without an object have no "
            "other loss in the mask head."
        )
    if config.loss_pairwise and config.pairwise_dilation >= config.mask_size:
        raise UserError(
            f"pairwise_dilation={config.pairwise_dilation} must be less than the side of a mask, "
            f"{config.mask_size} cells."
        )


def _check_voting(config: Config) -> None:
    if config.mask_voting and not (config.has_mnc or config.loss_joint):
        raise UserError(
            f"mask_voting={config.mask_voting} needs masks of RoIs, as box_head=mnc has them, not "
            f"box_head={config.box_head}, or mask_body=fcis with loss_joint."
        )


def _mnc_needs(config: Config) -> Needs:
    needs: dict[str, tuple[Sequence[Any], str]] = {
        "mode": (["end_to_end"], "as its boxes follow from masks"),
        "conventions": (["aligned"], ""),
        "cascade_ious": ([()], "as box_passes are its stages"),
        "box_roi_op": ([config.mask_roi_op], "mask_roi_op: they share RoI features"),
        "mask_roi_size": ([2 * config.box_roi_size], "twice box_roi_size"),
        "mask_roi_scale": ([1.0], "the masks of boxes"),
        "mask_rois": (["proposals"], "whose masks it sees"),
        "point_head": (["none"], ""),
        "mask_scoring": (["none"], ""),
        "semantic_head": (["none"], ""),
        "loss_joint": ([0.0], ""),
        "loss_projection": ([0.0], ""),
        "loss_pairwise": ([0.0], ""),
        "mask_output": (["class_agnostic", "transfer"], ""),
    }
    if config.mask_output == "transfer":
        needs["mask_mlp"] = ([True], "the masks of RoIs whose class is not known")
        needs["mask_voting"] = ([False], "as only class-agnostic masks of RoIs can vote")
    return needs


def _joint_scores_need(config: Config) -> Needs:
    needs: dict[str, tuple[Sequence[Any], str]] = {
        "mask_body": (["fcis"], "which has inside and outside maps"),
        "mask_output": (["transfer", "class_specific"], "which tells classes apart"),
        "mask_rois": (["proposals"], "as RoIs without an object are learned from too"),
        "semantic_head": (["none"], "as its maps have no part in the scores"),
        "box_head": (["fc", "conv"], "to whose scores its own are added"),
        "mask_branches": ([(), ("coords",)], "as cam needs to be told the class"),
    }
    if config.mask_voting:
        needs["conventions"] = (["aligned"], "in whose pixels masks vote (mask_voting)")
        needs["mask_roi_scale"] = ([1.0], "as masks of boxes vote (mask_voting)")
        needs["point_head"] = (["none"], "whose masks cannot vote (mask_voting)")
    return needs


def _check_semantic_head(config: Config) -> None:
    if config.semantic_head == "none":
        return
    needed = SEMANTIC_HEADS[config.semantic_head].levels
    levels = config.last_level - config.min_level + 1
    if levels < needed:
        raise UserError(
            f"semantic_head={config.semantic_head} adds up {needed} levels of the backbone; "
            f"min_level={config.min_level}, backbone={config.backbone} and backbone_output_stride="
            f"{config.backbone_output_stride} leave {levels}."
        )
    if config.has_mask_head:
        return
    why = "as there is no mask head without semantic_masks=head"
    of_mask_head: dict[str, Any] = {
        "mask_body": "fcn",
        "mask_branches": (),
        "mask_roi_op": "align",
        "point_head": "none",
        "mask_scoring": "none",
        "loss_projection": 0.0,
        "loss_pairwise": 0.0,
    }
    needs = {name: ([value], why) for name, value in of_mask_head.items()}
    _need(config, "semantic_head", needs)
