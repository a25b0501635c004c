"""Detectron's forward pass at test time in NumPy, from the blobs of a weight file to detections.

The peer of the TensorFlow model, written from the published description only. Feature maps are
[channels, height, width]; boxes are xyxy pixels with inclusive corners (width = x2 − x1 + 1), of
the network input where nothing else is said; deltas are (dx, dy, dw, dh). All sums are in float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

Array = np.ndarray
Blobs = Mapping[str, Array]
MEAN_BGR = np.array([102.9801, 115.9465, 122.7717])
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
MAX_LOG_SCALE = np.log(1000 / 16)
ACTIVATIONS = {
    "leaky_relu": lambda x: np.where(x > 0, x, 0.1 * x),
    "relu": lambda x: np.maximum(x, 0),
    "none": lambda x: x,
}


def conv(
    x: Array, weight: Array, bias: Array | None = None, stride: int = 1, pad: int = 0
) -> Array:
    """[out, H', W'] from [in, H, W] and a weight [out, in, h, w]; `pad` zeros on every side."""
    x = np.pad(x, [(0, 0), (pad, pad), (pad, pad)])
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (1, 2))
    windows = windows[:, ::stride, ::stride]  # [in, H', W', h, w]
    height, width = windows.shape[1:3]
    columns = windows.transpose(0, 3, 4, 1, 2).reshape(-1, height * width)
    out = weight.reshape(len(weight), -1).astype(np.float64) @ columns
    out = out.reshape(-1, height, width)
    return out if bias is None else out + bias[:, None, None]


def max_pool(x: Array) -> Array:
    """3×3, stride 2, padded by 1 on all four sides."""
    x = np.pad(x, [(0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    return windows[:, ::2, ::2].max(axis=(3, 4))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def softmax(x: Array) -> Array:
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def preprocess(image_rgb: Array) -> Array:
    """Preprocessing (section 0.1) but for the resize: BGR minus means, zeros up to multiples of 32.

    Args:
      image_rgb: [H, W, 3] of 0 to 255.

    Returns:
      [3, H', W'].
    """
    image = np.asarray(image_rgb, np.float64)[..., ::-1] - MEAN_BGR
    height, width = image.shape[:2]
    return np.pad(image, [(0, -height % 32), (0, -width % 32), (0, 0)]).transpose(2, 0, 1)


def last_block(blobs: Blobs, stage: int) -> int:
    """Index of the last residual block of a stage."""
    block = 0
    while f"res{stage}_{block + 1}_branch2a_w" in blobs:
        block += 1
    return block


def backbone(blobs: Blobs, image: Array) -> dict[int, Array]:
    """ResNet (section 1.1): {2..5: [C, H / 2^level, W / 2^level]} from BGR minus mean [3, H, W].

    No conv has a bias; stride 2 is on the first 1×1 and the shortcut of stages 3 to 5.
    """

    def conv_affine(x: Array, name: str, stride: int = 1, pad: int = 0) -> Array:
        x = conv(x, blobs[f"{name}_w"], stride=stride, pad=pad)
        norm = "res_conv1" if name == "conv1" else name
        return x * blobs[f"{norm}_bn_s"][:, None, None] + blobs[f"{norm}_bn_b"][:, None, None]

    x = max_pool(relu(conv_affine(image, "conv1", stride=2, pad=3)))
    outputs = {}
    for stage in (2, 3, 4, 5):
        for block in range(last_block(blobs, stage) + 1):
            name = f"res{stage}_{block}_branch"
            stride = 2 if stage > 2 and block == 0 else 1
            shortcut = conv_affine(x, f"{name}1", stride) if block == 0 else x
            x = relu(conv_affine(x, f"{name}2a", stride))
            x = relu(conv_affine(x, f"{name}2b", pad=1))
            x = relu(conv_affine(x, f"{name}2c") + shortcut)
        outputs[stage] = x
    return outputs


def fpn(blobs: Blobs, features: Mapping[int, Array]) -> dict[int, Array]:
    """Feature pyramid (section 1.2): {2..6} from {2..5}; P6 is every second cell of P5."""
    outputs, inner = {}, None
    for level in (5, 4, 3, 2):
        top = f"res{level}_{last_block(blobs, level)}_sum"
        name = f"fpn_inner_{top}" + ("" if level == 5 else "_lateral")
        lateral = conv(features[level], blobs[f"{name}_w"], blobs[f"{name}_b"])
        inner = lateral if inner is None else lateral + inner.repeat(2, axis=1).repeat(2, axis=2)
        outputs[level] = conv(inner, blobs[f"fpn_{top}_w"], blobs[f"fpn_{top}_b"], pad=1)
    return outputs | {6: outputs[5][:, ::2, ::2]}


def rpn(blobs: Blobs, pyramid: Mapping[int, Array]) -> dict[int, tuple[Array, Array]]:
    """RPN head (section 1.3): level -> objectness logits [3, H, W], deltas [12, H, W].

    All levels share the weights. Channels are the anchors of ratio 0.5, 1, 2, and 4 anchor + delta.
    """

    def layer(name: str, x: Array, pad: int = 0) -> Array:
        return conv(x, blobs[f"{name}_fpn2_w"], blobs[f"{name}_fpn2_b"], pad=pad)

    outputs = {}
    for level in (2, 3, 4, 5, 6):
        x = relu(layer("conv_rpn", pyramid[level], pad=1))
        outputs[level] = layer("rpn_cls_logits", x), layer("rpn_bbox_pred", x)
    return outputs


def cell_anchors(stride: int) -> Array:
    """The anchors of the cell at (0, 0), [3, 4] (section 1.3): sizes are rounded before × 8."""
    ratios = np.array([0.5, 1.0, 2.0])  # height / width
    widths = np.round(np.sqrt(stride**2 / ratios))  # half to even
    sizes = 8 * np.stack([widths, np.round(widths * ratios)], axis=1)
    return (stride - 1) / 2 + np.concatenate([-(sizes - 1) / 2, (sizes - 1) / 2], axis=1)


def anchors(stride: int, height: int, width: int) -> Array:
    """The anchors of a map, [height · width · 3, 4], by row, column and ratio (section 1.3)."""
    y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
    shifts = np.stack([x, y, x, y], axis=-1)[:, :, None]  # [height, width, 1, 4]
    return (shifts + cell_anchors(stride)).reshape(-1, 4)


def decode(boxes: Array, deltas: Array, weights: tuple[float, ...] = (1, 1, 1, 1)) -> Array:
    """Boxes [n, k, 4] from boxes [n, 4] and deltas [n, 4k] (section 0, box decode)."""
    dx, dy, dw, dh = np.moveaxis(deltas.reshape(len(boxes), -1, 4) / np.array(weights), 2, 0)
    size = (boxes[:, 2:] - boxes[:, :2] + 1)[:, None]  # [n, 1, (width, height)]
    centre = boxes[:, None, :2] + size / 2 + np.stack([dx, dy], axis=-1) * size
    size = size * np.exp(np.minimum(np.stack([dw, dh], axis=-1), MAX_LOG_SCALE))
    return np.concatenate([centre - size / 2, centre + size / 2 - 1], axis=-1)


def encode(boxes: Array, targets: Array, weights: tuple[float, ...] = (1, 1, 1, 1)) -> Array:
    """The deltas [n, 4] that lead from boxes to targets [n, 4] (section 0, box encode)."""
    size, target_size = boxes[:, 2:] - boxes[:, :2] + 1, targets[:, 2:] - targets[:, :2] + 1
    shift = (targets[:, :2] + target_size / 2) - (boxes[:, :2] + size / 2)
    return np.concatenate([shift / size, np.log(target_size / size)], axis=1) * np.array(weights)


def clip(boxes: Array, height: float, width: float) -> Array:
    """Every coordinate of boxes [..., 4] into [0, dim − 1] (section 0)."""
    return np.clip(boxes, 0, np.array([width, height, width, height]) - 1)


def areas(boxes: Array) -> Array:
    return (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)


def iou(box: Array, others: Array) -> Array:
    """[n] of a box [4] with boxes [n, 4]; every side is + 1 (section 0)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    overlap = np.prod(np.maximum(high - low + 1, 0), axis=1)
    return overlap / (areas(box) + areas(others) - overlap)


