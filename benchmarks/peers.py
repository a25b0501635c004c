"""Model Garden's Mask R-CNN, configured like ours, as the peer of the measurements."""

import tensorflow as tf
import tf_keras

# Its pyramid needs sides that divide by 64: 832 x 1344 holds our 800 x 1344.
STEP = 64


def config(num_classes: int, height: int, width: int, *, default_head: bool = False):
    """Its configuration: R-50-FPN with batched NMS, its fastest.

    Args:
      num_classes: K, without background.
      height, width: of the input; rounded up to multiples of 64.
      default_head: 4 convolutions and 1 fully connected layer in the box head, in place of 2 fully
        connected layers.
    """
    from official.vision.configs import maskrcnn

    head = maskrcnn.DetectionHead()  # 4 convolutions, 1 fully connected layer
    if not default_head:
        head = maskrcnn.DetectionHead(num_convs=0, num_fcs=2)
    return maskrcnn.MaskRCNN(
        num_classes=num_classes + 1,
        input_size=[-(-height // STEP) * STEP, -(-width // STEP) * STEP, 3],
        detection_head=head,
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
