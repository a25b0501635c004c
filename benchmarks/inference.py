"""How long an image takes from pixels to masks, beside Model Garden's Mask R-CNN.

    python -m benchmarks.inference --sizes=800x1344 --classes=80,3000

Both have random weights, R-50-FPN, a box head of two fully connected layers, 1,000 proposals and
100 detections; one image a batch, float32. With random weights scores lie below any threshold, so
both keep their 100 best boxes: neither saves work. --detections adds ours with fewer, as most
images have: it makes no masks for empty places, while Model Garden always makes 100. They run in
turns in one process; ours also by stage (each contains those before it), and as the exported
SavedModel, also with direct convolutions, and with --openvino as OpenVINO exports. --only takes
some of them, by parts of their names; ratios are to the first. With --peak, also the arithmetic
that the plain formulas of each stage ask for, and its share of what the machine reaches on matrix
products: above 100 %, an algorithm needed less.
"""

import pathlib
import tempfile
import time

import numpy as np
import tensorflow as tf
from absl import flags
from tensorflow.python.profiler import model_analyzer, option_builder

from benchmarks import cases, models, openvino_models, peers, timing
from export.saved_model import Options, write
from maskx_tf.assembly import rebuilt
from maskx_tf.data.classes import Vocabulary
from maskx_tf.model import MaskXRCNN
from maskx_tf.system import cli

SAVED_MODEL = "maskx_tf, SavedModel"
OPENVINO = "maskx_tf, OpenVINO"


def stages(model: MaskXRCNN, height: int, width: int) -> dict[str, tf.types.experimental.Callable]:
    """Graphs that stop after a stage, each on a float image [1, H, W, 3]."""
    sizes = tf.constant([[height, width]], tf.float32)
    config = model.config
    signature = [tf.TensorSpec([1, height, width, 3])]

    def pyramid(image):
        return model.pyramid(image, sizes)

    def proposals(image):
        outputs = model.rpn(pyramid(image))
        return model.rpn.propose(outputs, sizes, config.rpn_pre_nms_test, config.rpn_post_nms_test)

    def whole(image):
        return model(image, sizes)

    def boxes(image):
        return model.detect_boxes(pyramid(image), sizes)

    named = {"pyramid": pyramid, "+ RPN": proposals, "+ boxes": boxes, "+ masks": whole}
    return {
        f"maskx_tf {name}": tf.function(run, input_signature=signature, autograph=False)
        for name, run in named.items()
    }


def exported(height: int, width: int, num_classes: int, **changes):
    """A run of the SavedModel's `image_tensor` signature on one image; options changed."""
    config = models.configuration(height, width, **changes)
    names = Vocabulary.from_names(f"class {c}" for c in range(1, num_classes + 1))
    with tempfile.TemporaryDirectory() as directory:
        model = models.random_model(config, num_classes)
        write(model, config, names, (1,), Options(), pathlib.Path(directory))
        loaded = tf.saved_model.load(f"{directory}/model")
    signature = loaded.signatures["image_tensor"]
    pixels = np.random.default_rng(0).integers(0, 256, [1, height, width, 3], np.uint8)
    image = tf.constant(pixels)
    return lambda: (signature(images=image), loaded)  # keeps `loaded` alive


def peer(height: int, width: int, num_classes: int):
    """A run of Model Garden's model on one image."""
    config = peers.config(num_classes, height, width)
    detect = peers.detector(config)
    pixels = np.random.default_rng(0).uniform(0, 255, [1, height, width, 3])
    image = tf.image.pad_to_bounding_box(
        tf.constant(pixels, tf.float32), 0, 0, *config.input_size[:2]
    )
    return lambda: detect(image)


def contenders_of(model: MaskXRCNN, height: int, width: int, num_classes: int) -> dict:
    """What makes a run of each contender, by its name; Model Garden first."""
    pixels = np.random.default_rng(0).uniform(0, 255, [1, height, width, 3])
    image = tf.constant(pixels, tf.float32)
    size = height, width, num_classes
    garden = "Model Garden {}x{}".format(*peers.config(num_classes, height, width).input_size)
    made: dict = {garden: lambda: peer(*size)}
    for name, run in stages(model, height, width).items():
        made[name] = lambda run=run: lambda: run(image)
    variants: dict[str, dict] = {"": {}, ", direct convolutions": {"convolutions": "direct"}}
    for count in map(int, flags.FLAGS.detections):
        variants[f", {count} detections"] = {"max_detections": count}
    if flags.FLAGS.bfloat16:
        variants[", bfloat16"] = {"precision": "bfloat16"}
    for name, changes in variants.items():
        made[SAVED_MODEL + name] = lambda changes=changes: exported(*size, **changes)
    for form in flags.FLAGS.openvino:
        made[f"{OPENVINO}, {form}"] = lambda form=form: openvino_models.exported(*size, form)
    return made


