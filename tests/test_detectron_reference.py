"""The NumPy reference and the blobs agree with the published description of Detectron."""

import csv
import json
import pickle
import pickletools

import numpy as np
import pytest

from tests import detectron_reference as reference
from tests import oracles
from tests.detectron_pickle import blob_shapes, dump, random_blobs
from tests.harness import random_image, shared_data

NARROW = {"width": 8, "fpn": 16, "fc": 32, "mask_filters": 16, "hidden": 16}
# By Python 2.7: {"blobs": {"a": three numbers of float32}}, the bytes of which need all escapes.
NUMBERS = np.frombuffer(b"\x00\x00\x80?'\\\n\"\xff\xfe\x00A", np.float32)
GOLDEN = {
    0: (
        b"(dp0\nS'blobs'\np1\n(dp2\nS'a'\np3\ncnumpy.core.multiarray\n_reconstruct\np4\n"
        b"(cnumpy\nndarray\np5\n(I0\ntp6\nS'b'\np7\ntp8\nRp9\n(I1\n(I3\ntp10\ncnumpy\n"
        b"dtype\np11\n(S'f4'\np12\nI0\nI1\ntp13\nRp14\n(I3\nS'<'\np15\nNNNI-1\nI-1\nI0\n"
        b"tp16\nbI00\nS'\\x00\\x00\\x80?\\'\\\\\\n\"\\xff\\xfe\\x00A'\np17\ntp18\nbss."
    ),
    2: (
        b"\x80\x02}q\x00U\x05blobsq\x01}q\x02U\x01aq\x03cnumpy.core.multiarray\n_reconstruct"
        b"\nq\x04cnumpy\nndarray\nq\x05K\x00\x85q\x06U\x01bq\x07\x87q\x08Rq\t(K\x01K\x03\x85"
        b"q\ncnumpy\ndtype\nq\x0bU\x02f4q\x0cK\x00K\x01\x87q\rRq\x0e(K\x03U\x01<q\x0fNNNJ"
        b"\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x10b\x89U\x0c\x00\x00\x80?'\\\n\"\xff\xfe"
        b"\x00Aq\x11tq\x12bss."
    ),
}


@pytest.mark.parametrize("depth", [50, 101])
def test_blobs_are_those_of_the_published_models(depth):
    path = shared_data().parent / f"blobs-maskx-R{depth}-FPN.tsv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    rows = list(csv.reader(path.read_text().splitlines()[1:], delimiter="\t"))
    shapes = {name: tuple(map(int, shape.split("x"))) for name, shape, _, _ in rows}
    assert blob_shapes(depth) == shapes
    twins = {f"{name}_momentum": shapes[name] for name, _, _, trained in rows if trained == "yes"}
    assert blob_shapes(depth, momentum=True) == shapes | twins


@pytest.mark.parametrize(
    ("depth", "blobs", "parameters", "twins"),
    [(50, 205, 203109364, 88), (101, 358, 222101492, 139)],
)
def test_totals(depth, blobs, parameters, twins):
    shapes = blob_shapes(depth)
    assert len(shapes) == blobs
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters
    assert len(blob_shapes(depth, momentum=True)) == blobs + twins


def added(**options):
    """The blobs that a file has and the published R-50 has not, or in another shape."""
    base = blob_shapes()
    return {name: s for name, s in blob_shapes(**options).items() if base.get(name) != s}


def test_variants_of_the_mask_head():
    logits = {"mask_fcn_logits_w": (81, 256, 1, 1), "mask_fcn_logits_b": (81,)}
    assert added(mask="class_specific") == logits
    logits = {"mask_fcn_logits_w": (1, 256, 1, 1), "mask_fcn_logits_b": (1,)}
    assert added(mask="class_agnostic") == logits
    assert added(transfer_input="cls") == {"bbox2mask_mlp_l1_w": (256, 1024)}
    assert added(transfer_input="box") == {"bbox2mask_mlp_l1_w": (256, 4096)}
    glove = {"bbox2mask_mlp_l1_w": (256, 300), "v_glove": (81, 300)}
    assert added(transfer_input="v_glove") == glove
    assert added(transfer_layers=1) == {"mask_fcn_logits_w_flat_w": (256, 5120)}
    layer = {"bbox2mask_mlp_l2_w": (256, 256), "bbox2mask_mlp_l2_b": (256,)}
    assert added(transfer_layers=3) == layer
    hidden = {"fc_mask_head_mlp_l1_w": (1024, 200704), "fc_mask_head_mlp_l1_b": (1024,)}
    assert added(mlp=2) == hidden | {"mask_mlp_logits_raw_w": (784, 1024)}


