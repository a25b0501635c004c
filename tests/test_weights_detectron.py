"""Detectron's pickles, imported, give what its formulas give in plain NumPy; options and errors."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import linear_sum_assignment

from maskx_tf import checkpoints
from maskx_tf.errors import UserError
from maskx_tf.weights import detectron, importing
from tests import detectron_pickle, detectron_reference
from tests.harness import thorough

NARROW = {"width": 8, "fpn": 16, "fc": 32, "mask_filters": 16, "hidden": 16}
SIZE, SCALE = (96, 128), 1.6  # network input; of an image of 60 x 80 pixels
ORIGINAL = (60, 80)
SCALES = tf.constant([[SCALE, SCALE]])
XYXY = [1, 0, 3, 2]  # from yxyx
# With few proposals, and the rounding of direct convolutions, to which the bounds are set.
PROPOSALS = {"rpn_pre_nms_test": 300, "rpn_post_nms_test": 200, "convolutions": "direct"}
LAST_PIXEL = np.array([0, 0, 1, 1])  # from exclusive corners to inclusive ones


def image(seed=0):
    """Smooth noise, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = tf.constant(rng.uniform(0, 255, (1, 12, 16, 3)), tf.float32)
    return tf.image.resize(coarse, SIZE, "bicubic").numpy()[0].clip(0, 255).round()


def matches(ours, theirs):
    """For each of their rows one of ours: near-equal scores may change places."""
    return linear_sum_assignment(np.abs(ours[None] - theirs[:, None]).max(axis=-1))[1]


def compare(imported, blobs, tolerance=1e-4, box_weights=(10, 10, 5, 5)):
    """Asserts that all outputs of the model on an image are those of the reference.

    RoIs of the heads are the reference's. `tolerance` is that of the final detections, to which the
    rounding of all stages adds up.
    """
    model = imported.loaded.model
    wanted = detectron_reference.detect(
        blobs, image(), ORIGINAL, SCALE, pre_nms=300, post_nms=200, box_weights=box_weights
    )
    images, sizes = tf.constant(image()[None]), tf.constant([SIZE], tf.float32)
    pyramid = model.pyramid(images, sizes)
    proposals, scores = model.rpn.propose(model.rpn(pyramid), sizes, 300, 200)
    assert np.sum(scores > -np.inf) == len(wanted["proposals"]) > 100
    corners = proposals[0, : len(wanted["proposals"])].numpy()[:, XYXY] - LAST_PIXEL
    assert_close(corners[matches(corners, wanted["proposals"])], wanted["proposals"])

    rois = (wanted["proposals"] + LAST_PIXEL)[None, :, XYXY].astype(np.float32)
    features = model.box_head(model.roi_features(pyramid, tf.constant(rois), 7))
    assert_close(model.box_head.class_logits(features), wanted["class_logits"])
    for c in range(1, wanted["class_logits"].shape[1], 17):
        deltas = model.box_head.class_deltas(features, tf.fill([len(corners)], c)).numpy()
        theirs = wanted["deltas"][:, 4 * c : 4 * c + 4] / box_weights
        assert_close(deltas[:, XYXY] / (10, 10, 5, 5), theirs)

    found = {key: value.numpy()[0] for key, value in model(images, sizes, SCALES).items()}
    count = found["num_detections"]
    assert count == len(wanted["boxes"]) > 20 and len(set(wanted["classes"])) > 2
    boxes = found["detection_boxes"][:count, XYXY] / SCALE - LAST_PIXEL
    kinds = found["detection_classes"][:count]
    order = matches(
        np.column_stack([boxes, 1e3 * kinds]),
        np.column_stack([wanted["boxes"], 1e3 * wanted["classes"]]),
    )
    assert_close(boxes[order], wanted["boxes"], tolerance)
    np.testing.assert_array_equal(kinds[order], wanted["classes"])
    # Proposals part by up to 6e-4 pixels; where logits reach 22, some move by as much.
    assert_close(found["detection_scores"][order], wanted["scores"], max(tolerance, 3e-4))
    if "mask_logits" in wanted:
        rois = (wanted["boxes"] * SCALE + LAST_PIXEL)[:, XYXY].astype(np.float32)
        size = model.config.mask_roi_size
        features = model.flat_roi_features(pyramid, rois, tf.zeros([count], tf.int32), size)
        logits = model.mask_logits(features, kinds[order])
        assert_close(logits, wanted["mask_logits"])
        probabilities = detectron_reference.sigmoid(wanted["mask_logits"])
        assert probabilities.max() > 0.8 and probabilities.min() < 0.2
        # Of boxes that part by up to 1e-3 pixels; where logits reach 25, some move by 5e-3.
        np.testing.assert_allclose(
            found["detection_masks"][order], probabilities, atol=max(10 * tolerance, 2e-3)
        )


