"""A training run from configuration to checkpoints: devices, data, resuming, progress, logs."""

import contextlib
import io
import pathlib
import sys

import numpy as np
import orbit
import tensorflow as tf

from maskx_tf import checkpoints
from maskx_tf.checkpoints import LoadedModel
from maskx_tf.config import Config
from maskx_tf.data.classes import Vocabulary, load_mask_classes
from maskx_tf.data.manifest import vocabulary_of
from maskx_tf.data.pipeline import make_dataset
from maskx_tf.data.reader import reading_errors
from maskx_tf.data.word_vectors import class_vectors
from maskx_tf.errors import UserError
from maskx_tf.model import build_model
from maskx_tf.optimizer import build_optimizer
from maskx_tf.progress import Progress
from maskx_tf.trainer import Evaluator, Trainer
from maskx_tf.weights import imagenet


def train(config: Config) -> dict:
    """Trains the run that `config` describes, or resumes it where its last checkpoint is.

    Returns:
      The results of the last evaluation; empty without `eval_records`, or if nothing was left to
      train.

    Raises:
      UserError: what the configuration names does not exist or does not fit.
    """
    strategy = make_strategy(config.num_gpus)
    _check(config, strategy)
    devices = ", ".join(strategy.extended.worker_devices)
    print(f"Training {config.model_dir} ({config.mode}) on {devices}", file=sys.stderr)
    vocabulary = (
        Vocabulary.load(config.vocabulary)
        if config.vocabulary
        else vocabulary_of(config.train_records)
    )
    mask_class_ids = load_mask_classes(config.mask_classes, vocabulary)
    checkpoints.check_vocabulary(config.model_dir, vocabulary)
    with strategy.scope():
        model = build_model(config, vocabulary.num_classes, _class_vectors(config, vocabulary))
        optimizer = build_optimizer(config)
    loaded = LoadedModel(model, config, vocabulary, mask_class_ids)
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(model=model, optimizer=optimizer),
        config.model_dir,
        max_to_keep=config.keep_checkpoints,
        step_counter=optimizer.iterations,
        checkpoint_interval=config.checkpoint_interval,
    )
    start = _restore_or_initialize(loaded, manager)
    checkpoints.save_run(config, vocabulary, mask_class_ids)  # not if the checkpoint does not fit
    if start >= config.train_steps:
        print(f"{config.model_dir} is already trained to step {start}.", file=sys.stderr)
        return {}
    dataset = make_dataset(
        config.train_records,
        config,
        vocabulary,
        mask_class_ids,
        training=True,
        seed=config.seed,
        start_step=start,
    )
    distributed = strategy.experimental_distribute_dataset(dataset)
    trainer = Trainer(model, optimizer, distributed, strategy)
    evaluator = Evaluator(loaded) if config.eval_records else None
    with reading_errors():
        _run(config, trainer, evaluator, manager)
    print(f"Checkpoints and TensorBoard logs are in {config.model_dir}", file=sys.stderr)
    return evaluator.results if evaluator else {}


def _class_vectors(config: Config, vocabulary: Vocabulary) -> np.ndarray | None:
    """What T takes with transfer_input=embedding, [K, D]; says which words it lacks."""
    if config.transfer_input != "embedding":
        return None
    found = class_vectors(config.transfer_embeddings, vocabulary.names, config.seed)
    print(found.report, file=sys.stderr)
    return found.vectors


def make_strategy(num_gpus: int) -> tf.distribute.Strategy:
    """MirroredStrategy over the GPUs asked for (-1: all), or over the CPU where there is none."""
    gpus = tf.config.list_logical_devices("GPU")
    if num_gpus > len(gpus):
        raise UserError(f"--num_gpus={num_gpus}, but TensorFlow sees {len(gpus)} GPUs.")
    chosen = gpus if num_gpus < 0 else gpus[:num_gpus]
    if not chosen:
        # On the CPU the gradient of crop-and-resize is a race: threads lose each other's updates,
        # up to half of a cell's value (tensorflow#42033). This makes it one thread.
        tf.config.experimental.enable_op_determinism()
    return tf.distribute.MirroredStrategy([gpu.name for gpu in chosen] or ["/cpu:0"])


def _check(config: Config, strategy: tf.distribute.Strategy) -> None:
    for name in ("model_dir", "train_records"):
        if not getattr(config, name):
            raise UserError(f"training needs --{name}.")
    if config.mode == "stage2_masks" and not config.init_checkpoint:
        raise UserError("--mode=stage2_masks needs the detector of stage 1 as --init_checkpoint.")
    replicas = strategy.num_replicas_in_sync
    if config.batch_size % replicas:
        raise UserError(
            f"--batch_size={config.batch_size} does not divide over {replicas} devices."
        )


def _restore_or_initialize(loaded: LoadedModel, manager: tf.train.CheckpointManager) -> int:
    """Resumes from the run's own last checkpoint, or takes over other weights; the step."""
    if manager.latest_checkpoint:
        checkpoints.restore(manager.checkpoint, manager.latest_checkpoint)
        step = int(manager.checkpoint.optimizer.iterations.numpy())
        print(f"Resuming {manager.latest_checkpoint} at step {step}.", file=sys.stderr)
        return step
    if loaded.config.backbone_weights:
        print(imagenet.load_backbone(loaded.model, loaded.config), file=sys.stderr)
    path = loaded.config.init_checkpoint
    if path:
        print(checkpoints.initialize(loaded.model, loaded.vocabulary, path), file=sys.stderr)
    return 0


def _run(
    config: Config,
    trainer: Trainer,
    evaluator: Evaluator | None,
    manager: tf.train.CheckpointManager,
) -> None:
    step = trainer.optimizer.iterations
    progress = Progress(config.train_steps, config.batch_size)

    def report_progress(outputs: dict) -> None:
        outputs["images_per_second"] = progress(int(step.numpy()), outputs)

    progress.start(int(step.numpy()))
    # Orbit prints a report of each loop of its own; `Progress` says the same in one line.
    with contextlib.redirect_stdout(io.StringIO()):
        controller = orbit.Controller(
            trainer=trainer,
            evaluator=evaluator,
            strategy=trainer.strategy,
            global_step=step,
            # Loops end at multiples of the interval, also after a resume.
            steps_per_loop=lambda now: config.summary_interval - int(now) % config.summary_interval,
            checkpoint_manager=manager,
            train_actions=[report_progress],
            summary_dir=str(pathlib.Path(config.model_dir) / "train"),
            eval_summary_dir=str(pathlib.Path(config.model_dir) / "validation"),
        )
        interval = config.eval_interval if evaluator else 0
        while (now := int(step.numpy())) < config.train_steps:
            # `train` ends with a checkpoint, so that nothing is lost if the evaluation fails.
            until = (now // interval + 1) * interval if interval else config.train_steps
            controller.train(min(until, config.train_steps))
            if evaluator:
                controller.evaluate()
