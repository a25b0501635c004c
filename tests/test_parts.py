"""Parts handed into the model, such as a cascade of box heads; the names they are saved by."""

import re

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import box_objective, checkpoints, training
from maskx_tf.assembly import build_model
from maskx_tf.checkpoints import class_weights
from maskx_tf.errors import UserError
from maskx_tf.layers.box_head import DELTA_WEIGHTS as BOX_DELTAS
from maskx_tf.layers.box_head import BoxHead
from maskx_tf.layers.mask_bodies.fcn import FCN
from maskx_tf.layers.mask_head import MaskHead
from maskx_tf.model import trained_variables, variable_key
from maskx_tf.objective import loss_terms, shares, training_losses
from maskx_tf.training import parameter_table
from tests import batches, runs, whole_way

CONFIG = batches.tiny_config(mask_mlp=False, score_threshold=0.01)
SEED = tf.constant([0, 0])
IMAGES = batches.random_features()["image"], tf.fill([2, 2], float(batches.SIDE))


def box_head(name="box_head", **options):
    return BoxHead(batches.NUM_CLASSES, CONFIG.box_fc_units, name=name, **options)


def cascade(**second):
    """A model of two stages that start with the same weights and do not move their RoIs."""
    heads = [box_head(), box_head("box_head_2", **second)]
    model = build_model(CONFIG, batches.NUM_CLASSES, box_heads=heads)
    wake(heads[0])
    heads[1].set_weights(heads[0].get_weights())
    return model


def wake(head):
    """Class scores that vary, boxes that stay where the RoIs are."""
    rng = np.random.default_rng(0)
    head.cls_kernel.assign(rng.normal(0, 3, head.cls_kernel.shape))
    head.box_kernel.assign(np.zeros(head.box_kernel.shape))


def detect(model):
    return model.detect_boxes(model.pyramid(*IMAGES), IMAGES[1])


def test_a_mask_head_that_is_handed_in():
    head = MaskHead(FCN(CONFIG.mask_filters, convs=3), name="mask_head")
    model = build_model(CONFIG, batches.NUM_CLASSES, mask_head=head)
    assert model.mask_head is head
    names = {variable_key(v) for v in model.weights}
    assert "mask_head/conv3/kernel" in names
    wanted = build_model(CONFIG.replace(mask_convs=3), batches.NUM_CLASSES)
    assert names == {variable_key(v) for v in wanted.weights}


