"""The images of records by their ids, each read when it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from maskx_tf.data import decoding
from maskx_tf.data.records import index, manifest, schema


class RecordImages:
    """Reads images of records.

    Args:
      records: record directories or shard globs.

    Raises:
      UserError: the records are damaged or missing.
    """

    def __init__(self, records: Sequence[str]):
        self._places = index.places_by_image_id(manifest.find_shards(records))

    def __iter__(self) -> Iterator[int]:
        """The ids, in the order of the records."""
        return iter(self._places)

    def __call__(self, image_id: int) -> np.ndarray:
        """uint8 RGB [H, W, 3]; KeyError if there is none of the id."""
        columns, _ = schema.columns_of(self._places[image_id].read())
        return decoding.to_array(columns["image/encoded"])
