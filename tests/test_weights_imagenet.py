"""ImageNet weights: equal features in the source's network and in ours, and every refusal."""

import functools
import pathlib
import pickle
import re

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.vision.modeling import classification_model
from official.vision.modeling.backbones.resnet import RESNET_SPECS, ResNet
from official.vision.ops import preprocess_ops

from maskx_tf import checkpoints
from maskx_tf import config as config_lib
from maskx_tf.assembly import build_model
from maskx_tf.errors import UserError
from maskx_tf.layers.backbone import EPSILON
from maskx_tf.training import run
from maskx_tf.weights import imagenet
from tests import harness, tiny
from tests.harness import thorough

IMAGE = harness.random_image(96, 160) // 2 + np.random.default_rng(0).integers(
    0, 128, (96, 160, 3), dtype=np.uint8
)
SOURCES = ("keras", "model_garden", "torchvision", "detectron")
FIRST = "res3_0_branch2a_w"  # the first blob that is looked at


def options(source, **changes):
    """A small detector on a full ResNet-50 with the flagfile of a source."""
    path = harness.REPOSITORY / "configs" / "backbones" / f"{source}.flags"
    flags = config_lib.read_flagfile(str(path))
    chosen = {name: getattr(flags, name) for name in imagenet.OPTIONS[source]}
    full = {"backbone": "resnet50", "backbone_width": 64}
    return tiny.config(**full | chosen | changes)


def randomize(layer, seed=0):
    """Random weights, biases and batch statistics with which no part of the network is idle."""
    rng = np.random.default_rng(seed)
    draw = {
        "bias": lambda shape: rng.normal(0, 0.3, shape),
        "gamma": lambda shape: rng.uniform(0.4, 0.9, shape),
        "beta": lambda shape: rng.normal(0, 0.2, shape),
        "moving_mean": lambda shape: rng.normal(0, 0.5, shape),
        "moving_variance": lambda shape: rng.uniform(0.5, 1.5, shape),
        "kernel": lambda shape: rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape),
    }
    for variable in layer.weights:
        name = variable.name.split("/")[-1].split(":")[0]
        variable.assign(draw[name](variable.shape).astype(np.float32))
    return layer


def keras_resnet(depth=50, **arguments):
    build = {50: tf_keras.applications.ResNet50, 101: tf_keras.applications.ResNet101}[depth]
    return build(weights=None, include_top=False, **arguments)


def keras_features(network, x):
    blocks = [4, 23, 3] if "conv4_block23_out" in {v.name for v in network.layers} else [4, 6, 3]
    names = [f"conv{s}_block{n}_out" for s, n in zip((2, 3, 4, 5), [3, *blocks], strict=True)]
    taps = tf_keras.Model(network.input, [network.get_layer(name).output for name in names])
    return dict(zip((2, 3, 4, 5), taps(x, training=False), strict=True))


def features(model, image=IMAGE):
    """C2..C5 of a uint8 RGB image, from raw pixels on."""
    sizes = tf.constant([image.shape[:2]], tf.float32)
    return model.backbone(model.normalize(tf.constant(image[None]), sizes))


def assert_equal_features(ours, theirs, tolerance=1e-4):
    for level in (2, 3, 4, 5):
        wanted = np.asarray(theirs[level])
        assert ours[level].shape == wanted.shape
        assert np.std(wanted) > 0.01 * np.max(np.abs(wanted)) > 0
        error = np.max(np.abs(ours[level] - wanted)) / np.max(np.abs(wanted))
        assert error < tolerance, (level, error)


@functools.cache
def built(config):
    return build_model(config, tiny.VOCABULARY.num_classes)


def loaded(path, config):
    """(model, report); the model is shared, its backbone is emptied before it is loaded."""
    model = built(config)
    for variable in model.backbone.weights:
        variable.assign(tf.zeros_like(variable))
    return model, imagenet.load_backbone(model, config.replace(backbone_weights=str(path)))


