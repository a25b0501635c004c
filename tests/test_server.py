"""The local server over its two protocols: answers, refusals, limits, versions under load."""

import concurrent.futures
import gzip
import http.client
import json
import socket
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    regression_pb2,
)

from export.serving import grpc_api, page
from tests import serving_toy
from tests.serving_toy import NAME, predict_request, wait_until

PATH = f"/v1/models/{NAME}"
ONE_ROW = {"instances": [[1, 2]]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    serving_toy.save(root, 1)
    return root


@pytest.fixture(scope="module")
def client(root):
    config = serving_toy.model_config(root, version_labels={"stable": 1, "old": 9})
    with serving_toy.serving(root, config=config, max_request_bytes=100_000) as (_, client):
        yield client


def grpc_error(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value.code(), caught.value.details()


def test_rest_rows_columns_and_versions(client):
    rows = {"predictions": [{"double": [2.0, 4.0], "version": 1}]}
    for path in ("", "/versions/1", "/labels/stable"):
        assert client.predict(ONE_ROW, f"{PATH}{path}:predict") == (200, rows)
    columns = {"outputs": {"double": [[2.0, 4.0]], "version": [1]}}
    assert client.predict({"inputs": {"x": [[1, 2]]}}) == (200, columns)
    assert client.predict({"inputs": [[1, 2]]}) == (200, columns)
    assert client.predict(ONE_ROW | {"signature_name": "serving_default"}) == (200, rows)


def test_rest_strings_bytes_and_booleans(client):
    item = {"text": {"b64": "aGk="}, "number": [3]}
    status, reply = client.predict({"instances": [item], "signature_name": "mixed"})
    wanted = {"text": "hi", "text_bytes": {"b64": "aGk="}, "even": [False], "square": [9]}
    assert (status, reply) == (200, {"predictions": [wanted]})


def test_grpc_equals_rest(client):
    x = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    response = client.prediction.Predict(predict_request(x=x))
    assert response.model_spec.name == NAME
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"
    by_grpc = tf.make_ndarray(response.outputs["double"])
    status, reply = client.predict({"inputs": x.tolist()})
    by_rest = np.array(reply["outputs"]["double"], np.float32)
    assert status == 200
    np.testing.assert_array_equal(by_grpc, 2 * x)
    np.testing.assert_array_equal(by_rest, by_grpc)


def test_grpc_output_filter(client):
    request = predict_request(x=[[1.0, 2.0]])
    request.output_filter.append("version")
    assert list(client.prediction.Predict(request).outputs) == ["version"]
    request.output_filter.append("nothing")
    code, text = grpc_error(client.prediction.Predict, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "output tensor alias not found in signature: nothing" in text


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        (":predict", b"", 400, "document is empty"),
        (":predict", b"{", 400, "JSON Parse error"),
        (":predict", b'{"instances": ' + b"[" * 40_000, 400, "nested too deeply"),
        (":predict", b"\xff\xff\xff", 400, "JSON Parse error"),
        (":predict", {}, 400, "Missing 'inputs' or 'instances'"),
        (":predict", {"instances": [[1, 2, 3]]}, 400, "has shape (1, 3), but must have (?, 2)"),
        (":predict", {"instances": [["a", "b"]]}, 400, "not of expected type: float32"),
        (":predict", {"instances": [{"y": 1}]}, 400, "keys must be equal to: x"),
        (":predict", ONE_ROW | {"signature_name": "none"}, 400, '"none" not found'),
        (":predict", ONE_ROW | {"signature_name": 5}, 400, "must be a string"),
        (
            ":predict",
            ONE_ROW | {"signature_name": "__saved_model_init_op"},
            400,
            "init_op\" not found",
        ),
        (":predict", {"instances": [1], "signature_name": "scalar"}, 400, "inconsistent batch"),
        ("/versions/2:predict", ONE_ROW, 404, "Servable not found for request: Specific(toy, 2)"),
        ("/versions/99999999999999999999999:predict", ONE_ROW, 400, "Failed to convert version"),
        ("/labels/x:predict", ONE_ROW, 400, "Unrecognized servable version label: x"),
        ("/labels/old:predict", ONE_ROW, 404, "Servable not found"),
        ("x:predict", ONE_ROW, 404, "Servable not found for request: Latest(toyx)"),
        (":classify", ONE_ROW, 501, "only predict is served"),
        (":regress", ONE_ROW, 501, "only predict is served"),
        (":frobnicate", ONE_ROW, 400, "Malformed request: POST"),
        ("/versions/a:predict", ONE_ROW, 400, "Malformed request"),
        (":predict", b'{"instances": [[' + b"1," * 60_000 + b"1]]}", 413, "larger than 100000"),
    ],
)  # fmt: skip
def test_rest_refusals(client, path, body, status, text):
    found, reply = client.predict(body, PATH + path)
    assert (found, list(reply)) == (status, ["error"])
    assert text in reply["error"]
    assert client.predict(ONE_ROW)[0] == 200


def test_rest_refuses_a_large_body_of_unknown_length(client):
    chunks = iter([b"[" * 50_000] * 4)
    connection = http.client.HTTPConnection(client.address, timeout=30)
    connection.request("POST", f"{PATH}:predict", chunks, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    assert "larger than" in json.loads(response.read())["error"]


def test_rest_reads_gzip_but_no_gzip_bomb(client):
    headers = {"Content-Encoding": "gzip"}
    body = gzip.compress(json.dumps(ONE_ROW).encode())
    assert client.rest("POST", f"{PATH}:predict", body, headers)[0] == 200
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    assert client.rest("POST", f"{PATH}:predict", bomb, headers)[0] == 413
    assert client.rest("POST", f"{PATH}:predict", b"no gzip", headers)[0] == 400


def test_rest_head_and_the_case_of_paths(client):
    for path in (PATH, f"{PATH}/metadata", "/healthz"):
        connection = http.client.HTTPConnection(client.address, timeout=30)
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
        connection.close()
    assert client.rest("GET", f"/V1/MODELS/{NAME}") == client.rest("GET", PATH)
    assert client.predict(ONE_ROW, f"/V1/Models/{NAME}:Predict")[0] == 200


@pytest.mark.parametrize("allowed", [False, True])
def test_web_pages_of_other_origins(root, allowed):
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    with serving_toy.serving(root, rest_api_enable_cors_support=allowed) as (_, client):
        for method, path in (
            ("OPTIONS", f"{PATH}:predict"),
            ("POST", f"{PATH}:predict"),
            ("GET", PATH),
        ):
            connection = http.client.HTTPConnection(client.address, timeout=30)
            body = json.dumps(ONE_ROW) if method == "POST" else None
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            wanted = "*" if allowed else None
            assert answer.getheader("Access-Control-Allow-Origin") == wanted
            assert bool(answer.getheader("Access-Control-Allow-Headers")) is allowed
            connection.close()


def test_rest_other_methods_and_paths(client):
    for method, path, wanted in (
        ("GET", f"{PATH}:predict", 400),
        ("PUT", f"{PATH}:predict", 400),
        ("POST", PATH, 400),
        ("GET", "/v1/models", 400),
        ("GET", "/v1/models/other", 404),
        ("GET", f"{PATH}/versions/7", 404),
        ("GET", f"{PATH}/versions/7/metadata", 404),
        ("GET", "/v2", 404),
        ("DELETE", "/healthz", 405),
    ):
        status, reply = client.rest(method, path)
        assert (status, list(reply)) == (wanted, ["error"]), path


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (predict_request(model="other", x=[[1.0, 2.0]]), "NOT_FOUND", "Latest(other)"),
        (predict_request(model="", x=[[1.0, 2.0]]), "INVALID_ARGUMENT", "no name"),
        (predict_request("none", x=[[1.0, 2.0]]), "FAILED_PRECONDITION", '"none" not found'),
        (predict_request(x=[[1, 2]]), "INVALID_ARGUMENT", "is int32, but must be float32"),
        (predict_request(x=[[b"1", b"2"]]), "INVALID_ARGUMENT", "is string, but must be float32"),
        (predict_request(x=[1.0, 2.0]), "INVALID_ARGUMENT", "has shape (2,), but must have"),
        (predict_request(), "INVALID_ARGUMENT", "Missing but required: {x}"),
        (predict_request(x=[[1.0, 2.0]], y=1), "INVALID_ARGUMENT", "Sent extra: {y}"),
        (predict_request(x=np.zeros([30_000, 2], np.float32)), "RESOURCE_EXHAUSTED", "larger than"),
    ],
)
def test_grpc_refusals(client, request_, code, text):
    found, details = grpc_error(client.prediction.Predict, request_)
    assert found.name == code and text in details
    client.prediction.Predict(predict_request(x=[[1.0, 2.0]]))


