"""Writes a trained model as a SavedModel.

Example:
  maskx export --model_dir=runs/mine --output_dir=exported/mine

The SavedModel needs TensorFlow only. It is read back and compared with the model it came from
before it gets its place in the output directory.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import flags

from export import comparison, serving_files, warmup
from maskx_tf import checkpoints
from maskx_tf.config import Config
from maskx_tf.data import decoding
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.inference import folding, image_bytes
from maskx_tf.inference.batching import Batching
from maskx_tf.inference.module import DetectionModule
from maskx_tf.model import rebuilt
from maskx_tf.system import cli, files
from maskx_tf.system.interruption import Interruption
from maskx_tf.system.literal_paths import literal

CLASSES_FILE = "classes.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """What an export may be asked for.

    Attributes:
      model_name: in the commands of SERVING.md and the warm-up requests.
      batching: how the graph forms batches.
      max_pixels: encoded images with more are refused.
      rle: whether COCO run-length codes are among the outputs.
    """

    model_name: str = "maskx"
    batching: Batching = dataclasses.field(default_factory=Batching)
    max_pixels: int = image_bytes.MAX_PIXELS
    rle: bool = False


def define_flags() -> None:
    """Defines this command's flags."""
    default = Options()
    batching = default.batching
    sizes = [str(size) for size in batching.allowed_sizes]
    flags.DEFINE_string("model_dir", "", "Run, or checkpoint of a run, to export.")
    flags.DEFINE_string("output_dir", "", "Directory for the versions 1, 2, 3, …")
    flags.DEFINE_list("images", [], "Images to check the export on, besides random ones.")
    flags.DEFINE_string("model_name", default.model_name, "Name in SERVING.md's commands.")
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
    flags.DEFINE_boolean("rle", default.rle, "Also output COCO run-length codes of pasted masks.")


def export(
    model,
    config: Config,
    vocabulary: Vocabulary,
    mask_class_ids: Sequence[int],
    output_dir: str,
    images: Sequence[np.ndarray] = (),
    options: Options | None = None,
) -> str:
    """Writes a SavedModel and proves it equal to the model.

    Signatures: `serving_default` (`image_bytes` string [B]) and `image_tensor` (`images` uint8
    [B, H, W, 3]); outputs as of `DetectionModule`. T is folded into a constant table, batch
    normalisation into the kernels: `model` is changed so, with the same results.

    Args:
      model: a `MaskXRCNN`.
      config: its options.
      vocabulary: its classes, written to `assets/classes.json`.
      mask_class_ids: set A.
      output_dir: directory of versions; the next free number is taken.
      images: uint8 [H, W, 3] RGB, to compare on besides random ones.
      options: of the export.

    Returns:
      The path OUTPUT_DIR/<version>.

    Raises:
      UserError: `max_pixels` is below the canvas, whose size images to compare on have, or the
        SavedModel gives other results than the model; nothing is kept then.
    """
    options = options or Options()
    long, short = config.image_max_side, config.image_min_side
    if options.max_pixels < long * short:
        raise UserError(
            f"--max_pixels={options.max_pixels} is too small: the network's own input has "
            f"{short} x {long}, {long * short} pixels."
        )
    batching = options.batching
    batch = comparison.random_images(config, batching.allowed_sizes[-1])
    asked = comparison.requests([*images, batch[0], batch[-1]], batch, batching.most_rows)
    reference = DetectionModule(
        model, config, vocabulary, mask_class_ids, max_pixels=options.max_pixels
    )
    by_signature = {
        "serving_default": reference.detect_bytes,
        "image_tensor": reference.detect_images,
    }
    expected = [comparison.answer(by_signature, request) for request in asked]
    root = pathlib.Path(output_dir)
    root.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=".export-", dir=root))
    saved = temporary / "model"
    try:
        outputs = write(model, config, vocabulary, mask_class_ids, options, temporary)
        warmup.write(saved, options.model_name, batching, batch[0], batch[-1])
        serving_files.write(saved, options.model_name, batching, options.max_pixels, outputs)
        comparison.compare(str(saved), asked, expected, config.precision)
        saved.chmod(0o755)
        return str(_publish(saved, root))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(
    model,
    config: Config,
    vocabulary: Vocabulary,
    mask_class_ids: Sequence[int],
    options: Options,
    directory: pathlib.Path,
) -> dict[str, str]:
    """Folds the model and saves it as directory/model, unproven.

    Arguments are those of `export`.

    Returns:
      The outputs' types and shapes by name.
    """
    folding.fold(model)
    module = DetectionModule(
        model,
        config,
        vocabulary,
        mask_class_ids,
        options.batching,
        options.max_pixels,
        options.rle,
    )
    signatures = {
        "serving_default": module.detect_bytes.get_concrete_function(),
        "image_tensor": module.detect_images.get_concrete_function(),
    }
    # Only what the graphs read is saved: T's own weights are not needed once it is folded.
    captured = {id(c) for function in signatures.values() for c in function.captured_inputs}
    module.weights = [v for v in model.variables if id(v.handle) in captured]
    categories = [
        {**category, "mask_seen": class_id in set(mask_class_ids)}
        for class_id, category in enumerate(vocabulary.categories(), start=1)
    ]
    path = directory / CLASSES_FILE
    path.write_text(json.dumps(categories, indent=1) + "\n")
    module.classes = tf.saved_model.Asset(str(path))
    tf.saved_model.save(module, f"{literal(directory)}/model", signatures=signatures)
    outputs = signatures["serving_default"].structured_outputs
    return {
        key: f"{value.dtype.name} {['B', *value.shape[1:]]}".replace("'", "")
        for key, value in outputs.items()
    }


def _publish(source: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """Moves a finished SavedModel to the next free version number."""
    version = max((int(path.name) for path in root.iterdir() if path.name.isdecimal()), default=0)
    while True:
        version += 1
        target = root / str(version)
        try:
            return source.rename(target)
        except OSError:
            if not target.exists():  # else another export took the number
                raise


def main() -> None:
    """Exports and prints where."""
    values = flags.FLAGS
    for name in ("model_dir", "output_dir"):
        if not getattr(values, name):
            raise UserError(f"--{name}=DIRECTORY is needed.")
    options = _options(values)
    files.require_writable(values.output_dir, f"--output_dir={values.output_dir}")
    loaded = checkpoints.load_model(values.model_dir)
    checkpoints.require_masks(loaded, values.model_dir)
    model, config, vocabulary, mask_class_ids = loaded
    images = [_read_image(path, options.max_pixels) for path in values.images]
    convolutions = values.convolutions or config.convolutions
    exported = config.replace(precision=values.precision, convolutions=convolutions)
    if exported != config:
        config, model = exported, rebuilt(model, exported)
    with Interruption().handled():  # so that nothing half-made is left
        path = export(model, config, vocabulary, mask_class_ids, values.output_dir, images, options)
    verb = "equal to" if config.precision == "float32" else "agreeing with"
    print(f"written: {path} ({verb} the model on {len(images) + 2} images and a batch)")
    print(f"how to serve it: {path}/{serving_files.DIRECTORY}/SERVING.md")


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
    return Options(values.model_name, batching, values.max_pixels, values.rle)


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