def layer(model, name):
    """{kernel, gamma, …: value} of a convolution of the backbone and its normalisation."""
    prefix = f"maskx_rcnn/backbone/{name}/"
    found = [v for v in model.backbone.weights if v.name.startswith(prefix)]
    return {v.name.split("/")[-1].split(":")[0]: v.numpy() for v in found}


def caffe2_blobs(network):
    """A Keras ResNet as the blobs of Detectron's R-50.pkl, biases and statistics folded."""
    blobs = {"fc1000_w": np.zeros([1000, 2048], np.float32), "fc1000_b": np.zeros(1000)}
    branches = {"0": "1", "1": "2a", "2": "2b", "3": "2c"}
    for layer in (v for v in network.layers if v.name.endswith("_conv")):
        kernel, bias = layer.get_weights()
        norm = network.get_layer(layer.name.replace("_conv", "_bn"))
        gamma, beta, mean, variance = norm.get_weights()
        scale = gamma / np.sqrt(variance + 1.001e-5)
        if layer.name == "conv1_conv":
            conv, bn = "conv1", "res_conv1_bn"
        else:
            stage, block, part = re.fullmatch(r"conv(.)_block(\d+)_(.)_conv", layer.name).groups()
            conv = f"res{stage}_{int(block) - 1}_branch{branches[part]}"
            bn = f"{conv}_bn"
        blobs[f"{conv}_w"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        blobs[f"{conv}_b"] = np.zeros_like(bias)
        blobs[f"{bn}_s"], blobs[f"{bn}_b"] = scale, beta + (bias - mean) * scale
    return blobs


@pytest.fixture(scope="module")
def keras_network():
    return randomize(keras_resnet())


@pytest.fixture(scope="module")
def keras_file(keras_network, tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "resnet50_notop.h5"
    keras_network.save_weights(str(path))
    return path


@pytest.fixture(scope="module")
def garden_network():
    return randomize(ResNet(50, norm_epsilon=1e-5))


def trainer_checkpoint(backbone, directory):
    """A checkpoint with the items that Model Garden's trainer saves, optimizer slots included."""
    specs = tf_keras.layers.InputSpec(shape=[None, None, None, 3])
    model = classification_model.ClassificationModel(backbone, num_classes=7, input_specs=specs)
    optimizer = tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9)
    optimizer._create_all_weights(model.trainable_variables[:4])
    checkpoint = tf.train.Checkpoint(
        global_step=optimizer.iterations,
        model=model,
        optimizer=optimizer,
        **model.checkpoint_items,
    )
    return tf.train.CheckpointManager(checkpoint, str(directory), 1).save(7)


def garden_features(backbone, image=IMAGE):
    x = preprocess_ops.normalize_image(
        tf.constant(image[None], tf.float32),
        preprocess_ops.MEAN_RGB,
        preprocess_ops.STDDEV_RGB,
    )
    return {int(level): value for level, value in backbone(x, training=False).items()}


class TestKeras:
    def theirs(self, network):
        x = tf_keras.applications.resnet.preprocess_input(IMAGE[None].astype(np.float32))
        return keras_features(network, x)

    @pytest.mark.parametrize("normalization", ["frozen_batch_norm", thorough("batch_norm")])
    def test_equal_features(self, keras_network, keras_file, normalization):
        model, report = loaded(keras_file, options("keras", normalization=normalization))
        assert_equal_features(features(model), self.theirs(keras_network))
        trained = {v.name.split("/")[2] for v in model.backbone.trainable_variables}
        assert trained == {f"res{s}_{i}" for s, n in ((3, 4), (4, 6), (5, 3)) for i in range(n)}
        assert report == (
            f"Backbone from {keras_file} (tf_keras.applications): 265 variables set; not used: "
            "none."
        )

    def test_training_statistics_are_those_of_the_source(self, keras_network, keras_file):
        """The bias that is folded into the moving mean does not come back in training."""
        config = options("keras", normalization="batch_norm", frozen_stages=0)
        model, _ = loaded(keras_file, config)
        conv, norm = (keras_network.get_layer(f"conv1_{kind}") for kind in ("conv", "bn"))
        ours = model.backbone.stem[0]
        x = tf.constant(np.random.default_rng(0).normal(0, 30, (2, 32, 32, 3)).astype(np.float32))
        padded = tf.pad(x, [[0, 0], [3, 3], [3, 3], [0, 0]])
        wanted = tf.nn.relu(norm(conv(padded), training=True))
        np.testing.assert_allclose(ours(x, training=True), wanted, atol=1e-4)

    @pytest.mark.thorough
    def test_with_top_and_as_a_whole_model(self, keras_network, tmp_path):
        network = keras_network
        pooled = tf_keras.layers.GlobalAveragePooling2D()(network.output)
        top = tf_keras.layers.Dense(5, name="predictions")(pooled)
        classifier = tf_keras.Model(network.input, top)
        classifier.save_weights(str(tmp_path / "top.h5"))
        with pytest.warns(UserWarning, match="HDF5"):
            classifier.save(str(tmp_path / "model.hdf5"), save_format="h5")
        for name in ("top.h5", "model.hdf5"):
            model, report = loaded(tmp_path / name, options("keras"))
            assert report.endswith(
                "265 variables set; not used: predictions/bias, predictions/kernel."
            )
            assert_equal_features(features(model), self.theirs(network))

    def test_download(self, keras_network, monkeypatch):
        asked = {}

        def build(**arguments):
            asked.update(arguments)
            return keras_network

        monkeypatch.setattr(tf_keras.applications, "ResNet50", build)
        model, report = loaded("keras", options("keras"))
        assert asked == {"weights": "imagenet", "include_top": False}
        assert report.startswith("Backbone from keras (tf_keras.applications): 265 variables set")
        assert_equal_features(features(model), self.theirs(keras_network))

    def test_no_network_names_the_file_to_give(self, monkeypatch):
        def build(**_):
            raise Exception("URL fetch failure on https://…: None -- [Errno -2] unknown\nhost")

        monkeypatch.setattr(tf_keras.applications, "ResNet50", build)
        with pytest.raises(UserError) as error:
            loaded("keras", options("keras"))
        message = str(error.value)
        assert "unknown host; fetch https://storage.googleapis.com/" in message
        assert message.endswith(
            "--backbone_weights=resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5."
        )

    @pytest.mark.slow
    def test_resnet101(self, tmp_path):
        network = randomize(keras_resnet(101))
        network.save_weights(str(tmp_path / "resnet101.h5"))
        model, report = loaded(tmp_path / "resnet101.h5", options("keras", backbone="resnet101"))
        assert "520 variables set" in report
        assert_equal_features(features(model), self.theirs(network))


class TestModelGarden:
    def test_trainer_checkpoint_has_equal_features(self, garden_network, tmp_path):
        path = trainer_checkpoint(garden_network, tmp_path)
        model, report = loaded(tmp_path, options("model_garden"))
        assert_equal_features(features(model), garden_features(garden_network))
        assert report.startswith(f"Backbone from {tmp_path} (Model Garden): 265 variables set; ")
        assert "model/layer_with_weights-1/kernel" in report and path.endswith("ckpt-7")

    @pytest.mark.thorough
    def test_odd_sides(self, garden_network, tmp_path):
        path = tf.train.Checkpoint(backbone=garden_network).write(str(tmp_path / "backbone"))
        model, _ = loaded(path, options("model_garden"))
        image = IMAGE[:75, :101]
        assert_equal_features(features(model, image), garden_features(garden_network, image))

    @pytest.mark.parametrize("name", [thorough("model"), "backbone", thorough("classifier")])
    def test_names_in_the_checkpoint(self, garden_network, tmp_path, name):
        item = garden_network
        if name == "classifier":
            specs = tf_keras.layers.InputSpec(shape=[None, None, None, 3])
            item = classification_model.ClassificationModel(item, 7, input_specs=specs)
        key = "backbone" if name == "backbone" else "model"
        path = tf.train.Checkpoint(**{key: item}).save(str(tmp_path / "ckpt"))
        model, _ = loaded(path, options("model_garden"))
        shortcut = layer(model, "res5_0/shortcut")
        block = next(v for v in garden_network.layers[::-1] if hasattr(v, "_shortcut"))
        np.testing.assert_array_equal(shortcut["kernel"], block._shortcut.kernel)
        np.testing.assert_array_equal(shortcut["beta"], block._norm0.beta)

    def test_settings_of_params_yaml(self, garden_network, tmp_path):
        tf.train.Checkpoint(backbone=garden_network).save(str(tmp_path / "ckpt"))
        activation = "{activation: relu, norm_epsilon: 1e-3}"
        (tmp_path / "params.yaml").write_text(f"task: {{model: {{norm_activation: {activation}}}}}")
        model, _ = loaded(tmp_path, options("model_garden"))
        variance = (
            layer(model, "stem")["moving_variance"] - garden_network.layers[2].moving_variance
        )
        np.testing.assert_allclose(variance, np.full(64, 0.001 - 1e-5), rtol=1e-2)
        (tmp_path / "params.yaml").write_text(
            "task: {model: {norm_activation: {activation: swish}}}"
        )
        with pytest.raises(UserError, match="activation swish"):
            loaded(tmp_path, options("model_garden"))

    @pytest.mark.slow
    def test_resnet101(self, tmp_path):
        network = randomize(ResNet(101, norm_epsilon=1e-5))
        path = tf.train.Checkpoint(backbone=network).save(str(tmp_path / "ckpt"))
        model, _ = loaded(path, options("model_garden", backbone="resnet101"))
        assert_equal_features(features(model), garden_features(network))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"stem_type": "v1"}, "a stem other than v0"),
            ({"replace_stem_max_pool": True}, "in place of the stem's max-pooling"),
            ({"se_ratio": 0.25}, "squeeze-and-excitation"),
            ({"resnetd_shortcut": True}, "ResNet-D shortcuts"),
            thorough(
                {"depth_multiplier": 0.25},
                r"_conv1/kernel \(1, 1, 64, 32\) does not fit",
            ),
        ],
    )
    def test_variants_are_refused(self, tmp_path, monkeypatch, arguments, message):
        if "depth_multiplier" not in arguments:  # refused before the depth is looked at
            stages = [("bottleneck", 8 * 2**stage, 1) for stage in range(4)]
            monkeypatch.setitem(RESNET_SPECS, 50, stages)
        network = ResNet(50, **arguments)
        path = tf.train.Checkpoint(backbone=network).save(str(tmp_path / "ckpt"))
        with pytest.raises(UserError, match=message):
            loaded(path, options("model_garden"))

    def test_basic_blocks_and_other_checkpoints_are_refused(self, tmp_path):
        for item in (ResNet(18), tf.Variable(1.0)):
            path = tf.train.Checkpoint(backbone=item).save(str(tmp_path / "ckpt"))
            with pytest.raises(UserError, match="no bottleneck ResNet of Model Garden"):
                loaded(path, options("model_garden"))

    def test_damaged_checkpoint(self, garden_network, tmp_path):
        path = tf.train.Checkpoint(backbone=garden_network).save(str(tmp_path / "ckpt"))
        data = pathlib.Path(f"{path}.data-00000-of-00001")
        data.write_bytes(data.read_bytes()[:10_000_000])
        with pytest.raises(UserError, match="cannot be read"):
            loaded(path, options("model_garden"))


