"""The numbers of every flagfile equal the published ones, and its model has the published shapes.

The tables are those of the authors' configurations and of the tech report. No model is trained and
none is allocated: layers are built in a graph, where a variable is but a symbol.
"""

import functools
import itertools
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.assembly import assemble
from maskx_tf.config import Config
from maskx_tf.data.classes import named_classes
from maskx_tf.layers.choices import MASK_BODIES
from maskx_tf.layers.mask_bodies.fcis import PARTS
from tests.flagfiles import EXPERIMENTS, ROOT, ROWS, SCORE, SHAPES, head_of, on_one_line, parse
from tests.harness import check_each, thorough

# Row: mode, mask output, input of T, its length, layers, activation, stop-gradient, MLP branch.
SW, E2E = "stage2_masks", "end_to_end"
LEAKY, RELU, NONE = "leaky_relu", "relu", "none"
TRANSFER = "transfer"
PUBLISHED = {
    "randn": (SW, TRANSFER, "embedding", 300, 2, LEAKY, True, False),
    "glove": (SW, TRANSFER, "embedding", 300, 2, LEAKY, True, False),
    "cls": (SW, TRANSFER, "cls", 1024, 2, LEAKY, True, False),
    "box": (SW, TRANSFER, "box", 4096, 2, LEAKY, True, False),
    "cls_box": (SW, TRANSFER, "cls+box", 5120, 2, LEAKY, True, False),
    "class_agnostic": (SW, "class_agnostic", None, None, None, None, None, False),
    "oracle": (SW, "class_specific", None, None, None, None, None, False),
    "cls_box_1layer_none": (SW, TRANSFER, "cls+box", 5120, 1, NONE, True, False),
    "cls_box_2layer_relu": (SW, TRANSFER, "cls+box", 5120, 2, RELU, True, False),
    "cls_box_3layer_relu": (SW, TRANSFER, "cls+box", 5120, 3, RELU, True, False),
    "cls_box_3layer_leaky": (SW, TRANSFER, "cls+box", 5120, 3, LEAKY, True, False),
    "class_agnostic_mlp": (SW, "class_agnostic", None, None, None, None, None, True),
    "cls_box_mlp": (SW, TRANSFER, "cls+box", 5120, 2, LEAKY, True, True),
    "e2e_class_agnostic": (E2E, "class_agnostic", None, None, None, None, None, False),
    "e2e_transfer": (E2E, TRANSFER, "cls+box", 5120, 2, LEAKY, False, False),
    "e2e_transfer_stop": (E2E, TRANSFER, "cls+box", 5120, 2, LEAKY, True, False),
    "e2e_maskx": (E2E, TRANSFER, "cls+box", 5120, 2, LEAKY, True, True),
    "e2e_oracle": (E2E, "class_specific", None, None, None, None, None, False),
    "e2e_grabcut_trained": (E2E, "class_specific", None, None, None, None, None, False),
}
VG_STAGE2 = (SW, TRANSFER, "cls+box", 5120, 2, LEAKY, True, True)
# Mask AP: (voc -> non-voc on B, on A; non-voc -> voc on B, on A); None where it is not published.
SCORES = {
    "randn": (15.4, 35.2, 19.9, 31.1),
    "glove": (17.3, 35.2, 21.9, 31.1),
    "cls": (18.1, 35.1, 25.2, 31.1),
    "box": (19.8, 35.2, 25.7, 31.1),
    "cls_box": (20.2, 35.2, 26.0, 31.2),
    "class_agnostic": (14.2, 34.4, 21.5, 30.7),
    "cls_box_1layer_none": (19.2, 35.2, 25.3, 31.2),
    "cls_box_2layer_relu": (19.7, 35.3, 25.1, 31.1),
    "cls_box_3layer_relu": (19.3, 35.2, 26.0, 31.1),
    "cls_box_3layer_leaky": (18.9, 35.2, 25.5, 31.1),
    "class_agnostic_mlp": (17.1, 35.1, 22.8, 31.3),
    "cls_box_mlp": (21.3, 35.4, 26.6, 31.4),
    "e2e_class_agnostic": (19.2, 36.8, 23.9, 32.5),
    "e2e_transfer": (20.2, 37.7, 24.8, 33.2),
    "e2e_transfer_stop": (22.2, 37.6, 27.6, 33.1),
    "e2e_maskx": (23.7, None, 28.9, None),
    "e2e_class_agnostic_r101": (18.5, None, 24.7, None),
    "e2e_maskx_r101": (23.8, None, 29.5, None),
}
BOTH = {  # one run for both directions: on non-voc, on voc
    "oracle": (30.7, 35.0),
    "e2e_oracle": (33.0, 37.5),
    "e2e_oracle_r101": (34.4, 39.1),
    "e2e_grabcut_trained": (19.5, 19.5),
    "e2e_grabcut_trained_r101": (19.7, 19.6),
    "stage1_boxes": (12.6, 12.1),  # tested with GrabCut
    "stage1_boxes_r101": (13.0, 12.3),
}
DIRECTIONS = {"voc_to_nonvoc": "voc", "nonvoc_to_voc": "nonvoc"}
# Batch, learning rate, steps at which it is cut, steps in all.
SIXTEEN = (16, 0.02, (60_000, 80_000), 90_000)
EIGHT = (8, 0.01, (120_000, 160_000), 180_000)
EMBEDDING_SIZES = {"coco": 300, "shapes": 50}
NUM_CLASSES = {"coco": 80, "vg": 3001, "shapes": 72}


