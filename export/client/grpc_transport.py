"""Requests to TensorFlow Serving's gRPC interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from export.client.errors import ServerError, UnavailableError
from export.client.rest import is_loopback
from maskx_tf.errors import ImageError

try:
    import grpc

    from export import predict_pb2
    from export.client.tensors import fill, to_array
except ImportError as error:
    raise ServerError(
        f"gRPC needs the packages grpcio and protobuf: {error}. REST (--url) needs neither."
    ) from None

_LOADING = (predict_pb2.ModelVersionStatus.START, predict_pb2.ModelVersionStatus.LOADING)


class GrpcTransport:
    """One model of one server.

    Attributes:
      name: address and model, for error messages.
    """

    def __init__(
        self,
        address: str,
        model_name: str,
        version: int | None,
        signature_name: str,
        timeout_s: float,
    ):
        """Takes the server's address, such as localhost:8500; the connection is not encrypted."""
        self.name = f"gRPC {address}, model {model_name!r}"
        self._spec = predict_pb2.ModelSpec(name=model_name, signature_name=signature_name)
        if version is not None:
            self._spec.version.value = version
        self._timeout_s = timeout_s
        # The answer may be larger than gRPC's 4 MB.
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if is_loopback(address.rpartition(":")[0]):  # whatever http_proxy says
            options.append(("grpc.enable_http_proxy", 0))
        self._channel = grpc.insecure_channel(address, options)
        self._call = self._channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            request_serializer=predict_pb2.PredictRequest.SerializeToString,
            response_deserializer=predict_pb2.PredictResponse.FromString,
        )
        self._status = self._channel.unary_unary(
            "/tensorflow.serving.ModelService/GetModelStatus",
            request_serializer=predict_pb2.GetModelStatusRequest.SerializeToString,
            response_deserializer=predict_pb2.GetModelStatusResponse.FromString,
        )

    def predict(self, inputs: Mapping[str, np.ndarray], signature_name: str = "") -> dict[str, Any]:
        """The outputs for one image, as arrays without batch dimension.

        Args:
          inputs: arrays [1, …] by name, those of strings or bytes as objects.
          signature_name: of the signature; empty: the one of detections.

        Raises:
          UnavailableError: the server cannot be reached, is too busy, or still loads the model.
          ImageError: it refused this image, or did not answer in time.
          ServerError: it will refuse all.
        """
        request = predict_pb2.PredictRequest(model_spec=self._spec)
        if signature_name:
            request.model_spec.signature_name = signature_name
        for name, array in inputs.items():
            fill(request.inputs[name], array)
        try:
            response = self._call(request, timeout=self._timeout_s)
            return {key: to_array(value)[0] for key, value in response.outputs.items()}
        except grpc.RpcError as error:
            raise self._refusal(error) from None
        except (ValueError, IndexError) as error:
            raise ServerError(f"{self.name}: its answer cannot be read: {error}.") from None

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _is_loading(self) -> bool:
        """Whether the server has the model, but is not ready to answer with it yet."""
        request = predict_pb2.GetModelStatusRequest(model_spec=self._spec)
        try:
            versions = self._status(request, timeout=self._timeout_s).model_version_status
        except grpc.RpcError:
            return False
        return any(version.state in _LOADING for version in versions)

    def _refusal(self, error: Any) -> Exception:
        code = error.code()
        details = " ".join((error.details() or "").split())
        message = f"{self.name} answered {code.name}: {details[:300]}"
        if code == grpc.StatusCode.UNAVAILABLE:
            return UnavailableError(message)
        if code == grpc.StatusCode.NOT_FOUND and self._is_loading():
            return UnavailableError(f"{self.name}: the model is still loading")
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return ImageError(f"{self.name} gave no answer within {self._timeout_s:g} s")
        unusable = ("NOT_FOUND", "UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED")
        if code.name in unusable:
            return ServerError(f"{message}; are the address and the model's name right?")
        return ImageError(message)
