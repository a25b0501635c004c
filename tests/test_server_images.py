"""An exported detector behind the local server: the same answers everywhere, whatever is sent."""

import base64
import concurrent.futures
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf

from export import saved_model
from tests import awkward_images, harness, serving_toy, tiny
from tests.serving_toy import predict_request

pytestmark = pytest.mark.slow
PATH = "/v1/models/maskx:predict"
TIMEOUT_S = 20.0  # on an idle machine all is done in 2


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    config = tiny.config()
    model = tiny.model(config)
    return saved_model.export(model, config, tiny.VOCABULARY, tiny.SET_A, str(root)), root


@pytest.fixture(scope="module")
def client(exported):
    with serving_toy.serving(exported[1], "maskx") as (_, client):
        yield client


@pytest.fixture(scope="module")
def python(exported):
    """Detections of encoded images from the SavedModel itself, as NumPy arrays."""
    signature = tf.saved_model.load(exported[0]).signatures["serving_default"]

    def detect(images):
        found = signature(image_bytes=tf.constant(images))
        return {key: value.numpy() for key, value in found.items()}

    return detect


def by_rest(client, image):
    body = {"inputs": [{"b64": base64.b64encode(image).decode()}]}
    return client.predict(body, PATH)


def by_grpc(client, image):
    request = predict_request(model="maskx", image_bytes=[image])
    response = client.prediction.Predict(request, timeout=TIMEOUT_S)
    return {key: tf.make_ndarray(value) for key, value in response.outputs.items()}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if value.dtype == object:
            names = np.array(found[key])
            names = (
                names.astype(str) if names.dtype != object else np.vectorize(bytes.decode)(names)
            )
            assert names.tolist() == value.astype(str).tolist()
        elif value.dtype.kind == "f":
            np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-4)
        else:
            gap = np.abs(np.asarray(found[key]).astype(int) - value.astype(int)).max()
            assert gap <= (key == "detection_masks"), key


def test_rest_equals_grpc_equals_python(client, python):
    for image in tiny.images(10):
        encoded = harness.image_file(image)
        wanted = python([encoded])
        assert wanted["num_detections"][0] > 0
        assert_equal(by_grpc(client, encoded), wanted)
        status, reply = by_rest(client, encoded)
        assert status == 200
        assert_equal(reply["outputs"], wanted)


def test_several_images_in_one_request(client, python):
    encoded = [harness.image_file(image) for image in tiny.images(3)]
    instances = [{"image_bytes": {"b64": base64.b64encode(data).decode()}} for data in encoded]
    status, reply = client.predict({"instances": instances}, PATH)
    assert status == 200
    wanted = python(encoded)
    columns = {key: [row[key] for row in reply["predictions"]] for key in wanted}
    assert_equal(columns, wanted)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_one_junk_image_of_eight_fails_alone(client, python, protocol):
    images = [harness.image_file(image) for image in tiny.images(8)]
    images[5] = b"junk"

    def call(image):
        if protocol == "rest":
            status, reply = by_rest(client, image)
            return reply["outputs"] if status == 200 else (status, reply["error"])
        try:
            return by_grpc(client, image)
        except grpc.RpcError as error:
            return error.code(), error.details()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(call, images))
    code, text = found.pop(5)
    assert code in (400, grpc.StatusCode.INVALID_ARGUMENT)
    assert "image" in text.lower()
    for outputs, image in zip(found, images[:5] + images[6:], strict=True):
        assert_equal(outputs, python([image]))


def check_alive(client, python):
    image = harness.image_file(tiny.images(1)[0])
    assert_equal(by_grpc(client, image), python([image]))


def test_odd_images_are_answered_and_bad_ones_refused(client, python):
    check_alive(client, python)
    for files, wanted in ((awkward_images.valid(), 200), (awkward_images.invalid(), 400)):
        for name, data in files.items():
            start = time.monotonic()
            status, reply = by_rest(client, data)
            assert time.monotonic() - start < TIMEOUT_S, name
            assert status == wanted, (name, reply)
            check_alive(client, python)


def test_500_damaged_images_are_answered_or_refused(client, python):
    statuses = []
    for number, data in enumerate(awkward_images.mutations(500)):
        start = time.monotonic()
        status, reply = by_rest(client, data)
        assert time.monotonic() - start < TIMEOUT_S, number
        assert status == 200 or (status == 400 and reply["error"]), (number, reply)
        statuses.append(status)
        if number % 50 == 0:
            check_alive(client, python)
    check_alive(client, python)
    assert min(statuses.count(200), statuses.count(400)) > 50  # both happen


@pytest.mark.parametrize("shape", [(0, 5, 5, 3), (1, 0, 5, 3), (1, 5, 0, 3), (1, 0, 0, 3)])
def test_arrays_without_pixels(client, python, shape):
    request = predict_request("image_tensor", "maskx", images=np.zeros(shape, np.uint8))
    try:
        response = client.prediction.Predict(request, timeout=TIMEOUT_S)
        assert response.outputs["num_detections"].tensor_shape.dim[0].size == shape[0]
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    check_alive(client, python)