def pickled(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


class TestDetectron:
    @pytest.fixture(scope="class")
    def blobs(self, keras_network):
        return caffe2_blobs(keras_network)

    @pytest.fixture(scope="class")
    def path(self, blobs, tmp_path_factory):
        return pickled(tmp_path_factory.mktemp("detectron") / "R-50.pkl", blobs)

    def test_equal_features(self, keras_network, path):
        model, report = loaded(path, options("detectron"))
        means = tf.constant([102.9801, 115.9465, 122.7717])
        x = tf.cast(IMAGE[None, ..., ::-1], tf.float32) - means
        assert_equal_features(features(model), keras_features(keras_network, x))
        assert report == (
            f"Backbone from {path} (Detectron): 265 variables set; not used: conv1_b, fc1000_b, "
            "fc1000_w, res2_0_branch1_b and 51 more."
        )

    def test_under_model(self, blobs, tmp_path):
        content = {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
        model, _ = loaded(pickled(tmp_path / "R-50.pkl", content), options("detectron"))
        conv = layer(model, "res3_2/conv2")
        wanted = blobs["res3_2_branch2b_w"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(conv["kernel"], wanted)

    @pytest.mark.thorough
    def test_trained_normalisation_is_reported(self, path):
        model, report = loaded(path, options("detectron", normalization="batch_norm"))
        assert "statistics are folded" in report
        norm = layer(model, "res4_1/conv2")
        np.testing.assert_array_equal(norm["moving_mean"], np.zeros(256))
        np.testing.assert_allclose(norm["moving_variance"], np.full(256, 1 - EPSILON))

    def test_nothing_is_set_if_the_last_blob_does_not_fit(self, blobs, tmp_path):
        name = "res5_2_branch2c_bn_b"
        path = pickled(tmp_path / "R-50.pkl", blobs | {name: np.zeros(7, np.float32)})
        with pytest.raises(UserError, match=rf"{name} \(7,\) does not fit"):
            loaded(path, options("detectron"))
        assert not any(np.any(v) for v in built(options("detectron")).backbone.weights)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"res4_2_branch2b_bn_s": None}, "lacks 1 blobs .*: res4_2_branch2b_bn_s"),
            ({"res5_2_branch2a_w": None}, "lacks 1 blobs .*: res5_2_branch2a_w"),
            ({FIRST: np.zeros([64, 3, 5, 5], np.float32)}, rf"{FIRST} \(64, 3, 5, 5\) does not"),
            ({FIRST: np.zeros([128, 256, 1, 1], np.int64)}, rf"{FIRST} \(int64\) holds values"),
            ({"blobs": {}}, "holds a whole detector"),
            ({"model": {"fc1000_w": np.zeros(2)}}, "it has fc1000_w"),
            ({"model": "fc1000_w"}, "it has no arrays"),
        ],
    )
    def test_what_does_not_fit_is_named(self, blobs, tmp_path, change, message):
        empty = {name: np.zeros(1, np.float32) for name in blobs} | change
        content = {name: value for name, value in empty.items() if value is not None}
        with pytest.raises(UserError, match=f"--backbone_weights={tmp_path}.*{message}"):
            loaded(pickled(tmp_path / "R-50.pkl", content), options("detectron"))


