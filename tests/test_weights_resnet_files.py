"""ResNets in ONNX files and in PyTorch's: features against onnxruntime, reading, refusals."""

import collections
import functools
import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import config as config_lib
from maskx_tf.assembly import build_model
from maskx_tf.errors import UserError
from maskx_tf.layers import backbone
from maskx_tf.weights import caffe2, imagenet, onnx_resnet, torch_files
from tests import harness, tiny

onnx = pytest.importorskip("onnx")
STEM, WIDTH = 8, 4
IMAGE = harness.random_image(64, 96)


@functools.cache
def state_dict(stem=STEM, width=WIDTH):
    """Random weights and batch statistics of a narrow ResNet-50 by torchvision's names."""
    rng = np.random.default_rng(0)
    arrays = {}

    def layer(conv, norm, size, inputs, outputs):
        shape = (outputs, inputs, size, size)
        arrays[f"{conv}.weight"] = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        arrays[f"{norm}.weight"] = rng.uniform(0.4, 0.9, outputs)
        arrays[f"{norm}.bias"] = rng.normal(0, 0.2, outputs)
        arrays[f"{norm}.running_mean"] = rng.normal(0, 0.5, outputs)
        arrays[f"{norm}.running_var"] = rng.uniform(0.5, 1.5, outputs)

    layer("conv1", "bn1", 7, 3, stem)
    before, last = stem, stem  # channels of the block's input and of the last convolution
    for stage, block, part in caffe2.places("resnet50"):
        inner = width * 2 ** (stage - 2)
        name = f"layer{stage - 1}.{block}"
        if part == "shortcut":
            layer(f"{name}.downsample.0", f"{name}.downsample.1", 1, before, 4 * inner)
            continue
        before = last if part == "conv1" else before
        outputs = 4 * inner if part == "conv3" else inner
        layer(f"{name}.{part}", f"{name}.bn{part[-1]}", 3 if part == "conv2" else 1, last, outputs)
        last = outputs
    arrays["fc.weight"] = rng.normal(size=(5, last))
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def onnx_graph(stride_on="3x3", pool=(1, 1, 1, 1), *, folded=False, before=None, arrays=None):
    """The network of `state_dict` as ONNX, with C2..C5 as outputs; its layers have no names."""
    arrays = arrays or state_dict()
    make, nodes, tensors = onnx.helper.make_node, [], {}

    def conv(x, name, norm, stride=1, relu=True):
        kernel = arrays[f"{name}.weight"]
        parts = [arrays[f"{norm}.{p}"] for p in ("weight", "bias", "running_mean", "running_var")]
        key, pads = f"t{len(nodes)}", [kernel.shape[2] // 2] * 4
        attributes = {"strides": [stride] * 2, "pads": pads}
        if folded:
            scale = parts[0] / np.sqrt(parts[3] + np.float32(1e-5))
            tensors[f"{key}w"] = kernel * scale[:, None, None, None]
            tensors[f"{key}b"] = parts[1] - parts[2] * scale
            nodes.append(make("Conv", [x, f"{key}w", f"{key}b"], [key], **attributes))
        else:
            tensors[f"{key}w"] = kernel
            norms = [f"{key}n{i}" for i in range(4)]
            tensors.update(zip(norms, parts, strict=True))
            nodes.append(make("Conv", [x, f"{key}w"], [f"{key}c"], **attributes))
            nodes.append(make("BatchNormalization", [f"{key}c", *norms], [key], epsilon=1e-5))
        if relu:
            nodes.append(make("Relu", [key], [f"{key}r"]))
        return nodes[-1].output[0]

    x = "image"
    if before:
        nodes.append(make(before, ["image"], ["before"]))
        x = "before"
    x = conv(x, "conv1", "bn1", 2)
    nodes.append(make("MaxPool", [x], ["pool"], kernel_shape=[3, 3], strides=[2, 2], pads=pool))
    x, outputs = "pool", []
    for stage, count in enumerate((3, 4, 6, 3), start=1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
            y = conv(x, f"{name}.conv1", f"{name}.bn1", first)
            y = conv(y, f"{name}.conv2", f"{name}.bn2", second)
            y = conv(y, f"{name}.conv3", f"{name}.bn3", relu=False)
            down = f"{name}.downsample"
            x = x if block else conv(x, f"{down}.0", f"{down}.1", stride, relu=False)
            nodes.append(make("Add", [y, x], [f"{name}s"]))
            nodes.append(make("Relu", [f"{name}s"], [name]))
            x = name
        outputs.append(x)
    tensors["fc"] = arrays["fc.weight"]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("image", 1, ["n", 3, "h", "w"])],
        [info(name, 1, None) for name in outputs],
        [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])


def saved(tmp_path, graph):
    onnx.save(graph, str(tmp_path / "net.onnx"))
    return str(tmp_path / "net.onnx")


