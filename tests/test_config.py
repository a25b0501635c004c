"""Options survive the way to a file and back; wrong ones are one line that names the flag."""

import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskx_tf import config as config_lib
from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.layers.choices import MASK_BODIES

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIELDS = {field.name: field for field in dataclasses.fields(Config)}
TEXT = st.text("abcXYZ019 ,.:;=*?{}[]'#/_-", max_size=30).map(str.strip)
# Values that go with the default of every other option.
RANGES = {
    "frozen_stages": (0, 4),
    "min_level": (2, 4),
    "max_level": (5, 9),
    "image_min_side": (1, 1333),
    "image_max_side": (1333, 10**7),
    "box_passes": (1, 2),
}
ENTRY_POINT = """
from maskx_tf import config
from maskx_tf.system import cli

def main():
    options = config.from_flags()
    print(options.batch_size, options.backbone)

config.define_flags()
cli.run(main)
"""


def parse(*arguments: str) -> Config:
    values = flags.FlagValues()
    config_lib.define_flags(values)
    values(["test", *arguments])
    return config_lib.from_flags(values)


def values_of(field: dataclasses.Field) -> st.SearchStrategy:
    """Valid values of an option."""
    scalars = {
        bool: st.booleans(),
        int: st.integers(-3, 10**7),
        float: st.floats(-1e6, 1e6) | st.floats(0, 1),
        str: TEXT,
    }
    if field.name == "keep_best":
        return st.sampled_from(["", "mask_ap_b", "box_ap50_all"])
    if field.name == "backbone_output_stride":  # with 8, min_level=4 is too coarse
        return st.sampled_from([16, 32])
    if field.name in RANGES:
        return st.integers(*RANGES[field.name])
    if field.name == "box_head":
        return st.sampled_from(["fc", "conv"])  # mnc goes with few options, see test_mnc.py
    if field.name == "mask_voting":
        return st.just(False)
    if field.metadata["choices"]:
        return st.sampled_from(field.metadata["choices"])
    if field.type in scalars:
        strategy = scalars[field.type]
        if field.type in (int, float):
            strategy |= st.sampled_from([field.type(1), field.type(0)])  # most checks let 1 pass
        check = field.metadata["check"]
        # Mapped, not filtered: of so many options one would often run out of tries.
        if check is None:
            return strategy
        return strategy.map(lambda value: value if check.holds(value) else field.default)
    item = scalars[field.type.__args__[0]]
    item = item.filter(bool) if field.type.__args__[0] is str else item
    if field.name == "anchor_ratios":
        item = st.floats(1e-6, 1e6)
    if field.name == "mask_source_weights":
        one_each = st.sampled_from(["human:1", "maskx_tf:0.5", "my, own: tool:0"])
        return st.lists(one_each, unique=True).map(tuple)
    if field.name == "cascade_ious":
        return st.sampled_from([(), (0.5, 0.5), (0.5, 0.6, 0.7)])
    if field.name == "cascade_loss_weights":
        return st.sampled_from([(), (1.0, 0.5)])
    if field.name == "mask_branches":
        return st.lists(st.sampled_from(["coords", "cam"]), unique=True).map(tuple)
    least = {"pixel_mean": 3, "pixel_std": 3, "anchor_ratios": 1}.get(field.name, 0)
    order = sorted if field.name == "lr_steps" else list
    return st.lists(item, min_size=least, max_size=3).map(order).map(tuple)


