"""The files beside an exported graph that tell how to serve it."""

from __future__ import annotations

import pathlib
import string

from maskx_tf.inference.batching import Batching

DIRECTORY = "assets.extra"

_BATCHING = string.Template("""\
# The batching settings of the graph, in TensorFlow Serving's format. They are in effect without
# this file. Do not pass --enable_batching: it would merge requests before their images are
# decoded, and one bad image would fail the other requests. It is only useful if all requests
# are arrays of one size (signature image_tensor).
max_batch_size { value: $largest }
batch_timeout_micros { value: $timeout_us }
num_batch_threads { value: $threads }
max_enqueued_batches { value: $max_enqueued }
$allowed
""")

_SERVING = string.Template("""\
# Serving this model

This model's directory is one version; serve the directory above it (OUTPUT_DIR below). The server
picks up a new version beside it, and the old one answers until the new one is ready.

## TensorFlow Serving, for production

```bash
docker run --rm -p 8500:8500 -p 8501:8501 -e MODEL_NAME=$model_name \\
    -v "$$PWD/OUTPUT_DIR:/models/$model_name:ro" tensorflow/serving

# or, where it is installed (the base path has to be absolute):
tensorflow_model_server --port=8500 --rest_api_port=8501 \\
    --model_name=$model_name --model_base_path="$$PWD/OUTPUT_DIR"
```

`export/serving/docker-compose.yml` of maskx_tf adds the model and monitoring files.

## The local server, for machines without Docker

```bash
maskx serve --model_base_path=OUTPUT_DIR --model_name=$model_name \\
    --port=8500 --rest_api_port=8501
```

## Sending requests

```bash
curl http://localhost:8501/v1/models/$model_name            # is it ready?
curl http://localhost:8501/v1/models/$model_name/metadata   # inputs and outputs

printf '{"instances": [{"image_bytes": {"b64": "%s"}}]}' "$$(base64 -w0 photo.jpg)" > request.json
curl -d @request.json http://localhost:8501/v1/models/$model_name:predict
```

Signatures: `serving_default` takes `image_bytes`, JPEG or 8-bit PNG files of any sizes;
`image_tensor` takes `images`, uint8 RGB [B, H, W, 3]; `box_prompts` gives masks to the `boxes`,
float32 [1, N, 4], of the classes `class_names`, string [1, N] ("": the most probable), of one
image, `image_bytes`. Outputs, for B images:

$outputs

Boxes are (y1, x1, y2, x2) in pixels of the original image, rotated as its EXIF data say. A mask is
255 times the probability over its box, or over `detection_mask_windows` where these are among the
outputs. `detection_mask_seen` is false for classes that had no masks
in training. `assets/classes.json` lists the classes.

## Limits

- Images of more than $max_pixels pixels are refused from their header, before they are decoded.
- An image that cannot be decoded fails its own request only (INVALID_ARGUMENT, HTTP 400), but that
  request as a whole.$batches
- gRPC clients take answers of up to 4 MB unless told otherwise; those for some tens of images are
  larger. Open the channel with `grpc.max_receive_message_length` = -1, as maskx's client does.
- Do not pass `--enable_batching`: it would merge requests before their images are decoded.
- `tf_serving_warmup_requests` has requests for each batch size. Loading takes as long as answering
  them.
""")

_BATCHES = string.Template("""\
 A request may have at most $most_images images; one with more is refused
  (INVALID_ARGUMENT) before any of them is decoded.
- The graph forms batches of up to $largest images (sizes $sizes; a request waits
  $timeout_us µs for others). If more than $max_enqueued batches wait: UNAVAILABLE (HTTP 503).""")
_NO_BATCHES = """\
 The images of a request are one batch, which takes a canvas of
  memory for each; requests do not share batches (--batching=none)."""


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
    shared_batches: bool = True,
) -> None:
    """Writes assets.extra/SERVING.md and, with `shared_batches`, batching_parameters.txt beside it.

    Args:
      directory: the SavedModel.
      model_name: in its commands.
      batching: how the graph forms batches.
      max_pixels: of an image.
      outputs: name -> type and shape.
      shared_batches: whether it forms any.
    """
    extra = directory / DIRECTORY
    extra.mkdir(exist_ok=True)
    batches = _NO_BATCHES
    if shared_batches:
        (extra / "batching_parameters.txt").write_text(batching_parameters(batching))
        batches = _BATCHES.substitute(
            largest=batching.allowed_sizes[-1],
            sizes=", ".join(map(str, batching.allowed_sizes)),
            timeout_us=batching.timeout_us,
            max_enqueued=batching.max_enqueued,
            most_images=batching.most_rows,
        )
    width = max(len(name) for name in outputs)
    lines = [f"    {name:{width}}  {text}" for name, text in outputs.items()]
    text = _SERVING.substitute(
        model_name=model_name,
        outputs="\n".join(lines),
        max_pixels=f"{max_pixels:,}",
        batches=batches,
    )
    (extra / "SERVING.md").write_text(text)
