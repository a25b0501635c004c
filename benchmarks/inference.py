"""How long an image takes from pixels to masks, beside Model Garden's Mask R-CNN.

    python -m benchmarks.inference --sizes=800x1344 --classes=80,3000

Both have random weights, R-50-FPN, a box head of two fully connected layers, 1,000 proposals and
100 detections; one image a batch, float32. With random weights scores lie below any threshold, so
both keep their 100 best boxes: neither saves work. They run in turns in one process; ours also by
stage (each stage contains those before it) and as the exported SavedModel.
"""

import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import peers, timing
from maskx_tf import cli
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.model import MaskXRCNN, build_model

SAVED_MODEL = "maskx_tf, SavedModel"


def configuration(height: int, width: int) -> Config:
    """Our model without the MLP branch, which the peer has not; every pair is a candidate."""
    return Config(
        image_min_side=min(height, width),
        image_max_side=max(height, width),
        mask_mlp=False,
        score_threshold=0.0,
    )


def stages(model: MaskXRCNN, height: int, width: int) -> dict:
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
        # Grappler drops the mask head, whose output is not asked for.
        return {k: v for k, v in model(image, sizes).items() if k != "detection_masks"}

    named = {"pyramid": pyramid, "+ RPN": proposals, "+ boxes": boxes, "+ masks": whole}
    return {
        f"maskx_tf {name}": tf.function(run, input_signature=signature)
        for name, run in named.items()
    }


def exported(model: MaskXRCNN, directory: str):
    """The SavedModel's `image_tensor` signature; folds T."""
    from export.saved_model import export

    names = Vocabulary.from_names(f"class {c}" for c in range(1, model.num_classes + 1))
    path = export(model, model.config, names, (1,), directory)
    loaded = tf.saved_model.load(path)
    signature = loaded.signatures["image_tensor"]
    return lambda image: (signature(images=image), loaded)  # keeps `loaded` alive


def compare(height: int, width: int, num_classes: int, turns: int) -> None:
    model = build_model(configuration(height, width), num_classes)
    pixels = np.random.default_rng(0).uniform(0, 255, [1, height, width, 3])
    image, bytes_ = tf.constant(pixels, tf.float32), tf.constant(pixels, tf.uint8)
    contenders = {n: lambda run=run: run(image) for n, run in stages(model, height, width).items()}
    peer_config = peers.config(num_classes, height, width)
    peer = peers.detector(peer_config)
    larger = tf.image.pad_to_bounding_box(image, 0, 0, *peer_config.input_size[:2])
    name = "Model Garden {}x{}".format(*peer_config.input_size)
    contenders[name] = lambda: peer(larger)
    with tempfile.TemporaryDirectory() as directory:
        saved_model = exported(model, directory)
        contenders[SAVED_MODEL] = lambda: saved_model(bytes_)
        print(f"\n{height}x{width}, {num_classes} classes, {turns} turns", flush=True)
        print(timing.table(timing.in_turns(contenders, turns), name), flush=True)


def main() -> None:
    print(f"{timing.machine()}, TensorFlow {tf.__version__}")
    for size in flags.FLAGS.sizes:
        height, _, width = size.partition("x")
        if not (height.isdecimal() and width.isdecimal()):
            raise UserError(f"--sizes={size} must be like 800x1344.")
        for count in flags.FLAGS.classes:
            compare(int(height), int(width), int(count), flags.FLAGS.turns)


if __name__ == "__main__":
    flags.DEFINE_list("sizes", ["800x1344"], "Heights x widths of the network's input.")
    flags.DEFINE_list("classes", ["80", "3000"], "Numbers of classes.")
    flags.DEFINE_integer("turns", 7, "Turns of each contender.")
    cli.run(main)