def nms(boxes: Array, scores: Array, threshold: float) -> Array:
    """Indices kept, in the order of the input; an IoU of `threshold` suppresses (section 0).

    Of equal scores the first goes first.
    """
    alive, kept = np.ones(len(boxes), bool), []
    for index in np.argsort(-scores, kind="stable"):
        if alive[index]:
            kept.append(index)
            alive &= iou(boxes[index], boxes) < threshold
    return np.array(sorted(kept), int)


def proposals(
    rpn_outputs: Mapping[int, tuple[Array, Array]],
    height: int,
    width: int,
    pre_nms: int = 1000,
    post_nms: int = 1000,
    nms_threshold: float = 0.7,
) -> tuple[Array, Array]:
    """Boxes [n, 4] and scores [n] by falling score (section 1.3, proposal generation at test time).

    Args:
      rpn_outputs: of `rpn`.
      height: of the padded network input, to which boxes are clipped; likewise `width`.
      pre_nms: best anchors of each level that are decoded.
      post_nms: boxes of each level after NMS, and of all levels together.
      nms_threshold: of the NMS within each level; there is none across levels.
    """
    all_boxes, all_scores = [], []
    for level, (logits, deltas) in sorted(rpn_outputs.items()):
        scores = sigmoid(logits).transpose(1, 2, 0).ravel()  # row, column, anchor
        deltas = deltas.transpose(1, 2, 0).reshape(-1, 4)
        best = np.argsort(-scores, kind="stable")[:pre_nms]
        cells = anchors(2**level, *logits.shape[1:])
        boxes = clip(decode(cells[best], deltas[best])[:, 0], height, width)
        size = boxes[:, 2:] - boxes[:, :2] + 1
        inside = np.all(boxes[:, :2] + size / 2 < (width, height), axis=1)
        boxes, scores = boxes[inside & (size.min(axis=1) >= 0)], scores[best]
        scores = scores[inside & (size.min(axis=1) >= 0)]
        kept = nms(boxes, scores, nms_threshold)[:post_nms]
        all_boxes.append(boxes[kept])
        all_scores.append(scores[kept])
    boxes, scores = np.concatenate(all_boxes), np.concatenate(all_scores)
    best = np.argsort(-scores, kind="stable")[:post_nms]
    return boxes[best], scores[best]