class TestRefusals:
    @pytest.mark.parametrize("source", SOURCES)
    def test_flagfile_has_the_options_of_its_weights(self, source):
        path = harness.REPOSITORY / "configs" / "backbones" / f"{source}.flags"
        lines = [v for v in path.read_text().splitlines() if not v.startswith("#")]
        assert [line.lstrip("-").split("=")[0] for line in lines] == list(imagenet.OPTIONS[source])
        config = config_lib.read_flagfile(str(path))
        for name, value in imagenet.OPTIONS[source].items():
            assert getattr(config, name) == value

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"channel_order": "rgb"}, "--channel_order=bgr (not rgb)"),
            (
                {"pixel_mean": (123.675, 116.28, 103.53)},
                "--pixel_mean=103.939,116.779,123.68 (not 123.675,116.28,103.53)",
            ),
            ({"pixel_std": (58.395, 57.12, 57.375)}, "--pixel_std=1,1,1 (not 58.395,57.12,57.375)"),
            ({"stride_on": "3x3"}, "--stride_on=1x1 (not 3x3)"),
            ({"backbone_padding": "same"}, "--backbone_padding=symmetric (not same)"),
        ],
    )
    def test_wrong_preprocessing_names_option_and_flagfile(self, keras_file, changes, named):
        config = options("keras", backbone_weights=str(keras_file), **changes)
        with pytest.raises(UserError) as error:
            imagenet.load_backbone(None, config)
        assert f"needs {named}; add --flagfile=configs/backbones/keras.flags" in str(error.value)

    def test_all_wrong_options_are_named_at_once(self, keras_file):
        config = options("model_garden", backbone_weights=str(keras_file))
        with pytest.raises(UserError) as error:
            imagenet.load_backbone(None, config)
        for name in imagenet.OPTIONS["keras"]:
            assert f"--{name}=" in str(error.value)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"backbone": "small"}, "--backbone=resnet50 or resnet101"),
            ({"backbone_width": 32}, "--backbone_width=64, not resnet50 with 32"),
            ({"normalization": "group_norm"}, "--normalization=group_norm cannot"),
            ({"backbone": "resnet101"}, r"is resnet50 with \(3, 4, 6, 3\) blocks, --backbone=res"),
            ({"init_checkpoint": "runs/x"}, "--init_checkpoint=runs/x are both given"),
        ],
    )
    def test_options_that_do_not_go_together(self, keras_file, changes, message):
        config = options("keras", backbone_weights=str(keras_file), **changes)
        with pytest.raises(UserError, match=message):
            imagenet.load_backbone(None, config)

    @pytest.mark.parametrize("path", ["absent.h5", "absent.pkl", "absent/ckpt-1"])
    def test_no_such_file(self, path):
        with pytest.raises(UserError, match=f"--backbone_weights={path}: there is no such file"):
            imagenet.load_backbone(None, options("keras", backbone_weights=path))

    def test_directory_without_a_checkpoint(self, tmp_path):
        config = options("model_garden", backbone_weights=str(tmp_path))
        with pytest.raises(UserError, match="holds no checkpoint"):
            imagenet.load_backbone(None, config)

    def test_truncated_and_foreign_hdf5(self, keras_file, tmp_path):
        (tmp_path / "cut.h5").write_bytes(keras_file.read_bytes()[:50_000_000])
        (tmp_path / "text.h5").write_text("no weights")
        for name in ("cut.h5", "text.h5"):
            config = options("keras", backbone_weights=str(tmp_path / name))
            with pytest.raises(UserError, match=f"{name} cannot be read as HDF5"):
                imagenet.load_backbone(None, config)
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["dense/kernel"] = np.zeros([2, 2])
        config = options("keras", backbone_weights=str(tmp_path / "other.h5"))
        with pytest.raises(UserError, match=r"no resnet50 or resnet101 .* it has dense/kernel"):
            imagenet.load_backbone(None, config)


