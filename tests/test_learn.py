"""From a labelled folder to an exported model: choices from the data, and resuming."""

import json
import pathlib

import pytest

from maskx_tf import config as config_lib
from maskx_tf import learn
from maskx_tf.data.records.manifest import Manifest
from maskx_tf.errors import UserError
from maskx_tf.system import subcommand
from tests import batches, commands, folder_formats

COUNTS = (60, 30)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Places of an output whose records are there, and the labelled folder."""
    root = tmp_path_factory.mktemp("learn")
    images = folder_formats.data_set(*COUNTS)
    without = [
        [item._replace(polygon=None) if item.name == "mug" else item for item in items]
        for items in images.values()
    ]
    folder_formats.cvat(root / "mine", dict(zip(images, without, strict=True)))
    options = (f"--output_dir={root / 'out/records'}", "--val_share=0.3", "--workers=1")
    done = commands.in_process("tf_records.folder", str(root / "mine"), *options)
    assert done.returncode == 0, done.stderr
    assert "become val, by their names" in done.stdout
    return learn.Places(root / "out"), root / "mine"


def recipe(directory, **changes):
    config = batches.tiny_config(
        pixel_std=(57.0, 57.0, 57.0), num_gpus=0, panel_images=0, **changes
    )
    path = directory / "recipe.flags"
    path.write_text(config_lib.to_text(config))
    return str(path)


def manifests(places):
    return [Manifest.load(places.records(split)) for split in ("train", "val")]


def read(text, directory):
    (directory / "options.flags").write_text(text)
    return config_lib.read_flagfile(str(directory / "options.flags"))


def test_a_share_for_validation_follows_from_the_names(records):
    places, _ = records
    train, val = manifests(places)
    assert train.num_objects + val.num_objects == COUNTS[0]
    assert 0 < val.num_images < train.num_images
    assert train.vocabulary == val.vocabulary


def test_options_follow_from_the_data(records, tmp_path):
    places, _ = records
    train, val = manifests(places)
    base = recipe(tmp_path, batch_size=2, image_min_side=200, image_max_side=300, max_objects=4)
    text = learn.options_text(places, train, val, "", base)
    config = read(text, tmp_path)
    assert config.train_steps == max(500, -(-25 * train.num_images // 2))
    assert config.image_max_side == folder_formats.SIDE
    assert config.max_objects == train.max_objects_per_image
    assert config.keep_best == "mask_ap_a"
    assert config.mode == "end_to_end" and config.mask_output == "transfer"
    assert 9 <= config.train_steps / config.eval_interval <= 10
    assert config.lr_steps[-1] < config.train_steps
    assert "Set A: the 2 of 3 classes" in text
    larger = recipe(tmp_path, image_min_side=50, image_max_side=60, max_objects=90)
    config = read(learn.options_text(places, train, val, "", larger), tmp_path)
    assert (config.image_min_side, config.image_max_side, config.max_objects) == (50, 60, 90)


def test_without_any_mask_there_is_nothing_to_learn(records, tmp_path):
    places, _ = records
    train, val = manifests(places)
    bare = Manifest(**{**vars(train), "class_counts": {"mug": (5, 0)}})
    with pytest.raises(UserError, match="has a mask"):
        learn.options_text(places, bare, val, "", recipe(tmp_path))


def test_filled_boxes_are_results_of_every_object(records):
    places, _ = records
    rows = learn.filled_boxes(places.records("val"))
    assert len(rows) == manifests(places)[1].num_objects
    assert all(len(row["segmentation"][0]) == 8 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"), [([], "learn FOLDER"), (["{}"], "--from"), (["nowhere"], "learn FOLDER")]
)
def test_what_is_missing_is_named(records, tmp_path, arguments, said):
    words = [word.format(records[1]) for word in arguments]
    done = commands.in_process("maskx_tf.learn", *words, f"--output_dir={tmp_path}")
    assert done.returncode == 2 and said in done.stderr


@pytest.mark.slow
def test_the_whole_way_killed_once(records, tmp_path, monkeypatch):
    _, folder = records
    called = []

    def run_here(module, *arguments):
        called.append(module)
        if called.count("maskx_tf.train") == 1 and module == "maskx_tf.evaluate":
            called.append("killed")
            raise KeyboardInterrupt
        done = commands.in_process(module, *arguments)
        assert done.returncode == 0, done.stderr

    monkeypatch.setattr(subcommand, "run", run_here)
    monkeypatch.setattr(learn, "_FEWEST_STEPS", 4)
    monkeypatch.setattr(learn, "EPOCHS", 1)
    places = learn.Places(tmp_path / "out")
    arguments = (str(folder), places, "", recipe(tmp_path), ["--val_share=0.3", "--workers=1"])
    with pytest.raises(KeyboardInterrupt):
        learn.learn(*arguments)
    options = places.options.read_text()
    called.clear()
    called.append("maskx_tf.train")
    text = learn.learn(*arguments)
    assert places.options.read_text() == options
    assert called[-4:] == [
        *("maskx_tf.train", "maskx_tf.evaluate", "maskx_tf.evaluate", "export.command"),
    ]
    assert (places.root / "exported/1/saved_model.pb").is_file()
    assert "Mean IoU of masks in given boxes" in text and "@best" in text
    checkpoint = json.loads((places.root / "evaluation.json").read_text())["checkpoint"]
    assert pathlib.Path(checkpoint).parent == places.run / "best"
    called.clear()
    assert learn.learn(*arguments) == text
    assert called == ["tf_records.folder", "maskx_tf.train"]
