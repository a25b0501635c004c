"""Model directories and checkpoints: writing, loading, taking over, resuming."""

from maskx_tf.checkpoints.initialize import CLASS_ROWS, initialize
from maskx_tf.checkpoints.model_dir import (
    VOCABULARY,
    LoadedModel,
    check_new,
    check_vocabulary,
    latest_checkpoint,
    load_latest,
    load_model,
    load_set_a,
    require_masks,
    restore,
    save_new,
    save_run,
)

__all__ = [
    "CLASS_ROWS",
    "VOCABULARY",
    "LoadedModel",
    "check_new",
    "check_vocabulary",
    "initialize",
    "latest_checkpoint",
    "load_latest",
    "load_model",
    "load_set_a",
    "require_masks",
    "restore",
    "save_new",
    "save_run",
]
