"""The export in the hands of others: saved_model_cli, the C API, concurrent and hostile clients."""

import concurrent.futures
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from export import comparison
from maskx_tf.data import decoding
from maskx_tf.ops import masks as mask_ops
from tests import harness, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved_model(exported):
    """Path of an export."""
    return str(exported / "export" / "1")


@pytest.fixture(scope="module")
def detect(saved_model):
    """Outputs of the loaded export for encoded images."""
    loaded = tf.saved_model.load(saved_model)

    def run(*encoded):
        outputs = loaded.signatures["serving_default"](image_bytes=tf.constant(encoded))
        return {key: value.numpy() for key, value in outputs.items()}

    return run


def assert_answers_right(found, wanted):
    """Equal within the export's own tolerances, boxes matched with themselves."""
    assert comparison.difference(found, {k: v for k, v in wanted.items() if "rle" not in k}) == ""
    assert comparison.rle_problem(found) == ""
    assert wanted["num_detections"][0] > 0


def test_rle_is_what_pasting_gives(detect):
    image = tiny.images()[1]
    found = detect(harness.image_file(image))
    count = found["num_detections"][0]
    wanted = mask_ops.paste_to_rle(
        found["detection_masks"][0, :count] / 255.0, found["detection_boxes"][0, :count], 60, 44
    )
    codes = [code.decode() for code in found["detection_rle_bytes"][0]]
    assert codes == [rle["counts"] for rle in wanted] + [""] * (6 - count)


