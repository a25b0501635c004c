"""The linear rule: a schedule made for one batch size, trained with another."""

import dataclasses
import sys

from maskx_tf.config import Config


def scaled(config: Config, batch_size: int) -> Config:
    """The options for `batch_size` images a step in place of `config.batch_size`.

    The learning rate is multiplied by the ratio of the sizes; steps and intervals between
    checkpoints and evaluations are divided by it, so that as many images are seen. The decay of
    the moving average is that of as many images as before.
    """
    ratio = batch_size / config.batch_size

    def steps(count: int) -> int:
        return max(round(count / ratio), 1) if count else 0

    changes: dict = {"batch_size": batch_size}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        match field.metadata["scales"]:
            case "steps":
                is_list = isinstance(value, tuple)
                changes[field.name] = tuple(map(steps, value)) if is_list else steps(value)
            case "rate":
                changes[field.name] = value * ratio
            case "decay" if value:
                changes[field.name] = value**ratio
    return config.replace(**changes)


def apply(config: Config, batch_size: int) -> Config:
    """`scaled`, with a line for each option that it changes on stderr; as is with batch_size 0."""
    if not batch_size or batch_size == config.batch_size:
        return config
    result = scaled(config, batch_size)
    print(f"Scaled from {config.batch_size} to {batch_size} images per step:", file=sys.stderr)
    for field in dataclasses.fields(config):
        if field.metadata["scales"] != "no":
            before, after = (_text(getattr(options, field.name)) for options in (config, result))
            if before != after:
                print(f"  {field.name} {before} -> {after}", file=sys.stderr)
    return result


def _text(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value:.10g}"
