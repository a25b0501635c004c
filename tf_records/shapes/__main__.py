"""Draws the embedded data set Shapes and writes its records (docs/shapes.md).

Example:
  maskx records shapes --output_dir=data/shapes
"""

import pathlib

from absl import flags

from maskx_tf.system import cli
from tf_records import writer
from tf_records.shapes.dataset import generate
from tf_records.shapes.objects import SceneOptions


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_string("output_dir", None, "Directory to write to.", required=True)
    flags.DEFINE_integer("train_images", 8_000, "Number of training images.")
    flags.DEFINE_integer("val_images", 400, "Number of validation images.")
    flags.DEFINE_integer("seed", 0, "Seed of the scenes.", lower_bound=0)
    flags.DEFINE_float(
        "pair_share",
        SceneOptions().pair_share,
        "Share of the objects that come as torn pairs, which only their classes tell apart.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_integer("workers", 0, "Processes; 0: one per core. The data do not depend on it.")
    flags.DEFINE_bool("reuse", False, "Keep finished data of the same settings.")
    flags.DEFINE_bool("grabcut", False, "Also write records/train_grabcut, masks by GrabCut.")
    flags.DEFINE_bool("overwrite", False, "Replace existing data.")


def main() -> None:
    """Reads the flags and writes the data set."""
    options = flags.FLAGS
    manifests = generate(
        options.output_dir,
        train_images=options.train_images,
        val_images=options.val_images,
        seed=options.seed,
        workers=options.workers,
        reuse=options.reuse,
        overwrite=options.overwrite,
        grabcut=options.grabcut,
        options=SceneOptions(pair_share=options.pair_share),
    )
    for name, manifest in manifests.items():
        print(writer.describe(manifest, str(pathlib.Path(options.output_dir) / "records" / name)))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
