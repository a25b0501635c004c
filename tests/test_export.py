"""The SavedModel equals the model, needs TensorFlow only, and is never left half written."""

import json
import pathlib
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from export import command, comparison, saved_model, versions
from maskx_tf import checkpoints
from maskx_tf.assembly import rebuilt
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.inference import detector
from maskx_tf.inference.batching import Batching
from maskx_tf.ops import masks as mask_ops
from tests import commands, exports, harness, tiny
from tests.harness import thorough

IMAGES = tiny.images(20)

CLIENT = """
    import numpy as np, tensorflow as tf

    directory, files, output = sys.argv[1:]
    signatures = tf.saved_model.load(directory).signatures
    images = np.load(files)
    found = {}
    for name in images.files:
        by_tensor = signatures["image_tensor"](images=tf.constant(images[name][None]))
        encoded = tf.io.encode_png(images[name])[None]
        by_bytes = signatures["serving_default"](image_bytes=encoded)
        for kind, outputs in (("tensor", by_tensor), ("bytes", by_bytes)):
            for key, value in outputs.items():
                found[f"{name}/{kind}/{key}"] = value.numpy()
    assert not [m for m in sys.modules if m.split(".")[0] in ("maskx_tf", "tf_keras", "official")]
    np.savez(output, **{key: value.astype(str) if value.dtype == object else value
                        for key, value in found.items()})
"""


@pytest.fixture(scope="module")
def path(exported):
    """Of the SavedModel."""
    return str(exported / "export" / "1")


@pytest.fixture(scope="module")
def signatures(path):
    return tf.saved_model.load(path).signatures


@pytest.fixture(scope="module")
def expected(exported):
    """What a detector from the checkpoint gives for each of `IMAGES`."""
    from_checkpoint = detector.load_checkpoint(str(exported / "run"))
    found = [from_checkpoint.detect(tf.constant(image[None])) for image in IMAGES]
    return [{key: value.numpy() for key, value in outputs.items()} for outputs in found]


def test_the_command_says_what_it_wrote(exported, path):
    first, second = (exported / "stdout.txt").read_text().splitlines()
    assert first == f"written: {path} (equal to the model on 3 images and a batch)"
    assert second.startswith(f"how to serve it: {path}/") and second.endswith("/SERVING.md")


def test_the_module_that_was_the_command_names_it():
    done = commands.in_process("export.saved_model")
    assert done.returncode == 2 and "maskx export" in done.stderr


@pytest.mark.thorough
def test_clean_process_reproduces_the_model(path, expected, tmp_path):
    """Boxes within 1e-3 px, scores within 1e-5, masks within 1/255, all else equal."""
    np.savez(tmp_path / "images.npz", *IMAGES)
    arguments = [path, str(tmp_path / "images.npz"), str(tmp_path / "found.npz")]
    exports.run_without_the_project(CLIENT, arguments, tmp_path)
    found = np.load(tmp_path / "found.npz")
    for i, wanted in enumerate(expected):
        assert wanted["num_detections"][0] > 0
        for kind in ("tensor", "bytes"):
            outputs = {key: found[f"arr_{i}/{kind}/{key}"] for key in wanted}
            names = outputs.pop("detection_class_names").tolist()
            assert names == [[n.decode() for n in wanted["detection_class_names"][0]]]
            rest = {k: v for k, v in wanted.items() if k != "detection_class_names"}
            assert comparison.difference(outputs, rest) == ""


def test_signatures(signatures):
    own = {"serving_default", "image_tensor", "box_prompts"}
    stages = {"box_prompts_features", "box_prompts_masks"}
    assert set(signatures) == own | stages | {"class_names"}
    (spec,) = signatures["serving_default"].structured_input_signature[1].values()
    assert (spec.name, spec.shape.as_list(), spec.dtype) == ("image_bytes", [None], tf.string)
    (spec,) = signatures["image_tensor"].structured_input_signature[1].values()
    assert (spec.name, spec.shape.as_list()) == ("images", [None, None, None, 3])
    specs = signatures["box_prompts"].structured_input_signature[1]
    assert {name: spec.shape.as_list() for name, spec in specs.items()} == {
        "image_bytes": [1], "boxes": [1, None, 4], "class_names": [1, None],
    }  # fmt: skip
    for name in own:
        outputs = signatures[name].structured_outputs
        if name == "box_prompts":
            assert outputs.keys() == signatures["image_tensor"].structured_outputs.keys()
            continue
        assert outputs["detection_masks"].shape.as_list() == [None, 6, 14, 14]
        assert all(output.shape.as_list()[0] is None for output in outputs.values())
        assert "detection_rle_bytes" in outputs  # REST writes what ends so in base64


