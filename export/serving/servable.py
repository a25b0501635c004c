"""One loaded version of a model: a SavedModel in a session, as TensorFlow Serving runs it."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from export import signatures
from export.serving import errors, tensors
from export.serving.errors import Code, ServingError
from export.serving.feature_cache import FeatureCache
from maskx_tf.system.literal_paths import literal

WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
MAX_WARMUP_RECORDS = 1000  # TensorFlow Serving's limit


class Servable:
    """A SavedModel that is ready to run; safe to use from several threads.

    Attributes:
      signatures: SignatureDef by name, but for the stages of `box_prompts`: features of an image
        are too large to be sent.
    """

    def __init__(
        self, path: str, threads: tuple[int, int] = (0, 0), cache: FeatureCache | None = None
    ):
        """Loads the model.

        Args:
          path: of the version.
          threads: (inter, intra) of its session, 0: TensorFlow's.
          cache: keeps the features of images that boxes are asked of; None: none does.
        """
        inter, intra = threads
        options = tf.compat.v1.ConfigProto(
            inter_op_parallelism_threads=inter, intra_op_parallelism_threads=intra
        )
        # Its cost model complains, per operation, of sizes that are known only at run time.
        rewriter = options.graph_options.rewrite_options
        rewriter.memory_optimization = rewriter.NO_MEM_OPT
        self._path = pathlib.Path(path)
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=options)
        try:
            with self._session.graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], literal(path))
        except BaseException:
            self._session.close()
            raise
        self._session.graph.finalize()
        self.signatures = dict(meta_graph.signature_def)
        self._stages = [self.signatures.pop(name, None) for name in signatures.STAGES]
        self._cache = cache if all(self._stages) else None  # earlier exports have no stages

    def signature(self, name: str):
        """The SignatureDef called `name`, empty: the default.

        Raises:
          ServingError: FAILED_PRECONDITION, as TensorFlow Serving has it.
        """
        name = name or signatures.DEFAULT
        if name not in self.signatures or name.startswith("__"):
            raise ServingError(
                Code.FAILED_PRECONDITION, f'Serving signature key "{name[:100]}" not found.'
            )
        return self.signatures[name]

    def run(
        self,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        deadline: float = float("inf"),
        output_filter: Collection[str] = (),
    ) -> dict[str, np.ndarray]:
        """Runs one signature.

        Args:
          signature_name: empty for `serving_default`.
          inputs: an array for each of its inputs.
          deadline: `time.monotonic()` at which to give up, in seconds.
          output_filter: outputs wanted; none: all.

        Returns:
          Arrays by output name; strings as object arrays of bytes.

        Raises:
          ServingError: with the code of what went wrong.
        """
        signature = self.signature(signature_name)
        _check_inputs(signature, inputs)
        names = _outputs(signature, output_filter)
        remaining_s(deadline)
        try:
            if self._cache and signature is self.signatures.get(signatures.BOX_PROMPTS):
                return self._run_in_stages(self._cache, inputs, names, deadline)
            return self._run(signature, inputs, names, deadline)
        except tf.errors.OpError as error:
            raise errors.from_tensorflow(error) from None

    def _run_in_stages(
        self,
        cache: FeatureCache,
        inputs: Mapping[str, np.ndarray],
        names: list[str],
        deadline: float,
    ) -> dict[str, np.ndarray]:
        """`box_prompts`, with the features of an image that was asked about before."""
        features, masks = self._stages
        image = {"image_bytes": inputs["image_bytes"]}
        of_image = cache.get(
            self,
            image["image_bytes"][0],
            lambda: self._run(features, image, sorted(features.outputs), deadline),
            remaining_s(deadline),
        )
        boxes = {key: value for key, value in inputs.items() if key not in image}
        return self._run(masks, {**boxes, **of_image}, names, deadline)

    def _run(
        self, signature, inputs: Mapping[str, np.ndarray], names: list[str], deadline: float
    ) -> dict[str, np.ndarray]:
        feeds = {signature.inputs[name].name: array for name, array in inputs.items()}
        fetches = {name: signature.outputs[name].name for name in names}
        left_s = remaining_s(deadline)
        timeout_ms = 0 if left_s > 1e6 else max(1, int(1000 * left_s))  # 0: none
        options = tf.compat.v1.RunOptions(timeout_in_ms=timeout_ms)
        return self._session.run(fetches, feeds, options)

    def warm_up(self) -> int:
        """Runs the recorded requests of `assets.extra`; returns how many there were.

        Raises:
          ServingError: a request failed, or is not a `predict_log`.
        """
        count = 0
        for request in _warmup_requests(self._path / WARMUP_FILE):
            arrays = {
                name: tensors.from_proto(name, proto, 1 << 31)
                for name, proto in request.inputs.items()
            }
            self.run(request.model_spec.signature_name, arrays, output_filter=request.output_filter)
            count += 1
        return count

    def close(self) -> None:
        """Frees the model's memory; nothing may be running."""
        if self._cache:
            self._cache.drop(self)
        self._session.close()


def remaining_s(deadline: float) -> float:
    """Seconds until `time.monotonic()` is at the deadline; ServingError if it is."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise ServingError(Code.DEADLINE_EXCEEDED, "the deadline passed before the model ran")
    return left


def _check_inputs(signature, inputs: Mapping[str, np.ndarray]) -> None:
    extra, missing = (
        inputs.keys() - signature.inputs.keys(),
        signature.inputs.keys() - inputs.keys(),
    )
    if extra or missing:
        raise errors.invalid(
            f"input size does not match signature: {len(inputs)}!={len(signature.inputs)}. "
            f"Sent extra: {{{','.join(sorted(extra))}}}. "
            f"Missing but required: {{{','.join(sorted(missing))}}}."
        )
    for name, array in inputs.items():
        info = signature.inputs[name]
        expected, shape = tf.as_dtype(info.dtype), tf.TensorShape(info.tensor_shape)
        found = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
        if found != expected:
            raise errors.invalid(f"input {name} is {found.name}, but must be {expected.name}")
        if not shape.is_compatible_with(array.shape):
            wanted = str(shape).replace("None", "?")
            raise errors.invalid(f"input {name} has shape {array.shape}, but must have {wanted}")


def _outputs(signature, output_filter: Collection[str]) -> list[str]:
    known = sorted(signature.outputs)
    for name in output_filter:
        if name not in signature.outputs:
            raise errors.invalid(
                f"output tensor alias not found in signature: {name[:100]} "
                f"Outputs expected to be in the set {{{','.join(known)}}}."
            )
    if len(set(output_filter)) < len(output_filter):
        raise errors.invalid("duplicate output tensor alias")
    return list(output_filter) or known


def _warmup_requests(path: pathlib.Path) -> Iterator:
    """The PredictRequests of a warm-up file; none where it is missing."""
    if not path.is_file():
        return
    for index, record in enumerate(tf.compat.v1.io.tf_record_iterator(str(path))):
        if index >= MAX_WARMUP_RECORDS:
            raise errors.invalid(f"{path}: more than {MAX_WARMUP_RECORDS} warm-up requests")
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if not log.HasField("predict_log"):
            raise errors.invalid(f"{path}: record {index + 1} is not a predict_log")
        yield log.predict_log.request
