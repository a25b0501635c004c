"""Mask^X R-CNN: how an image becomes detections with masks.

What its layers are is in `assembly.py`, how training losses arise from them in `objective.py`.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from maskx_tf import box_detections
from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.layers import (
    choices,
    cost_model,
    detections,
    joint_scores,
    mask_branches,
    roi_align,
)
from maskx_tf.layers.box_head import BoxHead
from maskx_tf.layers.fpn import FPN
from maskx_tf.layers.mask_head import MaskHead
from maskx_tf.layers.mask_iou_head import MaskIoUHead
from maskx_tf.layers.point_head import FineFeatures, PointHead
from maskx_tf.layers.rpn import RPN
from maskx_tf.layers.weight_transfer import LearnedMaskWeights, WeightTransfer
from maskx_tf.ops import boxes, mask_voting, points, sampling
from maskx_tf.ops.conventions import CONVENTIONS

cost_model.silence()

# The parts of the model that masks alone need, by the first part of a variable's name.
MASK_PARTS = (
    *("mask_head", "weight_transfer", "mask_weights"),
    *("point_head", "point_transfer", "point_weights"),
    *("mask_iou_head", "mask_iou_transfer", "mask_iou_weights"),
    *("semantic_head", "semantic_embedding", "semantic_transfer", "semantic_weights"),
)


class MaskXRCNN(tf_keras.Model):
    """Mask R-CNN whose mask weights are predicted from its box weights (paper, §3).

    An image passes through the backbone and the FPN; the RPN proposes boxes; RoIAlign and the box
    head turn each proposal into a box feature x, class logits w_cls·x and, per class, box deltas
    w_box·x. The mask head turns the RoI features of a detected box into a map of pixel features,
    and the mask of class c is w_seg[c]·pixel, where w_seg = T(stop_gradient(w_det); θ) and w_det is
    [w_cls, w_box] of class c. So any class with boxes has a mask, if it ever had a training mask
    or not. A class-agnostic MLP branch adds its own map to the logits.

    The parts are handed in; `assembly` makes those that the options name. A part is saved, and its
    variables are named, by the name of its layer.

    Args:
      config: the options; sizes, thresholds and the network's input are read from it.
      num_classes: K, without background.
      backbone: normalised images [B, H, W, 3] -> {level: features}, see `choices.Backbone`.
      fpn: {level: features} of its `backbone_levels` -> {level: [B, H_l, W_l, C]}.
      rpn: the pyramid -> logits and deltas; proposes boxes.
      box_heads: one, or the stages of a cascade: each sees the RoIs where the one before sees their
        objects, scores are averaged, the last gives the boxes and w_det.
      mask_head: RoI features and kernels -> mask logits.
      mask_weights: the kernel of a class: T, or rows that are learned.
      point_head: features and coarse logits of points, and kernels -> their logits; None: masks
        stay as the mask head has them.
      point_weights: the kernel of a class in the point head, likewise.
      mask_iou_head: RoI features, masks and kernels -> the IoUs that masks have with their objects;
        None: masks have the scores of their boxes.
      mask_iou_weights: the kernel of a class in it, likewise.
      semantic_head: the pyramid -> features of the image's pixels; None: there is none.
      semantic_embedding: these features -> what is added to those of RoIs; None: the mask head sees
        the semantic features alone, and `mask_weights` makes maps of them.
      semantic_weights: the kernel of a class in its map, where `mask_weights` does not have it.
      embeddings: fixed [K + 1, D], background first: what T takes in place of w_det.
    """

    def __init__(
        self,
        config: Config,
        num_classes: int,
        *,
        backbone: tf_keras.layers.Layer,
        fpn: FPN,
        rpn: RPN,
        box_heads: Sequence[BoxHead],
        mask_head: MaskHead,
        mask_weights: WeightTransfer | LearnedMaskWeights,
        point_head: PointHead | None = None,
        point_weights: WeightTransfer | LearnedMaskWeights | None = None,
        mask_iou_head: MaskIoUHead | None = None,
        mask_iou_weights: WeightTransfer | LearnedMaskWeights | None = None,
        semantic_head: tf_keras.layers.Layer | None = None,
        semantic_embedding: tf_keras.layers.Layer | None = None,
        semantic_weights: WeightTransfer | LearnedMaskWeights | None = None,
        embeddings: tf.Variable | None = None,
    ):
        # Its own work is float32; the layers follow `config.precision`, see `build_model`.
        super().__init__(name="maskx_rcnn", dtype="float32")
        self.config, self.num_classes = config, num_classes
        self.conventions = CONVENTIONS[config.conventions]
        self.backbone, self.fpn, self.rpn = backbone, fpn, rpn
        # Checkpoints know these by the names of the layers: box_head, box_head_2, weight_transfer.
        of_masks = (mask_head, mask_weights, point_head, point_weights)
        of_maps = (semantic_head, semantic_embedding, semantic_weights)
        for layer in (*box_heads, *of_masks, mask_iou_head, mask_iou_weights, *of_maps):
            if layer is not None:
                setattr(self, layer.name, layer)
        self.box_heads = list(box_heads)
        self.mask_head, self.mask_weights = mask_head, mask_weights
        self.point_head, self.point_weights = point_head, point_weights
        self.mask_iou_head, self.mask_iou_weights = mask_iou_head, mask_iou_weights
        self.semantic_head, self.semantic_embedding = semantic_head, semantic_embedding
        self.semantic_weights = semantic_weights
        if embeddings is not None:
            self.embeddings = embeddings

    @property
    def transfers(self) -> list[WeightTransfer]:
        """Each T: that of the mask head, of the point head, of mask scoring, of maps; or none."""
        of_masks = (self.mask_weights, self.point_weights, self.mask_iou_weights)
        every = (*of_masks, self.semantic_weights)
        return [weights for weights in every if isinstance(weights, WeightTransfer)]

    @property
    def class_embeddings(self) -> np.ndarray | None:
        """The input of T, [K, D] without background, with `transfer_input="embedding"`."""
        if self.config.transfer_input != "embedding":
            return None
        return self.embeddings.numpy()[1:]

    def save(self, filepath, *args, **kwargs) -> None:
        """Refuses: a file of Keras would have neither the options nor all of the weights."""
        raise UserError(
            f"{filepath} would be a file that cannot be loaded again. Save the weights with "
            "tf.train.Checkpoint(model=model), or what maskx_tf.load reads with "
            "maskx_tf.checkpoints.save_new; or export a run (maskx export)."
        )

    def save_weights(self, filepath, *args, **kwargs) -> None:
        """As of Keras, which leaves weights out of files of its newer format: they are refused."""
        if str(filepath).endswith(".weights.h5"):
            self.save(filepath)
        super().save_weights(filepath, *args, **kwargs)

    def normalize(self, images: tf.Tensor, image_sizes: tf.Tensor) -> tf.Tensor:
        """RGB 0..255 [B, H, W, 3] -> zero-mean network input; 0 beyond image_sizes [B, 2]."""
        images = tf.cast(images, tf.float32)
        if self.config.channel_order == "bgr":
            images = images[..., ::-1]
        images = (images - self.config.pixel_mean) / self.config.pixel_std
        _, height, width, _ = tf.unstack(tf.shape(images))
        rows = tf.cast(tf.range(height), tf.float32) < image_sizes[:, :1]  # [B, H]
        columns = tf.cast(tf.range(width), tf.float32) < image_sizes[:, 1:]  # [B, W]
        inside = rows[:, :, None] & columns[:, None, :]
        return tf.where(inside[..., None], images, 0.0)

    def pyramid(
        self, images: tf.Tensor, image_sizes: tf.Tensor, training: bool = False
    ) -> dict[int, tf.Tensor]:
        """Images [B, H, W, 3] RGB 0..255 -> {level: [B, H / 2**level, W / 2**level, C]}."""
        features = self.backbone(self.normalize(images, image_sizes), training=training)
        return self.fpn({level: features[level] for level in self.fpn.backbone_levels})

    def roi_features(
        self, pyramid: dict[int, tf.Tensor], rois_yxyx: tf.Tensor, size: int
    ) -> tf.Tensor:
        """What the box head sees of RoIs [B, N, 4] -> [B * N, size, size, C]."""
        batch, count = tf.unstack(tf.shape(rois_yxyx)[:2])
        rois, image_indices = tf.reshape(rois_yxyx, [-1, 4]), tf.repeat(tf.range(batch), count)
        operator = self.config.box_roi_op
        return self.flat_roi_features(pyramid, rois, image_indices, size, operator)

    def box_features(
        self, head: BoxHead, pyramid: dict[int, tf.Tensor], rois_yxyx: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """What a box head makes of RoIs [B, N, 4], and what it was told of their masks.

        Returns:
          Box features [B * N, U]; with MNC's head masks [B * N, m, m], probabilities, else None.
        """
        if not self.config.has_mnc:
            return head(self.roi_features(pyramid, rois_yxyx, self.config.box_roi_size)), None
        features = self.roi_features(pyramid, rois_yxyx, self.config.mask_roi_size)
        masks = tf.sigmoid(self.roi_mask_logits(features))
        return head(features, masks), masks

    def roi_mask_logits(self, roi_features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Mask logits [N, m, m] of RoI features [N, S, S, C] whose classes are not known."""
        no_classes = tf.zeros_like(roi_features[:, 0, 0, 0], tf.int32)
        if self.config.mask_output == "class_agnostic":
            return self.mask_logits(roi_features, no_classes, training)
        no_kernels = tf.zeros([tf.shape(roi_features)[0], self.mask_head.body.filters])
        return self.mask_head(roi_features, no_kernels, training=training)

    def flat_roi_features(
        self,
        pyramid: dict[int, tf.Tensor],
        rois_yxyx: tf.Tensor,
        image_indices: tf.Tensor,
        size: int,
        operator: str = "align",
    ) -> tf.Tensor:
        """Features of RoIs [N, 4] of images int32 [N] -> [N, size, size, C].

        The operator is one of `choices.ROI_OPERATORS`.
        """
        levels = {level: pyramid[level] for level in self.fpn.backbone_levels}
        load = choices.load(choices.ROI_OPERATORS[operator])
        return self._features_of_rois(levels, rois_yxyx, image_indices, size, load)

    def _features_of_rois(
        self,
        levels: dict[int, tf.Tensor],
        rois_yxyx: tf.Tensor,
        image_indices: tf.Tensor,
        size: int,
        operator: Callable[..., tf.Tensor],
    ) -> tf.Tensor:
        features = roi_align.multilevel_roi_align(
            levels,
            rois_yxyx,
            image_indices,
            size,
            self.config.roi_canonical_size,
            half_pixel=self.conventions.half_pixel,
            to_corner=self.conventions.to_corner,
            operator=operator,
        )
        channels = levels[min(levels)].shape[-1]
        return tf.ensure_shape(features, [None, size, size, channels])

    def mask_roi_features(
        self,
        pyramid: dict[int, tf.Tensor],
        rois_yxyx: tf.Tensor,
        image_indices: tf.Tensor,
        classes: tf.Tensor,
        semantic: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """What the mask head sees of RoIs [N, 4], each for its class int32 [N] -> [N, S, S, C].

        With the branch `cam` the class activation prior is part of it, added to all channels. With
        a semantic head (whose features, if they are there already, are `semantic`) its embedding is
        added; or there is nothing else, [N, m, m, C], for which `mask_logits` are cut out of the
        map of the class: cutting and the class's kernel are both linear.
        """
        config, rois = self.config, (rois_yxyx, image_indices)
        size = config.mask_roi_size
        if self.semantic_head is not None:
            semantic = self.semantic_head(pyramid) if semantic is None else semantic
            level = self.semantic_head.level
            if self.semantic_embedding is None:
                # One sample a cell, as targets and results have it.
                once = functools.partial(roi_align.roi_align, samples=1)
                return self._features_of_rois({level: semantic}, *rois, config.mask_size, once)
            added = {level: self.semantic_embedding(semantic)}
            features = self._features_of_rois(added, *rois, size, roi_align.roi_align)
            features += self.flat_roi_features(pyramid, *rois, size, config.mask_roi_op)
        else:
            features = self.flat_roi_features(pyramid, *rois, size, config.mask_roi_op)
        if "cam" not in config.mask_branches:
            return features
        seen = self.flat_roi_features(pyramid, *rois, config.box_roi_size, config.box_roi_op)
        activations = self.box_heads[-1].class_activations(seen, classes)
        prior = mask_branches.class_prior(activations, size)
        return features + tf.cast(prior, features.dtype)[..., None]

    def w_det(self, classes: tf.Tensor) -> tf.Tensor:
        """What T takes of the given classes, int32 [U] -> [U, D] (paper §3.2)."""
        if self.config.transfer_input == "embedding":
            return tf.gather(self.embeddings, classes)
        return self.box_heads[-1].class_weights(classes, self.config.transfer_input)

    def w_seg(self, classes: tf.Tensor) -> tf.Tensor:
        """T(w_det) of the given classes, int32 [U] -> [U, C] (paper, equation 1)."""
        return self.mask_weights(self.w_det(classes))

    def mask_kernels(self, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Kernels [N, C] and, if they are learned, biases [N] of classes int32 [N]."""
        return self.mask_weights.kernels(classes, self.w_det)

    def mask_logits(
        self, roi_features: tf.Tensor, classes: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        """Mask logits [N, m, m] of RoI features [N, S, S, C], for classes int32 [N]."""
        return self.mask_head(roi_features, *self.mask_kernels(classes), training=training)

    def semantic_logits(self, features: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """Maps of classes.

        Args:
          features: of the semantic head, [B, H, W, C].
          classes: int32 [B, P].

        Returns:
          float32 [B, P, H, W].
        """
        weights = self.semantic_weights or self.mask_weights
        kernels, biases = weights.kernels(tf.reshape(classes, [-1]), self.w_det)
        (batch, count), channels = tf.unstack(tf.shape(classes)), features.shape[-1]
        kernels = tf.cast(tf.reshape(kernels, [batch, count, channels]), features.dtype)
        logits = tf.cast(tf.einsum("bhwc,bpc->bphw", features, kernels), tf.float32)
        if biases is not None:
            logits += tf.reshape(biases, [batch, count, 1, 1])
        return logits

    def fine_features(
        self, pyramid: dict[int, tf.Tensor], windows_yxyx: tf.Tensor, image_indices: tf.Tensor
    ) -> FineFeatures | None:
        """What the point head sees of masks over windows [R, 4]; None without a point head."""
        if self.point_head is None:
            return None
        level = min(self.fpn.backbone_levels)
        regions = self.conventions.mask_regions(windows_yxyx) / 2**level
        if not self.conventions.half_pixel:  # the centre of the first cell is at 0
            regions += 0.5
        return FineFeatures(pyramid[level], regions, image_indices)

    def point_logits(
        self, fine: FineFeatures, logits: tf.Tensor, shares_yx: tf.Tensor, classes: tf.Tensor
    ) -> tf.Tensor:
        """The point head's logits.

        Args:
          fine: of R masks.
          logits: float32 [R, m, m], the mask head's.
          shares_yx: points float32 [R, P, 2], shares of the masks' sides.
          classes: int32 [R].

        Returns:
          float32 [R, P].
        """
        assert self.point_head is not None and self.point_weights is not None
        coarse = points.sample_masks(logits, shares_yx)
        kernels = self.point_weights.kernels(classes, self.w_det)
        return self.point_head(fine.sample(shares_yx), coarse, *kernels)

    def class_logits(self, pyramid: dict[int, tf.Tensor], rois_yxyx: tf.Tensor) -> tf.Tensor:
        """Logits float32 [B, N, K + 1] of the box heads for RoIs [B, N, 4]."""
        logits = detections.mean_logits(
            [h.class_logits(self.box_features(h, pyramid, rois_yxyx)[0]) for h in self.box_heads]
        )
        return tf.reshape(logits, [*tf.unstack(tf.shape(rois_yxyx)[:2]), self.num_classes + 1])

    def joint_logits(
        self,
        roi_features: tf.Tensor,
        classes: tf.Tensor,
        class_logits: tf.Tensor,
        training: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mask logits and class logits of one and the same inside and outside maps (FCIS).

        Args:
          roi_features: [N, S, S, C].
          classes: int32 [N], of the masks; they are scored whatever the box heads say.
          class_logits: float32 [N, K + 1], of the box heads.
          training: as of `mask_logits`.

        Returns:
          Mask logits [N, m, m]; `class_logits` plus the joint scores of the likeliest classes or,
          where each class has kernels of its own, of all.
        """
        pixels = self.mask_head.pixels(roi_features, training=training)
        logits = self.mask_head.of_pixels(pixels, *self.mask_kernels(classes))
        scored, kernels, _ = self.scored_classes(class_logits, classes)
        scores = self.mask_head.body.scores(pixels, kernels)
        return logits, joint_scores.add(class_logits, scored, scores)

    def scored_classes(self, class_logits, classes=None):
        """The classes [N, U] that RoIs are scored for, their kernels and biases, for `FCIS`.

        The likeliest by logits [N, L] of the classes below L, and `classes` [N]; all where each has
        kernels of its own, as published.
        """
        count, last = tf.shape(class_logits)[0], class_logits.shape[1]
        if self.config.mask_output == "class_specific":
            every = tf.range(last)
            return tf.tile(every[None], [count, 1]), *self.mask_kernels(every)
        groups = [group for group in self.box_heads[-1].groups if group.stop <= last]
        scored = joint_scores.candidates(class_logits, groups, classes)
        kernels, _ = self.mask_kernels(tf.reshape(scored, [-1]))
        return scored, tf.reshape(kernels, [-1, scored.shape[1], kernels.shape[1]]), None

    def mask_ious(
        self, roi_features: tf.Tensor, logits: tf.Tensor, classes: tf.Tensor
    ) -> tf.Tensor:
        """The IoUs that mask logits [R, m, m] are predicted to have with their objects.

        The masks are taken as constants: their head does not learn to please.

        Args:
          roi_features: [R, S, S, C].
          logits: the mask head's.
          classes: int32 [R].

        Returns:
          float32 [R].
        """
        assert self.mask_iou_head is not None and self.mask_iou_weights is not None
        kernels = self.mask_iou_weights.kernels(classes, self.w_det)
        return self.mask_iou_head(roi_features, tf.stop_gradient(tf.sigmoid(logits)), *kernels)

    def masks(
        self,
        pyramid: dict[int, tf.Tensor],
        boxes_yxyx: tf.Tensor,
        classes: tf.Tensor,
        image_scales: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Masks of given boxes.

        Args:
          pyramid: of `pyramid`.
          boxes_yxyx: float32 [B, N, 4], network-input pixels.
          classes: int32 [B, N]; of class 0, as in the padding, no mask is made.
          image_scales: as of `call`.

        Returns:
          float32 [B, N, m, m], probabilities over each box's window (`boxes.mask_windows`); zeros
          where the class is 0. m is `config.refined_mask_size`.
        """
        return self.mask_results(pyramid, boxes_yxyx, classes, image_scales)["masks"]

    def mask_results(
        self,
        pyramid: dict[int, tf.Tensor],
        boxes_yxyx: tf.Tensor,
        classes: tf.Tensor,
        image_scales: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """`masks`, and with mask scoring the IoUs that they are predicted to have.

        Returns:
          "masks" [B, N, m, m]; with mask scoring "mask_ious" float32 [B, N] in [0, 1], 0 where the
          class is 0.
        """
        windows, image_indices, of_windows = self._mask_windows(boxes_yxyx, classes, image_scales)
        features = self.mask_roi_features(pyramid, windows, image_indices, of_windows)
        fine = self.fine_features(pyramid, windows, image_indices)
        return self.results_of_features(features, classes, fine)

    def likeliest_classes(self, pyramid: dict[int, tf.Tensor], boxes_yxyx: tf.Tensor) -> tf.Tensor:
        """The most probable class but the background of boxes [B, N, 4]: int32 [B, N]."""
        logits = self.class_logits(pyramid, boxes_yxyx)
        return tf.argmax(logits[..., 1:], axis=-1, output_type=tf.int32) + 1

    def mask_features(
        self,
        pyramid: dict[int, tf.Tensor],
        boxes_yxyx: tf.Tensor,
        classes: tf.Tensor,
        image_scales: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """What the mask head sees of boxes [B, N, 4] whose class [B, N] is not 0, one by one.

        Returns:
          [R, S, S, C] in the order of the boxes; R >= 1, see `sampling.where_or_first`.
        """
        return self.mask_roi_features(
            pyramid, *self._mask_windows(boxes_yxyx, classes, image_scales)
        )

    def _mask_windows(self, boxes_yxyx, classes, image_scales):
        """Windows [R, 4] of the boxes whose class is not 0, their images [R], their classes [R]."""
        places, _ = sampling.where_or_first(classes > 0)  # [R, 2]
        windows = tf.gather_nd(self.mask_rois(boxes_yxyx, image_scales), places)
        return windows, places[:, 0], tf.gather_nd(classes, places)

    def mask_rois(self, boxes_yxyx: tf.Tensor, image_scales: tf.Tensor | None = None) -> tf.Tensor:
        """What the mask head sees, and masks reach over, of boxes [B, N, 4] -> [B, N, 4]."""
        if self.conventions.decode_in_original and image_scales is not None:
            # The last pixel of the original image is scaled; RoIAlign takes one of its input.
            shrink = 1.0 - image_scales[:, None]  # [B, 1, 2]
            boxes_yxyx += tf.concat([tf.zeros_like(shrink), shrink], axis=-1)
        return boxes.mask_windows(boxes_yxyx, self.config.mask_roi_scale)

    def results_of_features(
        self, features: tf.Tensor, classes: tf.Tensor, fine: FineFeatures | None = None
    ) -> dict[str, tf.Tensor]:
        """`mask_results` out of what `mask_features` gave for classes [B, N].

        With a point head, `fine` says what it sees.
        """
        places, real = sampling.where_or_first(classes > 0)  # [R, 2], [R]
        of_masks = tf.gather_nd(classes, places)
        logits = coarse = self.mask_logits(features, of_masks)
        if fine is not None:
            logits = points.subdivide(
                coarse,
                lambda at: self.point_logits(fine, coarse, at, of_masks),
                self.config.point_steps,
                self.config.mask_size**2,
            )
        size = logits.shape[1]
        shape = tf.concat([tf.shape(classes), [size, size]], axis=0)
        masks = tf.where(real[:, None, None], tf.sigmoid(logits), 0.0)
        masks = tf.scatter_nd(places, masks, shape)
        results = {"masks": tf.ensure_shape(masks, [None, None, size, size])}
        if self.mask_iou_head is not None:
            ious = tf.clip_by_value(self.mask_ious(features, coarse, of_masks), 0.0, 1.0)
            ious = tf.where(real, ious, 0.0)
            results["mask_ious"] = tf.scatter_nd(places, ious, tf.shape(classes))
        return results

    def call(
        self,
        images: tf.Tensor,
        image_sizes: tf.Tensor,
        image_scales: tf.Tensor | None = None,
        training: bool = False,
    ) -> dict[str, tf.Tensor]:
        """Detections with masks. Masks are made only for the final boxes, on the same features.

        Args:
          images: [B, H, W, 3] RGB 0..255, padded to the canvas; H and W multiples of 32.
          image_sizes: float32 [B, 2] (height, width) of the valid part.
          image_scales: float32 [B, 2] (y, x), network-input pixels per original pixel; 1 if absent.
            Only Detectron's conventions depend on it.
          training: must be False; training goes through `objective.training_losses`.

        Returns:
          num_detections int32 [B], detection_boxes float32 [B, D, 4] (yxyx, network-input pixels,
          clipped to the image), detection_scores [B, D], detection_classes int32 [B, D] (0 in the
          padding) and detection_masks float32 [B, D, m, m], as of `masks`. With mask scoring also
          detection_mask_scores [B, D]: those of the boxes times the predicted IoUs of the masks.
        """
        return self.detect(self.pyramid(images, image_sizes), image_sizes, image_scales)

    def detect(
        self,
        pyramid: dict[int, tf.Tensor],
        image_sizes: tf.Tensor,
        image_scales: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """`call` on a given pyramid."""
        groups = box_detections.detect(self, pyramid, image_sizes, image_scales)
        for detected in groups:
            results = self.mask_results(
                pyramid, detected["detection_boxes"], detected["detection_classes"], image_scales
            )
            voted = detected.pop("voted_masks", None)
            if voted is not None:
                results["masks"] = mask_voting.voted_or_own(voted, results["masks"])
            detected |= with_mask_scores(detected["detection_scores"], results)
        return detections.by_falling_score(groups)

    def detect_boxes(
        self,
        pyramid: dict[int, tf.Tensor],
        image_sizes: tf.Tensor,
        image_scales: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """`detect` without masks."""
        groups = box_detections.detect(self, pyramid, image_sizes, image_scales)
        for detected in groups:
            detected.pop("voted_masks", None)
        return detections.by_falling_score(groups)


def with_mask_scores(scores: tf.Tensor, results: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Detections' masks, and with mask scoring their scores, of `MaskXRCNN.mask_results`.

    Scores are those of the boxes, [B, D].
    """
    found = {"detection_masks": results["masks"]}
    if "mask_ious" in results:
        found["detection_mask_scores"] = scores * results["mask_ious"]
    return found


def variable_key(variable: tf.Variable) -> str:
    """The variable's name without the model's, such as `fpn/lateral2/kernel`."""
    return variable.name.split(":")[0].removeprefix("maskx_rcnn/")


def is_of_masks(variable: tf.Variable) -> bool:
    """Whether a variable belongs to the parts that masks alone need, not to the box detector."""
    return variable_key(variable).split("/")[0] in MASK_PARTS


def trained_variables(model: MaskXRCNN) -> list[tf.Variable]:
    """The variables that the model's mode trains; the others get no gradient."""
    trained = {"end_to_end": (False, True), "stage1_boxes": (False,), "stage2_masks": (True,)}
    parts = trained[model.config.mode]
    variables = [v for v in model.trainable_variables if is_of_masks(v) in parts]
    if not model.config.transfer_trained:
        fixed = {v.ref() for transfer in model.transfers for v in transfer.variables}
        variables = [v for v in variables if v.ref() not in fixed]
    return variables
