"""Why a training step went wrong: what its batch, the weights and the last steps tell."""

import io
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.system.files import write_atomically

BATCH = "batch"
GRADIENT_NORM = "gradient norm"
# Published: 0.02 for 16 images, with SGD. A multiple of it is worth a remark.
RATE_PER_IMAGE = {"sgd": 0.02 / 16, "adamw": 0.001 / 4}
SUSPICIOUS = 10.0
_MOST = 4  # findings of a kind that are listed

Arrays = dict[str, np.ndarray]


class BadStep(NamedTuple):
    """A step that was stopped.

    Attributes:
      number: from 1; the weights are those of the step before.
      batch: features and labels under their names, images of all replicas one after the other.
      history: float32 [replicas, steps, names], this step last; see `step_guard.StepGuard.recent`.
      names: of its columns.
      learning_rate: of this step.
      bad_weights: names of the variables that were not finite before the step.
    """

    number: int
    batch: Arrays
    history: np.ndarray
    names: tuple[str, ...]
    learning_rate: float
    bad_weights: tuple[str, ...]


def stop(step: BadStep, config: Config, num_classes: int) -> UserError:
    """Saves the batch as `bad_batch_STEP.npz` in the model directory; the error to raise."""
    ids = ", ".join(_image(step.batch, row) for row in range(len(step.batch["image"])))
    causes = list(causes_of(step, config, num_classes))
    return UserError(
        f"{_what(step)} in step {step.number}, which was not applied; images: {ids}. "
        f"Likely cause: {'; '.join(causes)}. {_save(step, config)}"
    )


def causes_of(step: BadStep, config: Config, num_classes: int) -> Iterator[str]:
    """What is wrong, the first cause first; each with what to do about it."""
    found = [*_image_faults(step.batch, config), *_object_faults(step.batch, num_classes)]
    if step.bad_weights:
        found.append(
            f"weights are not finite before the step ({_some(step.bad_weights)}): take an earlier "
            "checkpoint, or check the weights that the run started from"
        )
    if found:
        yield from found
        return
    growth = _growth(step)
    if growth:
        yield growth
    yield _learning_rate(step, config, certain=bool(growth))


def _what(step: BadStep) -> str:
    """The names of what is not finite."""
    last = step.history[:, -1] if step.history.size else np.zeros([1, len(step.names)])
    bad = [name for name, column in zip(step.names, last.T, strict=True)
           if not np.isfinite(column).all()]  # fmt: skip
    losses = [f"loss {name}" for name in bad if name not in (BATCH, GRADIENT_NORM)]
    if BATCH in bad:
        return "the batch has values that cannot be trained on"
    if losses:
        return f"{', '.join(losses)} {'are' if len(losses) > 1 else 'is'} not finite"
    if bad:
        return "the gradient is not finite though the losses are"
    return "a loss or gradient of another process is not finite"


def _image_faults(batch: Arrays, config: Config) -> Iterator[str]:
    image = batch["image"]
    if np.issubdtype(image.dtype, np.floating):
        for row in np.flatnonzero(~np.isfinite(image).all(axis=(1, 2, 3)))[:_MOST]:
            count = np.count_nonzero(~np.isfinite(image[row]))
            yield f"{count} pixel values of image {_image(batch, row)} are NaN or infinite"
    statistics = np.array([config.pixel_mean, config.pixel_std])
    if not np.isfinite(statistics).all() or not np.all(statistics[1]):
        mean, std = (",".join(map(str, values)) for values in statistics)
        yield f"--pixel_mean={mean} --pixel_std={std} make pixels NaN or infinite"


def _object_faults(batch: Arrays, num_classes: int) -> Iterator[str]:
    boxes, classes = batch["boxes_yxyx"], batch["classes"]
    sides = np.where(np.isfinite(boxes), boxes, 0.0)
    sides = sides[..., 2:] - sides[..., :2]
    finite = np.isfinite(boxes).all(axis=-1)
    faults = {
        "has a box that is not finite, {box}": ~finite,
        "has a box without area, {box}": finite & (classes > 0) & (sides <= 0).any(axis=-1),
        f"has class id {{id}}, outside 1..{num_classes}": (classes < 0) | (classes > num_classes),
    }
    for text, where in faults.items():
        for row, place in np.argwhere(where)[:_MOST]:
            box = [float(value) for value in boxes[row, place]]
            what = text.format(box=box, id=classes[row, place])
            yield f"object {place} of image {_image(batch, row)} {what}"
        if where.sum() > _MOST:
            yield f"{where.sum() - _MOST} more objects like it"


def _growth(step: BadStep) -> str:
    """How losses and gradients grew in the last steps; empty if they did not."""
    losses = step.history[:, :, 1:-1].sum(axis=-1).max(axis=0)  # [steps]
    norms = step.history[:, :, -1].max(axis=0)
    finite = [v for v in losses if np.isfinite(v)], [v for v in norms if np.isfinite(v)]
    texts = []
    for name, values in zip(("the loss", "the gradient norm"), finite, strict=True):
        if len(values) > 1 and values[-1] > SUSPICIOUS * min(values):
            texts.append(f"{name} grew from {min(values):.3g} to {values[-1]:.3g}")
    return f"{' and '.join(texts)} in the last {len(losses)} steps" if texts else ""


def _learning_rate(step: BadStep, config: Config, certain: bool) -> str:
    usual = RATE_PER_IMAGE[config.optimizer] * config.batch_size
    rate = f"the learning rate, {step.learning_rate:.3g} in this step"
    if step.number <= config.warmup_steps:
        rate += f" of a warm-up over {config.warmup_steps} to {config.learning_rate:.3g}"
    remedy = "lower --learning_rate, lengthen --warmup_steps or set --clip_norm"
    if config.learning_rate > SUSPICIOUS * usual:
        return f"{rate}, {config.learning_rate / usual:.3g} times what is usual for " \
               f"--batch_size={config.batch_size}: {remedy}"  # fmt: skip
    if certain:
        return f"{rate}, is too high for this model: {remedy}"
    return (
        f"none found in batch, weights or the steps before; {rate}, is not unusual. Repeat the "
        f"command: if it stops elsewhere or not at all, suspect the hardware; else {remedy}"
    )


def _save(step: BadStep, config: Config) -> str:
    """Writes the batch; says where, and what is left of the run."""
    path = pathlib.Path(config.model_dir) / f"bad_batch_{step.number}.npz"
    arrays: dict[str, Any] = step.batch | {
        "recent_steps": step.history,
        "recent_steps_columns": np.array(step.names),
        "learning_rate": step.learning_rate,
    }
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    try:
        write_atomically(path, data.getvalue())
    except OSError as error:
        return f"The batch could not be saved: {error}. The last checkpoint is kept."
    return f"The batch is in {path}; the last checkpoint is kept."


def _image(batch: Arrays, row: int) -> str:
    return str(batch["image_id"][row]) if "image_id" in batch else f"number {row} of the batch"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_MOST]) + (f", {len(names) - _MOST} more" if names[_MOST:] else "")
