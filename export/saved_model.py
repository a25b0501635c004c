"""A trained model as a SavedModel, which needs TensorFlow only.

It is read back and compared with the model it came from before it gets its place in the output
directory. The command is `export.command`.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from export import comparison, serving_files, signatures, versions, warmup
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.inference import folding, image_bytes
from maskx_tf.inference.batching import Batching
from maskx_tf.inference.module import DetectionModule
from maskx_tf.system.literal_paths import literal


@dataclasses.dataclass(frozen=True)
class Options:
    """What an export may be asked for.

    Attributes:
      model_name: in the commands of SERVING.md and the warm-up requests.
      batching: how the graph forms batches.
      shared_batches: whether it does: by an operation (BatchFunction) that other runtimes and
        converters do not know. If not, the images of a request are a batch.
      max_pixels: encoded images with more are refused.
      rle: whether COCO run-length codes are among the outputs.
    """

    model_name: str = "maskx"
    batching: Batching = dataclasses.field(default_factory=Batching)
    shared_batches: bool = True
    max_pixels: int = image_bytes.MAX_PIXELS
    rle: bool = False


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

    Signatures: `serving_default` (`image_bytes` string [B]), `image_tensor` (`images` uint8
    [B, H, W, 3]) and `box_prompts` (`image_bytes` string [1], `boxes` float32 [1, N, 4],
    `class_names` string [1, N]), with outputs as of `DetectionModule`; `class_names` (`ids` int32
    [1, N]); and the stages of `BoxPrompts`. T is folded into a constant table, batch normalisation
    into the kernels: `model` is changed so, with the same results.

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
    asked = comparison.requests(
        [*images, batch[0], batch[-1]], batch, batching.most_rows, vocabulary.names
    )
    reference = DetectionModule(
        model, config, vocabulary, mask_class_ids, max_pixels=options.max_pixels
    )
    by_signature = {
        signatures.DEFAULT: reference.detect_bytes,
        signatures.IMAGES: reference.detect_images,
        signatures.BOX_PROMPTS: reference.segment_boxes,
    }
    expected = [comparison.answer(by_signature, request) for request in asked]
    with versions.unfinished(output_dir) as saved:
        outputs = write(model, config, vocabulary, mask_class_ids, options, saved.parent)
        warmup.write(saved, options.model_name, batching, batch[0], batch[-1])
        serving_files.write(
            saved,
            options.model_name,
            batching,
            options.max_pixels,
            outputs,
            options.shared_batches,
        )
        comparison.compare(str(saved), asked, expected, comparison.tolerance_of(config))
        return str(versions.publish(saved, output_dir))


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
        options.batching if options.shared_batches else None,
        options.max_pixels,
        options.rle,
    )
    functions = {
        signatures.DEFAULT: module.detect_bytes.get_concrete_function(),
        signatures.IMAGES: module.detect_images.get_concrete_function(),
        signatures.BOX_PROMPTS: module.segment_boxes.get_concrete_function(),
        signatures.CLASSES: module.class_names.get_concrete_function(),
        signatures.FEATURES: module.prompts.features,
        signatures.MASKS: module.prompts.masks,
    }
    # Only what the graphs read is saved: T's own weights are not needed once it is folded.
    captured = {id(c) for function in functions.values() for c in function.captured_inputs}
    module.weights = [v for v in model.variables if id(v.handle) in captured]
    path = versions.write_classes(directory, vocabulary, mask_class_ids)
    module.classes = tf.saved_model.Asset(str(path))
    tf.saved_model.save(module, f"{literal(directory)}/model", signatures=functions)
    outputs = functions[signatures.DEFAULT].structured_outputs
    return {
        key: f"{value.dtype.name} {['B', *value.shape[1:]]}".replace("'", "")
        for key, value in outputs.items()
    }


if __name__ == "__main__":  # as the command was called before it wrote other formats
    print("error: the command is maskx export, or python -m export.command.", file=sys.stderr)
    sys.exit(2)