def assert_close(ours, theirs, tolerance=1e-4):
    """Within `tolerance` of the largest value."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def write(path, blobs, protocol=2, settings=""):
    """The path of a file as Detectron left it."""
    path.write_bytes(detectron_pickle.dump({"blobs": blobs, "cfg": settings}, protocol))
    return str(path)


def blobs_of(**options):
    """Random blobs of a narrow model."""
    return detectron_pickle.random_blobs(detectron_pickle.blob_shapes(**NARROW | options), seed=0)


TRANSFERS = [
    (transfer_input, *shape)
    for transfer_input in ("cls", "box", "cls+box", "v_glove", "v_randn_0")
    for shape in [(1, "none"), (2, "relu"), (2, "leaky_relu"), (3, "relu"), (3, "leaky_relu")]
]
SOME_TRANSFERS = [("cls", 1, "none"), ("box", 2, "relu"), ("cls+box", 3, "leaky_relu")]


class TestEqualsTheFormulas:
    @pytest.mark.parametrize("protocol", [thorough(0), 2])
    def test_mask_x(self, tmp_path, protocol):
        blobs = blobs_of()
        imported = detectron.load(write(tmp_path / "a.pkl", blobs, protocol), PROPOSALS)
        assert imported.title == (
            "Mask^X R-CNN R-50-FPN (T: cls+box, 2 layers, leaky_relu; MLP branch), 80 classes, "
            "conventions: detectron"
        )
        assert imported.blobs.unexpected == [] and imported.blobs.ignored == {}
        compare(imported, blobs)

    @pytest.mark.parametrize("depth", [50, thorough(101)])
    @pytest.mark.parametrize("mask", ["class_agnostic", "class_specific", thorough(None)])
    def test_mask_and_faster_rcnn(self, tmp_path, depth, mask):
        blobs = blobs_of(depth=depth, mask=mask, mlp=mask == "class_agnostic")
        imported = detectron.load(write(tmp_path / "a.pkl", blobs), PROPOSALS)
        # float32 against float64 through 101 layers of random weights; processors differ in it.
        compare(imported, blobs, tolerance=1e-4 if depth == 50 else 4e-3)

    @pytest.mark.parametrize(
        ("transfer_input", "layers", "activation"),
        [case if case in SOME_TRANSFERS else thorough(*case) for case in TRANSFERS],
    )
    def test_every_transfer_function(self, tmp_path, transfer_input, layers, activation):
        blobs = blobs_of(transfer_input=transfer_input, transfer_layers=layers, mlp=False)
        options = PROPOSALS | {"transfer_activation": activation}
        imported = detectron.load(write(tmp_path / "a.pkl", blobs), options)
        kernels, _ = detectron_reference.mask_weights(blobs, transfer_input, activation)
        assert_close(imported.loaded.model.w_seg(tf.range(81)), kernels)
        assert imported.blobs.unexpected == []

    @pytest.mark.slow
    @pytest.mark.parametrize("rows", [81, 3002])
    def test_full_size(self, tmp_path, rows):
        """All blobs of a published model, 203 million values and more."""
        shapes = detectron_pickle.blob_shapes(rows=rows, momentum=True, preserved=True)
        blobs = detectron_pickle.random_blobs(shapes, seed=0)
        vocabulary = tmp_path / "classes.txt"
        vocabulary.write_text("".join(f"class {c}\n" for c in range(1, rows)))
        path = write(tmp_path / "a.pkl", blobs)
        imported = detectron.load(path, PROPOSALS | {"vocabulary": str(vocabulary)})
        used = detectron_pickle.blob_shapes(rows=rows)
        assert set(imported.blobs.used) == set(used) and imported.blobs.unexpected == []
        compare(imported, blobs)

    @pytest.mark.thorough
    def test_3002_rows(self, tmp_path):
        blobs = blobs_of(rows=3002)
        vocabulary = tmp_path / "classes.txt"
        vocabulary.write_text("".join(f"class {c}\n" for c in range(1, 3002)))
        path = write(tmp_path / "a.pkl", blobs)
        compare(detectron.load(path, PROPOSALS | {"vocabulary": str(vocabulary)}), blobs)


class TestBlobs:
    def test_every_blob_is_accounted_for(self, tmp_path):
        shapes = detectron_pickle.blob_shapes(
            **NARROW, momentum=True, preserved=True, backup_rows=3002
        )
        blobs = detectron_pickle.random_blobs(shapes, seed=0)
        blobs |= {"v_glove": np.zeros([81, 300], np.float32), "surprise": np.zeros([2, 3])}
        imported = detectron.load(write(tmp_path / "a.pkl", blobs))
        report = importing.save(imported, str(tmp_path / "run"))
        accounts = imported.blobs
        assert set(accounts.used) == set(detectron_pickle.blob_shapes(**NARROW))
        assert accounts.unexpected == ["surprise"]
        assert set(accounts.used) | set(accounts.ignored) | {"surprise"} == set(blobs)
        assert set(accounts.ignored.values()) == {
            "of the optimizer (*_momentum)",
            "rows of classes left out (*_jcvbackup; --restore_classes takes them)",
            "of the ImageNet classifier (fc1000_*)",
            "biases of convolutions that Detectron does not use",
            "class embeddings that no T takes",
        }
        assert "unexpected, not used: surprise" in report
        table = (tmp_path / "run" / importing.TABLE).read_text().splitlines()
        assert len(table) == len(blobs)
        assert "unexpected\tsurprise\t(2, 3)" in table
        assert "used\tfc7_w\t(32, 32)\tbox_head/fc2/kernel" in table

    def test_biases_that_detectron_ignores_change_nothing(self, tmp_path):
        plain = blobs_of()
        preserved = blobs_of(preserved=True)
        models = [
            detectron.load(write(tmp_path / name, blobs)).loaded.model
            for name, blobs in (("a.pkl", plain), ("b.pkl", preserved))
        ]
        for one, other in zip(models[0].weights, models[1].weights, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_backup_rows_restore_the_classes(self, tmp_path):
        blobs = blobs_of(backup_rows=3002)
        vocabulary = tmp_path / "classes.txt"
        vocabulary.write_text("".join(f"class {c}\n" for c in range(1, 3002)))
        path, options = write(tmp_path / "a.pkl", blobs), {"vocabulary": str(vocabulary)}
        imported = detectron.load(path, options, restore_classes=True)
        np.testing.assert_array_equal(
            imported.loaded.model.box_head.cls_kernel, blobs["cls_score_w_jcvbackup"]
        )
        importing.save(imported, str(tmp_path / "run"))
        table = (tmp_path / "run" / importing.TABLE).read_text().splitlines()
        assert len(table) == len(blobs)
        assert "used\tcls_score_w_jcvbackup\t(3002, 32)\tbox_head/cls_kernel" in table
        (cut,) = (line for line in table if "\tcls_score_w\t" in line)
        assert cut.startswith("ignored\tcls_score_w\t(81, 32)\trows that --restore_classes")
        assert len(imported.blobs.ignored) == 4 and not imported.blobs.unexpected
        with pytest.raises(UserError, match="no cls_score_w_jcvbackup"):
            detectron.load(write(tmp_path / "b.pkl", blobs_of()), restore_classes=True)

    def test_mask_weights_that_t_replaces_are_ignored(self, tmp_path):
        stale = {"mask_fcn_logits_w": np.ones([81, 16, 1, 1], np.float32)}
        imported = detectron.load(write(tmp_path / "a.pkl", blobs_of() | stale))
        assert imported.loaded.config.mask_output == "transfer"
        assert imported.blobs.ignored == {"mask_fcn_logits_w": "mask weights that T replaces"}

    def test_two_embeddings_need_a_choice(self, tmp_path):
        other = {"v_randn_0": np.ones([81, 300], np.float32)}
        blobs = blobs_of(transfer_input="v_glove") | other
        path = write(tmp_path / "a.pkl", blobs)
        with pytest.raises(UserError, match=r"--embedding\. Candidates: v_glove, v_randn_0"):
            detectron.load(path)
        imported = detectron.load(path, embedding="v_glove")
        np.testing.assert_array_equal(imported.loaded.model.embeddings, blobs["v_glove"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"transfer_input": "cls"}, "T takes 32 inputs per class, its class weights; leave"),
            ({"transfer_input": "cls+box"}, "T takes 160 inputs per class, its class weights"),
            ({"mask": "class_agnostic"}, "has no T; leave --embedding=v_glove out"),
            ({"mask": None}, "has no T; leave --embedding=v_glove out"),
        ],
    )
    @pytest.mark.parametrize("has_blob", [True, False])
    def test_an_embedding_that_no_t_takes_is_refused(self, tmp_path, options, message, has_blob):
        blobs = blobs_of(**options)
        if has_blob:
            blobs["v_glove"] = np.ones([81, 300], np.float32)
        with pytest.raises(UserError, match=message):
            detectron.load(write(tmp_path / "a.pkl", blobs), embedding="v_glove")

    def test_old_models_have_other_regression_weights(self, tmp_path):
        blobs = blobs_of(mask=None)
        old = detectron.load(write(tmp_path / "a.pkl", blobs, settings="MODEL: {}\n"), PROPOSALS)
        compare(old, blobs, box_weights=(1, 1, 1, 1))

    def test_but_none_that_t_reads(self, tmp_path):
        blobs = blobs_of()
        imported = detectron.load(write(tmp_path / "a.pkl", blobs, settings="MODEL: {}\n"))
        ours = imported.loaded.model.box_head.box_kernel.numpy()[:, [1, 0, 3, 2]]
        np.testing.assert_array_equal(ours.reshape(-1, 32), blobs["bbox_pred_w"])


class TestSettings:
    """The training configuration that a file carries, a yaml text that is never interpreted."""

    @pytest.mark.parametrize(
        ("settings", "option", "value"),
        [
            ("USE_LEAKYRELU: false", "transfer_activation", "relu"),
            thorough("USE_LEAKYRELU: true", "transfer_activation", "leaky_relu"),
            ("STOP_DET_W_GRAD: false", "transfer_stop_gradient", False),
            ("DATASETS: !!python/tuple [coco_split_voc_2014_train]", "mask_classes", "voc"),
            thorough("DATASETS: [coco_split_nonvoc_2014_train]", "mask_classes", "nonvoc"),
        ],
    )
    def test_read(self, tmp_path, settings, option, value):
        text = f"!!python/object/new:lib.AttrDict\nBBOX_REG_WEIGHTS: [10, 10, 5, 5]\n{settings}\n"
        imported = detectron.load(write(tmp_path / "a.pkl", blobs_of(), settings=text))
        assert getattr(imported.loaded.config, option) == value

    def test_the_user_knows_better(self, tmp_path):
        path = write(tmp_path / "a.pkl", blobs_of(), settings="USE_LEAKYRELU: false")
        imported = detectron.load(path, {"transfer_activation": "leaky_relu"})
        assert imported.loaded.config.transfer_activation == "leaky_relu"

    def test_but_not_what_the_blobs_tell(self, tmp_path):
        with pytest.raises(UserError, match="has transfer_layers=2, not 3"):
            detectron.load(write(tmp_path / "a.pkl", blobs_of()), {"transfer_layers": 3})


class TestModelDirectory:
    def test_round_trip_without_the_embeddings_file(self, tmp_path):
        blobs = blobs_of(transfer_input="v_glove", mlp=False)
        imported = detectron.load(write(tmp_path / "a.pkl", blobs))
        importing.save(imported, str(tmp_path / "run"))
        (tmp_path / "run" / importing.EMBEDDINGS).unlink()
        loaded = checkpoints.load_model(str(tmp_path / "run"))
        assert loaded.config.conventions == "detectron" and loaded.vocabulary.names[0] == "person"
        assert loaded.vocabulary.external_ids[-1] == 90
        for ours, theirs in zip(loaded.model.weights, imported.loaded.model.weights, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=ours.name)

    def test_a_model_is_not_overwritten(self, tmp_path):
        imported = detectron.load(write(tmp_path / "a.pkl", blobs_of(mask=None)))
        importing.save(imported, str(tmp_path / "run"))
        with pytest.raises(UserError, match="holds a model already"):
            importing.save(imported, str(tmp_path / "run"))


def refused(tmp_path, blobs, **options):
    with pytest.raises(UserError) as error:
        detectron.load(write(tmp_path / "a.pkl", blobs), **options)
    assert str(tmp_path / "a.pkl") in str(error.value)
    return str(error.value)


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"fpn_inner_res3_3_sum_lateral_w": None},
                "lacks 1 blobs of this architecture: fpn_inner",
            ),
            thorough(
                {"mask_mlp_logits_raw_b": None},
                "lacks 1 blobs of this architecture: mask_mlp_logits",
            ),
            ({"fpn_res2_2_sum_w": None}, "only FPN models are supported"),
            ({"conv_rpn_fpn2_w": None}, "has no RPN"),
            ({"fc6_w": None}, "no box head of two fully connected layers"),
            ({"res5_2_branch2a_w": None}, "has a ResNet with (3, 4, 6, 2) blocks"),
            (
                {"fc7_w": np.zeros([32, 31])},
                "fc7_w (32, 31) does not fit box_head/fc2/kernel (32, 32)",
            ),
            thorough(
                {"fc6_w": np.zeros([32, 785])}, "fc6_w (32, 785) does not fit box_head/fc1/kernel"
            ),
            thorough(
                {"res2_0_branch2b_w": np.zeros([8, 2, 3, 3])}, "does not fit backbone/res2_0/conv2"
            ),
            ({"bbox_pred_w": np.zeros([4, 32])}, "bbox_pred_w (4, 32) does not fit"),
            thorough(
                {"conv1_w": np.full([8, 3, 7, 7], np.nan)}, "holds values that are not finite"
            ),
            (
                {"conv1_w": np.zeros([8, 3, 7, 7], np.int32)},
                "conv1_w (int32) holds values that are not finite",
            ),
            ({"fc_mask_head_mlp_l1_w": np.zeros([2, 2])}, "an MLP branch of several layers"),
        ],
    )
    def test_another_architecture(self, tmp_path, change, message):
        blobs = blobs_of() | change
        blobs = {name: value for name, value in blobs.items() if value is not None}
        assert message in refused(tmp_path, blobs)

    def test_another_network(self, tmp_path):
        blobs = {"vgg/conv1_1_w": np.zeros([64, 3, 3, 3], np.float32)}
        assert "holds no ResNet by Detectron's names; it starts with: vgg/conv1_1_w" in refused(
            tmp_path, blobs
        )

    def test_the_number_of_mask_rows_must_be_that_of_the_classes(self, tmp_path):
        blobs = blobs_of(mask="class_specific") | {"mask_fcn_logits_w": np.zeros([7, 16, 1, 1])}
        assert "has 7 masks for 81 classes and background" in refused(tmp_path, blobs)

    def test_unnamed_classes(self, tmp_path):
        message = refused(tmp_path, blobs_of(rows=12))
        assert "has 11 classes and does not name them" in message

    def test_malicious(self, tmp_path):
        path, target = tmp_path / "a.pkl", tmp_path / "executed"
        path.write_bytes(b"cos\nsystem\n(S'touch " + str(target).encode() + b"'\ntR.")
        with pytest.raises(UserError, match="os.system"):
            detectron.load(str(path))
        assert not target.exists()

    def test_truncated(self, tmp_path):
        path = tmp_path / "a.pkl"
        write(path, blobs_of(mask=None))
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(UserError, match=r"a\.pkl"):
            detectron.load(str(path))


def test_command(run_command, tmp_path):
    path = write(tmp_path / "model_final.pkl", blobs_of(momentum=True))
    arguments = [f"--weights={path}", f"--output_dir={tmp_path / 'run'}", "--mask_classes=voc"]
    done = run_command("maskx_tf.weights.detectron", *arguments)
    count = len(detectron_pickle.blob_shapes())
    momentum = len(detectron_pickle.blob_shapes(momentum=True)) - count
    assert done.stdout.splitlines() == [
        "Mask^X R-CNN R-50-FPN (T: cls+box, 2 layers, leaky_relu; MLP branch), 80 classes, "
        "conventions: detectron",
        "Set A, the classes with mask training: 20 of 80 (--mask_classes).",
        f"{count} blobs used, {momentum} ignored on purpose, 0 unexpected, none missing.",
        f"  ignored: {momentum} of the optimizer (*_momentum)",
        f"written: {tmp_path}/run; every blob is listed in {tmp_path}/run/{importing.TABLE}",
    ]
    names = json.loads((tmp_path / "run" / "vocabulary.json").read_text())
    assert names[1] == {"id": 2, "name": "bicycle"}
    assert json.loads((tmp_path / "run" / "mask_classes.json").read_text())[0] == "person"
    assert "--conventions=detectron" in (tmp_path / "run" / "train.flags").read_text()
    pathlib.Path(path).unlink()  # refused before it is read
    again = run_command("maskx_tf.weights.detectron", *arguments)
    assert again.returncode == 2 and again.stderr.startswith("error: --output_dir=")
