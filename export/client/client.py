"""The client: images in, typed detections out, one request per image."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from export.client import retries
from export.client.errors import ServerError
from export.client.prompts import Prompts, prompts_of
from export.client.rest import RestTransport
from maskx_tf.data.image_formats import BadImageError, upright_file
from maskx_tf.errors import ImageError, UserError
from maskx_tf.inference.detections import Detections

Image = TypeVar("Image", bound="str | os.PathLike[str] | bytes")


class _Transport(Protocol):
    name: str

    def predict(self, image: bytes, prompts: Prompts | None = None) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Client:
    """A served model of this project; may be used by several threads.

    Args:
      url: of the server's REST interface, such as http://localhost:8501.
      model_name: name that it is served under.
      grpc: address of the server's gRPC interface, such as localhost:8500; used instead of `url`.
      version: of the model; None: the one the server chooses, normally the latest.
      signature_name: of the signature that takes `image_bytes`.
      timeout_s: longest wait for the answer to one request.
      max_retries: how often a request is repeated while the server is unavailable.

    Raises:
      ServerError: the URL is malformed, or gRPC's packages are missing.
    """

    def __init__(
        self,
        url: str = "http://localhost:8501",
        model_name: str = "maskx",
        *,
        grpc: str = "",
        version: int | None = None,
        signature_name: str = "serving_default",
        timeout_s: float = 60.0,
        max_retries: int = 4,
    ):
        if grpc:
            from export.client.grpc_transport import GrpcTransport

            self._transport: _Transport = GrpcTransport(
                grpc, model_name, version, signature_name, timeout_s
            )
        else:
            self._transport = RestTransport(url, model_name, version, signature_name, timeout_s)
        self._max_retries = max_retries

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def detect(self, image: str | os.PathLike[str] | bytes, name: str = "") -> Detections:
        """The objects in an image.

        Args:
          image: path of an image file, or its bytes.
          name: of the image, in the result and in errors; its path if it has one.

        Raises:
          ImageError: it cannot be read, was refused, or got no answer in time.
          ServerError: the server cannot be reached, or has no such model.
        """
        return self._ask(image, name, None)

    def masks(
        self,
        image: str | os.PathLike[str] | bytes,
        boxes_yxyx: npt.ArrayLike,
        class_names: str | Sequence[str] = "",
        name: str = "",
    ) -> Detections:
        """Masks of boxes in an image.

        Args:
          image: as of `detect`.
          boxes_yxyx: float [N, 4], (y1, x1, y2, x2) in pixels of the upright image; at most 100.
          class_names: of each box, or of all; "": the class that the model finds most probable.
          name: as of `detect`.

        Returns:
          `Detections` in the order of the boxes, whose score is the IoU that the model expects of a
          mask.

        Raises:
          UserError: boxes and classes do not fit together.
          ImageError: as of `detect`, or a box or a class was refused.
          ServerError: as of `detect`.
        """
        return self._ask(image, name, prompts_of(boxes_yxyx, class_names))

    def _ask(
        self, image: str | os.PathLike[str] | bytes, name: str, prompts: Prompts | None
    ) -> Detections:
        if isinstance(image, bytes):
            encoded, name = image, name or "image"
        else:
            encoded, name = _read(image), name or os.fspath(image)
        try:
            encoded = upright_file(encoded)
            outputs = retries.call(
                lambda: self._transport.predict(encoded, prompts), self._max_retries
            )
        except BadImageError as error:
            raise ImageError(f"{name}: {error}") from None
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None
        try:
            return Detections.from_outputs(outputs, self._transport.name, name=name, image=image)
        except UserError as error:
            raise ServerError(str(error)) from None

    def detect_many(
        self, images: Iterable[Image], parallel: int = 4
    ) -> Iterator[tuple[Image, Detections | ImageError]]:
        """Each image with its objects or with what was wrong with it, in order.

        Args:
          images: paths or bytes, taken as they are needed.
          parallel: requests at a time.

        Raises:
          ServerError: the server cannot be reached, or has no such model.
        """
        with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
            waiting: collections.deque = collections.deque()
            try:
                for image in images:
                    waiting.append((image, pool.submit(self._try, image)))
                    if len(waiting) > 2 * parallel:
                        image, future = waiting.popleft()
                        yield image, future.result()
                while waiting:
                    image, future = waiting.popleft()
                    yield image, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _try(self, image: str | os.PathLike[str] | bytes) -> Detections | ImageError:
        try:
            return self.detect(image)
        except ImageError as error:
            return error


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}.") from None
