"""What each training mode trains."""

import tensorflow as tf

from maskx_tf.model import MaskXRCNN, variable_key

# Parts of the model that a mode trains, by the first part of a variable's name.
BOX_PARTS = ("backbone", "fpn", "rpn", "box_head")
MASK_PARTS = ("mask_head", "weight_transfer", "mask_weights")
TRAINED_PARTS = {
    "end_to_end": BOX_PARTS + MASK_PARTS,
    "stage1_boxes": BOX_PARTS,
    "stage2_masks": MASK_PARTS,
}


def trained_variables(model: MaskXRCNN) -> list[tf.Variable]:
    """The variables that the model's mode trains."""
    parts = TRAINED_PARTS[model.config.mode]
    # The variables of a layer that is not part of the mode get no gradient.
    return [v for v in model.trainable_variables if variable_key(v).split("/")[0] in parts]