def test_variants_of_the_rows_and_what_a_file_inherits():
    rows = {"cls_score_w": (3002, 1024), "cls_score_b": (3002,)}
    rows |= {"bbox_pred_w": (12008, 1024), "bbox_pred_b": (12008,)}
    assert added(rows=3002) == rows
    assert added(backup_rows=3002) == {f"{name}_jcvbackup": s for name, s in rows.items()}
    inherited = added(preserved=True)
    assert inherited.pop("fc1000_w") == (1000, 2048)
    assert inherited.pop("fc1000_b") == (1000,)
    assert inherited.pop("conv1_b") == (64,)
    assert inherited["res5_2_branch2c_b"] == (2048,)
    assert len(inherited) == 16 * 3 + 4
    assert not [
        name for name in blob_shapes(mask=None, rpn=False) if "mask" in name or "rpn" in name
    ]


@pytest.mark.parametrize("protocol", [0, 2])
def test_pickles_are_those_of_python_2(protocol):
    assert dump({"blobs": {"a": NUMBERS}}, protocol) == GOLDEN[protocol]


@pytest.mark.parametrize("protocol", [0, 2])
def test_pickles_load(protocol):
    every_byte = np.arange(256, dtype=np.uint8).repeat(4).view(np.float32)
    blobs = {"a": NUMBERS, "b": every_byte.reshape(8, 32), "t": every_byte.reshape(16, 16).T}
    blobs |= {"big": np.full([3, 700], 0.5), "empty": np.zeros([0, 4], np.float32)}
    loaded = pickle.loads(dump({"blobs": blobs, "cfg": "A: 'b'\n"}, protocol), encoding="latin1")
    assert loaded["cfg"] == "A: 'b'\n"
    assert list(loaded["blobs"]) == list(blobs)
    for name, array in blobs.items():
        assert loaded["blobs"][name].dtype == array.dtype
        assert loaded["blobs"][name].shape == array.shape
        assert loaded["blobs"][name].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("protocol", "text", "unicode"),
    [(0, "STRING", "UNICODE"), (2, "SHORT_BINSTRING", "BINUNICODE")],
)
def test_keys_are_bytes_or_unicode_as_asked(protocol, text, unicode):
    content = {"blobs": 1, "cfg": 2, "long": "x" * 256, "short": "x" * 255}
    data = dump(content, protocol, py2_unicode={"cfg"})
    kinds = {arg: opcode.name for opcode, arg, _ in pickletools.genops(data)}
    assert kinds["blobs"] == text
    assert kinds["cfg"] == unicode
    assert kinds["x" * 255] == text
    assert kinds["x" * 256] == ("STRING" if protocol == 0 else "BINSTRING")
    loaded = pickle.loads(data, encoding="bytes")
    assert set(loaded) == {b"blobs", "cfg", b"long", b"short"}


def test_random_blobs_depend_on_seed_and_name():
    shapes = blob_shapes(**NARROW)
    blobs = random_blobs(shapes, 1)
    assert all(blobs[name].dtype == np.float32 for name in shapes)
    assert {name: blob.shape for name, blob in blobs.items()} == shapes
    again = random_blobs(blob_shapes(**NARROW, momentum=True, preserved=True), 1)
    for name, blob in blobs.items():
        np.testing.assert_array_equal(again[name], blob)
    other = random_blobs(shapes, 2)
    assert all(np.any(other[name] != blob) for name, blob in blobs.items())


def test_convolution_and_pooling_are_their_sums():
    random = np.random.default_rng(0)
    x, weight = random.normal(size=[2, 6, 7]), random.normal(size=[3, 2, 3, 3])
    bias = random.normal(size=3)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1)])
    expected = np.zeros([3, 3, 4])
    pooled = np.zeros([2, 3, 4])
    for i, j in np.ndindex(3, 4):
        window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        expected[:, i, j] = np.einsum("ochw,chw->o", weight, window) + bias
        pooled[:, i, j] = x[:, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2].max(
            (1, 2)
        )
    np.testing.assert_allclose(reference.conv(x, weight, bias, 2, 1), expected)
    np.testing.assert_array_equal(reference.max_pool(x), pooled)


