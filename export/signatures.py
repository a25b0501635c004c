"""Names of a SavedModel's signatures."""

DEFAULT = "serving_default"
IMAGES = "image_tensor"
BOX_PROMPTS = "box_prompts"
CLASSES = "class_names"
# The two stages of `box_prompts`: the local server keeps the features of an image between them.
FEATURES = "box_prompts_features"
MASKS = "box_prompts_masks"
STAGES = (FEATURES, MASKS)
