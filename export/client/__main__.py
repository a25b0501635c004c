"""Asks a server for the detections of image files.

Example:
  maskx client --url=http://localhost:8501 --images=photos --output=detections.json
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence

import tqdm
from absl import flags

from export.client import results
from export.client.client import Client
from maskx_tf.errors import ImageError, UserError
from maskx_tf.inference import tiling
from maskx_tf.inference.detections import Detections
from maskx_tf.inference.image_files import find_images, image_ids, left_out, overlay_paths
from maskx_tf.system import cli, files
from maskx_tf.system.interruption import Interruption

DEFAULT_URL = "http://localhost:8501"


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("url", "", f"Server's REST interface; by default {DEFAULT_URL}.")
    flags.DEFINE_string("grpc", "", "Its gRPC interface instead, such as localhost:8500.")
    flags.DEFINE_string("model_name", "maskx", "Name that the model is served under.")
    flags.DEFINE_integer("model_version", None, "Version of the model; by default the latest.", 1)
    flags.DEFINE_list("images", [], "Image files, directories of images or glob patterns.")
    flags.DEFINE_string("output", "", "File for the detections, a json of COCO results.")
    formats = ["rle", "polygon", "png"]
    flags.DEFINE_enum(
        "format", "rle", formats, "Mask format; png: files in a folder beside --output."
    )
    flags.DEFINE_float("min_score", 0.0, "Detections below this score are left out.", 0, 1)
    flags.DEFINE_string("annotations", "", "COCO json with the ids of the images and classes.")
    flags.DEFINE_string("overlays", "", "Directory for images with masks drawn on them.")
    flags.DEFINE_float("score_threshold", 0.5, "Detections below this score are not drawn.", 0, 1)
    flags.DEFINE_integer("parallel", 4, "Requests at a time.", 1, 256)
    flags.DEFINE_float("timeout_s", 60.0, "Longest wait for one answer.", 0.001)
    tiling.define_flags()
    flags.DEFINE_integer("max_retries", 4, "Retries while a server is busy or loading.", 0)


class Collector:
    """Gathers results image by image and writes them, whatever happened in between.

    Args:
      paths: N image files.
      ids: N image ids, for the results.
      output: the json to write.
      mask_format: of masks in the json, "rle" or "polygon"; "png": they are written to files in the
        folder OUTPUT_masks.
      category_ids: as of `results.with_category_ids`; None: the model's own.
      min_score: detections below it are left out.
      overlays: directory for pictures; "": none are drawn.
      score_threshold: detections below it are not drawn.
    """

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        ids: Sequence[int],
        output: pathlib.Path,
        *,
        mask_format: str,
        category_ids: Mapping[str, int] | None,
        min_score: float,
        overlays: str,
        score_threshold: float,
    ):
        self.problems: list[str] = []
        self.done = 0
        self._ids = dict(zip(paths, ids, strict=True))
        self._output, self._masks = output, output.with_name(f"{output.stem}_masks")
        self._mask_format, self._category_ids = mask_format, category_ids
        self._min_score, self._score_threshold = min_score, score_threshold
        targets = overlay_paths(paths, pathlib.Path(overlays)) if overlays else []
        self._overlays = dict(zip(paths, targets, strict=False))
        self._lines: list[str] = []

    def add(self, path: pathlib.Path, answer: Detections | ImageError) -> None:
        """Takes an image's detections, or what was wrong with it."""
        if isinstance(answer, ImageError):
            self.problems.append(str(answer))
            return
        detections = answer[answer.scores >= self._min_score]
        if self._category_ids is not None:
            detections = results.with_category_ids(detections, self._category_ids)
        segmentation = "none" if self._mask_format == "png" else self._mask_format
        rows = detections.to_coco(self._ids[path], path.name, segmentation)
        if self._mask_format == "png":
            for number, (row, detection) in enumerate(zip(rows, detections, strict=True), start=1):
                target = self._masks / f"{path.stem}-{self._ids[path]}-{number}.png"
                results.write_mask(detection, target)
                row["mask_file"] = f"{self._masks.name}/{target.name}"
        self._lines += [json.dumps(row) for row in rows]
        self.done += 1
        if path in self._overlays:
            try:
                answer[answer.scores >= self._score_threshold].save(self._overlays[path])
            except ImageError as error:
                self.problems.append(str(error))

    def write(self) -> None:
        """Writes the json."""
        lines = ",\n".join(self._lines)
        files.write_atomically(self._output, f"[\n{lines}\n]\n")

    def summary(self) -> str:
        """How many images are in the json, for one who expects all."""
        return f"{self.done} of {len(self._ids)} images were done and are in {self._output}"


def _client(values: flags.FlagValues) -> Client:
    if values.url and values.grpc:
        raise UserError("Give either --url=URL or --grpc=ADDRESS.")
    return Client(
        values.url or DEFAULT_URL,
        values.model_name,
        grpc=values.grpc,
        version=values.model_version,
        timeout_s=values.timeout_s,
        max_retries=values.max_retries,
    )


def _collector(values: flags.FlagValues, paths: Sequence[pathlib.Path]) -> Collector:
    return Collector(
        paths,
        image_ids(paths, values.annotations),
        pathlib.Path(values.output),
        mask_format=values.format,
        category_ids=results.category_ids(values.annotations),
        min_score=values.min_score,
        overlays=values.overlays,
        score_threshold=values.score_threshold,
    )


def _collect(
    collector: Collector, answers: Iterable[tuple[pathlib.Path, Detections | ImageError]]
) -> None:
    """Adds all answers. Where that breaks off, what is done is written, and the error says so."""
    try:
        for path, answer in answers:
            collector.add(path, answer)
    except BaseException as error:  # SIGTERM and Ctrl-C too
        if not collector.done:
            raise
        collector.write()
        if isinstance(error, UserError):
            raise type(error)(f"{str(error).rstrip('.')}; {collector.summary()}.") from None
        print(f"{collector.summary()}.", file=sys.stderr)
        raise


def main() -> None:
    """Asks for every image, writes what was found, then lists the images that failed."""
    values = flags.FLAGS
    if not values.output:
        raise UserError("--output=FILE.json is needed.")
    files.require_writable_file(values.output, f"--output={values.output}")
    if values.overlays:
        files.require_writable(values.overlays, f"--overlays={values.overlays}")
    cut = tiling.from_flags(values)
    paths = find_images(values.images)
    if text := left_out(values.images):
        print(text, file=sys.stderr)
    collector = _collector(values, paths)
    with Interruption().handled(), _client(values) as client:
        answers = client.detect_many(paths, values.parallel, cut)
        _collect(collector, tqdm.tqdm(answers, total=len(paths), unit="image"))
    collector.write()
    print(f"written: {values.output} ({collector.done} of {len(paths)} images)")
    if collector.problems:
        print(f"{len(collector.problems)} of {len(paths)} images had problems:", file=sys.stderr)
        print("\n".join(collector.problems), file=sys.stderr)
    if not collector.done:
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