def test_saved_model_cli(saved_model, detect, tmp_path):
    image = tiny.images()[0]
    np.save(tmp_path / "array.npy", image[None])
    np.save(tmp_path / "bytes.npy", np.array([harness.image_file(image)]))
    wanted = detect(harness.image_file(image))
    for signature, inputs in (
        ("image_tensor", "images=array.npy"),
        ("serving_default", "image_bytes=bytes.npy"),
    ):
        command = [sys.executable, "-I", "-m", "tensorflow.python.tools.saved_model_cli", "run"]
        options = ["--dir", saved_model, "--tag_set", "serve", "--signature_def", signature]
        result = subprocess.run(
            [*command, *options, "--inputs", inputs, "--outdir", signature],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        found = {
            path.stem: np.load(path, allow_pickle=True)
            for path in (tmp_path / signature).glob("*.npy")
        }
        assert found.keys() == wanted.keys()
        assert_answers_right(found, wanted)


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_c_api(saved_model, detect, tmp_path):
    """A program in C: right before and after a request that is refused."""
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((pathlib.Path(saved_model) / "saved_model.pb").read_bytes())
    signature = proto.meta_graphs[0].signature_def["serving_default"]
    program, libraries = tmp_path / "client", tf.sysconfig.get_lib()
    source = pathlib.Path(__file__).with_name("c_api_client.c")
    built = ["gcc", "-Wall", "-Werror", "-o", program, source, f"-I{tf.sysconfig.get_include()}"]
    built += [f"{libraries}/libtensorflow_{name}.so.2" for name in ("cc", "framework")]
    subprocess.run([*built, f"-Wl,-rpath,{libraries}"], check=True)
    picture, junk = tmp_path / "picture.png", tmp_path / "junk"
    picture.write_bytes(harness.image_file(tiny.images()[1]))
    junk.write_bytes(b"<html>")
    names = [signature.inputs["image_bytes"].name]
    names += [signature.outputs[key].name for key in ("num_detections", "detection_boxes")]
    command = [program, saved_model, *names, picture, junk, picture]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, refused, second = done.stdout.splitlines()
    assert refused == "error 3" and "The bytes are not a JPEG or PNG image." in done.stderr
    wanted = detect(picture.read_bytes())
    for line in (first, second):
        count, *boxes = line.split()
        assert int(count) == wanted["num_detections"][0] > 0
        found = np.reshape(np.array(boxes, float), [-1, 4])
        np.testing.assert_allclose(found, wanted["detection_boxes"][0, : int(count)], atol=1e-3)


def test_concurrent_requests_one_of_them_junk(detect):
    """Seven right answers and one error, ten times; landscape and portrait images."""
    images = [harness.image_file(image) for image in tiny.images(7)]
    alone = [detect(image) for image in images]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for turn in range(10):
            requests = [*images[: turn % 8], b"\xff\xd8\xff\xe0junk", *images[turn % 8 :]]
            calls = [pool.submit(detect, request) for request in requests]
            junk = calls.pop(turn % 8)
            with pytest.raises(tf.errors.InvalidArgumentError, match="JPEG"):
                junk.result()
            for call, wanted in zip(calls, alone, strict=True):
                assert_answers_right(call.result(), wanted)


def test_a_batch_answers_as_its_images_alone(detect):
    images = [harness.image_file(image) for image in tiny.images(9)]
    together = detect(*images)
    for i, image in enumerate(images):
        assert_answers_right({k: v[i : i + 1] for k, v in together.items()}, detect(image))


def usual_list():
    """(name, bytes, height and width of the answer; None: refused)."""
    image = Image.fromarray(tiny.images()[0])  # 40 x 56
    values = np.random.default_rng(0).integers(0, 2**16, (40, 56)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [image.convert("L")] * 2}
    size = (40, 56)
    return [
        ("1x1", harness.image_file(image.crop((0, 0, 1, 1))), (1, 1)),
        ("1x4000", harness.image_file(Image.new("RGB", (4000, 1))), (1, 4000)),
        ("4000x1", harness.image_file(Image.new("RGB", (1, 4000))), (4000, 1)),
        ("8000x8000", harness.image_file(Image.new("L", (8000, 8000))), None),
        ("CMYK", harness.image_file(image.convert("CMYK"), "JPEG"), size),
        ("16-bit", harness.image_file(values), None),
        ("palette", harness.image_file(image.convert("P")), size),
        ("grey", harness.image_file(image.convert("L"), "JPEG"), size),
        ("animated", harness.image_file(image.convert("P"), "GIF", **frames), None),
        ("EXIF-rotated", harness.image_file(image, "JPEG", exif=exif), (56, 40)),
        ("truncated", harness.image_file(image, "JPEG")[:-200], None),
        ("empty", b"", None),
        ("HTML", b"<!DOCTYPE html><html><body>404</body></html>", None),
        ("bomb", harness.image_file(Image.new("1", (40_000, 40_000))), None),
    ]


def answer_or_refusal(detect, encoded):
    """The outputs, or None and a reason; neither takes more than two seconds of processor time."""
    start = time.process_time()
    try:
        found, reason = detect(encoded), ""
    except tf.errors.InvalidArgumentError as error:
        found, reason = None, decoding.reason(error)
    assert time.process_time() - start < 2
    return found, reason


@pytest.mark.parametrize(("name", "encoded", "size"), usual_list())
def test_the_usual_list(detect, name, encoded, size):
    found, reason = answer_or_refusal(detect, encoded)
    if size is None:
        assert found is None and 10 < len(reason) < 200, name
    else:
        assert found is not None, reason
        assert found["image_size"].tolist() == [list(size)]
        boxes = found["detection_boxes"]
        assert np.isfinite(boxes).all() and (boxes <= np.tile(size, 2)).all() and (boxes >= 0).all()


def mutated(count):
    """Files with bytes changed, cut out or put in, mostly in their first two hundred."""
    image = Image.fromarray(tiny.images()[0])
    exif = Image.Exif()
    exif[0x0112] = 8
    originals = [
        harness.image_file(image, "JPEG", exif=exif),
        harness.image_file(image, "JPEG", progressive=True),
        harness.image_file(image, "PNG"),
        harness.image_file(image.convert("P")),
    ]
    rng = np.random.default_rng(0)
    for i in range(count):
        data = bytearray(originals[i % len(originals)])
        for _ in range(rng.integers(1, 5)):
            limit = len(data) if rng.random() < 0.3 else 200
            place = int(rng.integers(0, min(limit, len(data) - 8)))
            kind = rng.integers(0, 4)
            if kind == 0:
                data[place] = rng.integers(0, 256)
            elif kind == 1:
                data[place : place + 4] = b"\xff\xff\xff\xff"
            elif kind == 2:
                del data[place : place + int(rng.integers(1, 8))]
            else:
                data[place:place] = rng.bytes(int(rng.integers(1, 8)))
        yield bytes(data)


def test_500_mutated_images(detect):
    """Each is answered or refused, and what comes after it is right."""
    good = harness.image_file(tiny.images()[0])
    wanted = detect(good)
    answered = 0
    for i, encoded in enumerate(mutated(500)):
        found, reason = answer_or_refusal(detect, encoded)
        answered += found is not None
        assert found is not None or 10 < len(reason) < 300
        if i % 20 == 0:
            assert_answers_right(detect(good), wanted)
    assert 50 < answered < 450
