"""The REST side: TensorFlow Serving's paths, bodies, errors and status codes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from urllib.parse import unquote

import prometheus_client as prometheus
from aiohttp import web
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from export.serving import errors, json_outputs, json_tensors, metadata, page
from export.serving.core import Core
from export.serving.errors import Code, ServingError
from export.serving.versions import Model

_WHICH = r"(?i:/v1/models/)([^/:]+)(?:(?i:/versions/)(\d+)|(?i:/labels/)([^/:]+))?"
_PREDICT = re.compile(_WHICH + r":(?i:(classify|regress|predict))")
_STATUS = re.compile(_WHICH + r"(/(?i:metadata))?")
_MAX_VERSION = (1 << 63) - 1


def application(core: Core) -> web.Application:
    """The web application of a server."""
    app = web.Application(
        middlewares=[_errors_as_json], client_max_size=core.options.max_request_bytes
    )
    api = _Api(core)
    for prefix in ("v1", "V1"):
        app.router.add_route("*", f"/{prefix}/{{rest:.*}}", api.handle)
    app.router.add_get("/healthz", api.healthz)
    app.router.add_get("/readyz", api.readyz)
    app.router.add_get("/monitoring/prometheus/metrics", api.metrics)
    if core.options.rest_api_enable_cors_support:
        app.on_response_prepare.append(_add_cors_headers)
    page.add_routes(app, next(iter(core.models)))
    return app


class _Api:
    def __init__(self, core: Core):
        self._core = core

    async def handle(self, request: web.Request) -> web.Response:
        path = request.rel_url.raw_path
        if request.method == "OPTIONS" and "Origin" in request.headers:  # a browser asks first
            return web.Response()
        patterns = {"POST": _PREDICT, "GET": _STATUS, "HEAD": _STATUS}
        pattern = patterns.get(request.method)
        match = pattern.fullmatch(path) if pattern else None
        if not match:
            raise errors.invalid(f"Malformed request: {request.method} {path[:200]}")
        name, version, label, what = match.groups()
        name, label = unquote(name), unquote(label or "")
        number = int(version[:20]) if version else None
        if number is not None and number > _MAX_VERSION:
            raise errors.invalid(f"Failed to convert version: {version[:40]} to numeric.")
        if request.method == "POST":
            return await self._predict(request, name, number, label, what.lower())
        model = self._core.model(name)
        reply = _metadata(model, number, label) if what else _status(model, number, label)
        return _json_response(reply)

    async def _predict(
        self, request: web.Request, name: str, number: int | None, label: str, method: str
    ) -> web.Response:
        with self._core.counted(name, "rest"):
            if method != "predict":
                raise ServingError(Code.UNIMPLEMENTED, f"{method}: only predict is served here")
            model = self._core.model(name)
            deadline = time.monotonic() + self._core.options.rest_api_timeout_in_ms / 1000
            limit = self._core.options.max_request_bytes
            async with self._core.admission.place():
                body = await _read(request, limit, deadline)
                reply = await self._core.admission.run(
                    lambda: self._run(model, number, label, body, deadline), deadline
                )
        return web.Response(body=reply, content_type="application/json")

    def _run(
        self, model: Model, number: int | None, label: str, body: bytes, deadline: float
    ) -> bytes:
        """Parses, runs and encodes, in a worker: all three may take long."""
        document = json_tensors.parse(body)
        by_row = False

        def read(signature: Callable):
            nonlocal by_row
            name = json_tensors.signature_name(document)
            inputs, by_row = json_tensors.inputs(document, signature(name).inputs)
            return name, inputs, ()

        _, _, outputs = self._core.predict(model, number, label, read, deadline)
        return json_outputs.encode(outputs, by_row)

    async def healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(self, request: web.Request) -> web.Response:
        if self._core.ready:
            return web.Response(text="ok\n")
        return web.Response(status=503, text="no version is available\n")

    async def metrics(self, request: web.Request) -> web.Response:
        headers = {"Content-Type": prometheus.CONTENT_TYPE_LATEST}
        return web.Response(body=self._core.metrics.page(), headers=headers)


def _status(model: Model, number: int | None, label: str) -> dict:
    response = get_model_status_pb2.GetModelStatusResponse(
        model_version_status=model.status(number, label)
    )
    for status in response.model_version_status:
        status.status.SetInParent()  # printed even where all is well
    return _to_dict(response)


def _metadata(model: Model, number: int | None, label: str) -> dict:
    response = metadata.of(model, number, label)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata[metadata.SIGNATURE_DEF].Unpack(signatures)
    return {
        "model_spec": _to_dict(response.model_spec),
        "metadata": {metadata.SIGNATURE_DEF: _to_dict(signatures)},
    }


def _to_dict(message) -> dict:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _too_large(limit: int) -> ServingError:
    message = f"The request is larger than {limit} bytes"
    return ServingError(Code.RESOURCE_EXHAUSTED, message, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


async def _read(request: web.Request, limit: int, deadline: float) -> bytes:
    """The body, with any gzip taken off; `limit` holds for what comes out."""
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await request.read()
    except TimeoutError:
        raise ServingError(Code.DEADLINE_EXCEEDED, "the request's body came too slowly") from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limit) from None
    except (web.HTTPException, web.RequestPayloadError) as error:
        raise errors.invalid(f"the request's body cannot be read: {error}") from None


def _json_response(value: dict, status: int = 200) -> web.Response:
    text = json.dumps(value, indent=1) + "\n"
    return web.Response(text=text, status=status, content_type="application/json")


async def _add_cors_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Those of TensorFlow Serving's --rest_api_enable_cors_support."""
    response.headers["Access-Control-Allow-Origin"] = "*"
    response.headers["Access-Control-Allow-Methods"] = "POST, GET, OPTIONS"
    response.headers["Access-Control-Allow-Headers"] = "Content-Type"


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every refusal is {"error": "…"}, aiohttp's own too."""
    try:
        return await handler(request)
    except ServingError as error:
        response = _json_response({"error": error.message}, error.http_status)
        if error.code is Code.UNAVAILABLE:
            response.headers["Retry-After"] = "1"
        return response
    except web.HTTPException as error:
        return _json_response({"error": error.reason}, error.status)