def options(**changes):
    path = harness.REPOSITORY / "configs" / "backbones" / "torchvision.flags"
    flags = config_lib.read_flagfile(str(path))
    chosen = {name: getattr(flags, name) for name in imagenet.OPTIONS["torchvision"]}
    widths = {"backbone": "resnet50", "backbone_width": WIDTH, "backbone_stem_width": STEM}
    return tiny.config(**chosen | widths | changes)


@functools.cache
def built(config):
    return build_model(config, tiny.VOCABULARY.num_classes)


def assert_features(config, path, graph):
    """C2..C5 of the loaded backbone equal onnxruntime's of the graph."""
    runtime = pytest.importorskip("onnxruntime")
    model = built(config)
    report = imagenet.load_backbone(model, config.replace(backbone_weights=path))
    sizes = tf.constant([IMAGE.shape[:2]], tf.float32)
    ours = model.backbone(model.normalize(tf.constant(IMAGE[None]), sizes))
    x = ((IMAGE - np.array(config.pixel_mean)) / config.pixel_std).astype(np.float32)
    session = runtime.InferenceSession(graph.SerializeToString())
    theirs = session.run(None, {"image": x.transpose(2, 0, 1)[None]})
    for level, wanted in zip((2, 3, 4, 5), theirs, strict=True):
        wanted, scale = wanted.transpose(0, 2, 3, 1), np.abs(wanted).max()
        assert ours[level].shape == wanted.shape and np.std(wanted) > 0.01 * scale > 0
        assert np.abs(ours[level] - wanted).max() < 1e-4 * scale
    return report


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("graph", "changes"),
    [
        ({}, {}),
        (
            {"stride_on": "1x1", "pool": [0, 0, 1, 1], "folded": True},
            {"stride_on": "1x1", "backbone_padding": "caffe"},
        ),
    ],
)
def test_onnx_equals_its_runtime(tmp_path, graph, changes):
    graph = onnx_graph(**graph)
    report = assert_features(options(**changes), saved(tmp_path, graph), graph)
    assert "265 variables set; not used: fc." in report and "--channel_order=rgb" in report


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors"])
def test_torch_files_equal_the_same_network_as_onnx(tmp_path, monkeypatch, kind):
    path = str(tmp_path / ("net.safetensors" if kind == "safetensors" else "net.pth"))
    if kind == "safetensors":
        pytest.importorskip("safetensors.numpy").save_file(state_dict(), path)
    else:
        write_pth(monkeypatch, path, state_dict(), legacy=kind == "legacy")
    report = assert_features(options(), path, onnx_graph())
    assert "(torchvision): 265 variables set; not used: fc.weight." in report


class TestOnnx:
    def test_every_tensor_and_option_without_a_model(self, tmp_path):
        path = saved(tmp_path, onnx_graph("1x1", (0, 0, 1, 1), folded=True))
        content = onnx_resnet.read_onnx(path, "resnet50")
        assert content.blocks == (3, 4, 6, 3)
        assert dict(content.options) == {
            "backbone_width": WIDTH,
            "backbone_stem_width": STEM,
            "stride_on": "1x1",
            "backbone_padding": "caffe",
        }
        wanted = {name for rule in content.rules.values() for name in rule.names}
        assert set(content.blobs.arrays) - wanted == {"fc"}

    @pytest.mark.parametrize(
        ("graph", "named"),
        [
            ({"before": "Neg"}, "Neg before its first convolution"),
            ({"pool": [0, 0, 2, 2]}, "3x3 with padding"),
        ],
    )
    def test_other_graphs_are_refused(self, tmp_path, graph, named):
        with pytest.raises(UserError, match=named) as error:
            onnx_resnet.read_onnx(saved(tmp_path, onnx_graph(**graph)), "resnet50")
        assert "net.onnx" in str(error.value)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda graph: graph.node[-1].input.__setitem__(0, "image"), "not Relu"),
            (lambda graph: graph.initializer.pop(0), "quantised"),
            (lambda graph: graph.ClearField("node"), "no convolution"),
            (
                lambda graph: graph.node[0].attribute[0].ints.__setitem__(0, 4),
                r"7x7 with padding \[4,",
            ),
        ],
    )
    def test_damaged_graphs_are_refused(self, tmp_path, change, named):
        model = onnx_graph()
        change(model.graph)
        with pytest.raises(UserError, match=named):
            onnx_resnet.read_onnx(saved(tmp_path, model), "resnet50")

    def test_no_onnx(self, tmp_path):
        (tmp_path / "net.onnx").write_text("<html>")
        with pytest.raises(UserError, match=r"net\.onnx cannot be read as ONNX"):
            onnx_resnet.read_onnx(str(tmp_path / "net.onnx"), "resnet50")

    def test_options_that_the_file_tells_are_checked(self, tmp_path):
        config = options(backbone_width=16, backbone_weights=saved(tmp_path, onnx_graph()))
        with pytest.raises(UserError) as error:
            imagenet.load_backbone(None, config)
        assert f"--backbone_width={WIDTH} (not 16)" in str(error.value)
        assert "stride_on" not in str(error.value)