def test_preprocessing_is_bgr_minus_means_padded_to_32():
    image = np.zeros([33, 64, 3], np.uint8)
    image[0, 1] = (200, 100, 50)
    out = reference.preprocess(image)
    assert out.shape == (3, 64, 64)
    np.testing.assert_allclose(out[:, 0, 1], [50 - 102.9801, 100 - 115.9465, 200 - 122.7717])
    np.testing.assert_array_equal(out[:, 33:], 0)


def caffe2_blobs(fixture):
    """The fixture's weights under Detectron's names, its norms folded into scale and bias."""
    blobs = {}

    def layer(ours, theirs):
        blobs[f"{ours}_w"], blobs[f"{ours}_b"] = (
            fixture[f"w/{theirs}.weight"],
            fixture[f"w/{theirs}.bias"],
        )

    def conv_affine(ours, norm, theirs):
        blobs[f"{ours}_w"] = fixture[f"w/{theirs}.weight"]
        parts = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (fixture[f"w/{theirs}.norm.{part}"] for part in parts)
        blobs[f"{norm}_bn_s"] = scale = gamma / np.sqrt(variance + 1e-5)
        blobs[f"{norm}_bn_b"] = beta - mean * scale

    root = "backbone.bottom_up"
    conv_affine("conv1", "res_conv1", f"{root}.stem.conv1")
    branches = {"2a": "conv1", "2b": "conv2", "2c": "conv3", "1": "shortcut"}
    for stage, count in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
        for block in range(count):
            for ours, theirs in branches.items():
                if block == 0 or ours != "1":
                    name = f"res{stage}_{block}_branch{ours}"
                    conv_affine(name, name, f"{root}.res{stage}.{block}.{theirs}")
        top = f"res{stage}_{count - 1}_sum"
        suffix = "_lateral" if stage < 5 else ""
        layer(f"fpn_inner_{top}{suffix}", f"backbone.fpn_lateral{stage}")
        layer(f"fpn_{top}", f"backbone.fpn_output{stage}")
    for ours, theirs in (
        ("conv_rpn_fpn2", "proposal_generator.rpn_head.conv"),
        ("rpn_cls_logits_fpn2", "proposal_generator.rpn_head.objectness_logits"),
        ("rpn_bbox_pred_fpn2", "proposal_generator.rpn_head.anchor_deltas"),
        ("fc6", "roi_heads.box_head.fc1"),
        ("fc7", "roi_heads.box_head.fc2"),
        ("cls_score", "roi_heads.box_predictor.cls_score"),
        ("bbox_pred", "roi_heads.box_predictor.bbox_pred"),
        ("conv5_mask", "roi_heads.mask_head.deconv"),
        ("mask_fcn_logits", "roi_heads.mask_head.predictor"),
        *((f"_[mask]_fcn{i}", f"roi_heads.mask_head.mask_fcn{i}") for i in (1, 2, 3, 4)),
    ):
        layer(ours, theirs)
    return blobs


@pytest.fixture(scope="module")
def peer():
    path = shared_data() / "fixtures" / "detectron2_stride1x1.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    fixture = dict(np.load(path))
    return fixture, caffe2_blobs(fixture)


def relative_error(found, expected):
    """Largest deviation as a share of the largest value."""
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


def test_features_are_the_peers(peer):
    fixture, blobs = peer
    features = reference.backbone(blobs, fixture["input"][0])
    pyramid = reference.fpn(blobs, features)
    outputs = reference.rpn(blobs, pyramid)
    found = {f"C{level}": x for level, x in features.items()}
    found |= {f"P{level}": x for level, x in pyramid.items()}
    found |= {f"rpn_logits_p{level}": x[0] for level, x in outputs.items()}
    found |= {f"rpn_deltas_p{level}": x[1] for level, x in outputs.items()}
    assert len(found) == 4 + 5 + 10
    # Two float32 computations are apart by at most what each is from the exact one.
    own_error = json.loads(str(fixture["meta"]))["fp32_vs_fp64_maxabs_and_scale"]
    for name, x in found.items():
        error, scale = own_error[name]
        assert relative_error(x, fixture[name][0]) < 2 * error / scale, name


