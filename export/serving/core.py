"""What both protocols share: models by name, admission, limits, one predict call."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from export.serving import errors
from export.serving.admission import Admission
from export.serving.errors import Code, ServingError
from export.serving.metrics import Metrics
from export.serving.versions import Model


@dataclasses.dataclass(frozen=True)
class Options:
    """How a server listens and what it bears.

    Attributes:
      host: address to listen on; 127.0.0.1 keeps to this machine.
      port: of gRPC; 0: any free one.
      rest_api_port: of REST; 0: any free one.
      rest_api_timeout_in_ms: until a REST request is answered with 504.
      num_workers: requests that run at once.
      max_queue: requests that wait at most; more are refused.
      max_request_bytes: larger requests are refused.
      file_system_poll_wait_seconds: between looks for new versions; 0: only at the start.
      shutdown_grace_seconds: for requests under way when told to stop.
      rest_api_enable_cors_support: pages of other origins may send requests.
      feature_cache_bytes: of the features of images that boxes were asked of last, see
        `FeatureCache`; 0: none are kept.
    """

    host: str = "127.0.0.1"
    port: int = 8500
    rest_api_port: int = 8501
    rest_api_timeout_in_ms: int = 30_000
    num_workers: int = 8
    max_queue: int = 32
    max_request_bytes: int = 32 << 20
    file_system_poll_wait_seconds: float = 1.0
    shutdown_grace_seconds: float = 30.0
    rest_api_enable_cors_support: bool = False
    feature_cache_bytes: int = 512 << 20


class Core:
    """The models of a server and the way to them, whatever the protocol."""

    def __init__(self, models: Collection[Model], options: Options, metrics: Metrics):
        self.models = {model.name: model for model in models}
        self.options = options
        self.metrics = metrics
        self.admission = Admission(options.num_workers, options.max_queue, metrics)
        self.stopping = False

    @property
    def ready(self) -> bool:
        """Whether every model has a version to answer with."""
        return not self.stopping and all(model.ready for model in self.models.values())

    def model(self, name: str) -> Model:
        """The model called `name`.

        Raises:
          ServingError: NOT_FOUND.
        """
        if name not in self.models:
            raise ServingError(
                Code.NOT_FOUND, f"Servable not found for request: Latest({name[:100]})"
            )
        return self.models[name]

    def stop(self) -> None:
        """Refuses what comes from now on; what has been admitted is still answered."""
        self.stopping = True
        self.admission.refuse()

    @contextlib.contextmanager
    def counted(self, model_name: str, protocol: str) -> Iterator[types.SimpleNamespace]:
        """Counts a predict request and turns whatever goes wrong in it into a ServingError.

        What it yields has an attribute `model_name`, for one that is known only later.
        """
        start, code = time.monotonic(), Code.OK
        call = types.SimpleNamespace(model_name=model_name)
        try:
            yield call
        except ServingError as error:
            code = error.code
            raise
        except Exception as error:
            code = Code.INTERNAL
            logging.exception("unexpected error in a %s request", protocol)
            raise ServingError(code, f"Internal error: {type(error).__name__}") from error
        except BaseException:  # the client has left
            code = Code.CANCELLED
            raise
        finally:
            known = call.model_name if call.model_name in self.models else ""
            self.metrics.requests.labels(known, protocol, code.name).inc()
            self.metrics.latency.labels(protocol).observe(time.monotonic() - start)

    def predict(
        self,
        model: Model,
        version: int | None,
        label: str,
        read: Callable[[Callable], tuple[str, Mapping[str, np.ndarray], Collection[str]]],
        deadline: float,
    ) -> tuple[int, str, dict[str, Any]]:
        """Runs one request in the calling thread.

        Args:
          model: of `model`.
          version: number, or None.
          label: of a version, or empty.
          read: given a function from signature name to SignatureDef, returns the request's
            signature name, input arrays and wanted outputs.
          deadline: `time.monotonic()` at which to give up.

        Returns:
          The version's number, the signature's name, and arrays by output name.

        Raises:
          ServingError: whatever is wrong with the request.
        """
        if time.monotonic() >= deadline:
            raise ServingError(Code.DEADLINE_EXCEEDED, "the deadline passed in the queue")
        with model.acquire(version, label) as (number, servable):
            name, inputs, wanted = read(servable.signature)
            sizes = [array.shape[0] for array in inputs.values() if array.ndim]
            outputs = servable.run(name, inputs, deadline, wanted)
            self.metrics.batch_size.observe(sizes[0] if sizes else 1)
        return number, name, outputs


def require_model_spec(request) -> None:
    """Refuses a request without a model_spec, as TensorFlow Serving does."""
    if not request.HasField("model_spec"):
        raise errors.invalid("Missing ModelSpec")
    if not request.model_spec.name:
        raise errors.invalid("ModelSpec has no name specified.")
