"""The client: images in, typed detections out, one request per image."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from export import signatures
from export.client import retries
from export.client.errors import ServerError
from export.client.prompts import inputs_of
from export.client.rest import RestTransport
from maskx_tf.data.image_formats import BadImageError, png, upright_file, upright_pixels
from maskx_tf.errors import ImageError, UserError
from maskx_tf.inference import tiles
from maskx_tf.inference.detections import Detections
from maskx_tf.inference.tiling import MAX_PIXELS, Tiling

Image = TypeVar("Image", bound="str | os.PathLike[str] | bytes")


class _Transport(Protocol):
    name: str

    def predict(
        self, inputs: Mapping[str, np.ndarray], signature_name: str = ""
    ) -> dict[str, Any]: ...

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

    def detect(
        self,
        image: str | os.PathLike[str] | bytes,
        name: str = "",
        tiling: Tiling | None = None,
    ) -> Detections:
        """The objects in an image.

        Args:
          image: path of an image file, or its bytes.
          name: of the image, in the result and in errors; its path if it has one.
          tiling: look at the image in tiles, which are cut here and asked for one by one.

        Raises:
          ImageError: it cannot be read, was refused, or got no answer in time.
          ServerError: the server cannot be reached, or has no such model.
        """
        if not tiling:
            return self._ask(image, name)
        encoded = image if isinstance(image, bytes) else _read(image)
        name = name or ("image" if isinstance(image, bytes) else os.fspath(image))
        try:
            pixels = upright_pixels(encoded, MAX_PIXELS)
        except BadImageError as error:
            raise ImageError(f"{name}: {error}") from None
        detections = tiles.detect(
            lambda crops: [self._ask(png(crop), name) for crop in crops], pixels, *tiling
        )
        return dataclasses.replace(detections, name=name, image=image)

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
        return self._ask(image, name, inputs_of(boxes_yxyx, class_names))

    def classes(self) -> dict[str, bool]:
        """Names of the model's classes 1..K; whether each had masks in training.

        Raises:
          ServerError: as of `detect`, or the model was exported before it could tell.
        """
        try:
            count = int(self._classes([1])["num_classes"])
            outputs = self._classes(range(1, count + 1))
        except ImageError as error:
            raise ServerError(f"{error}. Models exported by now name their classes.") from None
        names = [n.decode() if isinstance(n, bytes) else n for n in outputs["class_names"]]
        return dict(zip(names, map(bool, outputs["mask_seen"]), strict=True))

    def _classes(self, ids: Sequence[int]) -> dict[str, Any]:
        return self.outputs({"ids": np.array([ids], np.int32)}, signatures.CLASSES)

    def outputs(self, inputs: Mapping[str, np.ndarray], signature_name: str = "") -> dict[str, Any]:
        """The model's own outputs without batch dimension, lists or arrays.

        Args:
          inputs: of the signature, [1, …], those of strings or bytes as objects.
          signature_name: see `export.signatures`; empty: that of detections.

        Raises:
          ImageError: the inputs were refused, or got no answer in time.
          ServerError: as of `detect`.
        """
        return retries.call(
            lambda: self._transport.predict(inputs, signature_name), self._max_retries
        )

    def _ask(
        self,
        image: str | os.PathLike[str] | bytes,
        name: str,
        prompts: Mapping[str, np.ndarray] | None = None,
    ) -> Detections:
        if isinstance(image, bytes):
            encoded, name = image, name or "image"
        else:
            encoded, name = _read(image), name or os.fspath(image)
        try:
            inputs = {"image_bytes": np.array([upright_file(encoded)], object), **(prompts or {})}
            outputs = self.outputs(inputs, signatures.BOX_PROMPTS if prompts else "")
        except BadImageError as error:
            raise ImageError(f"{name}: {error}") from None
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None
        try:
            return Detections.from_outputs(outputs, self._transport.name, name=name, image=image)
        except UserError as error:
            raise ServerError(str(error)) from None

    def detect_many(
        self, images: Iterable[Image], parallel: int = 4, tiling: Tiling | None = None
    ) -> Iterator[tuple[Image, Detections | ImageError]]:
        """Each image with its objects or with what was wrong with it, in order.

        Args:
          images: paths or bytes, taken as they are needed.
          parallel: requests at a time.
          tiling: as of `detect`.

        Raises:
          ServerError: the server cannot be reached, or has no such model.
        """
        with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
            waiting: collections.deque = collections.deque()
            try:
                for image in images:
                    waiting.append((image, pool.submit(self._try, image, tiling)))
                    if len(waiting) > 2 * parallel:
                        image, future = waiting.popleft()
                        yield image, future.result()
                while waiting:
                    image, future = waiting.popleft()
                    yield image, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _try(
        self, image: str | os.PathLike[str] | bytes, tiling: Tiling | None
    ) -> Detections | ImageError:
        try:
            return self.detect(image, tiling=tiling)
        except ImageError as error:
            return error


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}.") from None