@st.composite
def configs(draw) -> Config:
    options = {name: draw(values_of(field)) for name, field in FIELDS.items()}
    if options["transfer_input"] == "embedding":
        options["transfer_embeddings"] = "vectors.npy"
    options["mask_roi_size"] *= MASK_BODIES[options["mask_body"]].divisor
    if options["mode"] == "stage1_boxes" and options["keep_best"]:
        options["keep_best"] = "box_ap_a"
    if not (options["keep_best"] and options["eval_interval"]):
        options["patience"] = 0
    options["cascade_loss_weights"] = (0.5,) * len(options["cascade_ious"])
    if options["cascade_ious"]:
        options["roi_positive_iou"] = 0.5
    if "cam" in options["mask_branches"]:
        options["box_head"] = "conv"
    scores_classes = options["mask_body"] == "fcis" and options["mask_rois"] == "proposals"
    scores_classes &= options["mask_output"] != "class_agnostic"
    scores_classes &= options["semantic_head"] == "none"
    if not scores_classes or "cam" in options["mask_branches"]:
        options["loss_joint"] = 0.0
    if not options["loss_joint"]:
        options["hard_rois"] = 1.0
    if options["pairwise_dilation"] >= options["mask_upsampling"] * options["mask_roi_size"]:
        options["loss_pairwise"] = 0.0
    if options["semantic_head"] != "none":  # other heads than that are refused with maps
        options["semantic_masks"], options["min_level"] = "head", 2
    low, high = sorted((options["scale_jitter_min"], options["scale_jitter_max"]))
    return Config(**options | {"scale_jitter_min": low, "scale_jitter_max": high})


@settings(max_examples=25, deadline=None)
@given(configs())
@example(Config(mask_classes="''"))
def test_saved_options_are_read_back_equal(tmp_path_factory, config):
    model_dir = tmp_path_factory.mktemp("run")
    config_lib.save(config, str(model_dir))
    assert config_lib.load(str(model_dir)) == config


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if len(f.metadata["choices"]) != 1])
def test_every_option_reaches_the_file(name):
    field, default = FIELDS[name], Config()
    other = values_of(field).filter(lambda value: value != getattr(default, name))
    companions = {
        "transfer_embeddings": "vectors.npy",
        "scale_jitter_max": 1e9,
        "mask_roi_size": 7 * 32,
        "box_head": "conv",
        "keep_best": "box_ap_all",
        "eval_interval": 7,
    }
    companions.pop(name, None)
    if name == "mask_voting":
        pytest.skip("needs box_head=mnc, see test_mnc.py")
    if name == "cascade_loss_weights":
        companions["cascade_ious"] = (0.5, 0.6)
    if name in ("loss_joint", "hard_rois"):
        companions |= {"mask_body": "fcis", "loss_joint": 0.4}
        companions.pop(name, None)

    @settings(max_examples=3, deadline=None, database=None)
    @given(other)
    def check(value):
        try:
            config = default.replace(**companions, **{name: value})
        except UserError as error:  # scale_jitter_max below the smallest factor
            assert name == "scale_jitter_max", error
            return
        line = set(config_lib.to_text(config).splitlines())
        assert line - set(config_lib.to_text(default.replace(**companions)).splitlines())
        assert getattr(parse(*config_lib.to_text(config).splitlines()), name) == value

    check()


@pytest.mark.parametrize(
    "wrong", ["human", ":0.5", "human:", "human:2", "human:-1", "human:nan", "a:1,a:0.5"]
)
def test_source_weights_that_are_none_are_named(wrong):
    assert parse("--mask_source_weights=a:1,b:c:0.5").source_weights == {"a": 1, "b:c": 0.5}
    with pytest.raises(UserError, match=f"^--mask_source_weights={wrong} must list sources"):
        parse(f"--mask_source_weights={wrong}")


def test_saved_file_has_one_line_for_each_option(tmp_path):
    config_lib.save(Config(), str(tmp_path / "new" / "run"))
    lines = (tmp_path / "new" / "run" / "train.flags").read_text().splitlines()
    assert len(lines) == len(FIELDS)
    assert [line.lstrip("-").split("=")[0].removeprefix("no") for line in lines] == [
        name.removeprefix("no") for name in FIELDS
    ]
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["train.flags"]


