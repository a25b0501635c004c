"""torchvision's detectors, imported: names old and new, COCO's rows, and its own tensors."""

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.errors import UserError
from maskx_tf.layers import roi_align
from maskx_tf.ops import anchors
from maskx_tf.weights import torchvision
from tests.test_weights_resnet_files import state_dict

YXYX = [1, 0, 3, 2]


def detector(rows, masks=True):
    """A narrow Mask R-CNN by torchvision's present names; `rows` classes with the background."""
    rng = np.random.default_rng(1)
    body = state_dict(4, 4)
    arrays = {f"backbone.body.{name}": v for name, v in body.items() if not name.startswith("fc")}
    arrays["backbone.body.bn1.num_batches_tracked"] = np.array(3)

    def layer(name, *shape):
        arrays[f"{name}.weight"] = rng.normal(0, 0.1, shape).astype(np.float32)
        arrays[f"{name}.bias"] = rng.normal(0, 0.1, shape[:1]).astype(np.float32)

    for index, channels in enumerate((16, 32, 64, 128)):
        layer(f"backbone.fpn.inner_blocks.{index}.0", 8, channels, 1, 1)
        layer(f"backbone.fpn.layer_blocks.{index}.0", 8, 8, 3, 3)
    layer("rpn.head.conv.0.0", 8, 8, 3, 3)
    layer("rpn.head.cls_logits", 3, 8, 1, 1)
    layer("rpn.head.bbox_pred", 12, 8, 1, 1)
    layer("roi_heads.box_head.fc6", 6, 8 * 49)
    layer("roi_heads.box_head.fc7", 6, 6)
    layer("roi_heads.box_predictor.cls_score", rows, 6)
    layer("roi_heads.box_predictor.bbox_pred", 4 * rows, 6)
    if masks:
        layer("roi_heads.mask_head.0.0", 8, 8, 3, 3)
        layer("roi_heads.mask_head.1.0", 8, 8, 3, 3)
        layer("roi_heads.mask_predictor.conv5_mask", 8, 8, 2, 2)
        layer("roi_heads.mask_predictor.mask_fcn_logits", rows, 8, 1, 1)
    return arrays


def with_old_names(arrays):
    """As torchvision called them before 0.13, as its files do."""
    old = {}
    for name, value in arrays.items():
        if "_blocks" in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        name = name.replace("rpn.head.conv.0.0", "rpn.head.conv")
        for index in (0, 1):
            name = name.replace(f"mask_head.{index}.0", f"mask_head.mask_fcn{index + 1}")
        old[name] = value
    return old


def test_old_and_new_names_are_the_same_layers():
    new, labels = torchvision._rename(detector(5), 0.0)
    old, _ = torchvision._rename(with_old_names(detector(5)), 0.0)
    assert new.keys() == old.keys()
    assert all(np.array_equal(new[name], old[name]) for name in new)
    assert not [name for name in new if name.startswith(("rpn.", "roi_heads.", "backbone.fpn"))]
    assert labels["_[mask]_fcn2_w"] == "roi_heads.mask_head.1.0.weight"


def test_rows_without_a_category_are_dropped():
    ids = np.arange(91, dtype=np.float32)
    blobs = {
        "cls_score_w": np.stack([ids, ids], axis=1),
        "cls_score_b": ids,
        "bbox_pred_w": np.repeat(ids, 4)[:, None],
        "bbox_pred_b": np.repeat(ids, 4),
        "mask_fcn_logits_w": ids[:, None, None, None],
    }
    torchvision._drop_rows_without_category(blobs)
    left = blobs["cls_score_b"]
    assert len(left) == 81 and list(left[[0, 1, 11, 12, 80]]) == [0, 1, 11, 13, 90]
    assert not set(left) & set(torchvision._NO_CATEGORY)
    for name in ("cls_score_w", "mask_fcn_logits_w"):
        np.testing.assert_array_equal(blobs[name].reshape(81, -1)[:, 0], left)
    np.testing.assert_array_equal(blobs["bbox_pred_b"].reshape(81, 4), np.tile(left[:, None], 4))