def test_classes_have_names_by_their_ids(signatures):
    names, count = tiny.VOCABULARY.names, tiny.VOCABULARY.num_classes
    found = signatures["class_names"](ids=tf.constant([[count, 1]]))
    assert found["class_names"].numpy().tolist() == [[names[-1].encode(), names[0].encode()]]
    assert found["mask_seen"].numpy().tolist() == [[count in tiny.SET_A, 1 in tiny.SET_A]]
    assert found["num_classes"].numpy().tolist() == [count]
    for wrong in (0, count + 1):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"1 to {count}"):
            signatures["class_names"](ids=tf.constant([[wrong]]))


def test_only_the_weights_in_use_are_saved_and_nothing_runs_python(path):
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((pathlib.Path(path) / "saved_model.pb").read_bytes())
    (graph,) = proto.meta_graphs
    operations = {node.op for function in graph.graph_def.library.function
                  for node in function.node_def}  # fmt: skip
    assert "BatchFunction" in operations and not {"PyFunc", "EagerPyFunc"} & operations


def test_transfer_is_folded_into_a_table(path):
    names = [name for name, _ in tf.train.list_variables(f"{path}/variables/variables")]
    shapes = [tf.train.load_variable(f"{path}/variables/variables", n) for n in names]
    shapes = [getattr(value, "shape", ()) for value in shapes]
    config = tiny.config()
    assert shapes.count((tiny.VOCABULARY.num_classes + 1, config.mask_filters)) == 1
    w_det = 5 * config.box_fc_units
    assert (w_det, config.transfer_units) not in shapes  # T itself is left out


def test_classes_asset(path):
    classes = f"{path}/assets/classes.json"
    assert Vocabulary.load(classes) == tiny.VOCABULARY
    seen = [category["mask_seen"] for category in json.loads(pathlib.Path(classes).read_text())]
    assert seen == [True, False, True, False]


def test_predicting_from_the_export_equals_predicting_from_the_checkpoint(exported, expected):
    from_export = detector.load_export(str(exported / "export"))  # its latest version
    assert from_export.vocabulary == tiny.VOCABULARY
    found = from_export.detect(tf.constant(IMAGES[1][None]))
    found = {key: value.numpy() for key, value in found.items()}
    assert comparison.difference(found, expected[1]) == ""


class TestBoxPrompts:
    BOXES = np.array([[2.0, 3, 30, 41], [10, 5, 28, 22], [0, 0, 60, 60]])

    @pytest.mark.parametrize("repeats", [1, thorough(0), thorough(40)])
    def test_masks_are_those_of_the_checkpoint(self, exported, repeats):
        """Also of more boxes than a request may have, and of none."""
        checkpoint = detector.load_checkpoint(str(exported / "run"))
        export = detector.load_export(str(exported / "export"))
        names = [checkpoint.class_names[i] for i in (0, 3, 2)]
        boxes, classes = np.tile(self.BOXES, [repeats, 1]), names * repeats
        wanted, found = (m.masks(IMAGES[0], boxes, classes) for m in (checkpoint, export))
        assert len(found) == 3 * repeats and found.class_names.tolist() == classes
        np.testing.assert_allclose(found.box_masks / 255, wanted.box_masks, atol=1.1 / 255)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes_yxyx, wanted.boxes_yxyx)
        for name in ("class_ids", "category_ids", "mask_seen", "image_size"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))

    def ask(self, signatures, boxes, names, image=IMAGES[0]):
        outputs = signatures["box_prompts"](
            image_bytes=tf.io.encode_png(image)[None],
            boxes=tf.constant([boxes], tf.float32, [1, len(boxes), 4]),
            class_names=tf.constant([names], tf.string, [1, len(names)]),
        )
        return {key: value.numpy()[0] for key, value in outputs.items()}

    def test_without_a_class_the_likeliest_is_taken(self, signatures, exported):
        model = checkpoints.load_model(str(exported / "run")).model
        image = np.full([64, 64, 3], 80, np.uint8)  # of the canvas' size
        pyramid = model.pyramid(tf.constant(image[None]), tf.constant([[64.0, 64]]))
        found = self.ask(signatures, self.BOXES, ["", "", ""], image)
        boxes = tf.constant(self.BOXES[None], tf.float32)
        likeliest = model.likeliest_classes(pyramid, boxes).numpy()[0].tolist()
        assert found["detection_classes"].tolist() == likeliest and min(likeliest) > 0
        named = self.ask(signatures, self.BOXES, found["detection_class_names"].tolist(), image)
        np.testing.assert_array_equal(found["detection_masks"], named["detection_masks"])

    @pytest.mark.parametrize(
        ("boxes", "names", "named"),
        [
            ([[0, 0, 9, 9]], ["yak"], "yak"),
            ([[5, 9, 5, 12]], ["cat"], "no area"),
            ([[900, 0, 990, 9]], ["cat"], "no area"),
            ([[0, 0, 9, 9]], ["cat", "cat"], "1 boxes and 2 classes"),
            ([[0, 0, 9, 9]] * 101, ["cat"] * 101, "at most 100"),
        ],
    )
    def test_what_cannot_be_segmented_is_refused_by_name(self, signatures, boxes, names, named):
        names = [{"cat": tiny.VOCABULARY.names[0]}.get(name, name) for name in names]
        with pytest.raises(tf.errors.InvalidArgumentError, match=named):
            self.ask(signatures, boxes, names)


