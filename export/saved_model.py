"""Entry point: a trained model as a SavedModel (`python -m export.saved_model --model_dir=…`).

The SavedModel needs TensorFlow only. It is read back and compared with the model it came from
before it gets its place in the output directory.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import tempfile
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import flags

from maskx_tf import checkpoints, cli
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.serving import DetectionModule, decode_image

CLASSES_FILE = "classes.json"
# Largest difference between the SavedModel and the model: pixels, probability, 1/255 steps.
TOLERANCES = {"detection_boxes": 1e-3, "detection_scores": 1e-5, "detection_masks": 1}


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("model_dir", "", "Run to export.")
    flags.DEFINE_string("checkpoint", "", "Checkpoint to export; empty: the latest of model_dir.")
    flags.DEFINE_string("output_dir", "", "Gets a directory per version: 1, 2, 3, …")
    flags.DEFINE_list("images", [], "Images to compare on, besides random ones.")


def export(
    model,
    config: Config,
    vocabulary: Vocabulary,
    mask_class_ids: Sequence[int],
    output_dir: str,
    images: Sequence[np.ndarray] = (),
) -> str:
    """Writes a SavedModel and proves it equal to the model.

    Signatures: `serving_default` (`image_bytes` string [B]) and `image_tensor` (`images` uint8
    [B, H, W, 3]); outputs as of `DetectionModule`. T is folded into a constant table: `model` is
    changed so, with the same results.

    Args:
      model: a `MaskXRCNN`.
      config: its options.
      vocabulary: its classes, written to `assets/classes.json`.
      mask_class_ids: set A.
      output_dir: directory of versions; the next free number is taken.
      images: uint8 [H, W, 3] RGB, to compare on besides random ones.

    Returns:
      The path OUTPUT_DIR/<version>.

    Raises:
      UserError: the SavedModel gives other results than the model; nothing is kept then.
    """
    images = [*images, *_random_images(config)]
    reference = DetectionModule(model, config, vocabulary, mask_class_ids)
    expected = [_to_numpy(reference.detect_images(image[None])) for image in images]
    model.fold_transfer()
    root = pathlib.Path(output_dir)
    root.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=".export-", dir=root))
    try:
        _save(model, config, vocabulary, mask_class_ids, temporary)
        _compare(str(temporary / "model"), images, expected)
        (temporary / "model").chmod(0o755)
        return str(_publish(temporary / "model", root))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save(
    model,
    config: Config,
    vocabulary: Vocabulary,
    mask_class_ids: Sequence[int],
    directory: pathlib.Path,
) -> None:
    module = DetectionModule(model, config, vocabulary, mask_class_ids)
    signatures = {
        "serving_default": module.detect_bytes.get_concrete_function(),
        "image_tensor": module.detect_images.get_concrete_function(),
    }
    # Only what the graphs read is saved: T's own weights are not needed once it is folded.
    used = {v.ref(): v for function in signatures.values() for v in function.graph.variables}
    module.weights = list(used.values())
    categories = [
        {**category, "mask_seen": class_id in set(mask_class_ids)}
        for class_id, category in enumerate(vocabulary.categories(), start=1)
    ]
    path = directory / CLASSES_FILE
    path.write_text(json.dumps(categories, indent=1) + "\n")
    module.classes = tf.saved_model.Asset(str(path))
    tf.saved_model.save(module, str(directory / "model"), signatures=signatures)


def _random_images(config: Config) -> list[np.ndarray]:
    """A landscape and a portrait image of smooth noise, so that both canvases are compared."""
    generator = np.random.default_rng(0)
    long, short = config.image_max_side, config.image_min_side
    coarse = generator.uniform(0, 255, [2, 12, 12, 3])
    sizes = [(max(short * 3 // 4, 1), long), (long, short)]
    smooth = [tf.image.resize(c, s, method="bicubic") for c, s in zip(coarse, sizes, strict=True)]
    return [np.clip(image, 0, 255).astype(np.uint8) for image in smooth]


def _to_numpy(outputs: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in outputs.items()}


def _compare(
    path: str, images: Sequence[np.ndarray], expected: Sequence[dict[str, np.ndarray]]
) -> None:
    signatures = tf.saved_model.load(path).signatures
    for index, (image, wanted) in enumerate(zip(images, expected, strict=True)):
        encoded = tf.io.encode_png(image)[None]
        for name, feed in (
            ("serving_default", {"image_bytes": encoded}),
            ("image_tensor", {"images": tf.constant(image[None])}),
        ):
            problem = difference(_to_numpy(signatures[name](**feed)), wanted)
            if problem:
                raise UserError(
                    f"The SavedModel is not kept: for image {index + 1} of {len(images)} its "
                    f"signature {name} differs from the model: {problem}. Please report this."
                )


def difference(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> str:
    """What differs by more than `TOLERANCES` between two outputs for the same images, or ""."""
    for key, value in wanted.items():
        if key not in TOLERANCES:
            if not np.array_equal(found[key], value):
                return f"{key} is {found[key].tolist()!s:.60} instead of {value.tolist()!s:.60}"
            continue
        gap = np.abs(found[key].astype(np.float64) - value).max(initial=0)
        if not gap <= TOLERANCES[key]:
            return f"{key} by up to {gap:.3g}, allowed is {TOLERANCES[key]:g}"
    return ""


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
    model, config, vocabulary, mask_class_ids = checkpoints.load_model(
        values.checkpoint or values.model_dir
    )
    images = [_read_image(path) for path in values.images]
    path = export(model, config, vocabulary, mask_class_ids, values.output_dir, images)
    print(f"written: {path} (equal to the model on {len(images) + 2} images)")


def _read_image(path: str) -> np.ndarray:
    try:
        return decode_image(tf.io.read_file(path)).numpy()
    except (tf.errors.NotFoundError, tf.errors.InvalidArgumentError) as error:
        raise UserError(f"--images={path} cannot be read: {error.message}") from None


if __name__ == "__main__":
    define_flags()
    cli.run(main)