def coco(name: str) -> pathlib.Path:
    return pathlib.Path("configs/coco") / f"{name}.flags"


def mask_head_of(config: Config, size: int | None) -> tuple:
    if config.mask_output != TRANSFER:
        nothing = (None,) * 5
        return (config.mode, config.mask_output, *nothing, config.mask_mlp)
    return (
        config.mode,
        config.mask_output,
        config.transfer_input,
        size,
        config.transfer_layers,
        config.transfer_activation,
        config.transfer_stop_gradient,
        config.mask_mlp,
    )


@pytest.fixture(autouse=True)
def _repository_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_every_published_row_has_its_flagfile():
    wanted = {coco(f"{d}/{name}") for d in DIRECTIONS for name in SCORES}
    wanted |= {coco(name) for name in BOTH}
    splits = [f"E{t}_A{a}B{80 - a}" for t in range(1, 6) for a in range(20, 70, 10)]
    wanted |= {coco(f"fig3/{s}_{n}") for s in splits for n in ("class_agnostic", "cls_box")}
    vg = itertools.product((1, 2), ("r50", "r101"))
    wanted |= {pathlib.Path(f"configs/vg/stage{stage}_{net}.flags") for stage, net in vg}
    assert set(ROWS) == wanted


def row_of(path: pathlib.Path) -> str:
    """The key of `PUBLISHED`."""
    name = path.stem.removesuffix("_r101")
    return re.sub(r"^E\d_A\d0B\d0_", "", name) if path.parts[2] == "fig3" else name


def test_mask_heads():
    def check(path):
        config = parse(path)
        wanted = VG_STAGE2 if path.parts[1] == "vg" else PUBLISHED[row_of(path)]
        size = head_variables(config, *sizes(path)).get("weight_transfer/fc1/kernel", (None,))[0]
        assert mask_head_of(config, size) == wanted
        assert config.mask_rois == "proposals" and config.mask_size == 28
        assert (config.mask_filters, config.transfer_units, config.mask_convs) == (256, 256, 4)

    check_each(check, (path for path in ROWS if "stage1" not in path.name))


def test_schedules_and_backbones():
    def check(path):
        config = parse(path)
        r101 = path.stem.endswith("_r101")
        small = r101 or (path.parts[1] == "vg" and "stage1" in path.name)
        found = (config.batch_size, config.learning_rate, config.lr_steps, config.train_steps)
        assert found == (EIGHT if small else SIXTEEN)
        assert config.backbone == ("resnet101" if r101 else "resnet50")
        assert (config.image_min_side, config.image_max_side) == (800, 1333)
        assert (config.momentum, config.weight_decay, config.bias_learning_rate_factor) == (
            0.9,
            1e-4,
            2,
        )
        assert (config.warmup_steps, config.warmup_factor) == (500, pytest.approx(1 / 3))
        assert (config.frozen_stages, config.optimizer, config.clip_norm) == (2, "sgd", 0)
        per_gpu = config.batch_size // 8
        if config.mode == SW:
            assert (config.rpn_pre_nms_train, config.rpn_post_nms_train) == (1000, 2000)
        else:  # 2,000 a GPU
            assert (config.rpn_pre_nms_train, config.rpn_post_nms_train * per_gpu) == (2000, 2000)
        assert (config.rpn_pre_nms_test, config.rpn_post_nms_test) == (1000, 1000)
        assert (config.roi_batch_size, config.roi_positive_fraction) == (512, 0.25)

    check_each(check, ROWS)


