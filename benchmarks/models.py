"""Models of full size with random weights, for measurements that need no training."""

from maskx_tf.assembly import build_model
from maskx_tf.config import Config
from maskx_tf.model import MaskXRCNN

# Factor on what each residual block adds. With the initial 1 features grow with depth beyond what
# trained networks have, and so do rounding errors.
RESIDUAL_SCALE = 0.2


def configuration(height: int, width: int, **changes) -> Config:
    """R-50-FPN as published, without the MLP branch, which the peers have not.

    In inference every (proposal, class) pair is a candidate: random scores pass no threshold.
    """
    fixed = Config(
        image_min_side=min(height, width),
        image_max_side=max(height, width),
        mask_mlp=False,
        score_threshold=0.0,
    )
    return fixed.replace(**changes)


def random_model(config: Config, num_classes: int) -> MaskXRCNN:
    """A model whose activations are as large as a trained network's."""
    model = build_model(config, num_classes)
    for variable in model.weights:
        if "/conv3/norm/gamma" in variable.name:
            variable.assign(RESIDUAL_SCALE * variable)
    return model
