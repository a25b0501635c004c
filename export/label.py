"""Adds masks to the boxes of a COCO json.

Example:
  maskx label --annotations=boxes.json --images=photos --model_dir=runs/mine --output=masks.json
  maskx label --annotations=boxes.json --images=photos --url=http://server:8501 --output=masks.json
"""

from __future__ import annotations

import contextlib
import pathlib
from collections import Counter

from absl import flags

from export.client import served
from export.client.client import Client
from maskx_tf import visualize
from maskx_tf.data.coco.objects import CROWDS, IGNORED
from maskx_tf.errors import UserError
from maskx_tf.inference import detector, mask_post, tiling
from maskx_tf.inference.tiles import TiledSegmenter
from maskx_tf.labeling import labeler, objects, review
from maskx_tf.labeling import source as source_lib
from maskx_tf.labeling.formats import coco, cvat, fiftyone, label_studio
from maskx_tf.system import cli, files
from maskx_tf.system.journal import Journal

FORMATS = ("coco", "cvat", "label_studio", "fiftyone")


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("annotations", None, "COCO json with the boxes.", required=True)
    flags.DEFINE_string("images", None, "Directory of the image files.", required=True)
    flags.DEFINE_string("model_dir", "", "Run, or checkpoint of a run, to label with.")
    flags.DEFINE_string("saved_model", "", "Exported model to label with instead.")
    flags.DEFINE_string("url", "", "REST interface of a server to ask instead.")
    flags.DEFINE_string("grpc", "", "Its gRPC interface, such as localhost:8500.")
    flags.DEFINE_string("model_name", "maskx", "Name that the model is served under.")
    flags.DEFINE_integer("model_version", None, "Version of it; by default the latest.", 1)
    flags.DEFINE_string("output", None, "File to write.", required=True)
    flags.DEFINE_enum("format", "coco", FORMATS, "Format of the output.")
    flags.DEFINE_enum("segmentation", "rle", ["rle", "polygon"], "How masks are written.")
    flags.DEFINE_float(
        "polygon_iou", 0.99, "Least IoU of polygons with their mask; 1: exact outlines."
    )
    flags.DEFINE_enum(
        "crowds", IGNORED, CROWDS, "iscrowd: 1 is left as it is, or taken for a single object."
    )
    flags.DEFINE_bool("overwrite_masks", False, "Replace existing masks.")
    flags.DEFINE_bool("skip_unknown_classes", False, "Leave boxes of unknown classes as they are.")
    flags.DEFINE_float("min_quality", 0.75, "Masks that score below this are listed for review.")
    flags.DEFINE_float(
        "min_agreement",
        0.0,
        "Masks whose own box has a lower IoU with the given box are listed for review, too.",
    )
    tiling.define_flags()
    mask_post.define_flags()
    flags.DEFINE_string("review", "", "File of masks to review; empty: OUTPUT.review.csv.")
    flags.DEFINE_string("review_sheet", "", "Picture (.jpg or .png) of the most doubtful masks.")
    flags.DEFINE_string(
        "image_prefix", "/data/local-files/?d=", "Prefix of file names for Label Studio."
    )


