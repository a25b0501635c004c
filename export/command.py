"""Writes a trained model as a SavedModel, as an OpenVINO model or as an ONNX model.

Example:
  maskx export --model_dir=runs/mine --output_dir=exported/mine
  maskx export --model_dir=runs/mine --output_dir=exported/mine_openvino --format=openvino

The SavedModel needs TensorFlow only, the OpenVINO model OpenVINO only, the ONNX model ONNX Runtime
only. It is read back and compared with the model it came from before it gets its place in the
output directory.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import tensorflow as tf
from absl import flags

from export import saved_model, serving_files
from export.saved_model import Options
from maskx_tf import checkpoints
from maskx_tf.assembly import rebuilt
from maskx_tf.data import decoding
from maskx_tf.errors import UserError
from maskx_tf.inference import image_bytes, onnx_model, openvino_model
from maskx_tf.inference.batching import Batching
from maskx_tf.system import cli, files
from maskx_tf.system.interruption import Interruption

# What an OpenVINO or ONNX model has no use for: its images come decoded, in batches.
SAVED_MODEL_ONLY = (
    "batching",
    "allowed_batch_sizes",
    "batch_timeout_micros",
    "num_batch_threads",
    "max_enqueued_batches",
    "convolutions",
    "rle",
)


def define_flags() -> None:
    """Defines this command's flags."""
    default = Options()
    batching = default.batching
    sizes = [str(size) for size in batching.allowed_sizes]
    flags.DEFINE_enum(
        "format",
        "saved_model",
        ["saved_model", "openvino", "onnx"],
        "What the model is written as.",
    )
    flags.DEFINE_string("model_dir", "", "Run, or checkpoint of a run, to export.")
    flags.DEFINE_string("output_dir", "", "Directory for the versions 1, 2, 3, …")
    flags.DEFINE_list("images", [], "Images to check the export on, besides random ones.")
    flags.DEFINE_string("model_name", default.model_name, "Name in SERVING.md's commands.")
    flags.DEFINE_enum(
        "batching",
        "graph",
        ["graph", "none"],
        "graph: the graph forms batches of concurrent requests; none: it does not, and has no "
        "operation that converters and other runtimes do not know.",
    )
    flags.DEFINE_list("allowed_batch_sizes", sizes, "Batch sizes; a batch is padded to the next.")
    flags.DEFINE_integer(
        "batch_timeout_micros", batching.timeout_us, "Microseconds a request waits for others."
    )
    flags.DEFINE_integer("num_batch_threads", batching.threads, "Batches that run at a time.")
    flags.DEFINE_integer(
        "max_enqueued_batches", batching.max_enqueued, "Batches that may wait; then UNAVAILABLE."
    )
    flags.DEFINE_integer(
        "max_pixels",
        default.max_pixels,
        "Larger images are refused before decoding.",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "precision",
        "float32",
        ["float32", "bfloat16"],
        "Precision that layers compute in. bfloat16 is faster on processors that support it; "
        "maskx evaluate --precision=bfloat16 shows what it costs in AP.",
    )
    flags.DEFINE_enum(
        "convolutions",
        None,
        ["auto", "direct", "winograd"],
        "As in maskx_tf.train. auto depends on this machine: without a GPU, choose direct if the "
        "export is to be served on GPUs. Empty: as in the run.",
    )
    flags.DEFINE_boolean(
        "int8", False, "OpenVINO: convolutions and fully connected layers compute in int8."
    )
    flags.DEFINE_list("calibration", [], "Records that int8 is calibrated and compared on.")
    flags.DEFINE_float(
        "max_ap_drop",
        0.5,
        "Points of box or mask AP, of A or B, that int8 may cost on --calibration.",
        lower_bound=0.0,
    )
    flags.DEFINE_boolean("rle", default.rle, "Also output COCO run-length codes of pasted masks.")


def main() -> None:
    """Exports and prints where."""
    values = flags.FLAGS
    for name in ("model_dir", "output_dir"):
        if not getattr(values, name):
            raise UserError(f"--{name}=DIRECTORY is needed.")
    options = _options(values)
    if values.int8 and values.format != "openvino":
        raise UserError("--int8 is of --format=openvino.")
    if values.format != "saved_model":
        _require_runtime(values)
    files.require_writable(values.output_dir, f"--output_dir={values.output_dir}")
    loaded = checkpoints.load_model(values.model_dir)
    checkpoints.require_masks(loaded, values.model_dir)
    model, config, vocabulary, mask_class_ids = loaded
    images = [_read_image(path, options.max_pixels) for path in values.images]
    given = {"precision": values.precision}
    if values.format == "saved_model":
        given["convolutions"] = values.convolutions or config.convolutions
    exported = config.replace(**given)
    if exported != config:
        config, model = exported, rebuilt(model, exported)
    what = (model, config, vocabulary, mask_class_ids, values.output_dir, images)
    with Interruption().handled():  # so that nothing half-made is left
        if values.format != "saved_model":
            from export.openvino_ir import version

            int8 = version.Int8(values.calibration, values.max_ap_drop) if values.int8 else None
            path, table = version.export(*what, values.model_name, int8, values.format)
            print(table, end="\n" if table else "")
        else:
            path = saved_model.export(*what, options)
    verb = "equal to" if config.precision == "float32" else "agreeing with"
    if values.int8:
        verb = "in float32 equal to"
    print(f"written: {path} ({verb} the model on {len(images) + 2} images and a batch)")
    directory = serving_files.DIRECTORY if values.format == "saved_model" else "assets"
    print(f"how to serve it: {path}/{directory}/SERVING.md")


def _require_runtime(values) -> None:
    """A UserError where a package is missing or an option does not fit the format."""
    openvino_model.require()  # the graph is made of its operations
    if values.format == "onnx":
        onnx_model.require()
        if importlib.util.find_spec("onnx") is None:
            raise UserError(
                "--format=onnx needs the package onnx: pip install onnx, or with the checkout "
                'pip install -c requirements.lock -e ".[onnx]".'
            )
        if values.precision != "float32":
            raise UserError(f"--precision={values.precision} is not of --format=onnx.")
    for name in SAVED_MODEL_ONLY:
        if values[name].present:
            raise UserError(f"--{name} is of --format=saved_model; leave it out.")
    if not values.int8:
        return
    if not values.calibration:
        raise UserError("--int8 needs --calibration=RECORDS, such as those of validation.")
    if values.precision != "float32":
        raise UserError(f"--precision={values.precision} and --int8 exclude each other.")
    from export.openvino_ir import quantization

    quantization.require()


def _options(values) -> Options:
    try:
        sizes = tuple(int(text) for text in values.allowed_batch_sizes)
    except ValueError:
        raise UserError(
            f"--allowed_batch_sizes={','.join(values.allowed_batch_sizes)}: numbers are needed."
        ) from None
    batching = Batching(
        sizes,
        values.batch_timeout_micros,
        values.num_batch_threads,
        values.max_enqueued_batches,
    )
    shared = values.batching == "graph"
    return Options(values.model_name, batching, shared, values.max_pixels, values.rle)


def _read_image(path: str, max_pixels: int) -> np.ndarray:
    try:
        return image_bytes.decode(tf.io.read_file(path), max_pixels).numpy()
    except tf.errors.NotFoundError:
        raise UserError(f"--images={path}: there is no such file.") from None
    except tf.errors.OpError as error:
        raise UserError(f"--images={path} cannot be read: {decoding.reason(error)}") from None


if __name__ == "__main__":
    define_flags()
    cli.run(main)
