"""The served function: encoded or decoded images in, detections in original pixels out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import tensorflow as tf

from maskx_tf.config import Config
from maskx_tf.data import decoding, preprocessing
from maskx_tf.data.classes import Vocabulary
from maskx_tf.inference.batching import Batching, on_rows
from maskx_tf.inference.image_bytes import MAX_PIXELS, decode
from maskx_tf.inference.prompts import BoxPrompts
from maskx_tf.ops import graph_rle
from maskx_tf.ops.boxes import mask_windows


class DetectionModule(tf.Module):
    """A model with everything around it: decoding, resizing, and results in original pixels.

    All functions return, for B images and D = config.max_detections:

      num_detections          int32 [B]
      detection_boxes         float32 [B, D, 4], boxes_yxyx in pixels of the original image
      detection_scores        float32 [B, D], descending
      detection_classes       int32 [B, D], 1..K; 0 in the padding
      detection_class_names   string [B, D], "background" in the padding
      detection_masks         uint8 [B, D, m, m], 255 times the mask probability over the box, or
                              over detection_mask_windows where the model has wider ones; m is
                              config.refined_mask_size
      detection_mask_seen     bool [B, D], the class had training masks (set A)
      image_size              int32 [B, 2], (height, width) of the original image

    With `config.mask_roi_scale` above 1 also

      detection_mask_windows  float32 [B, D, 4], what the masks reach over, as detection_boxes; may
                              leave the image

    With `config.mask_scoring` also

      detection_mask_scores   float32 [B, D], detection_scores times the predicted IoU of the mask

    With `rle` also

      detection_rle_bytes     string [B, D], the masks pasted into the original image at a threshold
                              of 0.5: `counts` of COCO's compressed code; empty in the padding

    `segment_boxes` takes one image with boxes, and returns these in their order as its detections.
    Their scores are what the model expects of their masks (`segmenter.expected_iou`). `prompts` has
    its two stages apart.

    Original pixels are those of the upright image where a JPEG file has an EXIF orientation.

    The images of a call are decoded and resized one by one and go through the network in one batch
    for each lie of the canvas, landscape or portrait. With `batching`, a batch is made of the
    images of concurrent calls; decoding stays outside of it, so that an image that cannot be
    decoded fails its own call only. A call of more images than `Batching.most_rows` is refused
    before the first of them is decoded: each takes a whole canvas of memory.
    """

    def __init__(
        self,
        model,
        config: Config,
        vocabulary: Vocabulary,
        mask_class_ids: Sequence[int],
        batching: Batching | None = None,
        max_pixels: int = MAX_PIXELS,
        rle: bool = False,
    ):
        """Takes a `MaskXRCNN`, its options, its class names, and the classes of set A.

        Args:
          model: a `MaskXRCNN`.
          config: its options.
          vocabulary: its class names.
          mask_class_ids: the classes of set A.
          batching: how concurrent calls share batches; None: each call has its own.
          max_pixels: encoded images with more are refused.
          rle: whether run-length codes are among the results.
        """
        super().__init__(name="maskx_detector")
        self._max_pixels, self._rle = max_pixels, rle
        self._most_images = batching.most_rows if batching else None
        self._mask_roi_scale = config.mask_roi_scale
        self._sides = config.image_min_side, config.image_max_side
        self._canvas = preprocessing.canvas_sides(*self._sides)  # (height, width) when landscape
        count = vocabulary.num_classes
        self._names = tf.constant(("background", *vocabulary.names))  # [K + 1]
        self._mask_seen = tf.constant([c in set(mask_class_ids) for c in range(count + 1)])
        # Graphs do not keep their variables alive. As an attribute, the Keras model would be saved
        # with every layer's own graphs.
        self._keep_alive = lambda: model
        networks = [_landscape_network(model)]
        if self._canvas[0] < self._canvas[1]:
            networks.append(_portrait_network(model))
        signature = [
            tf.TensorSpec([None, *self._canvas, 3], tf.uint8),
            tf.TensorSpec([None, 2], tf.float32),
            tf.TensorSpec([None, 2], tf.float32),
        ]
        self.prompts = BoxPrompts(model, config, self._names, self._results, max_pixels)
        unique = uuid.uuid4().hex
        self._networks = [
            on_rows(network, signature, batching, f"maskx_{unique}_{lie}")
            for network, lie in zip(networks, ("landscape", "portrait"), strict=False)
        ]

    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")]
    )
    def detect_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections of JPEG or PNG files of 8 bits a channel, string [B]."""
        return self._detect(lambda encoded: decode(encoded, self._max_pixels), image_bytes)

    @tf.function(
        autograph=False,
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")],
    )
    def detect_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections of RGB images of one size, uint8 [B, H, W, 3]."""
        return self._detect(tf.identity, images)

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([1], tf.string, name="image_bytes"),
            tf.TensorSpec([1, None, 4], tf.float32, name="boxes"),
            tf.TensorSpec([1, None], tf.string, name="class_names"),
        ],
    )
    def segment_boxes(
        self, image_bytes: tf.Tensor, boxes: tf.Tensor, class_names: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Masks of boxes of an image, which are clipped to it.

        Args:
          image_bytes: a JPEG or PNG file of 8 bits a channel.
          boxes: boxes_yxyx in pixels of the original image, at most `MOST_BOXES`.
          class_names: of the boxes; "": the class that the box head finds most probable there.
        """
        features = self.prompts.features(image_bytes)
        return self.prompts.masks(boxes=boxes, class_names=class_names, **features)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([1, None], tf.int32, name="ids")])
    def class_names(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """Names and `mask_seen` [1, N] of classes, and `num_classes` K [1]; ids in 1..K."""
        count = tf.size(self._names) - 1
        text = "A class has an id of 1 to {}."
        ids = decoding.require(ids, tf.reduce_all((ids > 0) & (ids <= count)), text, count)
        return {
            "class_names": tf.gather(self._names, ids),
            "mask_seen": tf.gather(self._mask_seen, ids),
            "num_classes": count[None],
        }

    def _detect(self, to_pixels, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections of B images, each of which `to_pixels` turns into uint8 [H, W, 3]."""
        if self._most_images:
            count = tf.shape(images)[0]
            text = f"The request has {{}} images; at most {self._most_images} are accepted."
            images = decoding.require(images, count <= self._most_images, text, count)
        canvases, sizes, scales, is_portrait, image_sizes = tf.map_fn(
            lambda image: self._to_canvas(to_pixels(image)),
            images,
            fn_output_signature=(
                tf.TensorSpec([*self._canvas, 3], tf.uint8),
                tf.TensorSpec([2], tf.float32),
                tf.TensorSpec([2], tf.float32),
                tf.TensorSpec([], tf.int32),
                tf.TensorSpec([2], tf.int32),
            ),
            parallel_iterations=1,  # one decoded image at a time bounds the memory
        )
        found = self._run_networks(canvases, sizes, scales, is_portrait)
        limits = tf.cast(tf.tile(image_sizes, [1, 2]), tf.float32)[:, None]  # [B, 1, 4]
        boxes = found["detection_boxes"] / tf.tile(scales, [1, 2])[:, None]
        return self._results(found, tf.clip_by_value(boxes, 0.0, limits), image_sizes)

    def _results(
        self, found: dict[str, tf.Tensor], boxes: tf.Tensor, image_sizes: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The outputs for boxes [B, D, 4] in pixels of the original images."""
        classes = found["detection_classes"]
        outputs = {
            "num_detections": found["num_detections"],
            "detection_boxes": boxes,
            "detection_scores": found["detection_scores"],
            "detection_classes": classes,
            "detection_class_names": tf.gather(self._names, classes),
            "detection_masks": found["detection_masks"],
            "detection_mask_seen": tf.gather(self._mask_seen, classes),
            "image_size": image_sizes,
        }
        if "detection_mask_scores" in found:
            outputs["detection_mask_scores"] = found["detection_mask_scores"]
        windows = mask_windows(boxes, self._mask_roi_scale)
        if self._mask_roi_scale > 1.0:
            outputs["detection_mask_windows"] = windows
        if self._rle:
            outputs["detection_rle_bytes"] = tf.map_fn(
                lambda one: graph_rle.paste_to_rle(*one),
                (found["detection_masks"], windows, found["num_detections"], image_sizes),
                fn_output_signature=tf.TensorSpec([boxes.shape[1]], tf.string),
                parallel_iterations=1,
            )
        return outputs

    def _to_canvas(self, image: tf.Tensor):
        """An image on its canvas, a portrait one transposed so that all canvases have one shape."""
        canvas, size, scale = preprocessing.resize_and_pad(image, *self._sides)
        is_portrait = tf.shape(canvas)[0] > tf.shape(canvas)[1]
        canvas = tf.cond(is_portrait, lambda: tf.transpose(canvas, [1, 0, 2]), lambda: canvas)
        canvas = tf.ensure_shape(canvas, [*self._canvas, 3])
        return canvas, size, scale, tf.cast(is_portrait, tf.int32), tf.shape(image)[:2]

    def _run_networks(self, canvases, sizes, scales, is_portrait) -> dict[str, tf.Tensor]:
        """Each image through the network of its canvas; results in the images' order."""
        parts, places = [], []
        for lie, network in enumerate(self._networks):
            rows = tf.where(is_portrait == lie)[:, 0]  # [n]
            parts.append(network(*(tf.gather(value, rows) for value in (canvases, sizes, scales))))
            places.append(rows)
        order = tf.argsort(tf.concat(places, axis=0))
        return {
            key: tf.gather(tf.concat([part[key] for part in parts], axis=0), order)
            for key in parts[0]
        }


def _landscape_network(model):
    """Detections of canvases, uint8 [n, H, W, 3], sizes and scales as of `MaskXRCNN.call`."""

    def run(canvases, sizes, scales):
        found = dict(model(canvases, sizes, scales, training=False))
        found["detection_masks"] = tf.cast(tf.round(255 * found["detection_masks"]), tf.uint8)
        return found

    return run


def _portrait_network(model):
    """The same for transposed portrait canvases."""
    network = _landscape_network(model)
    return lambda canvases, *others: network(tf.transpose(canvases, [0, 2, 1, 3]), *others)
