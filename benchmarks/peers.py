"""Model Garden's Mask R-CNN, configured like ours, as the peer of the measurements."""

import numpy as np
import tensorflow as tf
import tf_keras

# Its pyramid needs sides that divide by 64: 832 x 1344 holds our 800 x 1344.
STEP = 64


def config(num_classes: int, height: int, width: int):
    """Its configuration: R-50-FPN with batched NMS, its fastest.

    The box head has 2 fully connected layers as ours, in place of its 4 convolutions and 1.

    Args:
      num_classes: K, without background.
      height, width: of the input; rounded up to multiples of 64.
    """
    from official.vision.configs import maskrcnn

    return maskrcnn.MaskRCNN(
        num_classes=num_classes + 1,
        input_size=[-(-height // STEP) * STEP, -(-width // STEP) * STEP, 3],
        detection_head=maskrcnn.DetectionHead(num_convs=0, num_fcs=2),
        detection_generator=maskrcnn.DetectionGenerator(nms_version="batched"),
        roi_generator=maskrcnn.ROIGenerator(use_batched_nms=True),
    )


def build(model_config) -> tf_keras.Model:
    """The model with random weights."""
    from official.vision.modeling import factory

    specs = tf_keras.layers.InputSpec(shape=[None, *model_config.input_size])
    return factory.build_maskrcnn(specs, model_config)


def anchors(model_config) -> dict[str, tf.Tensor]:
    """Its anchors for the whole input, by level."""
    from official.vision.ops import anchor

    built = anchor.build_anchor_generator(
        min_level=model_config.min_level,
        max_level=model_config.max_level,
        num_scales=model_config.anchor.num_scales,
        aspect_ratios=model_config.anchor.aspect_ratios,
        anchor_size=model_config.anchor.anchor_size,
    )
    return built(model_config.input_size[:2])


def detector(model_config):
    """Image float32 [1, H, W, 3] -> its detections with masks; one graph, shapes static."""
    model, boxes = build(model_config), anchors(model_config)
    height, width = model_config.input_size[:2]
    size = tf.constant([[height, width]], tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([1, height, width, 3])])
    def detect(image):
        anchor_boxes = {level: box[None] for level, box in boxes.items()}
        return model(image, image_shape=size, anchor_boxes=anchor_boxes, training=False)

    return detect


def train_step(num_classes: int, images: np.ndarray, objects: list[dict]):
    """A run of one training step: forward, losses, backward, update.

    As published for ours: R-50-FPN, stem, stage 2 and batch norm of the backbone frozen, 512 RoIs
    an image, SGD with momentum. Its anchors are matched before, in its input pipeline.

    Args:
      num_classes: K, without background.
      images: float32 [B, H, W, 3], sides multiples of 64.
      objects: of each image, boxes_yxyx float32 [M, 4] in pixels, classes int32 [M] and masks
        float32 [M, S, S] over their boxes.
    """
    from official.vision.configs import maskrcnn
    from official.vision.tasks.maskrcnn import MaskRCNNTask

    model_config = config(num_classes, *images.shape[1:3])
    model_config.backbone.resnet.bn_trainable = False
    task = MaskRCNNTask(maskrcnn.MaskRCNNTask(model=model_config))
    model = task.build_model()
    _freeze_up_to_stage_2(model.backbone)
    optimizer = tf_keras.optimizers.SGD(0.01, momentum=0.9)
    labels = _labels(model_config, images.shape, objects)

    @tf.function
    def step():
        return task.train_step((tf.constant(images), labels), model, optimizer)

    return step


def _freeze_up_to_stage_2(backbone: tf_keras.Model) -> None:
    last = backbone.output["2"]
    for layer in backbone.layers:
        layer.trainable = False
        if layer.output is last:
            return
    raise RuntimeError("stage 2 of Model Garden's backbone was not found")


def _labels(model_config, shape: tuple[int, ...], objects: list[dict]) -> dict:
    """What its parser gives for images on a full canvas; no object is missing or padded."""
    from official.vision.ops import anchor

    boxes = anchors(model_config)
    labeler = anchor.RpnAnchorLabeler()
    targets = [
        labeler.label_anchors(
            boxes, tf.constant(o["boxes_yxyx"]), tf.ones([len(o["classes"]), 1], tf.float32)
        )
        for o in objects
    ]

    def stacked(parts: list[dict]) -> dict:
        return {level: tf.stack([part[level] for part in parts]) for level in parts[0]}

    batch, height, width, _ = shape
    info = [[height, width], [height, width], [1, 1], [0, 0]]
    return {
        "image_info": tf.constant([info] * batch, tf.float32),
        "anchor_boxes": {level: tf.stack([box] * batch) for level, box in boxes.items()},
        "rpn_score_targets": stacked([scores for scores, _ in targets]),
        "rpn_box_targets": stacked([deltas for _, deltas in targets]),
        "gt_boxes": tf.stack([o["boxes_yxyx"] for o in objects]),
        "gt_classes": tf.stack([o["classes"] for o in objects]),
        "gt_masks": tf.stack([o["masks"] for o in objects]),
    }