class TestCascade:
    def test_stages_that_agree_detect_what_one_of_them_does(self):
        model = cascade()
        one = build_model(CONFIG, batches.NUM_CLASSES)
        wake(one.box_head)
        found, wanted = detect(model), detect(one)
        assert wanted["num_detections"].numpy().min() > 3
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)

    def test_scores_are_the_mean_of_the_stages(self):
        model = cascade()
        rng = np.random.default_rng(1)
        shares = []
        for head in model.box_heads:
            head.cls_kernel.assign(tf.zeros_like(head.cls_kernel))
            head.cls_bias.assign(rng.normal(0, 2, head.cls_bias.shape))
            shares.append(tf.nn.softmax(head.cls_bias).numpy())
        found = detect(model)
        wanted = np.mean(shares, axis=0)[found["detection_classes"].numpy()]
        there = found["detection_scores"].numpy() > 0
        assert there.any()
        np.testing.assert_allclose(found["detection_scores"][there], wanted[there], atol=1e-5)

    def test_the_second_stage_starts_from_the_boxes_of_the_first(self):
        """Both move a RoI by a tenth of its height: two of them by a fifth."""
        found = {}
        for moving in (0, 1, 2):
            model = cascade()
            for head in model.box_heads:
                head.cls_kernel.assign(tf.zeros_like(head.cls_kernel))  # the same order of boxes
            for head in model.box_heads[:moving]:
                head.box_bias.assign(tf.tile([[0.1 * 10, 0.0, 0, 0]], [batches.NUM_CLASSES + 1, 1]))
            found[moving] = rois_of_last_stage(model)
        still, once, twice = (found[i].numpy() for i in range(3))
        inside = (still[..., 2] < 40) & (still[..., 2] > still[..., 0])  # none is clipped
        height = (still[..., 2] - still[..., 0])[inside]
        assert len(height) > 5
        np.testing.assert_allclose((once - still)[inside][:, 0], 0.1 * height, atol=1e-3)
        np.testing.assert_allclose(twice, once, atol=1e-3)  # the last one's deltas come after

    def test_losses_of_each_stage(self):
        model = cascade(positive_iou=0.999)
        labels = batches.to_tensors(batches.random_labels())
        with tf.GradientTape() as tape:
            losses = training_losses(model, batches.random_features(), labels, SEED)
            second = losses["class_2"][0] + losses["box_2"][0]
        terms = loss_terms(CONFIG, stages=2)
        assert set(losses) == {term.name for term in terms} > {"class", "box", "class_2", "box_2"}
        counts = {name: float(count) for name, (_, count) in losses.items()}
        assert counts["class_2"] == counts["class"]
        assert counts["box_2"] == 6 < counts["box"]  # the objects themselves
        gradients = tape.gradient(second, model.box_head_2.trainable_variables)
        assert all(np.any(tf.convert_to_tensor(gradient)) for gradient in gradients)
        of_replica = shares(losses, terms)
        assert list(of_replica) == [term.name for term in terms]
        assert float(of_replica["box_2"]) == pytest.approx(float(losses["box_2"][0]))

    def test_refined_rois_are_where_the_last_head_ends(self, monkeypatch):
        """Heads that each move RoIs down by a tenth of their heights; masks are of these RoIs."""
        labels = batches.to_tensors(batches.random_labels())
        seen = {}
        for name, moving in (("proposals", 2), ("still", 0), ("refined", 2)):
            model = cascade(positive_iou=0.3)
            model.config = CONFIG.replace(mask_rois=name if name == "proposals" else "refined")
            for head in model.box_heads:
                head.cls_kernel.assign(tf.zeros_like(head.cls_kernel))
                head.positive_iou = 0.3
            for head in model.box_heads[:moving]:
                head.box_bias.assign(tf.tile([[0.1 * 10, 0.0, 0, 0]], [batches.NUM_CLASSES + 1, 1]))
            take = model.mask_roi_features

            def note(pyramid, rois, *others, take=take, name=name):
                seen[name] = rois.numpy()
                return take(pyramid, rois, *others)

            monkeypatch.setattr(model, "mask_roi_features", note)
            training_losses(model, batches.random_features(), labels, SEED)
        np.testing.assert_allclose(seen["still"], seen["proposals"], atol=1e-4)
        height = seen["still"][:, 2] - seen["still"][:, 0]
        down = seen["still"] + np.stack([0.2 * height, 0 * height] * 2, axis=1)

        def is_refined(rois):
            distances = np.abs(rois[:, None] - seen["refined"]).max(axis=2)
            return distances.min(axis=1) < 0.01

        # The others leave their objects, or the image.
        assert is_refined(down).sum() > 3 and not is_refined(seen["still"]).any()

    def test_all_stages_belong_to_the_box_detector(self):
        model = cascade()

        def trained(mode):
            model.config = CONFIG.replace(mode=mode)
            return {variable_key(v).split("/")[0] for v in trained_variables(model)}

        assert trained("stage1_boxes") == {"backbone", "fpn", "rpn", "box_head", "box_head_2"}
        assert trained("stage2_masks") == {"mask_head", "weight_transfer"}


class TestCascadeOption:
    CONFIG = CONFIG.replace(cascade_ious=(0.5, 0.6, 0.7))

    def test_heads_are_those_of_cascade_rcnn(self):
        heads = build_model(self.CONFIG, batches.NUM_CLASSES).box_heads
        assert [head.name for head in heads] == ["box_head", "box_head_2", "box_head_3"]
        assert [head.positive_iou for head in heads] == [0.5, 0.6, 0.7]
        factors = [head.delta_weights[0] / BOX_DELTAS[0] for head in heads]
        assert factors == [1, 2, 3] and heads[2].delta_weights[3] == 15

    def test_each_head_gives_the_features_a_third_of_its_gradient(self):
        """Against the losses of the same heads with a plain path to the features."""
        gradients = {}
        for stages, config in ((1, CONFIG), (3, self.CONFIG)):
            features = tf.Variable(tf.random.stateless_normal([2, 3], [1, 2]))
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(box_objective._share_gradient(features, stages) ** 2)
            gradients[stages] = tape.gradient(value, features).numpy()
            assert value == tf.reduce_sum(features**2)
            assert len(build_model(config, batches.NUM_CLASSES).box_heads) == stages
        np.testing.assert_allclose(gradients[3], gradients[1] / 3, rtol=1e-6)

    def test_weights_of_the_losses_of_each_head(self, monkeypatch):
        """As published: with them, features get the whole gradient of each head's loss."""
        weighted = self.CONFIG.replace(cascade_loss_weights=(1, 0.5, 0.25))
        weights = {term.name: term.weight for term in loss_terms(weighted, stages=3)}
        assert weights["class"] == weights["rpn_box"] == 1
        assert weights["box_2"] == 0.5 and weights["class_3"] == 0.25
        divisors = []
        share = lambda features, divisor: divisors.append(divisor) or features  # noqa: E731
        monkeypatch.setattr(box_objective, "_share_gradient", share)
        labels = batches.to_tensors(batches.random_labels())
        for config in (self.CONFIG, weighted):
            model = build_model(config, batches.NUM_CLASSES)
            training_losses(model, batches.random_features(), labels, SEED)
        assert divisors == [3, 3, 3, 1, 1, 1]

    def test_class_weights_of_a_checkpoint_are_the_last_heads(self, tmp_path):
        model = build_model(self.CONFIG, batches.NUM_CLASSES)
        path = tf.train.Checkpoint(model=model).save(str(tmp_path / "ckpt"))
        classes = tf.range(1, batches.NUM_CLASSES + 1)
        for kind in class_weights.KINDS:
            wanted = model.box_heads[2].class_weights(classes, kind)
            np.testing.assert_array_equal(class_weights.read(path, kind), wanted)

    def test_the_table_of_parameters_names_what_t_reads(self):
        config = self.CONFIG.replace(mode="end_to_end", transfer_input="cls")
        model = build_model(config, batches.NUM_CLASSES)
        table = parameter_table.format_table(model, trained_variables(model))
        lines = [line for line in table.splitlines() if "mask loss" in line]
        assert len(lines) == 1 and lines[0].startswith("box_head_3/cls_kernel ")

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"cascade_ious": (0.5,)}, "cascade_ious=0.5 "),
            ({"cascade_ious": (0.5, 1.5)}, "cascade_ious=0.5,1.5 "),
            ({"cascade_ious": (0.5, 0.6), "roi_positive_iou": 0.6}, "roi_positive_iou=0.6 "),
            (
                {"cascade_ious": (0.5, 0.6), "cascade_loss_weights": (1.0, 0.5, 0.25)},
                "cascade_loss_weights=1.0,0.5,0.25 ",
            ),
            (
                {"cascade_ious": (0.5, 0.6), "cascade_loss_weights": (1.0, 0.0)},
                "cascade_loss_weights=1.0,0.0 ",
            ),
        ],
    )
    def test_what_has_no_meaning_is_refused(self, changes, named):
        with pytest.raises(UserError, match=f"^{re.escape(named)}"):
            CONFIG.replace(**changes)


