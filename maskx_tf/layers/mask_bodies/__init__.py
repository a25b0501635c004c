"""Bodies of the mask head: from the features of a RoI to those of its mask's pixels.

A body derives from `body.Body`. A file here and a line in `choices.MASK_BODIES` make it a choice;
docs/mask_heads.md lists them.
"""
