"""Every option of a model and its training, once: type, default, meaning, check.

`Config` is flat and frozen. absl flags are generated from it (`define_flags`), read in one place
(`from_flags`) and saved beside the checkpoints (`save`), so that a run can be repeated with
`--flagfile=MODEL_DIR/train.flags`. Nothing below the entry points reads a flag.
"""

import csv
import dataclasses
import io
import pathlib
import typing
from collections.abc import Callable
from typing import Any

from absl import flags

from maskx_tf.errors import UserError
from maskx_tf.system.files import write_atomically

FLAGFILE = "train.flags"
# Options that do not change what a run learns.
BOOKKEEPING = (
    "model_dir",
    "checkpoint_interval",
    "keep_checkpoints",
    "summary_interval",
    "eval_interval",
    "panel_images",
    "num_gpus",
    "feature_cache",
    "eval_records",
)
LAST_STAGE = {"resnet50": 5, "resnet101": 5, "small": 4}  # of each backbone; the first is 2


def _option(
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] = (),
    check: Callable[[Any], bool] | None = None,
    must: str = "",
) -> Any:
    metadata = {"help": help_text, "choices": choices, "check": check, "must": must}
    return dataclasses.field(default=default, metadata=metadata)


def _positive(default: Any, help_text: str) -> Any:
    return _option(default, help_text, check=lambda v: v > 0, must="be positive")


def _not_negative(default: Any, help_text: str) -> Any:
    return _option(default, help_text, check=lambda v: v >= 0, must="not be negative")


def _fraction(default: float, help_text: str) -> Any:
    return _option(default, help_text, check=lambda v: 0 <= v <= 1, must="lie in [0, 1]")


