"""The command itself: what it prints, how it fails, how it stops."""

import base64
import contextlib
import http.client
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import serving_toy

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "export.serving.server", "--model_name=toy"]


class Ports:
    def __init__(self, rest, grpc):
        self.rest_api_port, self.port = rest, grpc


@contextlib.contextmanager
def command(root, *arguments):
    """(process, client) of the command, for which no model code can be imported; it is ready."""
    script = "import sys, runpy; sys.modules['maskx_tf.layers'] = None; sys.argv[0] = 'server'; "
    script += "sys.modules['maskx_tf.config'] = None; "
    script += "runpy.run_module('export.serving.server', run_name='__main__')"
    arguments = [f"--model_base_path={root}", "--port=0", "--rest_api_port=0", *arguments]
    process = subprocess.Popen(
        [sys.executable, "-c", script, "--model_name=toy", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        notice, rest, grpc = (process.stdout.readline() for _ in range(3))
        assert "For production use TensorFlow Serving" in notice, process.stderr.read()
        assert rest.startswith("REST  http://127.0.0.1:") and grpc.startswith("gRPC  127.0.0.1:")
        port = int(rest.split("/")[2].rsplit(":", 1)[1])
        client = serving_toy.Client(Ports(port, int(grpc.rsplit(":", 1)[1])))
        serving_toy.wait_until(lambda: client.rest("GET", "/readyz")[0] == 200)
        yield process, client
        client.close()
    finally:
        process.kill()
        process.wait()


def wait_until_running(client):
    """Returns when a request is in a worker's hands."""
    client.predict({"instances": [[1, 2]]})
    time.sleep(0.5)


def test_serves_without_this_projects_model_code_and_answers_before_it_stops(tmp_path):
    serving_toy.save(tmp_path, 1)
    slow = {"inputs": [2.0], "signature_name": "wait"}
    with command(tmp_path) as (process, client), ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.predict, slow)
        wait_until_running(client)
        process.send_signal(signal.SIGTERM)
        assert call.result() == (200, {"outputs": [2.0]})
        assert process.wait(30) == 0
        assert "stopping" in process.stdout.read()
        log = process.stderr.read()
        assert "Traceback" not in log and max(map(len, log.splitlines())) < 300


def test_requests_beyond_the_grace_are_cut_off(tmp_path):
    serving_toy.save(tmp_path, 1)
    slow = {"inputs": [25.0], "signature_name": "wait"}
    with command(tmp_path, "--shutdown_grace_seconds=0.5") as (process, client):
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(client.predict, slow)
            wait_until_running(client)
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 128 + signal.SIGTERM
            assert time.monotonic() - start < 15
            with pytest.raises((OSError, http.client.HTTPException)):
                call.result()
        assert "cut off" in process.stdout.read()


def test_the_log_has_no_lines_of_the_cost_model(exported):
    """Which TensorFlow writes for each crop of a detector, a thousand characters long."""
    encoded = base64.b64encode((exported / "image.png").read_bytes()).decode()
    with command(exported / "export") as (process, client):
        status, _ = client.predict({"instances": [{"image_bytes": {"b64": encoded}}]})
        process.send_signal(signal.SIGTERM)
        assert (status, process.wait(30)) == (200, 0)
        assert max(map(len, process.stderr.read().splitlines())) < 300


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model_base_path=/nowhere"], "/nowhere is not a directory"),
        (["--num_workers=0"], "num_workers"),
    ],
)
def test_mistakes_are_one_line(arguments, text):
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and text in lines[0]
    assert "Traceback" not in done.stderr