def roi_level(boxes: Array) -> Array:
    """[n] levels 2 to 5 of boxes [n, 4] (section 1.4)."""
    return np.clip(np.floor(4 + np.log2(np.sqrt(areas(boxes)) / 224 + 1e-6)), 2, 5).astype(int)


def _bin_weights(low: float, length: float, cells: int, size: int, samples: int) -> Array:
    """[size, cells]: what each cell adds to the mean of each bin, along one axis."""
    positions = low + (np.arange(size * samples) + 0.5) * length / (size * samples)
    weights = np.zeros([size * samples, cells])
    for row, position in zip(weights, positions, strict=True):
        if -1 <= position <= cells:  # a sample further out is 0
            position = min(max(position, 0), cells - 1)
            first = min(int(position), max(cells - 2, 0))
            row[first] = 1 - (position - first)
            if cells > 1:
                row[first + 1] = position - first
    return weights.reshape(size, samples, cells).mean(axis=1)


def roi_align(features: Array, boxes: Array, size: int, stride: int, samples: int = 2) -> Array:
    """RoIAlign without the half-pixel shift, [n, C, size, size] (section 1.4).

    Args:
      features: [C, H, W] of one level.
      boxes: [n, 4]; their corners are used as they are, without + 1.
      size: of the output.
      stride: of the level.
      samples: a bin is the mean of samples × samples.
    """
    out = np.zeros([len(boxes), len(features), size, size])
    for index, (x1, y1, x2, y2) in enumerate(np.asarray(boxes, np.float64) / stride):
        rows = _bin_weights(y1, max(y2 - y1, 1), features.shape[1], size, samples)
        columns = _bin_weights(x1, max(x2 - x1, 1), features.shape[2], size, samples)
        out[index] = rows @ features @ columns.T
    return out


def pyramid_roi_align(pyramid: Mapping[int, Array], boxes: Array, size: int) -> Array:
    """RoIAlign on each box's own level, [n, C, size, size] in the order of the boxes."""
    out = np.zeros([len(boxes), len(pyramid[2]), size, size])
    levels = roi_level(boxes)
    for level in (2, 3, 4, 5):
        chosen = levels == level
        out[chosen] = roi_align(pyramid[level], boxes[chosen], size, 2**level)
    return out