def test_heads_are_the_peers(peer):
    fixture, blobs = peer
    logits, deltas = reference.box_head(blobs, fixture["roi7"])
    assert relative_error(logits, fixture["box_logits"]) < 1e-4
    assert relative_error(deltas, fixture["box_deltas"]) < 1e-4
    weights = reference.mask_weights(blobs)
    for label in (0, 7):
        classes = np.full(3, label)
        masks = reference.mask_head(blobs, fixture["roi14"][:3], classes, *weights)
        assert relative_error(masks, fixture["mask_logits"][:3, label]) < 1e-4


def test_decoded_boxes_are_the_peers(peer):
    fixture, _ = peer
    boxes = fixture["given_boxes"] - [0, 0, 1, 1]  # to inclusive corners
    decoded = reference.decode(boxes, fixture["box_deltas"], reference.BOX_WEIGHTS)
    decoded[..., 2:] += 1
    error = relative_error(decoded.reshape(len(boxes), -1), fixture["box_decoded"])
    assert error < 1e-4


def test_roi_align_is_the_peers_without_half_pixel_shift(peer):
    fixture, _ = peer
    expected = fixture["roi7_legacy_sr2"]
    boxes, levels = fixture["given_boxes"][fixture["few"]], fixture["given_level"][fixture["few"]]
    assert set(levels) == {2, 3, 4}
    for level in (2, 3, 4):
        chosen = levels == level
        found = reference.roi_align(fixture[f"P{level}"][0], boxes[chosen], 7, 2**level)
        assert relative_error(found, expected[chosen]) < 1e-4


CELL_ANCHORS = {
    4: [[-22, -10, 25, 13], [-14, -14, 17, 17], [-10, -22, 13, 25]],
    8: [[-40, -20, 47, 27], [-28, -28, 35, 35], [-20, -44, 27, 51]],
    16: [[-84, -40, 99, 55], [-56, -56, 71, 71], [-36, -80, 51, 95]],
    32: [[-164, -72, 195, 103], [-112, -112, 143, 143], [-76, -168, 107, 199]],
    64: [[-332, -152, 395, 215], [-224, -224, 287, 287], [-148, -328, 211, 391]],
}


@pytest.mark.parametrize("stride", CELL_ANCHORS)
def test_cell_anchors(stride):
    np.testing.assert_array_equal(reference.cell_anchors(stride), CELL_ANCHORS[stride])


def test_anchors_run_over_rows_columns_and_ratios():
    boxes = reference.anchors(8, 2, 3)
    assert boxes.shape == (18, 4)
    np.testing.assert_array_equal(boxes[1], CELL_ANCHORS[8][1])
    np.testing.assert_array_equal(boxes[3], np.add(CELL_ANCHORS[8][0], [8, 0, 8, 0]))
    np.testing.assert_array_equal(boxes[-1], np.add(CELL_ANCHORS[8][2], [16, 8, 16, 8]))


def test_decode_by_hand():
    box = np.array([[10.0, 20, 19, 39]])  # 10 × 20, centre (15, 30)
    deltas = np.array([[0, 0, 0, 0, 1, 0, 0, 0, 0, -5, 0, 0, 0, 0, 5 * np.log(2), 0]], np.float64)
    same, right, up, wide = reference.decode(box, deltas, (10, 10, 5, 5))[0]
    np.testing.assert_allclose(same, [10, 20, 19, 39])
    np.testing.assert_allclose(right, [11, 20, 20, 39])
    np.testing.assert_allclose(up, [10, 10, 19, 29])
    np.testing.assert_allclose(wide, [5, 20, 24, 39])


def test_decode_clips_large_scales_only():
    box = np.array([[0.0, 0, 15, 15]])
    large, small = reference.decode(box, np.array([[0, 0, 9.0, 9, 0, 0, -9, -9]]))[0]
    np.testing.assert_allclose(large, [8 - 500, 8 - 500, 8 + 500 - 1, 8 + 500 - 1])
    np.testing.assert_allclose(small[2:] - small[:2] + 1, 16 * np.exp(-9))


def test_encode_inverts_decode():
    random = np.random.default_rng(0)
    corners = random.uniform(0, 50, [20, 2, 2])
    boxes = np.concatenate([corners[:, 0], corners.sum(axis=1)], axis=1)
    targets = boxes[::-1]
    deltas = reference.encode(boxes, targets, (10, 10, 5, 5))
    np.testing.assert_allclose(reference.decode(boxes, deltas, (10, 10, 5, 5))[:, 0], targets)


