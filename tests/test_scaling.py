"""--scale_batch: the linear rule, said once, and never applied twice."""

import importlib

import pytest
from absl import flags

from maskx_tf import config as config_lib
from maskx_tf.config import Config
from maskx_tf.training import scaling

train = importlib.import_module("maskx_tf.train")  # the command, not `maskx_tf.train()`
PUBLISHED = Config(
    batch_size=16,
    learning_rate=0.02,
    train_steps=90_000,
    lr_steps=(60_000, 80_000),
    warmup_steps=500,
    checkpoint_interval=2_500,
    eval_interval=0,
    ema_decay=0.999,
)


def parse(*arguments):
    values = flags.FlagValues()
    train.define_flags(values)
    values(["train", *arguments])
    return train.options(values)


def test_two_images_a_step_in_place_of_sixteen():
    config = scaling.scaled(PUBLISHED, 2)
    assert config == PUBLISHED.replace(
        batch_size=2,
        learning_rate=0.0025,
        train_steps=720_000,
        lr_steps=(480_000, 640_000),
        warmup_steps=4_000,
        weak_warmup_steps=80_000,
        checkpoint_interval=20_000,
        ema_decay=0.999 ** (1 / 8),
    )
    back = scaling.scaled(config, 16)
    assert back.ema_decay == pytest.approx(0.999)
    assert back.replace(ema_decay=0.999) == PUBLISHED


def test_more_images_take_fewer_steps():
    config = scaling.scaled(PUBLISHED, 64)
    assert (config.learning_rate, config.train_steps, config.warmup_steps) == (0.08, 22_500, 125)
    tiny = scaling.scaled(Config(batch_size=1, checkpoint_interval=2, eval_interval=3), 100)
    assert (tiny.checkpoint_interval, tiny.eval_interval) == (1, 1)  # 0 would mean never


def test_the_flag_scales_what_the_flagfile_says(tmp_path, capsys):
    path = tmp_path / "row.flags"
    path.write_text("--batch_size=16\n--train_steps=1000\n--lr_steps=600,800\n--warmup_steps=0\n")
    assert parse(f"--flagfile={path}").train_steps == 1000
    assert capsys.readouterr().err == ""
    config = parse(f"--flagfile={path}", "--scale_batch=2")
    assert (config.batch_size, config.train_steps, config.warmup_steps) == (2, 8000, 0)
    assert capsys.readouterr().err == (
        "Scaled from 16 to 2 images per step:\n"
        "  train_steps 1000 -> 8000\n"
        "  checkpoint_interval 2500 -> 20000\n"
        "  weak_warmup_steps 10000 -> 80000\n"
        "  learning_rate 0.02 -> 0.0025\n"
        "  lr_steps 600,800 -> 4800,6400\n"
    )


def test_saved_options_are_not_scaled_again(tmp_path):
    scaled = parse("--scale_batch=2")
    config_lib.save(scaled, str(tmp_path))
    assert config_lib.load(str(tmp_path)) == scaled
    flagfile = f"--flagfile={tmp_path}/train.flags"
    assert parse(flagfile) == scaled
    assert parse(flagfile, "--scale_batch=2") == scaled  # the same command line with another file