def test_load_export_of_something_else(tmp_path):
    with pytest.raises(UserError, match="not an exported model: there is no .*classes.json"):
        detector.load_export(str(tmp_path))


@pytest.mark.parametrize(
    ("moved", "text"),
    [
        (1, "image 1 of 2 its signature serving_default"),
        pytest.param(8, "a batch of 8 images its signature", marks=pytest.mark.thorough),
    ],
)
def test_a_differing_export_is_refused_and_leaves_nothing(
    path, signatures, tmp_path, monkeypatch, moved, text
):
    """The true export against a model whose boxes lie elsewhere, for images alone or a batch."""

    class Model:
        def fold(self):
            pass

    class OtherModule:
        def __init__(self, *arguments, **options):
            pass

        def detect_images(self, images):
            return signatures["image_tensor"](images=images)

        def detect_bytes(self, image_bytes):
            outputs = signatures["serving_default"](image_bytes=image_bytes)
            gap = 0.01 if len(image_bytes) == moved else 0.0
            return outputs | {"detection_boxes": outputs["detection_boxes"] + gap}

        def segment_boxes(self, **inputs):
            return signatures["box_prompts"](**inputs)

    def copy(*arguments):
        shutil.copytree(path, arguments[-1] / "model")
        shutil.rmtree(arguments[-1] / "model" / "assets.extra")
        return {"outputs": ""}

    monkeypatch.setattr(saved_model, "DetectionModule", OtherModule)
    monkeypatch.setattr(saved_model, "write", copy)
    (tmp_path / "3").mkdir()
    arguments = Model(), tiny.config(), tiny.VOCABULARY, tiny.SET_A, str(tmp_path)
    with pytest.raises(UserError, match=f"not kept: for {text}.* detection_boxes by up to"):
        saved_model.export(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_batch_is_compared_in_requests_of_the_size_allowed():
    images = tiny.images(3)
    asked = comparison.requests(images[:1], images, 2, ["cat"])
    sizes = [len(request.inputs.get("image_bytes", ())) for request in asked]
    assert sizes == [1, 0, 1, 2, 1]
    assert asked[-1].description == "a batch of 1 images"


@pytest.mark.thorough
def test_an_export_without_batching_has_no_batch_function(tmp_path):
    config = tiny.config()
    operations = {}
    for shared in (True, False):
        directory = tmp_path / str(shared)
        directory.mkdir()
        options = saved_model.Options(shared_batches=shared)
        arguments = tiny.model(config), config, tiny.VOCABULARY, tiny.SET_A, options, directory
        saved_model.write(*arguments)
        graph = saved_model_pb2.SavedModel.FromString(
            (directory / "model" / "saved_model.pb").read_bytes()
        ).meta_graphs[0]
        functions = graph.graph_def.library.function
        operations[shared] = {node.op for function in functions for node in function.node_def}
    assert operations[True] - operations[False] == {"BatchFunction"}
    detect = tf.saved_model.load(str(tmp_path / "False" / "model")).signatures["image_tensor"]
    assert detect(images=tf.constant(tiny.images(1)[0][None]))["num_detections"][0] > 0


def test_versions_count_up(tmp_path):
    root = tmp_path / "root"
    for name in ("1", "9", "notes"):
        (root / name).mkdir(parents=True)
    source = tmp_path / "source"
    source.mkdir()
    assert versions.publish(source, str(root)).name == "10"


@pytest.mark.parametrize(
    ("key", "change", "text"),
    [
        ("detection_boxes", 2e-3, "detection_boxes by up to 0.002"),
        ("detection_scores", 2e-5, "detection_scores by up to 2e-05"),
        ("detection_scores", np.nan, "detection_scores by up to nan"),
        ("detection_masks", 2, "detection_masks by up to 2"),
        ("detection_classes", 1, "detection_classes is"),
    ],
)
def test_difference(key, change, text):
    wanted = two_detections()
    assert comparison.difference(wanted, wanted) == ""
    found = {**wanted, key: wanted[key] + np.asarray(change).astype(wanted[key].dtype)}
    assert text in comparison.difference(found, wanted)


def two_detections(**changes):
    """Outputs with equal scores, of two classes."""
    outputs: dict[str, np.ndarray] = {
        "num_detections": np.array([2]),
        "image_size": np.array([[9, 9]]),
        "detection_boxes": np.ones([1, 2, 4]),
        "detection_scores": np.ones([1, 2]),
        "detection_masks": np.ones([1, 2, 3, 3], np.uint8),
        "detection_classes": np.array([[1, 2]]),
    }
    return outputs | changes


def test_equal_scores_may_change_places():
    swapped = two_detections(detection_classes=np.array([[2, 1]]))
    assert comparison.difference(swapped, two_detections()) == ""
    apart = {"detection_scores": np.array([[1.0, 0.5]])}
    found = comparison.difference(swapped | apart, two_detections(**apart))
    assert "detection_classes is" in found


def test_in_half_precision_most_detections_have_to_agree():
    tolerance = comparison.TOLERANCES["bfloat16"]
    moved = two_detections(detection_boxes=np.full([1, 2, 4], 3.0))
    assert comparison.difference(moved, two_detections(), tolerance) == ""
    one = two_detections(num_detections=np.array([1]))
    text = comparison.difference(one, two_detections(), tolerance)
    assert text == "only 1 of 2 detections agree, 80% have to"


@pytest.mark.thorough
def test_export_in_half_precision(exported, tmp_path):
    model, config, *rest = checkpoints.load_model(str(exported / "run"))
    half = config.replace(precision="bfloat16")
    path = saved_model.export(rebuilt(model, half), half, *rest, str(tmp_path))
    loaded = tf.saved_model.load(path)
    found = loaded.signatures["image_tensor"](images=tf.constant(IMAGES[1][None]))
    assert found["detection_boxes"].dtype == tf.float32
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((pathlib.Path(path) / "saved_model.pb").read_bytes())
    functions = proto.meta_graphs[0].graph_def.library.function
    half_convolutions = [
        node
        for function in functions
        for node in function.node_def
        if node.op == "Conv2D" and node.attr["T"].type == tf.bfloat16.as_datatype_enum
    ]
    assert len(half_convolutions) > 10


def test_a_wrong_run_length_code_is_noticed():
    masks = np.full((1, 2, 14, 14), 255, np.uint8)
    boxes = np.array([[[1, 1, 9, 9], [0, 0, 0, 0]]], np.float32)
    (right,) = mask_ops.paste_to_rle(masks[0, :1] / 255, boxes[0, :1], 10, 12)
    (wrong,) = mask_ops.paste_to_rle(masks[0, :1] / 255, boxes[0, :1] + 1, 10, 12)
    outputs = {
        "image_size": np.array([[10, 12]]),
        "num_detections": np.array([1]),
        "detection_masks": masks,
        "detection_boxes": boxes,
    }
    for rle, text in ((right, ""), (wrong, "detection_rle_bytes by 30 pixels, allowed are 4")):
        codes = np.array([[rle["counts"].encode(), b""]], object)
        assert comparison.rle_problem({**outputs, "detection_rle_bytes": codes}) == text
    assert comparison.rle_problem(outputs) == ""


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"allowed_batch_sizes": ["1", "x"]}, "--allowed_batch_sizes=1,x: numbers are needed"),
        ({"allowed_batch_sizes": []}, "must be ascending numbers from 1"),
        ({"allowed_batch_sizes": ["2", "1"]}, "must be ascending numbers from 1"),
        ({"allowed_batch_sizes": ["0", "1"]}, "must be ascending numbers from 1"),
        ({"batch_timeout_micros": -1}, "--batch_timeout_micros=-1 is too small"),
        ({"num_batch_threads": 0}, "--num_batch_threads=0 is too small"),
        ({"max_enqueued_batches": 0}, "--max_enqueued_batches=0 is too small"),
    ],
)
def test_wrong_options(flags, text):
    options = command._options(flag_values())
    assert options == saved_model.Options("maskx", Batching((1, 3), 5, 6, 7), True, 8, True)
    with pytest.raises(UserError, match=text):
        command._options(flag_values(**flags))


