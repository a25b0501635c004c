"""The fixed panel of validation images in TensorBoard: ground truth beside prediction."""

import numpy as np

from maskx_tf import visualize
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary
from maskx_tf.data.pipeline import make_dataset
from maskx_tf.model import MaskXRCNN
from maskx_tf.ops.boxes import mask_windows


def validation_panel(
    model: MaskXRCNN, config: Config, vocabulary: Vocabulary, mask_class_ids: tuple[int, ...]
) -> np.ndarray:
    """The first `config.panel_images` evaluation images with what the model finds in them.

    Ground truth shows the masks of every class, those withheld from training (set B, red) too.

    Returns:
      uint8 [H, W, 3] RGB, one image a row.
    """
    everything = tuple(range(1, vocabulary.num_classes + 1))
    one_by_one = config.replace(batch_size=1)
    dataset = make_dataset(
        config.eval_records, one_by_one, vocabulary, everything, training=False, seed=0
    )
    examples = []
    for features, labels in dataset.take(config.panel_images):
        detections = model(features["image"], features["image_size"], features["image_scale"])
        windows = mask_windows(detections["detection_boxes"], config.mask_roi_scale)
        batch = {**features, **labels, **detections, "detection_mask_windows": windows}
        examples.append({key: value[0].numpy() for key, value in batch.items()})
    return visualize.panel(examples, vocabulary.names, mask_class_ids)
