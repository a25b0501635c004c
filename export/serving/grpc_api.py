"""The gRPC side: TensorFlow Serving's PredictionService and ModelService."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from export import signatures
from export.serving import errors, metadata, tensors
from export.serving.core import Core, require_model_spec
from export.serving.errors import Code, ServingError
from export.serving.versions import Model

READ_TIMEOUT_S = 30.0  # a request holds its place from before it is read


def create_server(core: Core) -> grpc.aio.Server:
    """A server with both services; it listens to nothing yet."""
    limit = core.options.max_request_bytes
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a surprise
        ]
    )
    prediction = Prediction(core)
    # One request and a stream of one are the same bytes. As a stream, Predict reads the request
    # itself, once there is a place for it. This handler is found before the one of the service.
    predict = grpc.stream_unary_rpc_method_handler(
        prediction.Predict,
        predict_pb2.PredictRequest.FromString,
        predict_pb2.PredictResponse.SerializeToString,
    )
    service = predict_pb2.DESCRIPTOR.package + ".PredictionService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Predict": predict}),)
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelStatus(core), server)
    return server


async def _read(context: grpc.aio.ServicerContext):
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            request = await context.read()
    except TimeoutError:
        raise ServingError(Code.DEADLINE_EXCEEDED, "the request came too slowly") from None
    if request is grpc.aio.EOF:
        raise errors.invalid("there is no request")
    return request


def _which(spec) -> tuple[int | None, str]:
    """The version's number or None, and its label or nothing."""
    version = spec.version.value if spec.HasField("version") else None
    return version, spec.version_label


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """`tensorflow.serving.PredictionService`: Predict and GetModelMetadata."""

    def __init__(self, core: Core):
        self._core = core

    async def Predict(self, request_iterator, context):
        """Runs a signature on the tensors of the one request, which is not read without a place."""
        try:
            with self._core.counted("", "grpc") as call:
                remaining_s = context.time_remaining()  # None: the client waits forever
                deadline = math.inf if remaining_s is None else time.monotonic() + remaining_s
                async with self._core.admission.place():
                    request = await _read(context)
                    require_model_spec(request)
                    call.model_name = request.model_spec.name
                    model = self._core.model(call.model_name)
                    return await self._core.admission.run(
                        lambda: self._run(model, request, deadline), deadline
                    )
        except ServingError as error:
            await context.abort(error.code, error.message)

    def _run(self, model: Model, request, deadline: float):
        spec, limit = request.model_spec, self._core.options.max_request_bytes

        def read(signature: Callable):
            signature(spec.signature_name)
            arrays = {
                name: tensors.from_proto(name, proto, limit)
                for name, proto in request.inputs.items()
            }
            return spec.signature_name, arrays, list(request.output_filter)

        number, name, outputs = self._core.predict(model, *_which(spec), read, deadline)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = model.name
        response.model_spec.signature_name = name or signatures.DEFAULT
        response.model_spec.version.value = number
        for key, array in outputs.items():
            response.outputs[key].CopyFrom(tensors.to_proto(array))
        return response

    async def GetModelMetadata(self, request, context):
        """The signatures of a version."""
        try:
            require_model_spec(request)
            if list(request.metadata_field) != [metadata.SIGNATURE_DEF]:
                raise errors.invalid(f"metadata_field must be [{metadata.SIGNATURE_DEF}]")
            model = self._core.model(request.model_spec.name)
            return metadata.of(model, *_which(request.model_spec))
        except ServingError as error:
            await context.abort(error.code, error.message)

    async def Classify(self, request, context):
        """Not served: detections fit no ClassificationResult."""
        await context.abort(Code.UNIMPLEMENTED, "only Predict is served here")

    async def Regress(self, request, context):
        """Not served."""
        await context.abort(Code.UNIMPLEMENTED, "only Predict is served here")

    async def MultiInference(self, request, context):
        """Not served."""
        await context.abort(Code.UNIMPLEMENTED, "only Predict is served here")


class ModelStatus(model_service_pb2_grpc.ModelServiceServicer):
    """`tensorflow.serving.ModelService`: GetModelStatus."""

    def __init__(self, core: Core):
        self._core = core

    async def GetModelStatus(self, request, context):
        """The state of a model's versions."""
        try:
            require_model_spec(request)
            model = self._core.model(request.model_spec.name)
            return get_model_status_pb2.GetModelStatusResponse(
                model_version_status=model.status(*_which(request.model_spec))
            )
        except ServingError as error:
            await context.abort(error.code, error.message)

    async def HandleReloadConfigRequest(self, request, context):
        """Not served: the configuration is read once, at the start."""
        await context.abort(Code.UNIMPLEMENTED, "restart the server with the new configuration")
