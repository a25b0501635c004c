"""Writes the detections of image files, as COCO json and as pictures.

Example:
  maskx predict --model_dir=runs/mine --images=photos --output_dir=predictions
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

import tqdm
from absl import flags

from maskx_tf.errors import ImageError, UserError
from maskx_tf.inference import detector, mask_post
from maskx_tf.inference import tiling as tiling_lib
from maskx_tf.inference.detector import Detector
from maskx_tf.inference.image_files import find_images, image_ids, left_out, overlay_paths
from maskx_tf.inference.tiling import Tiling
from maskx_tf.ops import dense_crf
from maskx_tf.system import cli, files
from maskx_tf.system.interruption import Interruption
from maskx_tf.system.journal import Journal


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_list("images", [], "Image files, directories of images or glob patterns.")
    flags.DEFINE_string("output_dir", "", "Directory for detections.json and overlays/.")
    flags.DEFINE_string("model_dir", "", "Run, or checkpoint of a run, to predict with.")
    flags.DEFINE_string("saved_model", "", "Exported model to predict with instead.")
    flags.DEFINE_float("score_threshold", 0.5, "Detections below this score are not drawn.")
    flags.DEFINE_string("annotations", "", "COCO json that gives the image ids by file name.")
    tiling_lib.define_flags()
    mask_post.define_flags()


def predict(
    model: Detector,
    paths: Sequence[pathlib.Path],
    ids: Sequence[int],
    output_dir: pathlib.Path,
    score_threshold: float,
    version: Sequence[str | int] = (),
    crf: dense_crf.Parameters | None = None,
    tiling: Tiling | None = None,
) -> list[str]:
    """Writes detections.json and the overlays of image files; shows a progress bar.

    Each image's results are on the disk before its picture is drawn, in detections.json.journal,
    from which the same call goes on if it was killed. Where anything breaks it off, detections.json
    has the images done until then; if nothing was found yet, it stays as it is.

    Args:
      model: the model.
      paths: N image files.
      ids: N image ids, for the results.
      output_dir: gets detections.json and overlays/.
      score_threshold: detections below this score are written but not drawn.
      version: tells the weights from others: results of others are not gone on with.
      crf: refines the masks.
      tiling: look at the images in tiles.

    Returns:
      One line for each image that could not be read.

    Raises:
      UserError: an overlay would overwrite one of the images, or another process writes there.
    """
    targets = overlay_paths(paths, output_dir / "overlays")
    output = output_dir / "detections.json"
    task = {"model": list(version), "score_threshold": score_threshold, "crf": crf and list(crf)}
    if tiling:
        task |= tiling._asdict()
    problems = []
    with contextlib.closing(
        Journal(output.with_name(f"{output.name}.journal"), task, lambda result: result["image"])
    ) as journal:
        images = [[str(path), image_id] for path, image_id in zip(paths, ids, strict=True)]
        stored = {tuple(image) for image in journal.results}
        drawn = {tuple(image) for image in journal.results[:-1]}  # the last perhaps in part
        if stored:
            count = len(stored.intersection(map(tuple, images)))
            print(f"Going on: {count} of {len(paths)} images were done before.", file=sys.stderr)
        try:
            for image, path, target in zip(
                tqdm.tqdm(images, unit="image"), paths, targets, strict=True
            ):
                if tuple(image) in drawn and target.exists():
                    continue
                try:
                    if tiling:
                        detections = model.tiled(path, *tiling, min_score=0)
                    else:
                        detections = model(path, min_score=0)
                except ImageError as error:
                    problems.append(str(error))
                    continue
                if crf:
                    detections = detections.with_crf(crf)
                if tuple(image) not in stored:
                    results = detections.to_coco(image[1])
                    journal.add({"image": image, "results": results})
                detections[detections.scores >= score_threshold].save(target)
        except BaseException:  # SIGTERM and Ctrl-C too
            with contextlib.suppress(OSError):  # the disk may be full
                if next(_rows(journal, images), None):
                    _write(journal, images, output)
            raise
        _write(journal, images, output)
        journal.close(remove=True)
    return problems


def _write(journal: Journal, images: Sequence[list], output: pathlib.Path) -> None:
    """Writes the results of these images as COCO's json, one at a time."""
    rows = _rows(journal, images)
    text = itertools.chain(["[\n", next(rows, "")], (f",\n{row}" for row in rows), ["\n]\n"])
    files.write_atomically(output, (part.encode() for part in text))


def _rows(journal: Journal, images: Sequence[list]) -> Iterator[str]:
    wanted = {tuple(image) for image in images}
    for result in journal.stored():
        if tuple(result["image"]) in wanted:
            yield from map(json.dumps, result["results"])


def main() -> None:
    """Predicts, prints where the results are, then the images that could not be read."""
    values = flags.FLAGS
    if not values.output_dir:
        raise UserError("--output_dir=DIRECTORY is needed.")
    detector.require_one(values.model_dir, values.saved_model)
    paths = find_images(values.images)
    crf = mask_post.from_flags(values)
    ids = image_ids(paths, values.annotations)
    tiling = tiling_lib.from_flags(values)
    if text := left_out(values.images):
        print(text, file=sys.stderr)
    model = detector.load(values.model_dir, values.saved_model)
    output_dir = pathlib.Path(values.output_dir)
    with Interruption().handled():
        problems = predict(
            model,
            paths,
            ids,
            output_dir,
            values.score_threshold,
            detector.version_of(model),
            crf,
            tiling,
        )
    print(f"written: {output_dir / 'detections.json'} and {output_dir / 'overlays'}/")
    if problems:
        print(f"{len(problems)} of {len(paths)} images could not be read:", file=sys.stderr)
        print("\n".join(problems), file=sys.stderr)
    if len(problems) == len(paths):
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