def test_defaults_are_the_published_settings():
    config = parse()
    assert config == Config()
    assert (config.batch_size, config.learning_rate, config.train_steps) == (16, 0.02, 90_000)
    assert (config.lr_steps, config.warmup_steps, config.weight_decay) == (
        (60_000, 80_000),
        500,
        1e-4,
    )
    assert (config.image_min_side, config.image_max_side, config.mask_size) == (800, 1333, 28)
    assert (config.transfer_input, config.transfer_layers, config.mask_mlp) == ("cls+box", 2, True)


class TestInPython:
    """`Config(…)` takes what Python has for an option, and names it as Python does."""

    def test_paths_and_lists(self):
        config = Config(
            model_dir=pathlib.Path("runs/mine"),
            train_records="records/train",
            eval_records=[pathlib.Path("records/val"), "more"],
            lr_steps=[100, np.int64(200)],
            anchor_ratios=1,
            train_steps=np.int32(300),
            clip_norm=1,
        )
        assert config == Config(
            model_dir="runs/mine",
            train_records=("records/train",),
            eval_records=("records/val", "more"),
            lr_steps=(100, 200),
            anchor_ratios=(1.0,),
            train_steps=300,
            clip_norm=1.0,
        )
        assert config == parse(*config_lib.to_text(config).splitlines())
        assert type(config.train_steps) is int and type(config.clip_norm) is float

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"train_steps": "many"}, "^train_steps='many' must be a whole number"),
            ({"train_steps": 10.5}, r"^train_steps=10\.5 must be a whole number"),
            ({"train_steps": True}, "^train_steps=True must be a whole number"),
            ({"learning_rate": "0.1"}, "^learning_rate='0.1' must be a number"),
            ({"learning_rate": None}, "^learning_rate=None must be a number"),
            ({"mask_mlp": 1}, "^mask_mlp=1 must be True or False"),
            ({"model_dir": 7}, "^model_dir=7 must be text or a path"),
            ({"lr_steps": [1, "b"]}, r"^lr_steps=\[1, 'b'\] must be a whole number .*list"),
            ({"train_records": {"a"}}, r"^train_records=\{'a'\} must be text or a path .*list"),
            ({"transfer_input": "cls-box"}, r"^transfer_input=cls-box is not one of: cls, box"),
            ({"batch_size": 0}, "^batch_size=0 must be positive"),
            ({"backbone": "small", "max_level": 3}, "^max_level=3 must .* of backbone=small is 4"),
            ({"transfer_input": "embedding"}, "^transfer_input=embedding needs transfer_embedd"),
        ],
    )
    def test_a_wrong_value_is_named_without_dashes(self, options, message):
        for make in (Config, Config().replace):
            with pytest.raises(UserError, match=message):
                make(**options)

    def test_an_unknown_option_is_named(self):
        with pytest.raises(TypeError, match="train_step'"):
            Config(train_step=3)


def test_list_items_may_hold_commas():
    config = Config(train_records=("records/part-{0,1}*", "b"))
    assert '--train_records="records/part-{0,1}*",b\n' in config_lib.to_text(config)
    assert parse(*config_lib.to_text(config).splitlines()) == config


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--batch_size=0", "must be positive"),
        ("--learning_rate=-0.1", "must be positive"),
        ("--weight_decay=-1", "must not be negative"),
        ("--nms_iou=1.5", r"must lie in \[0, 1\]"),
        ("--transfer_layers=4", "must be 1, 2 or 3"),
        ("--lr_steps=1000,2e3", "comma-separated list of int"),
        ("--anchor_ratios=0.5,one", "comma-separated list of float"),
        ("--transfer_input=embedding", "needs --transfer_embeddings"),
        ("--scale_jitter_min=1.5", "larger than --scale_jitter_max"),
        ("--image_min_side=1334", "larger than --image_max_side=1333"),
        ("--seed=-1", r"must lie in \[0, 2\^31\)"),
        ("--seed=2147483648", r"must lie in \[0, 2\^31\)"),
        ("--pixel_mean=1,2", "=1.0,2.0 must have three values"),
        ("--pixel_std=1", "must have three values"),
        ("--anchor_ratios=", "must have a value"),
        ("--anchor_ratios=1,0", "positive ones only"),
        ("--lr_steps=200,100", "=200,100 must ascend"),
        ("--frozen_stages=6", "must be at most 5"),
        ("--min_level=1", "must be from 2 to 5"),
        ("--min_level=6", "must be from 2 to 5"),
        ("--max_level=3", "must be at least 5"),
    ],
)
def test_wrong_value_names_its_flag(argument, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        parse(argument)
    assert str(caught.value).startswith(argument.split("=")[0])


@pytest.mark.parametrize("change", ["--frozen_stages=5", "--min_level=5", "--max_level=3"])
def test_the_small_backbone_has_a_stage_less(change):
    assert parse("--backbone=small", "--frozen_stages=4", "--min_level=4", "--max_level=4")
    with pytest.raises(UserError, match=f"^{change} must .* last stage of --backbone=small is 4"):
        parse("--backbone=small", change)


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if f.metadata["choices"]])
def test_value_outside_the_choices_names_its_option(name):
    with pytest.raises(UserError, match=f"^{name}=nonsense is not one of: "):
        Config(**{name: "nonsense"})