@pytest.mark.slow
def test_a_cascade_trains_resumes_evaluates_and_is_exported(tmp_path):
    """In two stages, with cached features; the export compares itself with the model."""
    runs.write_data(tmp_path)
    cascade = {"cascade_ious": (0.5, 0.6)}
    detector = tmp_path / "boxes"
    training.train(runs.config(tmp_path, detector, mode="stage1_boxes", train_steps=2, **cascade))
    config = whole_way.stage_2(tmp_path, tmp_path, detector, **cascade)
    whole_way.check(config, tmp_path, tmp_path, str(tmp_path / "cache"), atol=1e-6)
    grown = checkpoints.load_model(str(tmp_path / "grown"))
    rows = [head.cls_kernel.numpy()[-1] for head in grown.model.box_heads]
    assert not np.array_equal(*rows) and np.all([row.any() for row in rows])


def rois_of_last_stage(model):
    """The RoIs [B, P, 4] that the last box head sees."""
    seen = []
    take = model.roi_features
    model.roi_features = lambda pyramid, rois, size: seen.append(rois) or take(pyramid, rois, size)
    detect(model)
    return seen[-1]


CHECKPOINT_NAMES = {
    "transfer": "weight_transfer/dense/0/kernel weight_transfer/dense/0/bias "
    "weight_transfer/dense/1/kernel weight_transfer/dense/1/bias",
    "class_specific": "mask_weights/kernel mask_weights/bias",
}
ALWAYS = (
    "box_head/cls_kernel box_head/cls_bias box_head/box_kernel box_head/box_bias "
    "box_head/fc1/kernel box_head/fc1/bias box_head/fc2/kernel box_head/fc2/bias "
    "mask_head/convs/0/kernel mask_head/convs/0/bias mask_head/deconv/kernel mask_head/deconv/bias "
    "mask_head/mlp_dense/kernel mask_head/mlp_dense/bias "
    "rpn/conv/kernel rpn/conv/bias rpn/objectness/kernel rpn/objectness/bias rpn/deltas/kernel "
    "rpn/deltas/bias fpn/laterals/2/kernel fpn/outputs/4/bias backbone/stem/0/conv/kernel "
    "backbone/stages/3/0/convs/1/norm/gamma backbone/stages/4/0/shortcut/conv/kernel"
)


@pytest.mark.parametrize("mask_output", CHECKPOINT_NAMES)
def test_checkpoints_have_the_names_of_all_versions(tmp_path, mask_output):
    """People's runs are restored by these names; an attribute that is renamed breaks them."""
    config = batches.tiny_config(mask_output=mask_output)
    model = build_model(config, batches.NUM_CLASSES)
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "ckpt"))
    end = "/.ATTRIBUTES/VARIABLE_VALUE"
    names = {
        name.removeprefix("model/").removesuffix(end) for name, _ in tf.train.list_variables(path)
    }
    wanted = set(f"{ALWAYS} {CHECKPOINT_NAMES[mask_output]}".split())
    assert wanted <= names
    heads = {name for name in names if not name.startswith(("backbone/", "fpn/", "_", "save"))}
    assert heads == {name for name in wanted if not name.startswith(("backbone/", "fpn/"))}
    assert len(names - {"_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter"}) == len(model.weights)
