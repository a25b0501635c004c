"""Every option of a model and its training, once: type, default, meaning, check.

`Config` is flat and frozen. absl flags are generated from it (`define_flags`), read in one place
(`from_flags`) and saved beside the checkpoints (`save`), so that a run can be repeated with
`--flagfile=MODEL_DIR/train.flags`. Nothing below the entry points reads a flag.
"""

import dataclasses
import functools
import pathlib
import re
from typing import Any

from absl import flags

from maskx_tf import config_rules
from maskx_tf.data.coco.values import as_number
from maskx_tf.errors import UserError
from maskx_tf.layers.choices import (
    BACKBONES,
    BOX_HEADS,
    MASK_BODIES,
    ROI_OPERATORS,
    SEMANTIC_HEADS,
)
from maskx_tf.system import flagfiles, options
from maskx_tf.system.files import write_atomically
from maskx_tf.system.options import FRACTION, NOT_NEGATIVE, POSITIVE, Check, text_of, to_text

FLAGFILE = flagfiles.OF_A_RUN


# Changes nothing that a run learns: no part of feature caches, studies and HParams.
_bookkeeping = functools.partial(options.option, "bookkeeping")
# Names what is read: a feature cache goes by its content.
_source = functools.partial(options.option, "source")
# Without it the weights of a detector mean something else.
_detector = functools.partial(options.option, "detector")
# Neither of these two changes what a frozen detector gives the mask head.
_mask_head = functools.partial(options.option, "mask_head")
_optimizer = functools.partial(options.option, "optimizer")
# Anything else that training follows from.
_training = functools.partial(options.option, "training")
# Which boxes are detected; evaluation may have others.
_detections = functools.partial(options.option, "detections", at_test="detections")


_METRIC = re.compile("(box|mask|mask_given_boxes)_[a-z0-9_]+_(a|b|all)")