def test_stem_width_is_its_own_option():
    for stem_width, filters in ((0, WIDTH), (STEM, STEM)):
        network = backbone.resnet50(width=WIDTH, stem_width=stem_width)
        assert network.stem[0].conv.filters == filters
        assert network.stages["2"][0].convs[0].conv.filters == WIDTH


# A .pth as PyTorch writes it, without PyTorch.


def _fake_torch(monkeypatch):
    """Modules under whose names a pickle can refer to PyTorch's functions and types."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2():
        pass

    class FloatStorage:
        pass

    for module, item in ((utils, _rebuild_tensor_v2), (torch, FloatStorage)):
        item.__module__, item.__qualname__ = module.__name__, item.__name__
        setattr(module, item.__name__, item)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch.FloatStorage, utils._rebuild_tensor_v2


def write_pth(monkeypatch, path, arrays, *, legacy=False, wrap=None, shape=None):
    """Writes arrays as a .pth: a zip archive, or the format up to PyTorch 1.5."""
    storage_type, rebuild = _fake_torch(monkeypatch)

    class Storage:
        def __init__(self, key, size):
            self.pid = ("storage", storage_type, key, "cpu", size)
            self.pid += (None,) if legacy else ()

    class Tensor:
        def __init__(self, key, array):
            self.key, self.array = key, array

        def __reduce__(self):
            strides = tuple(step // 4 for step in self.array.strides)
            storage = Storage(self.key, self.array.size)
            size = shape or self.array.shape
            return rebuild, (storage, 0, size, strides, False, collections.OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return item.pid if isinstance(item, Storage) else None

    def dumps(item):
        file = io.BytesIO()
        Pickler(file, 2).dump(item)
        return file.getvalue()

    keys = {name: str(index) for index, name in enumerate(arrays)}
    content = collections.OrderedDict((n, Tensor(keys[n], v)) for n, v in arrays.items())
    content._metadata = {"": {"version": 1}}
    content = {wrap: content, "epoch": 3} if wrap else content
    if legacy:
        with open(path, "wb") as file:
            for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
                file.write(pickle.dumps(item, 2))
            file.write(dumps(content) + pickle.dumps(list(keys.values()), 2))
            for array in arrays.values():
                file.write(array.size.to_bytes(8, "little") + array.tobytes())
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", dumps(content))
        archive.writestr("net/byteorder", "little")
        for name, array in arrays.items():
            archive.writestr(f"net/data/{keys[name]}", array.tobytes())


SMALL = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([[7]])}


class TestPth:
    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("wrap", [None, "model"])
    def test_reads_what_was_written(self, monkeypatch, tmp_path, legacy, wrap):
        path = str(tmp_path / "net.pth")
        write_pth(monkeypatch, path, SMALL, legacy=legacy, wrap=wrap)
        found = torch_files.read(path)
        assert list(found) == list(SMALL)
        for name, array in SMALL.items():
            np.testing.assert_array_equal(found[name], array)

    def test_refuses_to_run_code(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return print, ("run",)

        path = tmp_path / "net.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/data.pkl", pickle.dumps({"a": Evil()}, 2))
        with pytest.raises(UserError, match=r"net\.pth calls for `__builtin__\.print`"):
            torch_files.read(str(path))

    @pytest.mark.parametrize("shape", [(2, 4), (-1, 3), (2**40, 3)])
    def test_tensors_beyond_their_storage(self, monkeypatch, tmp_path, shape):
        path = str(tmp_path / "net.pth")
        write_pth(monkeypatch, path, {"a": SMALL["a"]}, shape=shape)
        with pytest.raises(UserError, match="larger than its storage"):
            torch_files.read(path)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_cut_off(self, monkeypatch, tmp_path, legacy):
        path = tmp_path / "net.pth"
        write_pth(monkeypatch, str(path), SMALL, legacy=legacy)
        path.write_bytes(path.read_bytes()[:-6])
        with pytest.raises(UserError, match=r"net\.pth is (cut off|damaged)"):
            torch_files.read(str(path))

    @pytest.mark.parametrize(
        ("content", "named"),
        [(b"<html>", "damaged"), (pickle.dumps([1]), "none of PyTorch"), (None, "cannot be read")],
    )
    def test_other_files(self, tmp_path, content, named):
        path = tmp_path / "net.pth"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=named):
            torch_files.read(str(path))

    def test_not_a_resnet_of_bottlenecks(self, monkeypatch, tmp_path):
        path = str(tmp_path / "net.pth")
        write_pth(monkeypatch, path, SMALL)
        config = options(backbone_weights=path)
        with pytest.raises(UserError, match=r"no resnet50 .*; it has a, b"):
            imagenet.load_backbone(None, config)
