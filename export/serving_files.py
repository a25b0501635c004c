"""The files beside an exported graph that tell how to serve it."""

from __future__ import annotations

import pathlib
import string

from maskx_tf.batching import Batching

DIRECTORY = "assets.extra"

_BATCHING = string.Template("""\
# The numbers by which the graph itself forms batches, as TensorFlow Serving writes them.
# They are in effect without this file. Do not pass --enable_batching: it would put requests
# together before their images are decoded, and one bad image would fail its neighbours.
# Only where all requests are arrays of one size (signature image_tensor) is it of use.
max_batch_size { value: $largest }
batch_timeout_micros { value: $timeout_us }
num_batch_threads { value: $threads }
max_enqueued_batches { value: $max_enqueued }
$allowed
""")

_SERVING = string.Template("""\
# Serving this model

Its directory is a version: serve the directory above it, OUTPUT_DIR here. A new version beside it
is picked up, and the old one answers until it is ready.

## TensorFlow Serving, for production

```bash
docker run --rm -p 8500:8500 -p 8501:8501 -e MODEL_NAME=$model_name \\
    -v "$$PWD/OUTPUT_DIR:/models/$model_name:ro" tensorflow/serving

# or, where it is installed (the base path has to be absolute):
tensorflow_model_server --port=8500 --rest_api_port=8501 \\
    --model_name=$model_name --model_base_path="$$PWD/OUTPUT_DIR"
```

`export/serving/docker-compose.yml` of maskx_tf adds the model and monitoring files.

## The local server, where there is no Docker

```bash
python -m export.serving.server --model_base_path=OUTPUT_DIR --model_name=$model_name \\
    --port=8500 --rest_api_port=8501
```

## Asking

```bash
curl http://localhost:8501/v1/models/$model_name            # is it ready?
curl http://localhost:8501/v1/models/$model_name/metadata   # inputs and outputs

printf '{"instances": [{"image_bytes": {"b64": "%s"}}]}' "$$(base64 -w0 photo.jpg)" > request.json
curl -d @request.json http://localhost:8501/v1/models/$model_name:predict
```

Signatures: `serving_default` takes `image_bytes`, encoded files of any sizes (JPEG, PNG, GIF, BMP);
`image_tensor` takes `images`, uint8 RGB [B, H, W, 3]. Outputs, for B images:

$outputs

Boxes are (y1, x1, y2, x2) in pixels of the original image, upright if its EXIF data turn it; a mask
is 255 times the probability over its box. `detection_mask_seen` is false for classes of which no
mask was seen in training. `assets/classes.json` lists the classes.

## Limits

- Images of more than $max_pixels pixels are refused from their header, before they are decoded.
- What cannot be decoded is an INVALID_ARGUMENT error (HTTP 400) of its own request only. A request
  with several images, $most_images at most, is answered as a whole or not at all; one with more is
  refused (INVALID_ARGUMENT) before any of them is decoded.
- Batches of up to $largest images are formed in the graph (sizes $sizes; a request waits
  $timeout_us µs for others). More than $max_enqueued waiting batches: UNAVAILABLE (HTTP 503).
- Do not pass `--enable_batching`; `batching_parameters.txt` says why.
- `tf_serving_warmup_requests` has requests for each batch size: loading takes as long as answering
  them.
""")


def batching_parameters(batching: Batching) -> str:
    """A BatchingParameters message in text format, for --batching_parameters_file."""
    allowed = "\n".join(f"allowed_batch_sizes: {size}" for size in batching.allowed_sizes)
    return _BATCHING.substitute(
        largest=batching.allowed_sizes[-1],
        timeout_us=batching.timeout_us,
        threads=batching.threads,
        max_enqueued=batching.max_enqueued,
        allowed=allowed,
    )


def write(
    directory: pathlib.Path,
    model_name: str,
    batching: Batching,
    max_pixels: int,
    outputs: dict[str, str],
) -> None:
    """Writes assets.extra/SERVING.md and assets.extra/batching_parameters.txt.

    Args:
      directory: the SavedModel.
      model_name: in its commands.
      batching: how the graph forms batches.
      max_pixels: of an image.
      outputs: name -> type and shape.
    """
    extra = directory / DIRECTORY
    extra.mkdir(exist_ok=True)
    (extra / "batching_parameters.txt").write_text(batching_parameters(batching))
    width = max(len(name) for name in outputs)
    lines = [f"    {name:{width}}  {text}" for name, text in outputs.items()]
    text = _SERVING.substitute(
        model_name=model_name,
        outputs="\n".join(lines),
        max_pixels=f"{max_pixels:,}",
        largest=batching.allowed_sizes[-1],
        sizes=", ".join(map(str, batching.allowed_sizes)),
        timeout_us=batching.timeout_us,
        max_enqueued=batching.max_enqueued,
        most_images=batching.most_rows,
    )
    (extra / "SERVING.md").write_text(text)