def test_clip_ends_at_the_last_pixel():
    clipped = reference.clip(np.array([[-3.0, 5, 70, 60], [20, -1, 30, 8]]), height=50, width=64)
    np.testing.assert_array_equal(clipped, [[0, 5, 63, 49], [20, 0, 30, 8]])


def test_nms_suppresses_at_the_threshold():
    boxes = np.array([[0.0, 0, 9, 0], [0, 0, 6, 0], [3, 0, 9, 0], [50, 0, 59, 0]])  # one pixel high
    assert reference.iou(boxes[0], boxes)[1] == 0.7
    assert reference.iou(boxes[0], boxes)[3] == 0
    scores = np.array([0.5, 0.4, 0.3, 0.9])
    assert list(reference.nms(boxes, scores, 0.7)) == [0, 3]  # in the order of the input
    assert list(reference.nms(boxes, scores, np.nextafter(0.7, 1))) == [0, 1, 2, 3]
    assert list(reference.nms(boxes, np.array([0.3, 0.4, 0.5, 0.1]), 0.7)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("side", "level"),
    [(1, 2), (111, 2), (112, 3), (223, 3), (224, 4), (447, 4), (448, 5), (9999, 5)],
)
def test_level_of_a_square(side, level):
    assert reference.roi_level(np.array([[7.0, 5, 7 + side - 1, 5 + side - 1]])) == [level]


def test_roi_align_of_a_ramp_is_the_position_of_the_bin():
    y, x = np.mgrid[:20, :30]
    features = np.array([x, y, np.ones([20, 30])], np.float64)
    boxes = np.array([[8.0, 12, 64, 40], [20, 20, 21, 21]])  # the second: less than one cell
    out = reference.roi_align(features, boxes, size=7, stride=4)
    centres = (np.arange(7) + 0.5) / 7
    np.testing.assert_allclose(out[0, 0], np.tile(2 + centres * 14, [7, 1]))
    np.testing.assert_allclose(out[0, 1], np.tile(3 + centres * 7, [7, 1]).T)
    np.testing.assert_allclose(out[1, 0], np.tile(5 + centres, [7, 1]))
    np.testing.assert_allclose(out[:, 2], 1)