def flag_values(**changes):
    values = {
        "model_name": "maskx",
        "allowed_batch_sizes": ["1", "3"],
        "batch_timeout_micros": 5,
        "num_batch_threads": 6,
        "max_enqueued_batches": 7,
        "max_pixels": 8,
        "rle": True,
        "format": "saved_model",
        "int8": False,
        "batching": "graph",
    }
    return types.SimpleNamespace(**values | changes)


def test_an_unwritable_output_directory_is_refused_before_the_model_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    output_dir = tmp_path / "file" / "maskx"
    values = flag_values(model_dir="run", output_dir=str(output_dir))
    monkeypatch.setattr(command.flags, "FLAGS", values)
    with pytest.raises(UserError, match=f"--output_dir={output_dir} cannot be written: .*/file: "):
        command.main()


def test_a_model_of_boxes_only_is_refused(tmp_path):
    exports.save_run(tmp_path / "run", mode="stage1_boxes")
    done = export_by_command(tmp_path / "run", tmp_path / "out")
    assert done.returncode == 2 and "run detects boxes only" in done.stderr
    assert not any((tmp_path / "out").glob("*"))


def export_by_command(run, output_dir, *arguments):
    paths = f"--model_dir={run}", f"--output_dir={output_dir}"
    return commands.in_process("export.command", *paths, *arguments)


