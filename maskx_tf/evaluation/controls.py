"""Controls of an evaluation: mask kernels of set B that say nothing of their class.

What B loses by them is what T carries over to classes without masks.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from maskx_tf.checkpoints.class_weights import deranged
from maskx_tf.errors import UserError
from maskx_tf.model import MaskXRCNN

OWN = "own"
KERNELS = (OWN, "permuted_b", "mean_a")


def replace_kernels(
    model: MaskXRCNN, kernels: str, mask_class_ids: Sequence[int], seed: int
) -> None:
    """Gives the classes of B other kernels than T's of their weights; those of A stay.

    Args:
      model: with T; changed in place.
      kernels: `permuted_b`: that of another class of B, by a random permutation; `mean_a`: the
        mean kernel of A.
      mask_class_ids: set A.
      seed: of the permutation.

    Raises:
      UserError: the model has no T, or there are too few classes.
    """
    if not model.transfers:
        raise UserError(
            f"--kernels={kernels} replaces the kernels that T predicts; this model was trained with"
            f" --mask_output={model.config.mask_output}."
        )
    set_a = sorted(mask_class_ids)
    set_b = np.setdiff1d(np.arange(1, model.num_classes + 1), set_a)
    if kernels == "mean_a" and not set_a:
        raise UserError("--kernels=mean_a: set A is empty.")
    w_det = model.w_det(tf.range(model.num_classes + 1))
    for transfer in model.transfers:
        table = transfer(w_det).numpy()  # [K + 1, C]
        if kernels == "permuted_b":
            table[set_b] = table[set_b[deranged(len(set_b), seed)]]
        else:
            table[set_b] = table[set_a].mean(axis=0)
        transfer.fold(tf.constant(table))