def test_mask_classes():
    def check(path):
        config = parse(path)
        folder = path.parts[2]
        if config.mode == "stage1_boxes":
            wanted = "none"
        elif path.parts[1] == "vg":
            wanted = "coco"
        elif folder == "fig3":
            wanted = path.stem[: len("E1_A20B60")]
        else:
            wanted = DIRECTIONS.get(folder, "all")
        assert config.mask_classes == wanted
        if folder == "fig3":
            assert len(named_classes(wanted)) == int(wanted[4:6])
        grabcut = "grabcut" in path.name
        assert config.mask_sources == (("grabcut",) if grabcut else ())
        assert config.train_records == {
            ("vg", "stage1_boxes"): ("records/vg/train",),
        }.get((path.parts[1], config.mode), ("records/coco/train2017" + "_grabcut" * grabcut,))

    check_each(check, ROWS)


def scores_in_head(name: str) -> dict[str, str]:
    published = re.search(r"# Published: (.*)", on_one_line(head_of(coco(name))))
    return dict(SCORE.findall(published[1]))


def test_published_scores():
    wanted = {name: {"non-voc": str(v[0]), "voc": str(v[1])} for name, v in BOTH.items()}
    for (direction, start), (name, scores) in itertools.product(
        (("voc_to_nonvoc", 0), ("nonvoc_to_voc", 2)), SCORES.items()
    ):
        both = {"B": scores[start], "A": scores[start + 1]}
        wanted[f"{direction}/{name}"] = {s: str(v) for s, v in both.items() if v is not None}
    assert {name: scores_in_head(name) for name in wanted} == wanted


def sizes(path: pathlib.Path) -> tuple[int, int | None]:
    """Number of classes, and length of the class vectors that T takes."""
    return NUM_CLASSES.get(path.parts[1], 80), EMBEDDING_SIZES.get(path.parts[1])


def head_variables(config: Config, classes: int, vector_size: int | None) -> dict:
    """{variable: shape} of the box and mask heads of a configuration."""
    if config.transfer_input != "embedding":
        vector_size = None
    elif config.transfer_embeddings == "randn_class":
        vector_size = 300
    neutral = {f.name: f.default for f in Config.__dataclass_fields__.values()}
    kept = {name: getattr(config, name) for name in _MODEL_OPTIONS} | {
        "transfer_embeddings": config.transfer_embeddings and "any",
        "convolutions": "direct",  # of the same shapes, and traced in a twentieth of the time
    }
    return _head_variables(Config(**neutral | kept), classes, vector_size)


_MODEL_OPTIONS = [
    *("backbone", "backbone_width", "normalization", "frozen_stages", "fpn_filters", "min_level"),
    *("max_level", "rpn_filters", "box_roi_size", "box_fc_units", "mask_output", "transfer_input"),
    *("transfer_layers", "transfer_activation", "transfer_units", "transfer_stop_gradient"),
    *("mask_body", "mask_mlp", "mask_roi_size", "mask_filters", "mask_convs"),
]


@functools.cache
@tf.autograph.experimental.do_not_convert  # nothing to convert, and that takes most of the time
def _head_variables(config: Config, classes: int, vector_size: int | None) -> dict:
    """In a graph, where nothing is allocated; the heads alone, once for each kind."""
    rows = None if vector_size is None else np.zeros([classes, vector_size])
    with tf.Graph().as_default():
        model = assemble(config, classes, rows)
        side, filters = config.box_roi_size, config.fpn_filters
        model.box_head(tf.zeros([1, side, side, filters]))
        side = config.mask_roi_size
        features, chosen = tf.zeros([1, side, side, filters]), tf.constant([1])
        kernels, biases = model.mask_kernels(chosen)
        logits = model.mask_head(features, kernels, biases)
        assert kernels.shape == (1, model.mask_head.body.filters)
        assert logits.shape[1:] == (config.mask_size, config.mask_size)
        found = {v.name.removesuffix(":0"): tuple(v.shape) for v in model.variables}
    return found


@functools.cache
@tf.autograph.experimental.do_not_convert
def _pyramid_variables(
    backbone, width, normalization, frozen, filters, min_level, max_level, rpn_filters
) -> dict:
    config = Config(
        backbone=backbone, backbone_width=width, normalization=normalization, frozen_stages=frozen,
        fpn_filters=filters, min_level=min_level, max_level=max_level, rpn_filters=rpn_filters,
        convolutions="direct",
    )  # fmt: skip
    with tf.Graph().as_default():
        model = assemble(config, 1)
        pyramid = model.pyramid(tf.zeros([1, 64, 64, 3]), tf.constant([[64.0, 64.0]]))
        model.rpn(pyramid)
        assert all(x.shape[-1] == filters for x in pyramid.values())
        return {v.name.removesuffix(":0"): tuple(v.shape) for v in model.variables}