@pytest.mark.thorough
def test_an_export_computes_convolutions_as_it_is_told(tmp_path):
    exports.save_run(tmp_path / "run", fpn_filters=64, rpn_filters=64)
    transformed = {}
    for choice in ("direct", "winograd"):
        done = export_by_command(tmp_path / "run", tmp_path / choice, f"--convolutions={choice}")
        assert done.returncode == 0, done.stderr[-2000:]
        variables = tf.train.list_variables(str(tmp_path / choice / "1" / "variables/variables"))
        transformed[choice] = sum(shape[:3] == [6, 1, 3] for _, shape in variables)
    assert transformed == {"direct": 0, "winograd": 4}  # three levels of the FPN, and the RPN


def test_images_that_cannot_be_compared_on(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(UserError, match="a.png: there is no such file"):
        command._read_image(str(path), 100)
    path.write_text("<html>")
    with pytest.raises(UserError, match="cannot be read: The bytes are not a JPEG"):
        command._read_image(str(path), 100)
    path.write_bytes(harness.image_file(np.zeros([10, 11, 3], np.uint8)))
    with pytest.raises(UserError, match="a.png cannot be read: .* 11 x 10 pixels; at most 100 p"):
        command._read_image(str(path), 100)
    assert command._read_image(str(path), 110).shape == (10, 11, 3)


@pytest.mark.parametrize("max_pixels", [64 * 96, 60_000_000])
def test_the_model_compared_with_takes_images_as_large_as_the_export_does(
    tmp_path, monkeypatch, max_pixels
):
    class Made(Exception):
        pass

    def module(*arguments, max_pixels):
        raise Made(max_pixels)

    monkeypatch.setattr(saved_model, "DetectionModule", module)
    arguments = None, tiny.config(), tiny.VOCABULARY, tiny.SET_A, str(tmp_path)
    with pytest.raises(Made, match=f"^{max_pixels}$"):
        saved_model.export(*arguments, options=saved_model.Options(max_pixels=max_pixels))


def test_a_limit_below_the_canvas_is_refused(tmp_path):
    arguments = None, tiny.config(), tiny.VOCABULARY, tiny.SET_A, str(tmp_path / "new")
    with pytest.raises(UserError, match="--max_pixels=6143 is too small: .* has 64 x 96, 6144 pix"):
        saved_model.export(*arguments, options=saved_model.Options(max_pixels=64 * 96 - 1))
    assert list(tmp_path.iterdir()) == []
