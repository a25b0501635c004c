"""The table of a model's parameters that a run prints at its start and keeps in its directory."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from maskx_tf.model import MaskXRCNN, variable_key
from maskx_tf.system.files import write_atomically

FILE_NAME = "parameters.txt"
# What T reads of the last box head, by `transfer_input`.
_READ_BY_T = {
    "cls": ("cls_kernel",),
    "box": ("box_kernel",),
    "cls+box": ("cls_kernel", "box_kernel"),
}
_HEAD = ("parameter", "shape", "size", "trained", "gradient stopped")


def format_table(model: MaskXRCNN, trained: Sequence[tf.Variable]) -> str:
    """One line for each variable, in the model's order, and the sums.

    The last column says why a gradient does not arrive: `frozen`, by an option; `--mode`, which
    trains other parts; `mask loss`, whose gradient T does not pass on to the box head (paper §3.2:
    stop-gradient), while the box losses' does arrive; `statistics`, which follow the data without
    one.

    Args:
      model: built.
      trained: the variables that the run trains.
    """
    keys = {variable_key(variable) for variable in trained}
    reasons = _reasons(model, keys)
    rows, sums = [], [0, 0]
    for variable in model.weights:
        name, size = variable_key(variable), variable.shape.num_elements()
        is_trained = name in keys
        sums = [sums[0] + size, sums[1] + size * is_trained]
        shape = " x ".join(map(str, variable.shape)) or "scalar"
        yes = "yes" if is_trained else "no"
        rows.append((name, shape, f"{size:,}", yes, reasons.get(name, "")))
    lines = [_HEAD, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    text = "".join(
        f"{name:<{widths[0]}}  {shape:>{widths[1]}}  {size:>{widths[2]}}  {yes:<{widths[3]}}  "
        f"{stopped}".rstrip()
        + "\n"
        for name, shape, size, yes, stopped in lines
    )
    return text + f"{sums[0]:,} parameters, {sums[1]:,} of them trained\n"


def write(model: MaskXRCNN, trained: Sequence[tf.Variable], model_dir: str) -> str:
    """Writes the table into the model directory, atomically; returns it."""
    table = format_table(model, trained)
    write_atomically(f"{model_dir}/{FILE_NAME}", table)
    return table


def _reasons(model: MaskXRCNN, trained: set[str]) -> dict[str, str]:
    """Why no gradient, or not every gradient, arrives at a variable, by its name."""
    config = model.config
    # Of a variable itself Keras does not tell that its layer is frozen.
    trainable = {variable_key(variable) for variable in model.trainable_variables}
    reasons = {variable_key(v): "frozen" for v in model.weights}
    reasons |= dict.fromkeys(trainable, f"--mode={config.mode}") | dict.fromkeys(trained, "")
    if config.mode != "stage2_masks":
        norms = [x for x in model.submodules if isinstance(x, tf_keras.layers.BatchNormalization)]
        moving = [v for x in norms if x.trainable for v in (x.moving_mean, x.moving_variance)]
        reasons |= {variable_key(v): "statistics" for v in moving}
    stops = config.has_transfer and config.transfer_stop_gradient
    if config.mode == "end_to_end" and stops:
        read = _READ_BY_T.get(config.transfer_input, ())
        reasons |= {f"{model.box_heads[-1].name}/{kernel}": "mask loss" for kernel in read}
    return reasons