@dataclasses.dataclass(frozen=True)
class Config:
    """The options of one run. Defaults are the published COCO R-50-FPN settings."""

    # Run
    model_dir: str = _bookkeeping(
        "", "Directory of checkpoints, TensorBoard logs and settings.", at_test="data"
    )
    mode: str = _training(
        "end_to_end",
        "What is trained: everything; the box detector; or the mask head on a frozen detector.",
        choices=("end_to_end", "stage1_boxes", "stage2_masks"),
    )
    init_checkpoint: str = _source(
        "", "Model directory or checkpoint to start from; class rows are matched by name."
    )
    seed: int = _training(
        0,
        "Seed of initialisation, data order and sampling.",
        Check(lambda v: 0 <= v < 2**31, "lie in [0, 2^31)"),
    )
    train_steps: int = _optimizer(
        90_000, "Number of training steps.", POSITIVE, on_resume="may_change", scales="steps"
    )
    checkpoint_interval: int = _bookkeeping(
        2_500, "Steps between checkpoints.", POSITIVE, scales="steps"
    )
    keep_checkpoints: int = _bookkeeping(3, "How many of the latest checkpoints to keep.", POSITIVE)
    summary_interval: int = _bookkeeping(
        20, "Steps between progress lines and TensorBoard points.", POSITIVE
    )
    eval_interval: int = _bookkeeping(
        0, "Steps between evaluations; 0: only after the last step.", NOT_NEGATIVE, scales="steps"
    )
    keep_best: str = _bookkeeping(
        "",
        "Metric of the evaluations whose best checkpoint is kept too, as RUN@best: section_metric_"
        "set in small letters, such as mask_ap_b, box_ap_all, mask_given_boxes_iou_b.",
        Check(lambda v: not v or bool(_METRIC.fullmatch(v)), "be like mask_ap_b or box_ap_all"),
        is_later=True,
    )
    patience: int = _optimizer(
        0,
        "End training after so many evaluations in a row without a better keep_best; 0: never.",
        NOT_NEGATIVE,
        on_resume="may_change",
        is_later=True,
    )
    panel_images: int = _bookkeeping(
        6, "Validation images drawn for TensorBoard; 0: none.", NOT_NEGATIVE
    )
    num_gpus: int = _bookkeeping(-1, "GPUs to use; -1: all, 0: the CPU.", at_test="data")
    feature_cache: str = _bookkeeping(
        "",
        "Directory where stage 2 caches its frozen features, for runs that differ only in the mask "
        "head; takes some gigabytes. Empty: no cache.",
    )
    precision: str = _training(
        "float32",
        "Precision that layers compute in during training (docs/devices.md); weights stay float32.",
        choices=("float32", "bfloat16", "float16"),
        on_resume="may_change",
        at_test="detections",
    )
    convolutions: str = _training(
        "auto",
        "How 3x3 convolutions in float32 are computed: direct; winograd, with half the products; "
        "auto: winograd unless there is a GPU.",
        choices=("auto", "direct", "winograd"),
        on_resume="may_change",
    )

    # Data
    train_records: tuple[str, ...] = _source(
        (), "Record directories (or shard globs) to train on.", on_resume="may_change"
    )
    eval_records: tuple[str, ...] = _bookkeeping(
        (), "Record directories (or shard globs) to evaluate.", at_test="data"
    )
    vocabulary: str = _source(
        "",
        "Class list (.json, .txt, or `coco`); empty: that of the records.",
        on_resume="by_content",
    )
    mask_classes: str = _source(
        "all",
        "Set A, the classes whose masks may be used: all, none, coco, voc, nonvoc, a random split "
        "of the paper (E1_A20B60 to E5_A60B20), or a .txt file with one name per line.",
        on_resume="by_content",
        at_test="data",
    )
    mask_sources: tuple[str, ...] = _training(
        (),
        "Training uses only masks of these sources, as the records name them (human, grabcut); "
        "empty: all.",
    )
    mask_source_weights: tuple[str, ...] = _training(
        (),
        "Factors from 0 to 1 on the loss of masks by their source, as human:1,maskx_tf:0.5; 1 of a "
        "source that is not named, 0: as if there was no mask.",
        is_later=True,
    )
    batch_size: int = _training(
        16, "Images per step, over all devices.", POSITIVE, on_resume="may_change", at_test="data"
    )
    image_min_side: int = _training(
        800, "Length in pixels that the short side is resized to.", POSITIVE, at_test="data"
    )
    image_max_side: int = _training(
        1333, "Largest length in pixels of the long side.", POSITIVE, at_test="data"
    )
    horizontal_flip: bool = _training(True, "Flip half of the training images.")
    scale_jitter_min: float = _training(
        1.0, "Smallest random factor on the training image scale.", POSITIVE
    )
    scale_jitter_max: float = _training(
        1.0, "Largest random factor on the training image scale.", POSITIVE
    )
    copy_paste: float = _training(
        0.0,
        "Share of the training images that some objects of another are pasted over: those with "
        "masks, see mask_classes.",
        FRACTION,
        is_later=True,
    )
    repeat_threshold: float = _training(
        0.0,
        "Images with a class that less than this share of the images has come more often, "
        "sqrt(threshold / share) times an epoch, as for LVIS (0.001); 0: all once.",
        FRACTION,
        is_later=True,
    )
    max_objects: int = _training(
        100, "Ground-truth objects kept per image, the largest first.", POSITIVE, at_test="data"
    )
    mask_crop_size: int = _training(
        112, "Side of the ground-truth mask crops in a batch.", POSITIVE
    )
    skip_corrupt_records: bool = _training(
        False,
        "Read all records first, warn of corrupt ones and train without them.",
        on_resume="may_change",
    )

    # Network input
    channel_order: str = _detector(
        "bgr", "Order of the network's input channels.", choices=("bgr", "rgb")
    )
    pixel_mean: tuple[float, ...] = _detector(
        (102.9801, 115.9465, 122.7717),
        "Subtracted from the channels, in channel_order.",
        Check(lambda v: len(v) == 3, "have three values"),
    )
    pixel_std: tuple[float, ...] = _detector(
        (1.0, 1.0, 1.0),
        "What the channels are divided by, in channel_order.",
        Check(lambda v: len(v) == 3, "have three values"),
    )

    # Geometry
    conventions: str = _detector(
        "aligned",
        "Geometry of boxes, anchors and RoIAlign (docs/weights.md); detectron and torchvision: for "
        "their weights.",
        choices=("aligned", "detectron", "torchvision"),
    )

    # Backbone and FPN
    backbone: str = _detector("resnet50", "Backbone.", choices=tuple(BACKBONES))
    backbone_width: int = _detector(
        64, "Filters of stage 2; those of later stages are multiples of it.", POSITIVE
    )
    backbone_stem_width: int = _detector(
        0, "Filters of the stem; 0: backbone_width.", NOT_NEGATIVE, is_later=True
    )
    stride_on: str = _detector(
        "1x1",
        "Which convolution of a bottleneck has the stride: the first 1x1 (MSRA) or the 3x3.",
        choices=("1x1", "3x3"),
    )
    backbone_output_stride: int = _detector(
        32,
        "Largest stride of the backbone's features; 16, 8 dilate later stages (docs/weights.md).",
        Check(lambda v: v in (8, 16, 32), "be 8, 16 or 32"),
        is_later=True,
    )
    backbone_padding: str = _detector(
        "symmetric",
        "Padding where the backbone has a stride: the same on all sides (Detectron, Keras, "
        "torchvision); TensorFlow's own, more at the bottom and right of even sides (Model "
        "Garden); or caffe: the same, but max-pooling pads at the bottom and right.",
        choices=("symmetric", "same", "caffe"),
    )
    backbone_weights: str = _source(
        "",
        "ImageNet weights a new run starts from: `keras` (downloads), a .h5 of "
        "tf_keras.applications, a .pth or .safetensors of torchvision or timm, a Detectron .pkl, "
        "an .onnx, or a Model Garden checkpoint; most need their flagfile in configs/backbones. "
        "Empty: random.",
    )
    normalization: str = _detector(
        "frozen_batch_norm",
        "Normalisation in the backbone.",
        choices=("frozen_batch_norm", "batch_norm", "sync_batch_norm", "group_norm"),
    )
    frozen_stages: int = _training(
        2, "Backbone stages that are frozen; 0: none, 2: stem and res2.", NOT_NEGATIVE
    )
    fpn_filters: int = _detector(256, "Channels of every pyramid level.", POSITIVE)
    min_level: int = _detector(2, "Finest pyramid level (stride 2^level).", POSITIVE)
    max_level: int = _detector(6, "Coarsest pyramid level, used by the RPN.", POSITIVE)

    # RPN
    anchor_size: float = _detector(8.0, "Anchor side in strides of its level.", POSITIVE)
    anchor_ratios: tuple[float, ...] = _detector(
        (0.5, 1.0, 2.0),
        "Anchor height / width.",
        Check(
            lambda v: v and all(ratio > 0 for ratio in v), "have a value, and positive ones only"
        ),
    )
    anchor_offset: float = _detector(0.5, "Position of an anchor's centre in its cell.", FRACTION)
    rpn_filters: int = _detector(256, "Channels of the RPN's 3x3 convolution.", POSITIVE)
    rpn_batch_size: int = _training(256, "Anchors sampled per image for the RPN losses.", POSITIVE)
    rpn_positive_fraction: float = _training(
        0.5, "Share of sampled anchors that may be positive.", FRACTION
    )
    rpn_positive_iou: float = _training(0.7, "Least IoU of a positive anchor.", FRACTION)
    rpn_negative_iou: float = _training(0.3, "IoU below which an anchor is negative.", FRACTION)
    rpn_straddle_threshold: float = _training(
        0.0, "Pixels that an anchor may extend beyond the image and still be trained on; -1: any."
    )
    rpn_nms_iou: float = _detections(0.7, "NMS threshold between proposals of a level.", FRACTION)
    rpn_pre_nms_train: int = _training(
        2_000, "Proposals per level before NMS, in training.", POSITIVE
    )
    rpn_post_nms_train: int = _training(
        1_000, "Proposals per image after NMS, in training.", POSITIVE
    )
    rpn_pre_nms_test: int = _detections(
        1_000, "Proposals per level before NMS, at test time.", POSITIVE
    )
    rpn_post_nms_test: int = _detections(
        1_000, "Proposals per image after NMS, at test time.", POSITIVE
    )

    # Box head
    roi_batch_size: int = _training(512, "RoIs sampled per image for the heads.", POSITIVE)
    roi_positive_fraction: float = _training(
        0.25, "Share of sampled RoIs that may be foreground.", FRACTION
    )
    roi_positive_iou: float = _training(0.5, "Least IoU of a foreground RoI.", FRACTION)
    cascade_ious: tuple[float, ...] = _detector(
        (),
        "A cascade of box heads, each on the boxes of the one before: their least IoUs of a "
        "foreground RoI, as 0.5,0.6,0.7, in place of roi_positive_iou. Empty: one head.",
        Check(lambda v: len(v) != 1 and all(0 < iou <= 1 for iou in v), "list two or more IoUs"),
        is_later=True,
    )
    cascade_loss_weights: tuple[float, ...] = _training(
        (),
        "Weights of the losses of each head of a cascade, as 1,0.5,0.25. Empty: all 1, and each "
        "head gives backbone and FPN its part of the gradient only (docs/family.md).",
        Check(lambda v: all(weight > 0 for weight in v), "be positive"),
        is_later=True,
    )
    roi_canonical_size: float = _detector(
        224.0, "RoI side in pixels that level 4 is meant for.", POSITIVE
    )
    box_roi_size: int = _detector(7, "Side of the RoI features of the box head.", POSITIVE)
    box_roi_op: str = _detector(
        "align",
        "How RoI features of the box head arise: RoIAlign, max pooling in whole cells, warping, or "
        "averages of whole cells (docs/mask_heads.md).",
        choices=tuple(ROI_OPERATORS),
        is_later=True,
    )
    box_head: str = _detector(
        "fc",
        "Box head: two fully connected layers; convolutions and a mean, which have class "
        "activation maps (docs/mask_heads.md); or MNC's, which sees masks (docs/family.md).",
        choices=tuple(BOX_HEADS),
        is_later=True,
    )
    box_fc_units: int = _detector(
        1_024, "Units of the box head's last layers; length of w_cls.", POSITIVE
    )
    box_convs: int = _detector(4, "Convolutions of box_head=conv.", POSITIVE, is_later=True)
    box_norm: str = _detector(
        "none",
        "Normalisation in box_head=conv.",
        choices=("none", "group_norm"),
        is_later=True,
    )

    # Mask head
    mask_output: str = _mask_head(
        "transfer",
        "Mask predictor: weights from T (Mask^X), one class-agnostic map, or one map per class.",
        choices=("transfer", "class_agnostic", "class_specific"),
    )
    transfer_input: str = _mask_head(
        "cls+box", "What T sees of a class.", choices=("cls", "box", "cls+box", "embedding")
    )
    transfer_layers: int = _mask_head(
        2, "Fully connected layers of T.", Check(lambda v: v in (1, 2, 3), "be 1, 2 or 3")
    )
    transfer_activation: str = _mask_head(
        "leaky_relu", "Activation between T's layers.", choices=("none", "relu", "leaky_relu")
    )
    transfer_units: int = _mask_head(256, "Units of T's hidden layers.", POSITIVE)
    transfer_stop_gradient: bool = _mask_head(
        True, "Keep the mask loss from changing the box head's last layers through T."
    )
    transfer_embeddings: str = _mask_head(
        "",
        "Class vectors for transfer_input=embedding: word vectors in GloVe's text format, a .npy "
        "[K, D] in vocabulary order, randn (a random vector per word) or randn_class (per class); "
        "or, as a control, permuted_cls, permuted_box, permuted_cls+box: the detector's class "
        "weights, dealt out anew among the classes of A.",
    )
    transfer_trained: bool = _mask_head(
        True, "Train T; if not, its random initial weights stay, as a control.", is_later=True
    )
    mask_body: str = _mask_head(
        "fcn",
        "Body of the mask head (docs/mask_heads.md).",
        choices=tuple(MASK_BODIES),
    )
    mask_branches: tuple[str, ...] = _mask_head(
        (),
        "What the mask head is told beside the RoI features: coords, where in the RoI a cell is; "
        "cam, the class activation map of the RoI's class, which needs box_head=conv.",
        Check(
            lambda v: set(v) <= {"coords", "cam"} and len(v) == len(set(v)),
            "have coords, cam, both or neither",
        ),
        is_later=True,
    )
    mask_mlp: bool = _mask_head(True, "Add the class-agnostic fully connected branch.")
    mask_rois: str = _training(
        "proposals",
        "Boxes the mask head trains on: foreground proposals, these where the box heads see their "
        "objects (as at test time), or ground truth.",
        choices=("proposals", "refined", "ground_truth"),
    )
    mask_roi_size: int = _training(
        14,
        "Side of the RoI features of the mask head; masks are mask_upsampling times it.",
        POSITIVE,
    )
    mask_roi_op: str = _training(
        "align", "As box_roi_op, of the mask head.", choices=tuple(ROI_OPERATORS), is_later=True
    )
    mask_roi_scale: float = _training(
        1.0,
        "Side of a mask's window over the side of its box (docs/mask_heads.md).",
        Check(lambda v: v >= 1, "be at least 1"),
        is_later=True,
    )
    mask_filters: int = _mask_head(
        256, "Channels of the mask trunk; length of w_seg (docs/mask_heads.md).", POSITIVE
    )
    mask_convs: int = _mask_head(4, "3x3 convolutions of mask_body=fcn.", POSITIVE)
    mask_kernel: int = _mask_head(
        13,
        "Side of the large kernel of mask_body=gcn.",
        Check(lambda v: v > 0 and v % 2 == 1, "be positive and odd"),
    )
    mask_upsampling: int = _mask_head(
        2,
        "Side of a mask over the side of its RoI features: 1, 2, 4 or 8.",
        Check(lambda v: v in (1, 2, 4, 8), "be 1, 2, 4 or 8"),
    )
    mask_norm: str = _mask_head(
        "none",
        "Normalisation in the mask body.",
        choices=("none", "group_norm", "batch_norm", "sync_batch_norm"),
    )
    semantic_head: str = _mask_head(
        "none",
        "Sees the whole image and learns of each pixel which classes it is of (docs/family.md).",
        choices=("none", *SEMANTIC_HEADS),
        is_later=True,
    )
    semantic_masks: str = _mask_head(
        "map",
        "How masks arise with a semantic_head: the map of the box's class, as far as the box's "
        "window reaches; or by the mask head, which sees its features beside those of the RoI.",
        choices=("map", "head"),
        is_later=True,
    )
    point_head: str = _mask_head(
        "none",
        "Predicts masks anew at points where they are uncertain, out of the finest features: its "
        "last layer is class-agnostic or, by another T, of the class (docs/mask_heads.md).",
        choices=("none", "agnostic", "transfer"),
        is_later=True,
    )
    point_units: int = _mask_head(256, "Units of the point head's layers.", POSITIVE, is_later=True)
    point_steps: int = _detections(
        2,
        "How often a mask doubles its side at test time with a point head.",
        Check(lambda v: 1 <= v <= 4, "be 1, 2, 3 or 4"),
        is_later=True,
    )
    mask_scoring: str = _mask_head(
        "none",
        "Predicts how good each mask is, and ranks masks by it; class-agnostic or, by another T, "
        "of the class (docs/mask_heads.md).",
        choices=("none", "agnostic", "transfer"),
        is_later=True,
    )
    mask_scoring_units: int = _mask_head(
        1_024, "Units of the fully connected layers of mask_scoring.", POSITIVE, is_later=True
    )
    loss_joint: float = _training(
        0.0,
        "Weight of FCIS's class loss: the mask head's inside and outside maps also tell the class, "
        "and their score is added to the box head's (docs/mask_heads.md); 0: they do not.",
        NOT_NEGATIVE,
        is_later=True,
    )
    hard_rois: float = _training(
        1.0,
        "Share of the RoIs, those of the largest losses, that the mask head learns from with "
        "loss_joint (OHEM).",
        Check(lambda v: 0 < v <= 1, "lie in (0, 1]"),
        is_later=True,
    )
    loss_projection: float = _mask_head(
        0.0,
        "Weight of BoxInst's projection loss, which learns from boxes alone (docs/mask_heads.md).",
        NOT_NEGATIVE,
    )
    loss_pairwise: float = _mask_head(
        0.0, "Weight of BoxInst's loss of neighbours of one colour, likewise.", NOT_NEGATIVE
    )
    weak_on: str = _mask_head(
        "b",
        "Objects that losses from boxes learn from: those without a mask to train on, or all.",
        choices=("b", "all"),
    )
    weak_warmup_steps: int = _optimizer(
        10_000,
        "Steps over which loss_pairwise grows to its full weight.",
        NOT_NEGATIVE,
        on_resume="may_change",
        scales="steps",
    )
    pairwise_threshold: float = _mask_head(
        0.3, "Least similarity of neighbours of one colour, exp(-distance in LAB / 2).", FRACTION
    )
    pairwise_dilation: int = _mask_head(
        1, "Cells of the mask between neighbours: 1 for masks of 28 x 28, 2 of 56 x 56.", POSITIVE
    )

    # Detections
    score_threshold: float = _detections(0.05, "Detections below this score are dropped.", FRACTION)
    nms_iou: float = _detections(0.5, "NMS threshold between detections of a class.", FRACTION)
    box_passes: int = _detections(
        1,
        "With 2, boxes are RoIs of the box head once more, and both times compete (FCIS, MNC).",
        Check(lambda v: v in (1, 2), "be 1 or 2"),
        is_later=True,
    )
    mask_voting: bool = _detections(
        False,
        "Masks of detections are the mean of those of all RoIs around them, with box_head=mnc or "
        "loss_joint.",
        is_later=True,
    )
    nms_candidates: int = _detections(
        1_000, "Highest-scoring (RoI, class) pairs that reach the NMS.", POSITIVE
    )
    max_detections: int = _detections(100, "Detections kept per image, over all classes.", POSITIVE)
    class_groups: tuple[int, ...] = _training(
        (),
        "Sizes of the class groups: the trained classes, then those of each maskx_tf.add_classes. "
        "Each group gets an equal share of nms_candidates and max_detections. Empty: one group.",
    )

    # Optimiser
    optimizer: str = _optimizer("sgd", "Optimiser.", choices=("sgd", "adamw"))
    learning_rate: float = _optimizer(
        0.02,
        "Learning rate after warm-up, for the whole batch.",
        POSITIVE,
        on_resume="may_change",
        scales="rate",
    )
    momentum: float = _optimizer(0.9, "Momentum of SGD.", FRACTION)
    weight_decay: float = _optimizer(
        1e-4, "Weight decay of kernels; biases have none.", NOT_NEGATIVE
    )
    bias_learning_rate_factor: float = _optimizer(
        2.0,
        "SGD: factor on the learning rate of biases, and of scales and offsets of norms.",
        POSITIVE,
    )
    warmup_steps: int = _optimizer(
        500, "Steps of linear warm-up.", NOT_NEGATIVE, on_resume="may_change", scales="steps"
    )
    warmup_factor: float = _optimizer(
        1 / 3, "Learning-rate factor at step 0.", FRACTION, on_resume="may_change"
    )
    lr_steps: tuple[int, ...] = _optimizer(
        (60_000, 80_000),
        "Steps at which the rate is cut by 10.",
        Check(lambda v: v == tuple(sorted(v)), "ascend"),
        on_resume="may_change",
        scales="steps",
    )
    clip_norm: float = _optimizer(
        0.0, "Global gradient norm to clip at; 0: none.", NOT_NEGATIVE, on_resume="may_change"
    )
    ema_decay: float = _optimizer(
        0.0,
        "Decay per step of a moving average of the trained weights, which evaluation and export "
        "then use, e.g. 0.9998; 0: no average.",
        Check(lambda v: 0 <= v < 1, "lie in [0, 1)"),
        on_resume="may_change",
        scales="decay",
    )

    def __post_init__(self) -> None:
        # Messages name an option as Python does; `from_flags` adds the dashes.
        for field in dataclasses.fields(self):
            value = options.typed(field, getattr(self, field.name))
            options.check(field, value)
            object.__setattr__(self, field.name, value)
        config_rules.check(self)

    @property
    def source_weights(self) -> dict[str, float]:
        """Factors on the loss of masks, in [0, 1], by source; UserError if they are none."""
        weights: dict[str, float] = {}
        for item in self.mask_source_weights:
            source, _, text = item.rpartition(":")
            weight = as_number(text)
            if not source or source in weights or weight is None or not 0 <= weight <= 1:
                raise UserError(
                    f"mask_source_weights={text_of(self.mask_source_weights)} must list sources, "
                    "each once, with a weight from 0 to 1, such as human:1,maskx_tf:0.5; "
                    f"{item!r} is none."
                )
            weights[source] = weight
        return weights

    @property
    def has_masks(self) -> bool:
        """False of stage 1, where nothing trains the mask head."""
        return self.mode != "stage1_boxes"

    @property
    def has_mnc(self) -> bool:
        """Whether the box head sees the masks of its RoIs."""
        return self.box_head == "mnc"

    @property
    def mask_loss_weight(self) -> float:
        """Weight of the mask loss: 2 in MNC, as published; 0 without a mask head."""
        if not self.has_mask_head:
            return 0.0
        return 2.0 if self.has_mnc else 1.0

    @property
    def roi_mask_loss_weight(self) -> float:
        """Weight of the loss of masks of RoIs of no class, where those of boxes have one."""
        return 2.0 if self.has_mnc and self.has_transfer else 0.0

    @property
    def mask_size(self) -> int:
        """Side of what the mask head predicts."""
        return self.mask_upsampling * self.mask_roi_size

    @property
    def last_level(self) -> int:
        """The coarsest level that the backbone has."""
        last_stage = BACKBONES[self.backbone].last_stage
        return min(last_stage, self.backbone_output_stride.bit_length() - 1)

    @property
    def has_mask_head(self) -> bool:
        """Whether masks are predicted RoI by RoI, not cut out of a map of the image."""
        return self.semantic_head == "none" or self.semantic_masks == "head"

    @property
    def loss_semantic(self) -> float:
        """Weight of the semantic head's loss: beside a mask head it is Hybrid Task Cascade's."""
        if self.semantic_head == "none":
            return 0.0
        return 0.2 if self.has_mask_head else 1.0

    @property
    def has_point_head(self) -> bool:
        """Whether masks are predicted anew at points."""
        return self.point_head != "none"

    @property
    def has_mask_scoring(self) -> bool:
        """Whether masks have scores of their own."""
        return self.mask_scoring != "none"

    @property
    def has_joint_scores(self) -> bool:
        """Whether the mask head scores classes too."""
        return self.loss_joint > 0 and self.has_masks

    @property
    def refined_mask_size(self) -> int:
        """Side of the masks in the results."""
        return self.mask_size * 2**self.point_steps if self.has_point_head else self.mask_size

    @property
    def has_transfer(self) -> bool:
        """Whether weights of a class are predicted from its box weights, by T."""
        return "transfer" in (self.mask_output, self.point_head, self.mask_scoring)

    def replace(self, **changes: Any) -> "Config":
        """A copy with some options changed."""
        return dataclasses.replace(self, **changes)


def names(**roles: str) -> tuple[str, ...]:
    """The options with the given roles, in the order of the class: `names(scope="mask_head")`."""
    return options.names(Config, **roles)


define_flags = functools.partial(options.define_flags, Config)
from_flags = functools.partial(options.from_flags, Config)


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
        values(["maskx_tf", *flagfiles.expand([f"--flagfile={path}"])])
    except flags.Error as error:
        message = " ".join(str(error).split())
        raise UserError(f"{path}: {message}; correct the line or update maskx_tf.") from None
    return from_flags(values)