def test_roi_align_at_the_border():
    row = np.arange(1.0, 6)[None, None]  # cells 0 to 4 hold 1 to 5
    samples = reference.roi_align(row, np.array([[-2.0, 0, 8, 0]]), size=20, stride=1, samples=1)
    expected = [0, 0, 1, 1, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4.25, 4.75, 5, 5, 0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(samples[0, 0, 0], expected)
    edges = reference.roi_align(row, np.array([[-1.5, 0, -0.5, 0], [4.5, 0, 5.5, 0]]), 1, 1, 1)
    np.testing.assert_allclose(edges[:, 0, 0, 0], [1, 5])  # at −1 and at 5: still inside


def test_pyramid_roi_align_uses_the_boxes_own_level():
    pyramid = {level: np.full([1, 64, 64], float(level)) for level in (2, 3, 4, 5)}
    boxes = np.array([[0.0, 0, side, side] for side in (300, 20, 500, 130)])
    out = reference.pyramid_roi_align(pyramid, boxes, 2)
    np.testing.assert_allclose(out[:, 0, 0, 0], [4, 2, 5, 3])


def rpn_outputs(height, width, best):
    """Zero outputs, but the logits of some (level, anchor, row, column)."""
    sizes = {level: (-(-height // 2**level), -(-width // 2**level)) for level in (2, 3, 4, 5, 6)}
    outputs = {k: (np.full([3, *size], -9.0), np.zeros([12, *size])) for k, size in sizes.items()}
    for (level, *cell), logit in best.items():
        outputs[level][0][tuple(cell)] = logit
    return outputs


def test_proposals_are_the_best_of_all_levels():
    best = {(3, 1, 8, 8): 2.0, (2, 0, 20, 4): 3.0, (4, 2, 4, 4): 1.0, (2, 0, 20, 5): 2.5}
    outputs = rpn_outputs(128, 160, best)
    boxes, scores = reference.proposals(outputs, 128, 160, post_nms=3)
    expected = [
        np.add(CELL_ANCHORS[4][0], [16, 80, 16, 80]),  # its neighbour overlaps by more than 0.7
        np.add(CELL_ANCHORS[8][1], [64, 64, 64, 64]),
        np.clip(np.add(CELL_ANCHORS[16][2], [64, 64, 64, 64]), 0, [159, 127, 159, 127]),
    ]
    expected[0][0] = 0  # from −6
    np.testing.assert_allclose(boxes, expected)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp([-3.0, -2, -1])))


def test_proposals_decode_the_best_anchors_of_each_level_only():
    outputs = rpn_outputs(128, 160, {(2, 1, 10, 10): 3.0, (2, 1, 20, 20): 2.0, (5, 1, 1, 1): 1.0})
    outputs[2][1][4:8, 10, 10] = [0.5, 0, 0, np.log(2)]  # dx, dy, dw, dh of anchor 1
    boxes, _ = reference.proposals(outputs, 128, 160, pre_nms=1)
    assert len(boxes) == 5
    np.testing.assert_allclose(boxes[0], [40 - 14 + 16, 40 - 14 - 16, 40 + 17 + 16, 40 + 17 + 16])
    np.testing.assert_allclose(boxes[1], [0, 0, 159, 127])


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["cls", "box", "cls+box", "v_glove", "v_randn_0"])
@pytest.mark.parametrize(("activation", "slope"), [("leaky_relu", 0.1), ("relu", 0), ("none", 1)])
def test_transfer_function_on_all_rows(layers, kind, activation, slope):
    options = {"transfer_layers": layers, "transfer_input": kind, "mlp": False}
    shapes = blob_shapes(
        rows=5, mask="transfer", embedding_dim=7, **(NARROW | {"hidden": 6}), **options
    )
    blobs = random_blobs(shapes, 3)
    scores, boxes = blobs["cls_score_w"], blobs["bbox_pred_w"]
    rows = [[scores[c]] for c in range(5)] if "cls" in kind else [[] for _ in range(5)]
    for c in range(5):
        if "box" in kind:
            rows[c] += [boxes[4 * c + j] for j in range(4)]  # dx, dy, dw, dh
        if kind in blobs:
            rows[c] += [blobs[kind][c]]
    x = np.array([np.concatenate(row) for row in rows], np.float64)
    for name in ["bbox2mask_mlp_l1", "bbox2mask_mlp_l2"][: layers - 1]:
        x = np.einsum("ki,oi->ko", x, blobs[f"{name}_w"]) + blobs[f"{name}_b"]
        x = np.maximum(x, 0) + slope * np.minimum(x, 0)
    name = "mask_fcn_logits_w_flat"
    expected = np.einsum("ki,oi->ko", x, blobs[f"{name}_w"]) + blobs[f"{name}_b"]
    kernels, biases = reference.mask_weights(blobs, kind, activation)
    np.testing.assert_allclose(kernels, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(biases, np.zeros(5))


def test_transfer_wins_over_a_stale_learned_layer():
    blobs = random_blobs(blob_shapes(**NARROW, mlp=False), 0)
    kernels, _ = reference.mask_weights(blobs)
    stale = {"mask_fcn_logits_w": np.ones([81, 16, 1, 1]), "mask_fcn_logits_b": np.ones(81)}
    found, biases = reference.mask_weights(blobs | stale)
    np.testing.assert_array_equal(found, kernels)
    np.testing.assert_array_equal(biases, np.zeros(81))


def test_mask_trunk_ends_in_a_transposed_convolution():
    blobs = random_blobs(blob_shapes(**NARROW, mlp=False), 0)
    for index in (1, 2, 3, 4):  # identity: what is positive passes
        blobs[f"_[mask]_fcn{index}_w"] = np.pad(
            np.eye(16)[:, :, None, None], [(0, 0)] * 2 + [(1, 1)] * 2
        )
        blobs[f"_[mask]_fcn{index}_b"] = np.zeros(16)
    x = np.random.default_rng(0).uniform(0, 1, [2, 16, 14, 14])
    weight, bias = blobs["conv5_mask_w"], blobs["conv5_mask_b"]
    out = reference.mask_trunk(blobs, x)
    assert out.shape == (2, 16, 28, 28)
    for n, y, column in [(0, 0, 0), (1, 13, 6), (0, 27, 12), (1, 4, 27)]:
        kernel = weight[:, :, y % 2, column % 2]  # [in, out]
        expected = np.einsum("c,co->o", x[n, :, y // 2, column // 2], kernel) + bias
        np.testing.assert_allclose(out[n, :, y, column], np.maximum(expected, 0))


@pytest.mark.parametrize(("mask", "channel"), [("class_specific", 3), ("class_agnostic", 0)])
def test_mask_logits_are_the_class_channel_and_the_mlp(mask, channel):
    blobs = random_blobs(blob_shapes(rows=5, mask=mask, **NARROW), 0)
    features = np.random.default_rng(0).normal(size=[2, 16, 14, 14])
    trunk = reference.mask_trunk(blobs, features)
    weight = blobs["mask_mlp_logits_raw_w"].reshape(28, 28, 16, 28, 28)  # y, x, then c, y, x
    mlp = np.einsum("yxchw,nchw->nyx", weight, trunk)
    mlp += blobs["mask_mlp_logits_raw_b"].reshape(28, 28)
    kernel, bias = blobs["mask_fcn_logits_w"][channel, :, 0, 0], blobs["mask_fcn_logits_b"][channel]
    expected = np.einsum("c,nchw->nhw", kernel, trunk) + bias + mlp
    weights = reference.mask_weights(blobs)
    found = reference.mask_head(blobs, features, np.array([3, 3]), *weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_mlp_variant_with_hidden_layers():
    blobs = random_blobs(blob_shapes(mlp=3, **NARROW), 0)
    trunk = np.random.default_rng(0).uniform(0, 1, [2, 16, 28, 28])
    x = trunk.reshape(2, -1)
    for name in ("fc_mask_head_mlp_l1", "fc_mask_head_mlp_l2", "mask_mlp_logits_raw"):
        x = x @ blobs[f"{name}_w"].T + blobs[f"{name}_b"]
        x = x if name == "mask_mlp_logits_raw" else x.clip(0)
    expected = x.reshape(2, 28, 28)
    np.testing.assert_allclose(reference.mask_mlp(blobs, trunk), expected, rtol=1e-5, atol=1e-6)


def test_selection_is_by_class_and_keeps_ties_at_the_limit():
    box, far, low = [0.0, 0, 9, 9], [50.0, 0, 59, 9], [0.0, 50, 9, 59]
    boxes = np.array([[box, low, far], [box, box, far], [far, far, box]])
    scores = np.array([[0.9, 0.05, 0.2], [0.8, 0.06, 0.3], [0.7, 0.2, 0.06]])
    found, best, classes = reference.select(boxes, scores, 0.05, 0.5, 100)
    np.testing.assert_array_equal(classes, [1, 1, 2, 2])  # 0.05 is not above, 0.2 suppressed
    np.testing.assert_array_equal(best, [0.06, 0.2, 0.3, 0.06])
    np.testing.assert_array_equal(found, [box, far, far, box])
    assert list(reference.select(boxes, scores, 0.05, 0.5, 2)[1]) == [0.2, 0.3]
    assert list(reference.select(boxes, scores, 0.05, 0.5, 3)[1]) == [0.06, 0.2, 0.3, 0.06]
    assert reference.select(boxes, scores, 0.95, 0.5, 3)[0].shape == (0, 4)


@pytest.mark.parametrize("depth", [50, 101])
def test_random_blobs_detect_in_several_classes(depth):
    blobs = random_blobs(blob_shapes(depth, **NARROW), 0)
    image = random_image(90, 120)
    found = reference.detect(blobs, image, (45, 60), 2.0, pre_nms=100, post_nms=60)
    assert len(found["scores"]) > 30
    assert len(set(found["classes"])) >= 8
    assert np.all(found["scores"] > 0.05)
    assert found["proposals"].shape == (60, 4)
    assert list(found["proposals"].max(axis=0)[2:]) == [127, 95]  # clipped to the padded image
    assert 0.3 < np.std(found["deltas"]) < 3
    assert 0.7 < np.std(found["mask_logits"]) < 8
    assert found["mask_logits"].shape == (len(found["scores"]), 28, 28)
    assert np.all(found["boxes"] >= 0) and np.all(found["boxes"] <= [59, 44, 59, 44])


def test_detection_decodes_in_original_pixels():
    blobs = random_blobs(blob_shapes(mask=None, rows=3, **NARROW), 0)
    found = reference.detect(blobs, random_image(64, 96), (128, 192), 0.5, pre_nms=50, post_nms=20)
    assert "mask_logits" not in found
    for box, score, label in zip(found["boxes"], found["scores"], found["classes"], strict=True):
        probabilities = oracles.softmax(found["class_logits"])[:, label]
        row = int(np.argmin(np.abs(probabilities - score)))
        x1, y1, x2, y2 = found["proposals"][row] * 2  # corners scale without + 1
        dx, dy, dw, dh = found["deltas"][row, 4 * label : 4 * label + 4] / [10, 10, 5, 5]
        width, height = (x2 - x1 + 1) * np.exp(dw), (y2 - y1 + 1) * np.exp(dh)
        x, y = x1 + (x2 - x1 + 1) * (0.5 + dx), y1 + (y2 - y1 + 1) * (0.5 + dy)
        expected = [x - width / 2, y - height / 2, x + width / 2 - 1, y + height / 2 - 1]
        np.testing.assert_allclose(box, np.clip(expected, 0, [191, 127, 191, 127]), atol=1e-9)


def test_detected_masks_pool_boxes_of_the_network_input():
    blobs = random_blobs(blob_shapes(rows=5, **NARROW), 0)
    image = random_image(64, 96)
    found = reference.detect(blobs, image, (128, 192), 0.5, pre_nms=50, post_nms=20)
    pyramid = reference.fpn(blobs, reference.backbone(blobs, reference.preprocess(image)))
    features = reference.pyramid_roi_align(pyramid, found["boxes"] / 2, 14)
    weights = reference.mask_weights(blobs)
    masks = reference.mask_head(blobs, features, found["classes"], *weights)
    assert len(masks) > 5
    np.testing.assert_allclose(found["mask_logits"], masks)


def bilinear(grid, y, x):
    """The value between pixel centres at integers, clamped at the border."""
    rows, columns = (
        oracles.bilinear_weights([y], len(grid)),
        oracles.bilinear_weights([x], len(grid)),
    )
    return float((rows @ grid @ columns.T)[0, 0])


@pytest.mark.parametrize(
    "box",
    [(10.0, 12, 65, 50), (0, 0, 27, 27), (50.7, 3.2, 79, 59), (4.5, 5.5, 4.6, 5.7), (0, 8, 79, 9)],
)
def test_paste_resizes_the_padded_mask_into_the_expanded_box(box):
    mask = np.random.default_rng(0).uniform(0, 1, [28, 28]).astype(np.float32)
    padded = np.pad(mask.astype(np.float64), 1)
    x1, y1, x2, y2 = box
    grow_x, grow_y = (x2 - x1) / 28, (y2 - y1) / 28  # 30 / 28 of the size: 1 / 28 on each side
    left, right = int(x1 - grow_x), int(x2 + grow_x)
    top, bottom = int(y1 - grow_y), int(y2 + grow_y)
    out = reference.paste(mask, np.array(box), 60, 80)
    assert out.shape == (60, 80)
    checked = 0
    for y, x in np.ndindex(60, 80):
        inside = top <= y <= bottom and left <= x <= right
        position_y = (y - top + 0.5) * 30 / (bottom - top + 1) - 0.5
        position_x = (x - left + 0.5) * 30 / (right - left + 1) - 0.5
        value = bilinear(padded, position_y, position_x) if inside else 0.0
        if abs(value - 0.5) > 1e-3:
            assert out[y, x] == (value > 0.5), (y, x, value)
            checked += 1
    assert checked > 4700


def test_paste_needs_more_than_one_half():
    box = np.array([10.0, 10, 37, 37])
    assert not reference.paste(np.full([28, 28], 0.5), box, 60, 60).any()
    assert reference.paste(np.full([28, 28], 0.6), box, 60, 60)[11:37, 11:37].all()


@pytest.mark.slow
def test_full_size_model_detects():
    blobs = random_blobs(blob_shapes(), 0)
    found = reference.detect(blobs, random_image(64, 96), (64, 96), 1.0, pre_nms=100, post_nms=50)
    assert len(found["scores"]) > 30
    assert len(set(found["classes"])) >= 8
    assert 1 < np.std(found["mask_logits"]) < 8
