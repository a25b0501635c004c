"""The definitions in plain NumPy and float64, one object at a time: what the tests compare with."""

import numpy as np


def iou(a, b):
    """Intersection over union of two boxes_yxyx."""
    height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - height * width
    return height * width / union if union > 0 else 0.0


def iou_matrix(a, b):
    """[N, M] from boxes_yxyx [N, 4] and [M, 4]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.array([[iou(x, y) for y in b] for x in a]).reshape(len(a), len(b))


def decode(delta, anchor, weights):
    """One box from (dy, dx, dh, dw)."""
    dy, dx, dh, dw = np.asarray(delta, np.float64) / weights
    y1, x1, y2, x2 = np.asarray(anchor, np.float64)
    height, width = y2 - y1, x2 - x1
    y, x = (y1 + y2) / 2 + dy * height, (x1 + x2) / 2 + dx * width
    height *= np.exp(min(dh, np.log(1000 / 16)))
    width *= np.exp(min(dw, np.log(1000 / 16)))
    return np.array([y - height / 2, x - width / 2, y + height / 2, x + width / 2])


def encode(box, anchor, weights):
    """The deltas (dy, dx, dh, dw) that `decode` inverts."""
    box, anchor = np.asarray(box, np.float64), np.asarray(anchor, np.float64)
    size, anchor_size = box[2:] - box[:2], anchor[2:] - anchor[:2]
    shift = ((box[:2] + box[2:]) - (anchor[:2] + anchor[2:])) / 2 / anchor_size
    return np.concatenate([shift, np.log(size / anchor_size)]) * weights


def greedy_nms(boxes, scores, threshold):
    """Indices kept, by falling score: a box goes if its IoU with a kept one is over `threshold`."""
    kept = []
    for index in np.argsort(-np.asarray(scores), kind="stable"):
        if all(iou(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(int(index))
    return kept


def bilinear_weights(positions, cells):
    """[len(positions), cells] weights of cells with centres at 0, 1, …; clamped at the border."""
    weights = np.zeros([len(positions), cells])
    for row, position in enumerate(np.clip(positions, 0, cells - 1)):
        low = min(int(np.floor(position)), cells - 2) if cells > 1 else 0
        weights[row, low] += 1 - (position - low)
        if cells > 1:
            weights[row, low + 1] += position - low
    return weights


def _bin_weights(low, high, cells, size, samples):
    """[size, cells]: the mean of the samples of each bin of [low, high), in cells."""
    bin_size = (high - low) / size
    starts = low + np.arange(size) * bin_size
    inside = (np.arange(samples) + 0.5) / samples * bin_size
    positions = (starts[:, None] + inside).ravel() - 0.5
    return bilinear_weights(positions, cells).reshape(size, samples, cells).mean(axis=1)


def roi_align_weights(shape, box, size, stride, samples=2):
    """(rows [size, H], columns [size, W]): RoIAlign of one box is rows @ map @ columns.T."""
    y1, x1, y2, x2 = np.asarray(box, np.float64) / stride
    return (
        _bin_weights(y1, y2, shape[0], size, samples),
        _bin_weights(x1, x2, shape[1], size, samples),
    )


def roi_align(features, boxes, images, size, stride):
    """RoIAlign [N, size, size, C] of one level [B, H, W, C]."""
    out = []
    for box, image in zip(boxes, images, strict=True):
        rows, columns = roi_align_weights(features.shape[1:3], box, size, stride)
        out.append(np.einsum("ih,hwc,jw->ijc", rows, features[image], columns))
    return np.array(out)


def roi_align_gradient(shape, upstream, boxes, images, size, stride):
    """Gradient [B, H, W, C] of sum(upstream * roi_align) with respect to the features."""
    gradient = np.zeros(shape)
    for values, box, image in zip(upstream, boxes, images, strict=True):
        rows, columns = roi_align_weights(shape[1:3], box, size, stride)
        gradient[image] += np.einsum("ih,ijc,jw->hwc", rows, values, columns)
    return gradient


def sigmoid_cross_entropy(logits, targets):
    """Elementwise, as its definition reads."""
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))


def softmax(logits):
    """Over the last axis."""
    e = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
