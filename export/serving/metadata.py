"""The signatures of a version, as GetModelMetadata returns them."""

from __future__ import annotations

from tensorflow_serving.apis import get_model_metadata_pb2

from export.serving.versions import Model

SIGNATURE_DEF = "signature_def"


def of(model: Model, version: int | None, label: str):
    """The GetModelMetadataResponse of a version, by default the newest.

    Raises:
      ServingError: there is no such version.
    """
    with model.acquire(version, label) as (number, servable):
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in servable.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = model.name
    response.model_spec.version.value = number
    response.metadata[SIGNATURE_DEF].Pack(signatures)
    return response