def compare(height: int, width: int, num_classes: int) -> None:
    model = models.random_model(models.configuration(height, width), num_classes)
    made = contenders_of(model, height, width, num_classes)
    if flags.FLAGS.only:
        made = {
            name: make for part in flags.FLAGS.only for name, make in made.items() if part in name
        }
    contenders = {name: make() for name, make in made.items()}
    timings = timing.in_turns(contenders, flags.FLAGS.turns)
    print(f"\n{height}x{width}, {num_classes} classes, {flags.FLAGS.turns} turns")
    print(timing.table(timings, next(iter(timings))), flush=True)
    graphs = stages(model, height, width)
    if flags.FLAGS.peak and graphs.keys() <= timings.keys():
        plain = rebuilt(model, model.config.replace(convolutions="direct"))
        work = gflop(plain, stages(plain, height, width))
        _print_shares(list(graphs), work, [timings[stage].median for stage in graphs])
    if flags.FLAGS.memory:
        ours = timing.peak_mib(exported, height, width, num_classes)
        theirs = timing.peak_mib(peer, height, width, num_classes)
        print(f"  peak memory: maskx_tf {ours:,.0f} MiB, Model Garden {theirs:,.0f} MiB")


def machine_peak(side: int = 3000, turns: int = 5) -> float:
    """GFLOP/s of a float32 matrix product, the best of some."""
    a = tf.random.normal([side, side])
    tf.matmul(a, a)
    best = float("inf")
    for _ in range(turns):
        started = time.perf_counter()
        tf.matmul(a, a).numpy()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e9


def gflop(model: MaskXRCNN, graphs: dict) -> list[float]:
    """Arithmetic of each of the `stages` alone, in 10⁹ operations."""
    pyramid, rpn = (_counted(graph) for graph in list(graphs.values())[:2])
    config = model.config
    inputs = config.box_roi_size**2 * config.fpn_filters
    units, rows = config.box_fc_units, model.num_classes + 1
    box = config.rpn_post_nms_test * (inputs * units + units * units + units * rows)
    cells, filters = config.mask_roi_size**2, config.mask_filters
    convs = 9 * filters * (config.fpn_filters + (config.mask_convs - 1) * filters)
    mask = config.max_detections * cells * (convs + 4 * filters * filters + 4 * filters)
    return [pyramid, rpn - pyramid, 2 * box / 1e9, 2 * mask / 1e9]


def _counted(run: tf.types.experimental.Callable) -> float:
    """Of a graph whose shapes are static."""
    options = option_builder.ProfileOptionBuilder(
        option_builder.ProfileOptionBuilder.float_operation()
    ).with_empty_output()
    graph = run.get_concrete_function().graph
    return model_analyzer.profile(graph, options=options.build()).total_float_ops / 1e9


def _print_shares(names: list[str], work: list[float], seconds: list[float]) -> None:
    peak = machine_peak()
    print(f"  matrix products reach {peak:.0f} GFLOP/s on this machine")
    before = [0.0, *seconds]
    for name, operations, start, end in zip(names, work, before, seconds, strict=False):
        share = operations / max(end - start, 1e-9) / peak
        print(f"  {name:<20} {operations:6.0f} GFLOP, {share:4.0%} of that")
    print(f"  {'all stages':<20} {sum(work):6.0f} GFLOP, {sum(work) / seconds[-1] / peak:4.0%}")


if __name__ == "__main__":
    cases.define_flags()
    flags.DEFINE_integer("turns", 7, "Turns of each contender.", lower_bound=1)
    flags.DEFINE_list("detections", ["30"], "Also measure ours with so many detections.")
    flags.DEFINE_boolean("bfloat16", False, "Also measure an export in bfloat16.")
    flags.DEFINE_list("openvino", [], "Also measure OpenVINO exports: float32, bfloat16, int8.")
    flags.DEFINE_list("only", [], "Parts of the names of the contenders to measure; empty: all.")
    flags.DEFINE_boolean("peak", True, "Also say what share of the machine's peak is reached.")
    flags.DEFINE_boolean("memory", False, "Also measure the memory of each, in new processes.")
    cli.run(lambda: cases.run(compare))