def run(values: flags.FlagValues) -> str:
    """Labels as the flags say; returns what to tell the user.

    Raises:
      UserError: the json, the model or a flag is unusable.
    """
    images, output = pathlib.Path(values.images), pathlib.Path(values.output)
    if not images.is_dir():
        raise UserError(f"--images={images} is not a directory.")
    if output.resolve() == pathlib.Path(values.annotations).resolve():
        raise UserError("--output would overwrite --annotations; choose another.")
    if values.format == "fiftyone" and values.segmentation == "polygon":
        raise UserError("--format=fiftyone has no polygons; leave out --segmentation.")
    listed = pathlib.Path(values.review or f"{output}.review.csv")
    for flag, path in (
        ("output", output),
        ("review", listed),
        ("review_sheet", values.review_sheet),
    ):
        if path:
            files.require_writable_file(path, f"--{flag}={path}")
    ending = pathlib.Path(values.review_sheet).suffix.lower()
    if values.review_sheet and ending not in visualize.PICTURES:
        raise UserError(f"--review_sheet={values.review_sheet} must end in .jpg or .png.")
    crf, tiles = mask_post.from_flags(values), tiling.from_flags(values)
    source = source_lib.read(values.annotations, images, values.crowds)
    model, version = _load(values)
    segmenter = TiledSegmenter(model.segmenter(), tiles) if tiles else model.segmenter()
    todo, problems = labeler.wanted(
        source, model.vocabulary, values.overwrite_masks, values.skip_unknown_classes
    )
    task = {
        "annotations": source.sha256,
        "checkpoint": version,
        "images": str(images),
        "overwrite_masks": values.overwrite_masks,
        "crowds": values.crowds,
        "crf": crf and list(crf),
    }
    if tiles:
        task |= tiles._asdict()
    with contextlib.closing(Journal(output.with_name(output.name + ".journal"), task)) as journal:
        labels = labeler.label(source, todo, segmenter, model.vocabulary, journal, crf)
        if todo and not labels.num_read:
            journal.close(remove=True)
            counts = Counter(problem.reason for problem in labels.problems)
            found = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            raise UserError(
                f"--images={images}: none of the {len(todo)} images with boxes to label can be "
                f"read ({found}), and nothing was written. The json's file names have to start "
                "from that directory."
            )
        labels = review.with_problems(labels, problems)
        written = _write(values, source, labels, model, output, listed)
        journal.close(remove=True)
    return written


def _load(values: flags.FlagValues) -> tuple[detector.Detector, list]:
    """The model that the flags name, and what tells it from others."""
    if not (values.url or values.grpc):
        model = detector.load(values.model_dir, values.saved_model)
        return model, detector.version_of(model)
    if sum(map(bool, (values.url, values.grpc, values.model_dir, values.saved_model))) > 1:
        raise UserError("Give one of --url, --grpc, --model_dir and --saved_model.")
    client = Client(values.url, values.model_name, grpc=values.grpc, version=values.model_version)
    return served.detector(client), [
        values.url or values.grpc,
        values.model_name,
        values.model_version,
    ]


def _write(values, source, labels, model, output: pathlib.Path, listed: pathlib.Path) -> str:
    """Writes all files, the labels last; returns the summary."""
    polygon_iou = values.polygon_iou if values.segmentation == "polygon" else None
    if values.format == "coco":
        seen = set(model.vocabulary.names_of(model.mask_class_ids))
        text = coco.to_text(source, labels, seen, polygon_iou)
    else:
        made, problems = objects.labelled_images(source, labels)
        problems += [problem for problem in labels.problems if problem.reason != "crowd"]
        labels = labels._replace(problems=problems)
        if values.format == "cvat":
            made, others = cvat.writable(made)
            labels = review.with_problems(labels, others)
            text = cvat.to_text(made, source.names, polygon_iou)
        elif values.format == "fiftyone":
            text = fiftyone.to_text(made)
        else:
            text = label_studio.to_text(made, values.image_prefix, polygon_iou)
            config = label_studio.labeling_config(source.names, polygon_iou)
            files.write_atomically(output.with_name(output.name + ".config.xml"), config)
    rows = review.doubts(labels, values.min_quality, values.min_agreement)
    files.write_atomically(listed, review.to_csv(source, rows, labels.problems))
    if values.review_sheet:
        picture = review.sheet(source, labels, rows)
        visualize.write_picture(picture, pathlib.Path(values.review_sheet))
    files.write_atomically(output, text)
    count = len(rows) + len(labels.problems)
    return f"{review.summary(labels, rows)}\nwritten: {output} and {listed} ({count} rows)"


def main() -> None:
    """Labels and prints what was done."""
    print(run(flags.FLAGS))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