@dataclasses.dataclass(frozen=True)
class Config:
    """The options of one run. Defaults are the published COCO R-50-FPN settings."""

    # Run
    model_dir: str = _option("", "Directory of checkpoints, TensorBoard logs and settings.")
    mode: str = _option(
        "end_to_end",
        "What is trained: everything; the box detector; or the mask head on a frozen detector.",
        choices=("end_to_end", "stage1_boxes", "stage2_masks"),
    )
    init_checkpoint: str = _option(
        "", "Model directory or checkpoint to start from; class rows are matched by name."
    )
    seed: int = _option(
        0,
        "Seed of initialisation, data order and sampling.",
        check=lambda v: 0 <= v < 2**31,
        must="lie in [0, 2^31)",
    )
    train_steps: int = _positive(90_000, "Number of training steps.")
    checkpoint_interval: int = _positive(2_500, "Steps between checkpoints.")
    keep_checkpoints: int = _positive(3, "How many of the latest checkpoints to keep.")
    summary_interval: int = _positive(20, "Steps between progress lines and TensorBoard points.")
    eval_interval: int = _not_negative(0, "Steps between evaluations; 0: only after the last step.")
    panel_images: int = _not_negative(6, "Validation images drawn for TensorBoard; 0: none.")
    num_gpus: int = _option(-1, "GPUs to train on; -1: all, 0: the CPU.")
    feature_cache: str = _option(
        "",
        "Directory where stage 2 caches its frozen features, for runs that differ only in the mask "
        "head; takes some gigabytes. Empty: no cache.",
    )
    precision: str = _option(
        "float32",
        "Precision that layers compute in during training (docs/devices.md); weights stay float32.",
        choices=("float32", "bfloat16", "float16"),
    )
    convolutions: str = _option(
        "auto",
        "How 3x3 convolutions in float32 are computed: direct; winograd, with half the products; "
        "auto: winograd unless there is a GPU.",
        choices=("auto", "direct", "winograd"),
    )

    # Data
    train_records: tuple[str, ...] = _option((), "Record directories (or shard globs) to train on.")
    eval_records: tuple[str, ...] = _option((), "Record directories (or shard globs) to evaluate.")
    vocabulary: str = _option(
        "", "Class list (.json, .txt, or `coco`); empty: that of the records."
    )
    mask_classes: str = _option(
        "all",
        "Set A, the classes whose masks may be used: all, none, coco, voc, nonvoc, a random split "
        "of the paper (E1_A20B60 to E5_A60B20), or a .txt file with one name per line.",
    )
    mask_sources: tuple[str, ...] = _option(
        (),
        "Training uses only masks of these sources, as the records name them (human, grabcut); "
        "empty: all.",
    )
    batch_size: int = _positive(16, "Images per step, over all devices.")
    image_min_side: int = _positive(800, "Length in pixels that the short side is resized to.")
    image_max_side: int = _positive(1333, "Largest length in pixels of the long side.")
    horizontal_flip: bool = _option(True, "Flip half of the training images.")
    scale_jitter_min: float = _positive(1.0, "Smallest random factor on the training image scale.")
    scale_jitter_max: float = _positive(1.0, "Largest random factor on the training image scale.")
    max_objects: int = _positive(100, "Ground-truth objects kept per image, the largest first.")
    mask_crop_size: int = _positive(112, "Side of the ground-truth mask crops in a batch.")
    skip_corrupt_records: bool = _option(
        False, "Read all records first, warn of corrupt ones and train without them."
    )

    # Network input
    channel_order: str = _option(
        "bgr", "Order of the network's input channels.", choices=("bgr", "rgb")
    )
    pixel_mean: tuple[float, ...] = _option(
        (102.9801, 115.9465, 122.7717),
        "Subtracted from the channels, in channel_order.",
        check=lambda v: len(v) == 3,
        must="have three values",
    )
    pixel_std: tuple[float, ...] = _option(
        (1.0, 1.0, 1.0),
        "What the channels are divided by, in channel_order.",
        check=lambda v: len(v) == 3,
        must="have three values",
    )

    # Geometry
    conventions: str = _option(
        "aligned",
        "Geometry of boxes, anchors and RoIAlign (docs/weights.md); detectron: for its weights.",
        choices=("aligned", "detectron"),
    )

    # Backbone and FPN
    backbone: str = _option("resnet50", "Backbone.", choices=tuple(LAST_STAGE))
    backbone_width: int = _positive(64, "Filters of the stem; later stages are multiples of it.")
    stride_on: str = _option(
        "1x1",
        "Which convolution of a bottleneck has the stride: the first 1x1 (MSRA) or the 3x3.",
        choices=("1x1", "3x3"),
    )
    backbone_padding: str = _option(
        "symmetric",
        "Padding where the backbone has a stride: the same on all sides (Detectron, Keras), or "
        "TensorFlow's own, more at the bottom and right of even sides (Model Garden).",
        choices=("symmetric", "same"),
    )
    backbone_weights: str = _option(
        "",
        "ImageNet weights a new run starts from: `keras` (downloads), a .h5 of "
        "tf_keras.applications, a Model Garden checkpoint or a Detectron .pkl; each needs its "
        "flagfile in configs/backbones. Empty: random.",
    )
    normalization: str = _option(
        "frozen_batch_norm",
        "Normalisation in the backbone.",
        choices=("frozen_batch_norm", "batch_norm", "sync_batch_norm", "group_norm"),
    )
    frozen_stages: int = _not_negative(
        2, "Backbone stages that are frozen; 0: none, 2: stem and res2."
    )
    fpn_filters: int = _positive(256, "Channels of every pyramid level.")
    min_level: int = _positive(2, "Finest pyramid level (stride 2^level).")
    max_level: int = _positive(6, "Coarsest pyramid level, used by the RPN.")

    # RPN
    anchor_size: float = _positive(8.0, "Anchor side in strides of its level.")
    anchor_ratios: tuple[float, ...] = _option(
        (0.5, 1.0, 2.0),
        "Anchor height / width.",
        check=lambda v: v and all(ratio > 0 for ratio in v),
        must="have a value, and positive ones only",
    )
    anchor_offset: float = _fraction(0.5, "Position of an anchor's centre in its cell.")
    rpn_filters: int = _positive(256, "Channels of the RPN's 3x3 convolution.")
    rpn_batch_size: int = _positive(256, "Anchors sampled per image for the RPN losses.")
    rpn_positive_fraction: float = _fraction(0.5, "Share of sampled anchors that may be positive.")
    rpn_positive_iou: float = _fraction(0.7, "Least IoU of a positive anchor.")
    rpn_negative_iou: float = _fraction(0.3, "IoU below which an anchor is negative.")
    rpn_straddle_threshold: float = _option(
        0.0, "Pixels that an anchor may extend beyond the image and still be trained on; -1: any."
    )
    rpn_nms_iou: float = _fraction(0.7, "NMS threshold between proposals of a level.")
    rpn_pre_nms_train: int = _positive(2_000, "Proposals per level before NMS, in training.")
    rpn_post_nms_train: int = _positive(1_000, "Proposals per image after NMS, in training.")
    rpn_pre_nms_test: int = _positive(1_000, "Proposals per level before NMS, at test time.")
    rpn_post_nms_test: int = _positive(1_000, "Proposals per image after NMS, at test time.")

    # Box head
    roi_batch_size: int = _positive(512, "RoIs sampled per image for the heads.")
    roi_positive_fraction: float = _fraction(0.25, "Share of sampled RoIs that may be foreground.")
    roi_positive_iou: float = _fraction(0.5, "Least IoU of a foreground RoI.")
    roi_canonical_size: float = _positive(224.0, "RoI side in pixels that level 4 is meant for.")
    box_roi_size: int = _positive(7, "RoIAlign output side of the box head.")
    box_fc_units: int = _positive(
        1_024, "Units of the two fully connected layers; length of w_cls."
    )

    # Mask head
    mask_output: str = _option(
        "transfer",
        "Mask predictor: weights from T (Mask^X), one class-agnostic map, or one map per class.",
        choices=("transfer", "class_agnostic", "class_specific"),
    )
    transfer_input: str = _option(
        "cls+box", "What T sees of a class.", choices=("cls", "box", "cls+box", "embedding")
    )
    transfer_layers: int = _option(
        2, "Fully connected layers of T.", check=lambda v: v in (1, 2, 3), must="be 1, 2 or 3"
    )
    transfer_activation: str = _option(
        "leaky_relu", "Activation between T's layers.", choices=("none", "relu", "leaky_relu")
    )
    transfer_units: int = _positive(256, "Units of T's hidden layers.")
    transfer_stop_gradient: bool = _option(
        True, "Keep the mask loss from changing the box head's last layers through T."
    )
    transfer_embeddings: str = _option(
        "",
        "Class vectors for transfer_input=embedding: word vectors in GloVe's text format, a .npy "
        "[K, D] in vocabulary order, randn (a random vector per word) or randn_class (per class).",
    )
    mask_mlp: bool = _option(True, "Add the class-agnostic fully connected branch.")
    mask_rois: str = _option(
        "proposals",
        "Boxes the mask head trains on: foreground proposals or ground truth.",
        choices=("proposals", "ground_truth"),
    )
    mask_roi_size: int = _positive(14, "RoIAlign output side of the mask head; masks are twice it.")
    mask_filters: int = _positive(256, "Channels of the mask trunk; length of w_seg.")
    mask_convs: int = _positive(4, "3x3 convolutions of the mask trunk.")

    # Detections
    score_threshold: float = _fraction(0.05, "Detections below this score are dropped.")
    nms_iou: float = _fraction(0.5, "NMS threshold between detections of a class.")
    nms_candidates: int = _positive(1_000, "Highest-scoring (RoI, class) pairs that reach the NMS.")
    max_detections: int = _positive(100, "Detections kept per image, over all classes.")
    class_groups: tuple[int, ...] = _option(
        (),
        "Sizes of the class groups: the trained classes, then those of each maskx_tf.add_classes. "
        "Each group gets an equal share of nms_candidates and max_detections. Empty: one group.",
    )

    # Optimiser
    optimizer: str = _option("sgd", "Optimiser.", choices=("sgd", "adamw"))
    learning_rate: float = _positive(0.02, "Learning rate after warm-up, for the whole batch.")
    momentum: float = _fraction(0.9, "Momentum of SGD.")
    weight_decay: float = _not_negative(1e-4, "Weight decay of kernels; biases have none.")
    bias_learning_rate_factor: float = _positive(
        2.0, "SGD: factor on the learning rate of biases, and of scales and offsets of norms."
    )
    warmup_steps: int = _not_negative(500, "Steps of linear warm-up.")
    warmup_factor: float = _fraction(1 / 3, "Learning-rate factor at step 0.")
    lr_steps: tuple[int, ...] = _option(
        (60_000, 80_000),
        "Steps at which the rate is cut by 10.",
        check=lambda v: v == tuple(sorted(v)),
        must="ascend",
    )
    clip_norm: float = _not_negative(0.0, "Global gradient norm to clip at; 0: none.")
    ema_decay: float = _option(
        0.0,
        "Decay per step of a moving average of the trained weights, which evaluation and export "
        "then use, e.g. 0.9998; 0: no average.",
        check=lambda v: 0 <= v < 1,
        must="lie in [0, 1)",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.transfer_input == "embedding" and not self.transfer_embeddings:
            raise UserError("--transfer_input=embedding needs --transfer_embeddings.")
        if self.scale_jitter_min > self.scale_jitter_max:
            raise UserError(
                f"--scale_jitter_min={self.scale_jitter_min} is larger than "
                f"--scale_jitter_max={self.scale_jitter_max}."
            )
        if self.image_min_side > self.image_max_side:
            raise UserError(
                f"--image_min_side={self.image_min_side} is larger than "
                f"--image_max_side={self.image_max_side}."
            )
        self._check_levels()

    def _check_levels(self) -> None:
        last = LAST_STAGE[self.backbone]
        allowed = {
            "frozen_stages": (self.frozen_stages <= last, f"at most {last}"),
            "min_level": (2 <= self.min_level <= last, f"from 2 to {last}"),
            "max_level": (self.max_level >= last, f"at least {last}"),
        }
        for name, (is_allowed, must) in allowed.items():
            if not is_allowed:
                raise UserError(
                    f"--{name}={getattr(self, name)} must be {must}: the last stage of "
                    f"--backbone={self.backbone} is {last}."
                )

    @property
    def has_masks(self) -> bool:
        """False of stage 1, where nothing trains the mask head."""
        return self.mode != "stage1_boxes"

    @property
    def mask_size(self) -> int:
        """Side of a predicted mask."""
        return 2 * self.mask_roi_size

    def replace(self, **changes: Any) -> "Config":
        """A copy with some options changed."""
        return dataclasses.replace(self, **changes)


def _check(field: dataclasses.Field, value: Any) -> None:
    choices, check = field.metadata["choices"], field.metadata["check"]
    if choices and value not in choices:
        raise UserError(f"--{field.name}={value} is not one of: {', '.join(choices)}.")
    if check and not check(value):
        raise UserError(f"--{field.name}={text_of(value)} must {field.metadata['must']}.")


def _to_tuple(field: dataclasses.Field, items: list[str]) -> tuple:
    element = typing.get_args(field.type)[0]  # tuple[element, ...]
    try:
        return tuple(element(item) for item in items)
    except ValueError:
        raise UserError(
            f"--{field.name}={','.join(items)} must be a comma-separated list of "
            f"{element.__name__} values."
        ) from None


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one absl flag for each option. Call once, in an entry point, before parsing."""
    define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    for field in dataclasses.fields(Config):
        name, meaning = field.name, field.metadata["help"]
        default: Any = field.default
        if field.metadata["choices"]:
            choices = field.metadata["choices"]
            flags.DEFINE_enum(name, default, choices, meaning, flag_values=flag_values)
        elif field.type in define:
            define[field.type](name, default, meaning, flag_values=flag_values)
        elif field.type is str:
            flags.DEFINE_string(name, default, meaning, flag_values=flag_values)
        else:
            items = [str(item) for item in default]
            flags.DEFINE_list(name, items, meaning, flag_values=flag_values)


def from_flags(values: flags.FlagValues = flags.FLAGS) -> Config:
    """The configuration that the parsed flags spell; UserError where a value is out of range."""
    options: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        value = getattr(values, field.name)
        options[field.name] = _to_tuple(field, value) if isinstance(value, list) else value
    return Config(**options)


def to_text(config: Config) -> str:
    """The configuration as a flagfile, one option a line, in the order of the class."""
    lines = []
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if isinstance(value, bool):
            lines.append(f"--{'' if value else 'no'}{field.name}")
        else:
            lines.append(f"--{field.name}={text_of(value)}")
    return "\n".join(lines) + "\n"


def text_of(value: Any) -> str:
    """A value as its flag takes it; in a list, an item with a comma of its own is quoted."""
    if not isinstance(value, tuple):
        return str(value)
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(value)
    return text.getvalue()


def difference(name: str, there: Config, now: Config) -> str:
    """How an option differs from another run's, for a message."""
    before, after = (text_of(getattr(config, name)) or "empty" for config in (there, now))
    return f"--{name} is {before} there, now {after}"


def save(config: Config, model_dir: str) -> None:
    """Writes `model_dir/train.flags`, atomically."""
    write_atomically(pathlib.Path(model_dir) / FLAGFILE, to_text(config))


def load(model_dir: str) -> Config:
    """Reads what `save` wrote; UserError if there is no run or one of another version."""
    path = pathlib.Path(model_dir) / FLAGFILE
    if not path.is_file():
        raise UserError(f"{model_dir} is not a model directory: it has no {FLAGFILE}.")
    return read_flagfile(str(path))


def read_flagfile(path: str) -> Config:
    """The configuration that a flagfile alone spells; UserError where it is wrong."""
    values = flags.FlagValues()
    define_flags(values)
    try:
        values(["maskx_tf", f"--flagfile={path}"])
    except flags.Error as error:
        message = " ".join(str(error).split())
        raise UserError(f"{path}: {message}; correct the line or update maskx_tf.") from None
    return from_flags(values)
