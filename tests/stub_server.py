"""A server of TensorFlow Serving's REST interface and of the page, with answers made by a test."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import mimetypes
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# The outputs for an image's bytes, with batch dimension 1; or (HTTP status, error message).
Model = Callable[[bytes], dict[str, np.ndarray] | tuple[int, str]]
PAGE = pathlib.Path(__file__).resolve().parent.parent / "export" / "serving" / "page"
# As strict as the page can live with: what breaks it shows in the browser's log.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NAMES = ("background", "cat", "dog", "bird", "kite", "traffic light")


def outputs(
    count: int = 5, height: int = 120, width: int = 160, seed: int = 0, padding: int = 3
) -> dict[str, np.ndarray]:
    """Outputs for one image, as of `module.DetectionModule`, with smooth random masks."""
    generator = np.random.default_rng(seed)
    total = count + padding
    corners = generator.uniform(0, 1, [total, 2, 2]) * [height, width]
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=-1)
    classes = generator.integers(1, len(NAMES), total)
    scores = np.sort(generator.uniform(0.05, 1, total))[::-1]
    y, x = (np.mgrid[:28, :28] + 0.5) / 28
    waves = generator.uniform(2, 9, [total, 4, 1, 1])
    field = np.sin(waves[:, 0] * y + waves[:, 1]) + np.cos(waves[:, 2] * x + waves[:, 3])
    kept = np.arange(total) < count
    return {
        "num_detections": np.array([count], np.int32),
        "detection_boxes": np.where(kept[:, None], boxes, 0).astype(np.float32)[None],
        "detection_scores": np.where(kept, scores, 0).astype(np.float32)[None],
        "detection_classes": np.where(kept, classes, 0).astype(np.int32)[None],
        "detection_class_names": np.array([NAMES[c] for c in np.where(kept, classes, 0)])[None],
        "detection_masks": (255 / (1 + np.exp(-4 * field - 2))).round().astype(np.uint8)[None],
        "detection_mask_seen": (kept & (classes % 2 == 1))[None],
        "image_size": np.array([[height, width]], np.int32),
    }


def to_json(array: np.ndarray) -> Any:
    """As TensorFlow Serving writes it: floats in the shortest digits that name the float32."""
    if array.dtype == np.float32:
        return np.vectorize(lambda v: float(str(v)), otypes=[object])(array).tolist()
    return array.tolist()


class StubServer:
    """A running server.

    Attributes:
      url: its root.
      model: gives the answers.
      requests: (path, body) of the requests for predictions so far.
      delay_s: it waits that long before it answers them.
      state: of the model's one version, as it reports it.
      old: whether the model has a signature of detections only.
    """

    def __init__(self, model: Model):
        self.model = model
        self.requests: list[tuple[str, dict]] = []
        self.delay_s = 0.0
        self.state, self.old = "AVAILABLE", False
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, body: dict) -> tuple[int, dict]:
        self.requests.append((path, body))
        time.sleep(self.delay_s)
        if path.split("/")[3].split(":")[0] != "maskx":
            return 404, {"error": f"Servable not found for request: Latest({path})"}
        signature = body.get("signature_name", "serving_default")
        found = self._outputs(signature, **body["instances"][0])
        if isinstance(found, tuple):
            return found[0], {"error": found[1]}
        return 200, {"predictions": [{key: to_json(value[0]) for key, value in found.items()}]}

    def _outputs(self, signature, image_bytes=None, ids=(), boxes=(), class_names=()):
        if signature != "serving_default" and self.old:
            return 400, f'Serving signature key "{signature}" not found.'
        if signature == "class_names":
            names = np.array([[NAMES[i] for i in ids]])
            count = np.array([len(NAMES) - 1])
            return {"class_names": names, "mask_seen": names != "", "num_classes": count}
        found = self.model(base64.b64decode(image_bytes["b64"]))
        if signature == "box_prompts":  # the first masks, in the boxes
            size = found.pop("image_size")
            found = {key: value[:, : len(boxes)] for key, value in found.items() if value.ndim > 1}
            found["image_size"] = size
            chosen = np.array([[name or NAMES[1] for name in class_names]])
            found |= {"detection_boxes": np.float32([boxes]), "detection_class_names": chosen}
            found["num_detections"] = np.array([len(boxes)])
        return found


@contextlib.contextmanager
def serve(model: Model) -> Iterator[StubServer]:
    server = StubServer(model)
    try:
        yield server
    finally:
        server.stop()


def _handler(server: StubServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            status, answer = server.answer(self.path, json.loads(self.rfile.read(length)))
            self._send(status, json.dumps(answer).encode(), "application/json")

        def do_GET(self) -> None:
            if self.path == "/v1/models/maskx":
                version = {"version": "1", "state": server.state}
                body = json.dumps({"model_version_status": [version]}).encode()
                self._send(200, body, "application/json")
                return
            path = PAGE / (self.path.removeprefix("/page/") if self.path != "/" else "index.html")
            if path.is_file() and path.parent == PAGE:
                content = path.read_bytes().replace(b"{{MODEL_NAME}}", b"maskx")
                self._send(200, content, mimetypes.guess_type(path.name)[0] or "")
            else:
                self._send(404, b"not found", "text/plain")

        def _send(self, status: int, body: bytes, content_type: str) -> None:
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler
