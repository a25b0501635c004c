"""Options of what is done to predicted masks before they are written or scored."""

from __future__ import annotations

from absl import flags

from maskx_tf.errors import UserError
from maskx_tf.ops import dense_crf

CHOICES = ("none", "crf")
_DEFAULT = dense_crf.Parameters()


def define_flags() -> None:
    """Defines --mask_post and its parameters."""
    flags.DEFINE_enum(
        "mask_post",
        "none",
        CHOICES,
        "What refines masks; crf: a dense CRF draws them to the image's edges "
        "(docs/mask_heads.md).",
    )
    flags.DEFINE_float("crf_weight", _DEFAULT.weight, "Weight of colours in the CRF.")
    flags.DEFINE_float(
        "crf_color", _DEFAULT.color, "Grey levels of 255 that alike pixels differ by in the CRF."
    )
    flags.DEFINE_float(
        "crf_reach", _DEFAULT.reach, "How far colours count in the CRF, over the side of the box."
    )


def crf_of(
    mask_post: str, crf_weight: float, crf_color: float, crf_reach: float
) -> dense_crf.Parameters | None:
    """The CRF's parameters, None without it; UserError where a value is out of range."""
    if mask_post not in CHOICES:
        raise UserError(f"--mask_post={mask_post} is not one of: {', '.join(CHOICES)}.")
    if mask_post == "none":
        return None
    if not crf_weight >= 0:
        raise UserError(f"--crf_weight={crf_weight} must not be negative.")
    for name, value in (("crf_color", crf_color), ("crf_reach", crf_reach)):
        if not value > 0:
            raise UserError(f"--{name}={value} must be positive.")
    return _DEFAULT._replace(weight=crf_weight, color=crf_color, reach=crf_reach)


def from_flags(values: flags.FlagValues) -> dense_crf.Parameters | None:
    """`crf_of` the parsed flags."""
    return crf_of(values.mask_post, values.crf_weight, values.crf_color, values.crf_reach)
