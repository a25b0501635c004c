"""A model with more classes: the old rows, bit for bit, and new ones after them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskx_tf.adding.fit import Rows
from maskx_tf.assembly import build_model
from maskx_tf.checkpoints import CLASS_ROWS, LoadedModel
from maskx_tf.data.classes import Vocabulary
from maskx_tf.errors import UserError
from maskx_tf.model import variable_key


def check(loaded: LoadedModel) -> None:
    """UserError if masks of a new class do not follow from its box weights."""
    config = loaded.config
    if config.mask_output == "class_specific":
        raise UserError(
            "this model learned the mask weights of each class by themselves "
            "(--mask_output=class_specific): a new class would have none. Use a model with "
            "--mask_output=transfer."
        )
    if config.has_transfer and config.transfer_input == "embedding":
        raise UserError(
            "T of this model reads class embeddings (--transfer_input=embedding), and a new class "
            "has none. Use a model whose T reads box weights, such as cls+box."
        )


def grow(
    loaded: LoadedModel, names: list[str], category_ids: list[int], rows: Sequence[Rows]
) -> LoadedModel:
    """The model with new classes after the old ones, in a group of their own.

    Args:
      loaded: the old model.
      names: M new classes.
      category_ids: their ids in their data set; taken over where no old class has them.
      rows: their weights in each of the box heads.
    """
    vocabulary = _vocabulary(loaded.vocabulary, names, category_ids)
    config = loaded.config
    groups = config.class_groups or (loaded.vocabulary.num_classes,)
    share = (len(groups) + 1) / len(groups)  # each group keeps its places
    config = config.replace(
        class_groups=(*groups, len(names)),
        max_detections=round(config.max_detections * share),
        nms_candidates=round(config.nms_candidates * share),
    )
    model = build_model(config, vocabulary.num_classes)
    added: dict[str, np.ndarray] = {}
    for head, of_head in zip(model.box_heads, rows, strict=True):
        keys = (key.replace("box_head", head.name, 1) for key in CLASS_ROWS)
        # MNC's classes of boxes: nothing reads them but training.
        added |= zip(keys, (*of_head, of_head.cls_kernel, of_head.cls_bias), strict=True)
    old = {variable_key(variable): variable.numpy() for variable in loaded.model.weights}
    for variable in model.weights:
        key = variable_key(variable)
        value = old[key]
        variable.assign(np.concatenate([value, added[key]]) if key in added else value)
    return LoadedModel(model, config, vocabulary, loaded.mask_class_ids)


def _vocabulary(old: Vocabulary, names: list[str], category_ids: list[int]) -> Vocabulary:
    ids = list(old.external_ids)
    for number in category_ids:
        ids.append(number if number not in ids else max(ids) + 1)
    return Vocabulary((*old.names, *names), tuple(ids))