@pytest.mark.parametrize(
    "name", [n for n, f in FIELDS.items() if f.type is float and f.metadata["check"]]
)
def test_nan_is_no_value(name):
    with pytest.raises(UserError, match=f"^{name}=nan "):
        Config(**{name: float("nan")})


def test_directory_without_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"is not a model directory: it has no train\.flags"):
        config_lib.load(str(tmp_path))


def test_run_of_another_version_names_the_file_and_the_flag(tmp_path):
    (tmp_path / "train.flags").write_text("--batch_size=4\n--an_option_of_tomorrow=1\n")
    with pytest.raises(UserError, match=r"train\.flags: .*an_option_of_tomorrow.*update maskx_tf"):
        config_lib.load(str(tmp_path))


def run_entry_point(tmp_path: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    script = tmp_path / "entry_point.py"
    script.write_text(ENTRY_POINT)
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_flagfiles_nest_and_the_last_value_wins(tmp_path):
    (tmp_path / "base.flags").write_text("# a comment\n--batch_size=4\n--backbone=small\n")
    (tmp_path / "row.flags").write_text("--flagfile=base.flags\n--batch_size=8\n")
    result = run_entry_point(tmp_path, "--flagfile=row.flags")
    assert (result.stdout, result.stderr, result.returncode) == ("8 small\n", "", 0)
    assert run_entry_point(tmp_path, "--flagfile=row.flags", "--batch_size=2").stdout == "2 small\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_sise=3"], "unknown flag --batch_sise. Did you mean --batch_size?"),
        (
            ["--nohorizontal_flp"],
            "unknown flag --nohorizontal_flp. Did you mean --horizontal_flip?",
        ),
        (["--xyzzy"], "unknown flag --xyzzy. See --help."),
        (["--flagfile=typo.flags"], "unknown flag --batch_sise. Did you mean --batch_size?"),
        (["--flagfile=missing.flags"], "flagfile missing.flags: No such file or directory"),
        (["--flagfile=nested.flags"], "missing.flags, included in nested.flags: No such"),
        (["--batch_size=many"], "flag --batch_size=many: invalid literal for int()"),
        (["--batch_size=0"], "--batch_size=0 must be positive."),
        (["--mode=both"], "flag --mode=both: value should be one of <end_to_end|"),
        (["records"], "unexpected argument 'records'; options are written --name=value."),
    ],
)
def test_mistake_on_the_command_line_is_one_line(tmp_path, arguments, message):
    (tmp_path / "typo.flags").write_text("--backbone=small\n--batch_sise=3\n")
    (tmp_path / "nested.flags").write_text("--flagfile=missing.flags\n")
    result = run_entry_point(tmp_path, *arguments)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert (result.stdout, result.returncode) == ("", 2)
