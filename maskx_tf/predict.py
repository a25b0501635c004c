"""Writes the detections of image files, as COCO json and as pictures.

Example:
  maskx predict --model_dir=runs/mine --images=photos --output_dir=predictions
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Sequence

import tqdm
from absl import flags

from maskx_tf.errors import ImageError, UserError
from maskx_tf.inference.detector import Detector, load_checkpoint, load_saved_model
from maskx_tf.inference.image_files import find_images, image_ids, overlay_paths
from maskx_tf.system import cli, files
from maskx_tf.system.interruption import Interruption


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_list("images", [], "Image files, directories of images or glob patterns.")
    flags.DEFINE_string("output_dir", "", "Directory for detections.json and overlays/.")
    flags.DEFINE_string("model_dir", "", "Run, or checkpoint of a run, to predict with.")
    flags.DEFINE_string("saved_model", "", "Exported model to predict with instead.")
    flags.DEFINE_float("score_threshold", 0.5, "Detections below this score are not drawn.")
    flags.DEFINE_string("annotations", "", "COCO json that gives the image ids by file name.")


def predict(
    detector: Detector,
    paths: Sequence[pathlib.Path],
    ids: Sequence[int],
    output_dir: pathlib.Path,
    score_threshold: float,
) -> list[str]:
    """Writes detections.json and the overlays of image files; shows a progress bar.

    Where anything breaks that off, detections.json has the images done until then; if nothing was
    found yet, it stays as it is.

    Args:
      detector: the model.
      paths: N image files.
      ids: N image ids, for the results.
      output_dir: gets detections.json and overlays/.
      score_threshold: detections below this score are written but not drawn.

    Returns:
      One line for each image that could not be read.

    Raises:
      UserError: an overlay would overwrite one of the images.
    """
    targets = overlay_paths(paths, output_dir / "overlays")
    lines, problems = [], []
    try:
        for path, target, image_id in zip(
            tqdm.tqdm(paths, unit="image"), targets, ids, strict=True
        ):
            try:
                detections = detector(path, min_score=0)
            except ImageError as error:
                problems.append(str(error))
                continue
            lines += [json.dumps(result) for result in detections.to_coco(image_id)]
            detections[detections.scores >= score_threshold].save(target)
    except BaseException:  # SIGTERM and Ctrl-C too
        if lines:
            _write(lines, output_dir)
        raise
    _write(lines, output_dir)
    return problems


def _write(lines: Sequence[str], output_dir: pathlib.Path) -> None:
    text = ",\n".join(lines)
    files.write_atomically(output_dir / "detections.json", f"[\n{text}\n]\n")


def main() -> None:
    """Predicts, prints where the results are, then the images that could not be read."""
    values = flags.FLAGS
    if not values.output_dir:
        raise UserError("--output_dir=DIRECTORY is needed.")
    if bool(values.model_dir) == bool(values.saved_model):
        raise UserError("Give either --model_dir=DIRECTORY or --saved_model=DIRECTORY.")
    paths = find_images(values.images)
    ids = image_ids(paths, values.annotations)
    if values.model_dir:
        detector = load_checkpoint(values.model_dir)
    else:
        detector = load_saved_model(values.saved_model)
    output_dir = pathlib.Path(values.output_dir)
    with Interruption().handled():
        problems = predict(detector, paths, ids, output_dir, values.score_threshold)
    print(f"written: {output_dir / 'detections.json'} and {output_dir / 'overlays'}/")
    if problems:
        print(f"{len(problems)} of {len(paths)} images could not be read:", file=sys.stderr)
        print("\n".join(problems), file=sys.stderr)
    if len(problems) == len(paths):
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
