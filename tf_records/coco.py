"""Writes the records of a data set in COCO's format.

Example:
  maskx records coco --annotations=train.json --images=photos --output_dir=records/mine/train
"""

from __future__ import annotations

import functools
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from maskx_tf.data.coco import images as images_lib
from maskx_tf.data.coco import instances
from maskx_tf.data.coco.issues import Issue
from maskx_tf.data.coco.objects import CROWDS, IGNORED
from maskx_tf.data.records.manifest import Manifest
from maskx_tf.errors import UserError
from maskx_tf.system import cli
from tf_records import grabcut_masks, writer
from tf_records import output as output_lib
from tf_records.coco_objects import Settings, encode_image
from tf_records.output import Output

DEFAULT_MASK_SIZE = 112


def convert(
    annotations: str,
    images: str,
    output: Output,
    *,
    mask_size: int = DEFAULT_MASK_SIZE,
    skip_bad_images: bool = False,
    masks: str = grabcut_masks.ANNOTATED,
    set_a: Sequence[str] | None = None,
    pixel_range: tuple[float, float] | None = None,
    crowds: str = IGNORED,
    issues: Sequence[Issue] = (),
) -> Manifest:
    """Writes the records of a COCO json.

    Args:
      annotations: path of the json (polygons, RLE, or boxes only).
      images: directory that its file names start from.
      output: where to.
      mask_size: largest side of a stored mask in pixels, 0: full resolution.
      skip_bad_images: drop and list missing or corrupt images, instead of an error.
      masks: whose they are, one of `grabcut_masks.CHOICES`.
      set_a: class names kept in the manifest.
      pixel_range: of images with more than 8 bits a channel, see `image_formats.to_picture`.
      crowds: what iscrowd means, one of `objects.CROWDS`.
      issues: what was wrong with the labels that the json was made of.

    Raises:
      UserError: the json or an image is unusable, or the output exists.
    """
    if mask_size < 0:
        raise UserError(f"--mask_size={mask_size} must not be negative; 0 means full resolution.")
    if not pathlib.Path(images).is_dir():
        raise UserError(f"--images={images} is not a directory.")
    content = instances.read(annotations)
    source = {
        "annotations": pathlib.Path(annotations).name,
        "annotations_sha256": content.sha256,
        "mask_size": mask_size,
        "num_images": len(content.items),
        "skip_bad_images": skip_bad_images,
    }
    if masks != grabcut_masks.ANNOTATED:
        source["masks"] = masks
    if crowds != IGNORED:
        source["crowds"] = crowds
    if pixel_range:
        source["pixel_range"] = list(pixel_range)
    vocabulary = content.vocabulary
    classes = {
        external_id: (class_id, vocabulary.names[class_id - 1])
        for class_id, external_id in enumerate(vocabulary.external_ids, start=1)
    }
    items, renamed = images_lib.locate(content.items, images)
    kept = output.reusable(source, len(items))
    if kept is None and not skip_bad_images:
        _check_files(items, images)
    settings = Settings(images, classes, mask_size, skip_bad_images, masks, pixel_range, crowds)
    return writer.write(
        functools.partial(encode_image, settings=settings),
        items,
        output,
        vocabulary=vocabulary,
        source=source,
        issues=[*issues, *content.issues, *renamed],
        set_a=set_a,
        class_attributes=content.class_attributes,
    )


def _check_files(items: Sequence[instances.ImageItem], images: str) -> None:
    """Finds missing files before hours of work, not after."""
    missing = [item for item in items if not os.path.isfile(item.path)]
    if not missing:
        return
    remedy = "--skip_bad_images drops and lists images without a file."
    if len(missing) == len(items):  # that would drop all
        with os.scandir(images) as entries:
            name = next((repr(entry.name) for entry in entries), "nothing")
        remedy = f"There is {name}, for one."
    raise UserError(
        f"{len(missing)} of {len(items)} image files are missing, the first is "
        f"{images_lib.printable(missing[0].path)} (image {missing[0].image_id}). The json's "
        f"file names have to start from --images={images}{_folder(missing[0])}. {remedy}"
    )


def _folder(item: instances.ImageItem) -> str:
    """Which directory that is, if the file name begins with one, as LVIS's."""
    folder = pathlib.PurePosixPath(item.file_name).parent
    is_plain = folder.parts and not folder.is_absolute() and folder.name.isprintable()
    return f", the directory that holds {folder}" if is_plain else ""


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("annotations", None, "COCO-format json.", required=True)
    flags.DEFINE_string("images", None, "Directory of the image files.", required=True)
    flags.DEFINE_string("output_dir", None, "Directory to write records to.", required=True)
    flags.DEFINE_string("name", None, "Prefix of the shards' names; default: the json's name.")
    define_settings()
    output_lib.define_flags()


def define_settings() -> None:
    """The flags of how annotations and images become records."""
    flags.DEFINE_integer(
        "mask_size", DEFAULT_MASK_SIZE, "Largest side of a stored mask, pixels; 0: full resolution."
    )
    flags.DEFINE_enum(
        "masks",
        grabcut_masks.ANNOTATED,
        list(grabcut_masks.CHOICES),
        "Masks: as annotated; or by GrabCut, for all objects or only for those without a mask.",
    )
    flags.DEFINE_enum(
        "crowds",
        IGNORED,
        list(CROWDS),
        "iscrowd: 1 is a region to be ignored; or a single object, as CVAT writes brush masks.",
    )
    flags.DEFINE_list(
        "pixel_range",
        [],
        "LOW,HIGH: values that become black and white where images have more than 8 bits a channel "
        "or floats. Default: each image's own smallest and largest, without outliers.",
    )
    flags.DEFINE_bool("skip_bad_images", False, "Drop and list missing or corrupt images.")


def settings_from_flags() -> dict[str, Any]:
    """The arguments of `convert` that the flags of `define_settings` give."""
    options = flags.FLAGS
    return {
        "mask_size": options.mask_size,
        "skip_bad_images": options.skip_bad_images,
        "masks": options.masks,
        "pixel_range": _pixel_range(options.pixel_range),
        "crowds": options.crowds,
    }


def _pixel_range(values: Sequence[str]) -> tuple[float, float] | None:
    try:
        low, high = map(float, values) if values else (0.0, 1.0)
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise UserError(f"--pixel_range={','.join(values)} must be LOW,HIGH, such as 0,4095.")
    return (low, high) if values else None


def main() -> None:
    """Reads the flags and writes the records."""
    options = flags.FLAGS
    name = options.name or pathlib.Path(options.annotations).stem
    output = output_lib.from_flags(options.output_dir, name)
    manifest = convert(
        options.annotations,
        options.images,
        output,
        **settings_from_flags(),
    )
    print(writer.describe(manifest, options.output_dir))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