class TestTraining:
    """A fresh run takes the weights over, a resumed one and one without the option do not."""

    def start(self, config):
        model = build_model(config, tiny.VOCABULARY.num_classes)
        loaded = checkpoints.LoadedModel(model, config, tiny.VOCABULARY, tiny.SET_A)
        optimizer = tf_keras.optimizers.SGD()
        manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(model=model, optimizer=optimizer), config.model_dir, 1
        )
        strategy = tf.distribute.get_strategy()
        state = run.Run(loaded, optimizer, None, manager.checkpoint, None, strategy)
        return run._restore(state), manager

    def test_only_a_fresh_run_loads(self, tmp_path, monkeypatch, capsys):
        calls = []

        def load_backbone(model, config):
            calls.append((model, config))
            return "Backbone from there."

        monkeypatch.setattr(imagenet, "load_backbone", load_backbone)
        self.start(tiny.config(model_dir=str(tmp_path / "random")))
        assert not calls
        config = tiny.config(model_dir=str(tmp_path / "run"), backbone_weights="x.h5")
        step, manager = self.start(config)
        assert (step, len(calls)) == (0, 1) and calls[0][1] == config
        assert capsys.readouterr().err == "Backbone from there.\n"
        manager.save(0)
        self.start(config)
        assert len(calls) == 1
        assert capsys.readouterr().err.startswith("Resuming ")

    def test_together_with_init_checkpoint(self, tmp_path, keras_file):
        config = options("keras", model_dir=str(tmp_path), backbone_weights=str(keras_file))
        with pytest.raises(UserError, match="are both given"):
            self.start(config.replace(init_checkpoint=str(tmp_path)))
