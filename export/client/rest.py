"""Requests to TensorFlow Serving's REST interface, with the standard library alone."""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

from export.client.errors import ServerError, UnavailableError
from maskx_tf.errors import ImageError


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class RestTransport:
    """One model of one server.

    Attributes:
      name: URL of its predictions, for error messages.
    """

    def __init__(
        self, url: str, model_name: str, version: int | None, signature_name: str, timeout_s: float
    ):
        """Takes the server's URL, such as http://localhost:8501.

        Raises:
          ServerError: it is no URL.
        """
        parts = urllib.parse.urlsplit(url)
        try:
            is_url = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # the port
            is_url = False
        if not is_url:
            raise ServerError(
                f"{url!r} is not a server's URL; it looks like http://localhost:8501."
            )
        model = urllib.parse.quote(model_name, safe="")
        chosen = "" if version is None else f"/versions/{version}"
        self._model_url = f"{url.rstrip('/')}/v1/models/{model}{chosen}"
        self.name = f"{self._model_url}:predict"
        self._signature_name = signature_name
        self._timeout_s = timeout_s
        host = parts.hostname or ""
        proxies = urllib.request.getproxies()
        if is_loopback(host) or urllib.request.proxy_bypass(host):
            proxies = {}  # none leads to this machine, whatever HTTP_PROXY says
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler(proxies)).open
        self._proxy = proxies.get(parts.scheme, "")

    def predict(self, inputs: Mapping[str, np.ndarray], signature_name: str = "") -> dict[str, Any]:
        """The outputs for one image, as lists without batch dimension.

        Args:
          inputs: arrays [1, …] by name, those of strings or bytes as objects.
          signature_name: of the signature; empty: the one of detections.

        Raises:
          UnavailableError: the server cannot be reached, is too busy, or still loads the model.
          ImageError: it refused this image, or did not answer in time.
          ServerError: it will refuse all.
        """
        instance = {name: _json(array[0]) for name, array in inputs.items()}
        name = signature_name or self._signature_name
        body = {"signature_name": name, "instances": [instance]}
        request = urllib.request.Request(
            self.name, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return self._outputs(self._send(request))

    def close(self) -> None:
        """Does nothing: each request has its own connection."""

    def _send(self, request: urllib.request.Request) -> bytes:
        try:
            with self._open(request, timeout=self._timeout_s) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            with error:
                body = error.read()
            if error.code == 404 and self._is_loading():
                raise UnavailableError(f"{self.name}: the model is still loading") from None
            raise self._refusal(error.code, body) from None
        except TimeoutError:
            raise self._too_late() from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise self._too_late() from None
            by = f" by the proxy {self._proxy} (of the environment)" if self._proxy else ""
            raise UnavailableError(f"{self.name} cannot be reached{by}: {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"{self.name} closed the connection: {error!r}") from None

    def _is_loading(self) -> bool:
        """Whether the server has the model, but is not ready to answer with it yet."""
        try:
            with self._open(self._model_url, timeout=self._timeout_s) as response:
                versions = json.loads(response.read())["model_version_status"]
            return any(version["state"] in ("START", "LOADING") for version in versions)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return False

    def _too_late(self) -> ImageError:
        return ImageError(f"{self.name} gave no answer within {self._timeout_s:g} s")

    def _refusal(self, code: int, body: bytes) -> Exception:
        message = f"{self.name} answered {code}: {_message(body)}"
        if code in (429, 502, 503):  # of the server, or of a proxy before it
            return UnavailableError(message)
        if code in (401, 403, 404, 405):
            return ServerError(f"{message}; are the URL and the model's name right?")
        return ImageError(message)

    def _outputs(self, body: bytes) -> dict[str, Any]:
        try:
            outputs = json.loads(body)["predictions"][0]
            if isinstance(outputs, dict):
                return outputs
        except (ValueError, KeyError, TypeError, IndexError):
            pass
        raise ServerError(
            f"{self.name} answered {_message(body)!r}, not with predictions of a model of this "
            "project; is it TensorFlow Serving?"
        )


def _json(value: bytes | np.ndarray) -> Any:
    """A value of a row in a JSON request."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return value.tolist()


def _message(body: bytes) -> str:
    """The error in an answer's body, in one line of at most some 300 characters."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["error"])
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]}…"