def test_anchors_have_whole_corners():
    """What torchvision 0.28 has for sizes 32 and 64."""
    for stride, wanted in ((4, [23, 11, 16, 16, 11, 23]), (8, [45, 23, 32, 32, 23, 45])):
        cell = anchors.cell_anchors(stride, 8.0, (0.5, 1.0, 2.0), "corners")
        np.testing.assert_array_equal(cell[:, [3, 2]], np.reshape(wanted, [3, 2]))
        np.testing.assert_array_equal(cell[:, :2], -cell[:, 2:])


def test_rois_reach_to_their_corners():
    """Where features are their own x, a bin has the x of its centre, in cells counted from 0."""
    features = tf.tile(tf.range(16, dtype=tf.float32)[None, None, :, None], [1, 16, 1, 1])
    box = tf.constant([[8.0, 12.0, 40.0, 52.0]])
    found = roi_align.multilevel_roi_align(
        {2: features}, box, tf.zeros([1], tf.int32), 5, half_pixel=False, to_corner=True
    )
    np.testing.assert_allclose(found[0, 0, :, 0], [4.0, 6.0, 8.0, 10.0, 12.0], atol=1e-5)


@pytest.mark.thorough
class TestWithoutTorchvision:
    def saved(self, tmp_path, arrays):
        path = str(tmp_path / "model.safetensors")
        pytest.importorskip("safetensors.numpy").save_file(arrays, path)
        return path

    def test_every_tensor_is_used(self, tmp_path):
        imported = torchvision.load(self.saved(tmp_path, detector(91)))
        blobs, config = imported.blobs, imported.loaded.config
        assert blobs.unexpected == []
        assert set(blobs.ignored.values()) == {"counters of batch normalisation"}
        assert (config.conventions, config.stride_on, config.channel_order) == (
            "torchvision",
            "3x3",
            "rgb",
        )
        kernel = imported.loaded.model.box_heads[-1].cls_kernel.numpy()
        wanted = detector(91)["roi_heads.box_predictor.cls_score.weight"]
        np.testing.assert_array_equal(kernel[[0, 1, 12]], wanted[[0, 1, 13]])

    def test_faster_rcnn_of_other_classes_asks_for_their_names(self, tmp_path):
        path = self.saved(tmp_path, detector(4, masks=False))
        with pytest.raises(UserError, match="has 3 classes .* --vocabulary"):
            torchvision.load(path)
        (tmp_path / "classes.txt").write_text("cat\ndog\ncow\n")
        imported = torchvision.load(path, {"vocabulary": str(tmp_path / "classes.txt")})
        assert imported.title.startswith("Faster R-CNN R-50-FPN, 3 classes")


@pytest.mark.slow
def test_equals_torchvision(tmp_path):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models.detection")
    network = models.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*network.named_buffers(), *network.named_parameters()]:
            if name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
                value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.3)
            elif name.endswith(("bias", "running_mean")):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
        network.rpn.head.cls_logits.weight.mul_(30)
        network.roi_heads.box_predictor.cls_score.weight.mul_(40)
    network.eval()
    torch.save(network.state_dict(), tmp_path / "model.pth")
    model = torchvision.load(str(tmp_path / "model.pth"), norm_epsilon=1e-5).loaded.model
    height, width = 256, 320
    network.transform.min_size, network.transform.max_size = (height,), width
    noise = np.random.default_rng(0).integers(0, 256, (16, 20, 3)).astype(np.float32)
    image = tf.round(tf.image.resize(noise, (height, width))).numpy()
    pixels = torch.tensor(np.transpose(image / 255, (2, 0, 1)).copy())
    with torch.no_grad():
        batch, _ = network.transform([pixels])
        body = [v.numpy() for v in network.backbone.body(batch.tensors).values()]
        (found,) = network([pixels])
    sizes = tf.constant([[height, width]], tf.float32)
    features = model.backbone(model.normalize(tf.constant(image[None]), sizes))
    for ours, theirs in zip(features.values(), body, strict=True):
        theirs = theirs.transpose(0, 2, 3, 1)
        assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    ours = model(tf.constant(image[None]), sizes)
    assert int(ours["num_detections"][0]) == len(found["scores"]) > 10
    np.testing.assert_allclose(ours["detection_scores"][0], found["scores"].numpy(), atol=1e-4)
    gaps = np.abs(ours["detection_boxes"][0][:, None] - found["boxes"].numpy()[:, YXYX][None])
    assert gaps.max(axis=-1).min(axis=1).max() < 0.05