def pyramid_variables(config: Config) -> dict[str, tuple[int, ...]]:
    """{variable: shape} of backbone, FPN and RPN of a configuration."""
    return _pyramid_variables(
        config.backbone, config.backbone_width, config.normalization, config.frozen_stages,
        config.fpn_filters, config.min_level, config.max_level, config.rpn_filters,
    )  # fmt: skip


def count(found: dict[str, tuple[int, ...]], *prefixes: str) -> int:
    """Number of parameters; what normalisation layers only measure is none."""
    return sum(
        int(np.prod(shape))
        for name, shape in found.items()
        if name.startswith(prefixes or ("",)) and "/moving_" not in name
    )


def test_models_are_built():
    def check(path):
        config, (classes, vector_size) = parse(path), sizes(path)
        found = head_variables(config, classes, vector_size)
        units = config.box_fc_units
        assert found["box_head/cls_kernel"] == (classes + 1, units)
        assert found["box_head/box_kernel"] == (classes + 1, 4, units)
        pixels = config.mask_size**2
        mlp = pixels * config.mask_filters * pixels + pixels
        has_branch = config.mask_mlp and MASK_BODIES[config.mask_body].has_pixels
        assert count(found, "mask_head/mlp/") == has_branch * mlp
        if config.mask_output == TRANSFER:
            assert f"weight_transfer/fc{config.transfer_layers}/kernel" in found
            assert f"weight_transfer/fc{config.transfer_layers + 1}/kernel" not in found
        else:
            rows = 1 if config.mask_output == "class_agnostic" else classes + 1
            kernels = 2 * PARTS**2 if config.mask_body == "fcis" else 1
            assert found["mask_weights/kernel"] == (rows, kernels * config.mask_filters)

    check_each(check, (path for path in EXPERIMENTS if path.parts[1] != "backbones"))


@pytest.mark.thorough
def test_pyramids_are_built():
    def check(path):
        config = parse(path)
        found = pyramid_variables(config)
        assert found["fpn/output3/kernel"] == (3, 3, config.fpn_filters, config.fpn_filters)

    check_each(check, (path for path in EXPERIMENTS if path.parts[1] != "backbones"))


@pytest.mark.parametrize(
    ("name", "wanted"), [("e2e_maskx", 203_109_364), thorough("e2e_maskx_r101", 222_101_492)]
)
def test_parameters_of_the_published_models(name, wanted):
    config = parse(coco(f"voc_to_nonvoc/{name}"))
    heads = head_variables(config, 80, None)
    assert count(heads, "weight_transfer/") == 5120 * 256 + 256 + 256 * 256 + 256
    assert count(heads) + count(pyramid_variables(config)) == wanted


# Of Shapes, not of the paper.
BEYOND = {"demo_boxes", "cls_gn", "opmask_boxes", "opmask", "opmask_transfer"} | {
    "boxinst",
    "maskx_weak",
}
FAMILY = {"fcn8s", "gcn", "deeplab", "fcis", "mnc"}
BEYOND |= {"deeplab_boxes"} | FAMILY | {f"{name}_transfer" for name in FAMILY}


def test_shapes_has_the_rows_of_coco():
    names = {path.stem for path in SHAPES} - BEYOND
    both = {name for name in BOTH if not name.endswith("_r101")} - {"e2e_grabcut_trained"}
    rows = {name for name in SCORES if not name.endswith("_r101")} | both | {"grabcut_trained"}
    assert names == rows


def test_shapes_rows_differ_as_those_of_coco():
    def check(path):
        config, name = parse(path), path.stem
        wanted = list(PUBLISHED[name if name in PUBLISHED else "oracle"])
        units = config.box_fc_units
        wanted[3] = {"cls": units, "box": 4 * units, "cls+box": 5 * units, None: None}.get(
            wanted[2], 0
        )
        size = head_variables(config, *sizes(path)).get("weight_transfer/fc1/kernel", (None,))[0]
        assert mask_head_of(config, 0 if wanted[2] == "embedding" else size) == tuple(wanted)
        everything = "oracle" in name or "grabcut" in name
        assert config.mask_classes == ("all" if everything else "data/shapes/set_a.txt")

    check_each(check, (p for p in SHAPES if p.stem not in BEYOND | {"stage1_boxes"}))
