"""Records: their schema, manifest, framing, index and reading."""