def fully_connected(blobs: Blobs, name: str, x: Array) -> Array:
    """[n, out] from x [n, ...], flattened with the channel slowest, and a weight [out, in]."""
    x, weight = x.reshape(len(x), -1), blobs[f"{name}_w"]
    out = [x @ rows.T for rows in np.array_split(weight, max(1, weight.size // 2**24))]
    return np.concatenate(out, axis=1) + blobs[f"{name}_b"]


def box_head(blobs: Blobs, features: Array) -> tuple[Array, Array]:
    """Box head (section 1.5): class logits [n, K + 1] and deltas [n, 4 (K + 1)] of [n, C, 7, 7]."""
    x = relu(fully_connected(blobs, "fc6", features))
    x = relu(fully_connected(blobs, "fc7", x))
    return fully_connected(blobs, "cls_score", x), fully_connected(blobs, "bbox_pred", x)


def transfer_input(blobs: Blobs, kind: str) -> Array:
    """What T reads, one row per class and the background (section 2.1): [K + 1, dim].

    Args:
      blobs: of the file.
      kind: cls, box, cls+box, or the blob with the embeddings: v_glove or v_randn_0.
    """
    if kind.startswith("v_"):
        return blobs[kind]
    scores = blobs["cls_score_w"]
    parts = {"cls": scores, "box": blobs["bbox_pred_w"].reshape(len(scores), -1)}
    return np.concatenate([parts[part] for part in kind.split("+")], axis=1)


def mask_weights(
    blobs: Blobs, kind: str = "cls+box", activation: str = "leaky_relu"
) -> tuple[Array, Array]:
    """Kernels [K + 1, C] and biases [K + 1] of the mask output (sections 1.8 and 2.2).

    T's output on every row, without a bias, where the file has T; else the learned convolution,
    [1, C] and [1] if it is class-agnostic.

    Args:
      blobs: of the file.
      kind: T's input, as in `transfer_input`.
      activation: between T's layers: leaky_relu (0.1), relu or none.
    """
    if "mask_fcn_logits_w_flat_w" not in blobs:
        return blobs["mask_fcn_logits_w"][:, :, 0, 0], blobs["mask_fcn_logits_b"]
    x = transfer_input(blobs, kind).astype(np.float64)
    for name in ("bbox2mask_mlp_l1", "bbox2mask_mlp_l2"):
        if f"{name}_w" in blobs:
            x = ACTIVATIONS[activation](fully_connected(blobs, name, x))
    kernels = fully_connected(blobs, "mask_fcn_logits_w_flat", x)
    return kernels, np.zeros(len(kernels))


def mask_trunk(blobs: Blobs, features: Array) -> Array:
    """Mask trunk (section 1.7): [n, C, 28, 28] of [n, C', 14, 14]."""
    weight, bias = blobs["conv5_mask_w"].astype(np.float64), blobs["conv5_mask_b"]
    out = []
    for x in features:
        for index in (1, 2, 3, 4):
            name = f"_[mask]_fcn{index}"
            x = relu(conv(x, blobs[f"{name}_w"], blobs[f"{name}_b"], pad=1))
        height, width = x.shape[1:]  # the transposed convolution's 2×2 outputs do not overlap
        x = np.tensordot(weight, x, (0, 0)).transpose(0, 3, 1, 4, 2)  # [out, H, 2, W, 2]
        out.append(relu(x.reshape(-1, 2 * height, 2 * width) + bias[:, None, None]))
    return np.array(out).reshape(len(features), weight.shape[1], 28, 28)


def mask_mlp(blobs: Blobs, trunk: Array) -> Array:
    """MLP branch (section 2.3): [n, 28, 28], the same for all classes; 0 where the file has none.

    One linear layer in all published models; before it 1 or 2 layers with ReLU in the variants.
    """
    if "mask_mlp_logits_raw_w" not in blobs:
        return np.zeros([len(trunk), 28, 28])
    x = trunk
    for name in ("fc_mask_head_mlp_l1", "fc_mask_head_mlp_l2"):
        if f"{name}_w" in blobs:
            x = relu(fully_connected(blobs, name, x))
    return fully_connected(blobs, "mask_mlp_logits_raw", x).reshape(-1, 28, 28)


def mask_head(
    blobs: Blobs, features: Array, classes: Array, kernels: Array, biases: Array
) -> Array:
    """Mask logits [n, 28, 28] of each RoI's class (sections 1.7, 1.8, 2.3).

    Args:
      blobs: of the file.
      features: [n, C', 14, 14].
      classes: [n], 0 is the background.
      kernels: of `mask_weights`, as are the biases.
    """
    trunk = mask_trunk(blobs, features)
    channels = np.zeros_like(classes) if len(kernels) == 1 else classes
    fcn = np.einsum("nc,nchw->nhw", kernels[channels], trunk)
    return fcn + biases[channels][:, None, None] + mask_mlp(blobs, trunk)


def select(
    boxes: Array, scores: Array, score_threshold: float, nms_threshold: float, maximum: int
) -> tuple[Array, Array, Array]:
    """Final boxes [n, 4], scores [n] and classes [n], by class, then in input order (section 5).

    Args:
      boxes: [m, K + 1, 4].
      scores: softmax [m, K + 1]; class 0 is never detected.
      score_threshold: scores have to be above it.
      nms_threshold: of the NMS within each class.
      maximum: number of detections; ties with the last one stay too.
    """
    found = []
    for label in range(1, scores.shape[1]):
        chosen = np.flatnonzero(scores[:, label] > score_threshold)
        kept = chosen[nms(boxes[chosen, label], scores[chosen, label], nms_threshold)]
        found += [(index, label) for index in kept]
    rows, classes = np.array(found, int).reshape(-1, 2).T
    best = scores[rows, classes]
    if len(best) > maximum:
        kept = best >= np.sort(best)[-maximum]
        rows, classes, best = rows[kept], classes[kept], best[kept]
    return boxes[rows, classes], best, classes


def detect(
    blobs: Blobs,
    image_rgb: Array,
    original_size: tuple[int, int],
    im_scale: float,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    max_detections: int = 100,
    pre_nms: int = 1000,
    post_nms: int = 1000,
    kind: str = "cls+box",
    activation: str = "leaky_relu",
    box_weights: tuple[float, ...] = BOX_WEIGHTS,
) -> dict[str, Array]:
    """The test-time forward pass (section 5).

    Args:
      blobs: of the file.
      image_rgb: [H, W, 3] of 0 to 255 at the size of the network input, without padding.
      original_size: (height, width) of the image before its resize.
      im_scale: network input pixels per original pixel.
      score_threshold: as in `select`, as are the next two.
      nms_threshold: of the final NMS.
      max_detections: per image.
      pre_nms: as in `proposals`, as is `post_nms`.
      post_nms: number of proposals.
      kind: T's input, as in `transfer_input`.
      activation: T's, as in `mask_weights`.
      box_weights: of the box head's deltas.

    Returns:
      proposals [n, 4] in network input pixels, proposal_scores [n], class_logits [n, K + 1],
      deltas [n, 4 (K + 1)], boxes [m, 4] in original pixels, scores [m], classes [m] and, if the
      file has a mask head, mask_logits [m, 28, 28].
    """
    image = preprocess(image_rgb)
    pyramid = fpn(blobs, backbone(blobs, image))
    rois, roi_scores = proposals(rpn(blobs, pyramid), *image.shape[1:], pre_nms, post_nms)
    logits, deltas = box_head(blobs, pyramid_roi_align(pyramid, rois, 7))
    decoded = clip(decode(rois / im_scale, deltas, box_weights), *original_size)
    boxes, scores, classes = select(
        decoded, softmax(logits), score_threshold, nms_threshold, max_detections
    )
    found = {"proposals": rois, "proposal_scores": roi_scores, "class_logits": logits}
    found |= {"deltas": deltas, "boxes": boxes, "scores": scores, "classes": classes}
    if "conv5_mask_w" in blobs:
        features = pyramid_roi_align(pyramid, boxes * im_scale, 14)
        weights = mask_weights(blobs, kind, activation)
        found["mask_logits"] = mask_head(blobs, features, classes, *weights)
    return found


def paste(mask_prob: Array, box: Array, height: int, width: int) -> Array:
    """bool [height, width] of probabilities [28, 28] in a box [4] (section 5, pasting)."""
    size = len(mask_prob)
    padded = np.pad(np.asarray(mask_prob, np.float32), 1)
    x1, y1, x2, y2 = np.asarray(box, np.float64)
    centre = np.array([x1 + x2, y1 + y2]) / 2
    half = np.array([x2 - x1, y2 - y1]) / 2 * (size + 2) / size  # without + 1
    x1, y1 = (centre - half).astype(int)  # towards 0
    x2, y2 = (centre + half).astype(int)
    shape = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    inside = cv2.resize(padded, shape) > 0.5
    out = np.zeros([height, width], bool)
    top, left = max(y1, 0), max(x1, 0)
    inside = inside[top - y1 :, left - x1 :][: max(height - top, 0), : max(width - left, 0)]
    out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return out
