"""Writes the detections of image files, as COCO json and as pictures.

Example:
  maskx predict --model_dir=runs/mine --images=photos --output_dir=predictions
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import tqdm
from absl import flags

from maskx_tf.checkpoints import latest_checkpoint
from maskx_tf.errors import ImageError, UserError
from maskx_tf.inference import mask_post, tiles
from maskx_tf.inference.detector import Detector, load_checkpoint, load_export
from maskx_tf.inference.image_files import find_images, image_ids, left_out, overlay_paths
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
    flags.DEFINE_integer(
        "tile",
        0,
        "Side in pixels of overlapping tiles that large images are looked at in; 0: the whole "
        "image at once.",
        lower_bound=0,
    )
    flags.DEFINE_float("overlap", 0.25, "Share of a side that neighbouring tiles have in common.")
    mask_post.define_flags()


def predict(
    detector: Detector,
    paths: Sequence[pathlib.Path],
    ids: Sequence[int],
    output_dir: pathlib.Path,
    score_threshold: float,
    model: Sequence[str | int] = (),
    crf: dense_crf.Parameters | None = None,
    tile: int = 0,
    overlap: float = 0.25,
) -> list[str]:
    """Writes detections.json and the overlays of image files; shows a progress bar.

    Each image's results are on the disk before its picture is drawn, in detections.json.journal,
    from which the same call goes on if it was killed. Where anything breaks it off, detections.json
    has the images done until then; if nothing was found yet, it stays as it is.

    Args:
      detector: the model.
      paths: N image files.
      ids: N image ids, for the results.
      output_dir: gets detections.json and overlays/.
      score_threshold: detections below this score are written but not drawn.
      model: tells the weights from others: results of others are not gone on with.
      crf: refines the masks.
      tile: side of the tiles that images are looked at in; 0: the whole image at once.
      overlap: of tiles, see `inference.tiles`.

    Returns:
      One line for each image that could not be read.

    Raises:
      UserError: an overlay would overwrite one of the images, or another process writes there.
    """
    targets = overlay_paths(paths, output_dir / "overlays")
    output = output_dir / "detections.json"
    task = {"model": list(model), "score_threshold": score_threshold, "crf": crf and list(crf)}
    if tile:
        task |= {"tile": tile, "overlap": overlap}
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
                    if tile:
                        detections = detector.tiled(path, tile, overlap, min_score=0)
                    else:
                        detections = detector(path, min_score=0)
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


def _model(path: str) -> list[str | int]:
    """A model's path, and when it was written."""
    existing = path if os.path.isdir(path) else f"{path}.index"
    return [path, os.stat(existing).st_mtime_ns]


def main() -> None:
    """Predicts, prints where the results are, then the images that could not be read."""
    values = flags.FLAGS
    if not values.output_dir:
        raise UserError("--output_dir=DIRECTORY is needed.")
    if bool(values.model_dir) == bool(values.saved_model):
        raise UserError("Give either --model_dir=DIRECTORY or --saved_model=DIRECTORY.")
    paths = find_images(values.images)
    crf = mask_post.from_flags(values)
    ids = image_ids(paths, values.annotations)
    tiles.check(values.tile or 1, values.overlap)
    if text := left_out(values.images):
        print(text, file=sys.stderr)
    path = values.saved_model or latest_checkpoint(values.model_dir)
    detector = load_export(path) if values.saved_model else load_checkpoint(path)
    output_dir = pathlib.Path(values.output_dir)
    with Interruption().handled():
        problems = predict(
            detector,
            paths,
            ids,
            output_dir,
            values.score_threshold,
            _model(path),
            crf,
            values.tile,
            values.overlap,
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