def test_grpc_refuses_tensors_that_claim_more_than_they_hold(client):
    request = predict_request(x=[[1.0, 2.0]])
    request.inputs["x"].tensor_shape.dim[0].size = 1 << 40
    code, text = grpc_error(client.prediction.Predict, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT and "exceeds 100000 bytes" in text


def test_grpc_versions_and_missing_model_spec(client):
    request = predict_request(x=[[1.0, 2.0]])
    request.model_spec.version_label = "stable"
    assert client.prediction.Predict(request).model_spec.version.value == 1
    request.model_spec.version.value = 3  # clears the label
    assert grpc_error(client.prediction.Predict, request)[0] is grpc.StatusCode.NOT_FOUND
    request.ClearField("model_spec")
    assert grpc_error(client.prediction.Predict, request)[1] == "Missing ModelSpec"


def test_grpc_what_is_not_served(client):
    for call, request in (
        (client.prediction.Classify, classification_pb2.ClassificationRequest()),
        (client.prediction.Regress, regression_pb2.RegressionRequest()),
        (client.prediction.MultiInference, inference_pb2.MultiInferenceRequest()),
    ):
        assert grpc_error(call, request)[0] is grpc.StatusCode.UNIMPLEMENTED


def test_status_and_metadata_are_the_same_over_both(client):
    (status,) = client.rest("GET", PATH)[1]["model_version_status"]
    assert status == {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = NAME
    (by_grpc,) = client.model_service.GetModelStatus(request).model_version_status
    assert (by_grpc.version, by_grpc.state) == (1, by_grpc.AVAILABLE)
    reply = client.rest("GET", f"{PATH}/metadata")[1]
    assert reply["model_spec"] == {"name": NAME, "signature_name": "", "version": "1"}
    signatures = reply["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["inputs"]["x"]["dtype"] == "DT_FLOAT"
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = NAME
    response = client.prediction.GetModelMetadata(request)
    found = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(found)
    assert set(found.signature_def) == set(signatures)
    request.metadata_field[:] = ["weights"]
    code, _ = grpc_error(client.prediction.GetModelMetadata, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_health_and_metrics(client):
    assert client.rest("GET", "/healthz") == (200, "ok\n")
    assert client.rest("GET", "/readyz") == (200, "ok\n")
    client.predict(ONE_ROW)
    client.predict(ONE_ROW, "/v1/models/attacker1:predict")
    status, text = client.rest("GET", "/monitoring/prometheus/metrics")
    assert status == 200
    assert 'serving_requests_total{code="OK",model="toy",protocol="rest"}' in text
    assert 'serving_requests_total{code="NOT_FOUND",model="",protocol="rest"}' in text
    assert 'serving_model_version{model="toy"} 1.0' in text
    assert "attacker1" not in text
    for name in (
        "serving_request_seconds_bucket",
        "serving_queue_length",
        "serving_batch_size_sum",
    ):
        assert name in text


def test_not_ready_without_a_version(tmp_path):
    server = serving_toy.Server(
        [serving_toy.model_config(tmp_path)], serving_toy.Options(port=0, rest_api_port=0)
    )
    with serving_toy.running(server):
        client = serving_toy.Client(server)
        assert client.rest("GET", "/healthz")[0] == 200
        assert client.rest("GET", "/readyz")[0] == 503
        assert client.predict(ONE_ROW)[0] == 404
        assert client.rest("GET", PATH)[0] == 404
        client.close()


def test_an_address_of_ipv6(root):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving_toy.serving(root, host="::1") as (server, _):
        for port in (server.port, server.rest_api_port):
            socket.create_connection(("::1", port), timeout=10).close()


def test_a_taken_port_is_an_error(root):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options in ({"port": port, "rest_api_port": 0}, {"port": 0, "rest_api_port": port}):
            with pytest.raises(OSError), serving_toy.serving(root, **options):
                pass


def test_deadlines_are_kept_and_free_the_worker(root):
    with serving_toy.serving(root, num_workers=1, rest_api_timeout_in_ms=300) as (server, client):
        start = time.monotonic()
        slow = predict_request("wait", seconds=np.float64([30]))
        code, _ = grpc_error(client.prediction.Predict, slow, timeout=0.3)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        status, reply = client.predict({"inputs": [30], "signature_name": "wait"})
        assert status == 504 and "deadline" in reply["error"].lower()
        wait_until(lambda: server.core.admission.idle, 5)
        assert time.monotonic() - start < 8  # and not 30 and 30
        assert client.predict(ONE_ROW)[0] == 200


def test_a_full_queue_refuses_at_once_over_both(root):
    with serving_toy.serving(root, num_workers=1, max_queue=1) as (server, client):
        client.predict(ONE_ROW)
        slow = {"inputs": [1.5], "signature_name": "wait"}
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(client.predict, slow) for _ in range(2)]
            wait_until(lambda: server.core.admission._taken == 2, 10)
            times = []
            for _ in range(5):
                start = time.monotonic()
                status, reply = client.predict(ONE_ROW)
                times.append(time.monotonic() - start)
                assert status == 503 and "queue is full" in reply["error"]
            code, text = grpc_error(client.prediction.Predict, predict_request(x=[[1.0, 2.0]]))
            assert code is grpc.StatusCode.UNAVAILABLE and "queue is full" in text
            assert [call.result()[0] for call in waiting] == [200, 200]
        assert min(times) < 0.05, times
        assert client.predict(ONE_ROW)[0] == 200


def test_grpc_requests_are_read_only_once_they_have_a_place(root):
    """Memory would not be bounded otherwise. This request has a client, but never any body."""
    slow = {"inputs": [2.0], "signature_name": "wait"}
    with (
        serving_toy.serving(root, num_workers=1, max_queue=0) as (server, client),
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(client.predict, slow)
        wait_until(lambda: server.core.admission._taken == 1, 10)
        with client.unsent_predict(timeout=20) as call:
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            assert "queue is full" in call.details()
        assert running.result()[0] == 200


def test_a_grpc_request_that_does_not_come_gives_its_place_back(root, monkeypatch):
    monkeypatch.setattr(grpc_api, "READ_TIMEOUT_S", 0.2)
    with serving_toy.serving(root, num_workers=1, max_queue=0) as (server, client):
        with client.unsent_predict(timeout=20) as call:
            assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "came too slowly" in call.details()
        assert server.core.admission.idle
        client.prediction.Predict(predict_request(x=[[1.0, 2.0]]))
        text = client.rest("GET", "/monitoring/prometheus/metrics")[1]
        assert 'serving_requests_total{code="OK",model="toy",protocol="grpc"} 1.0' in text
        assert 'serving_requests_total{code="DEADLINE_EXCEEDED",model="",protocol="grpc"}' in text


def test_a_client_that_leaves_is_not_served(root):
    with serving_toy.serving(root, num_workers=1, max_queue=4) as (server, client):
        first = threading.Thread(
            target=client.predict, args=[{"inputs": [1.0], "signature_name": "wait"}]
        )
        first.start()
        wait_until(lambda: server.core.admission._taken == 1, 10)
        futures = [
            client.prediction.Predict.future(predict_request("wait", seconds=np.float64([60])))
            for _ in range(3)
        ]
        wait_until(lambda: server.core.admission._taken == 4, 10)
        for future in futures:
            future.cancel()
        first.join()
        wait_until(lambda: server.core.admission.idle, 10)


def test_swap_under_load_loses_no_request_and_a_broken_version_changes_nothing(tmp_path):
    serving_toy.save(tmp_path, 1, [predict_request(x=[[1.0, 2.0]])])
    with serving_toy.serving(tmp_path) as (server, client):
        done, failures, seen = threading.Event(), [], []

        def load(kind):
            while not done.is_set():
                try:
                    if kind == "rest":
                        status, reply = client.predict(ONE_ROW)
                        assert status == 200, reply
                        seen.append(reply["predictions"][0]["version"])
                    else:
                        response = client.prediction.Predict(predict_request(x=[[1.0, 2.0]]))
                        seen.append(response.outputs["version"].int_val[0])
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=load, args=[kind]) for kind in ("rest", "grpc")]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(seen) > 20)
            serving_toy.save(tmp_path, 2, [predict_request(x=[[3.0, 4.0]])] * 3)
            wait_until(lambda: seen[-2:] == [2, 2])
            broken = tmp_path / ".3"
            broken.mkdir()
            (broken / "saved_model.pb").write_bytes(b"\xff" * 100)
            broken.rename(tmp_path / "3")
            wait_until(lambda: len(server.core.models[NAME].status()) == 3)
            wait_until(lambda: server.core.models[NAME].status()[0].state == 50)
            before = len(seen)
            wait_until(lambda: len(seen) > before + 20)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert set(seen) == {1, 2} and seen[-1] == 2
        third, second, first = client.rest("GET", PATH)[1]["model_version_status"]
        assert (third["state"], second["state"], first["state"]) == ("END", "AVAILABLE", "END")
        assert third["status"]["error_code"] != "OK" and third["status"]["error_message"]


def test_a_version_whose_warm_up_fails_is_broken(tmp_path):
    serving_toy.save(tmp_path, 1)
    serving_toy.save(tmp_path, 2, [predict_request(x=[[1.0, 2.0, 3.0]])])
    with serving_toy.serving(tmp_path) as (_, client):
        assert client.predict(ONE_ROW)[1]["predictions"][0]["version"] == 1
        newest = client.rest("GET", PATH)[1]["model_version_status"][0]
        assert newest["version"] == "2" and newest["status"]["error_code"] == "INVALID_ARGUMENT"
        assert "shape" in newest["status"]["error_message"]


def test_stopping_answers_what_is_under_way(root):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with serving_toy.serving(root) as (server, client):
            slow = {"inputs": [1.0], "signature_name": "wait"}
            call = pool.submit(client.predict, slow)
            wait_until(lambda: server.core.admission._taken == 1, 10)
        assert call.result() == (200, {"outputs": [1.0]})
        with pytest.raises(OSError):
            client.predict(ONE_ROW)


def test_without_a_page_there_is_no_root(root, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "DIRECTORY", tmp_path)
    with serving_toy.serving(root) as (_, client):
        assert client.rest("GET", "/")[0] == 404


def test_page(root, tmp_path, monkeypatch):
    directory = tmp_path / "page"
    directory.mkdir()
    (directory / "index.html").write_text("<title>{{MODEL_NAME}}</title>")
    (directory / "app.js").write_text("1")
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.setattr(page, "DIRECTORY", directory)
    with serving_toy.serving(root, "a<b") as (_, client):
        assert client.rest("GET", "/") == (200, "<title>a&lt;b</title>")
        assert client.rest("GET", "/page/app.js") == (200, "1")
        for path in ("/page/none.js", "/page/../secret.txt", "/page/%2e%2e/secret.txt", "/page/"):
            assert client.rest("GET", path)[0] in (403, 404), path
        connection = http.client.HTTPConnection(client.address)
        connection.request("GET", "/")
        headers = connection.getresponse().headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "http" not in headers["Content-Security-Policy"]
