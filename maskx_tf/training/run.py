"""A training run, in the order in which it happens: prepare, build, restore, loop, report."""

import contextlib
import dataclasses
import sys

import numpy as np
import tensorflow as tf
import tf_keras

from maskx_tf import checkpoints, objective
from maskx_tf import config as config_lib
from maskx_tf.assembly import build_model
from maskx_tf.checkpoints import LoadedModel, class_weights, resuming
from maskx_tf.checkpoints.listing import latest
from maskx_tf.checkpoints.model_dir import holds_averages
from maskx_tf.checkpoints.saving import RunCheckpoints
from maskx_tf.config import Config
from maskx_tf.data import batch, supervision
from maskx_tf.data.classes import Vocabulary, load_mask_classes
from maskx_tf.data.pipeline import make_dataset
from maskx_tf.data.records.manifest import find_records, vocabulary_of
from maskx_tf.data.records.reader import reading_errors
from maskx_tf.data.word_vectors import class_vectors
from maskx_tf.errors import UserError
from maskx_tf.frozen import training as feature_cache
from maskx_tf.system.interruption import Interruption
from maskx_tf.training import devices, loop, parameter_table, tensorboard_hparams
from maskx_tf.training.agreement import Agreement
from maskx_tf.training.devices import Cluster
from maskx_tf.training.moving_average import MovingAverage
from maskx_tf.training.optimizer import build_optimizer
from maskx_tf.training.protection import protected
from maskx_tf.training.steps import Trainer
from maskx_tf.training.validation import Evaluator
from maskx_tf.weights import imagenet


def train(
    config: Config, dataset: tf.data.Dataset | None = None, *, cluster: Cluster | None = None
) -> dict:
    """Trains the run that `config` describes, or resumes it where its last checkpoint is.

    Args:
      config: the options.
      dataset: batches to train on in place of `config.train_records`, as `data.batch` describes
        them; it is repeated, and a run that resumes leaves out the batches that it has seen.
      cluster: the processes that train together, if there are several; each calls this.

    Returns:
      The results of the last evaluation; empty without `eval_records`, or if nothing was left to
      train or evaluate.

    Raises:
      UserError: what the configuration names does not exist or does not fit; the dataset's batches
        are others; the directory holds a run with other options; a step is not finite; the disk is
        full.
      Interrupted: SIGTERM, SIGINT or SIGHUP came; the checkpoint of the last step is saved.
    """
    strategy = devices.make_strategy(config.num_gpus, cluster)
    _check(config, strategy, dataset)
    with protected(config.model_dir, strategy) as interruption:
        vocabulary, mask_class_ids = _prepare(config, strategy)
        run = _build(config, vocabulary, mask_class_ids, strategy)
        start = _restore(run)
        _loop(run, start, dataset, interruption)
        return _report(run, start)


@dataclasses.dataclass(frozen=True)
class Run:
    """What is trained.

    Attributes:
      loaded: the model with its options and classes.
      optimizer: with its schedule; its `iterations` are the steps done.
      average: of the weights; None without `ema_decay`.
      checkpoint: all of them, as they are saved.
      evaluator: None without `eval_records`.
      strategy: that they were made under.
    """

    loaded: LoadedModel
    optimizer: tf_keras.optimizers.Optimizer
    average: MovingAverage | None
    checkpoint: tf.train.Checkpoint
    evaluator: Evaluator | None
    strategy: tf.distribute.Strategy


def _check(
    config: Config, strategy: tf.distribute.Strategy, dataset: tf.data.Dataset | None
) -> None:
    for name in ("model_dir", "train_records") if dataset is None else ("model_dir",):
        if not getattr(config, name):
            raise UserError(f"training needs --{name}.")
    if config.mode == "stage2_masks" and not config.init_checkpoint:
        raise UserError("--mode=stage2_masks needs the detector of stage 1 as --init_checkpoint.")
    replicas = strategy.num_replicas_in_sync
    if config.feature_cache:
        feature_cache.check(config, replicas)
    if config.batch_size % replicas:
        raise UserError(
            f"--batch_size={config.batch_size} is not a multiple of the {replicas} devices."
        )
    if dataset is not None:
        if not config.vocabulary:
            raise UserError(
                "training on a dataset needs vocabulary=FILE: the names of the classes 1..K, in "
                "this order."
            )
        for name in ("train_records", "feature_cache"):
            if getattr(config, name):
                raise UserError(f"{name} is for records, not for a dataset: leave one of them out.")
        if strategy.cluster_resolver:
            raise UserError("several machines train on records, not on a dataset.")
        batch.check(dataset, config.batch_size, config.has_masks)


def _prepare(
    config: Config, strategy: tf.distribute.Strategy
) -> tuple[Vocabulary, tuple[int, ...]]:
    """The classes and the ids of set A: those of all workers, and of the run that is resumed."""
    names = ", ".join(strategy.extended.worker_devices)
    print(f"Training {config.model_dir} ({config.mode}) on {names}", file=sys.stderr)
    vocabulary = (
        Vocabulary.load(config.vocabulary)
        if config.vocabulary
        else vocabulary_of(config.train_records)
    )
    mask_class_ids = load_mask_classes(config.mask_classes, vocabulary)
    last = latest(config.model_dir)
    options = (field.name for field in dataclasses.fields(config))
    Agreement(strategy).require_equal(
        {f"--{name}": config_lib.text_of(getattr(config, name)) for name in options}
        | {
            "the classes of --train_records": str(vocabulary.names),
            "set A": str(mask_class_ids),
            "the last checkpoint": str(last),
        }
    )
    checkpoints.check_vocabulary(config.model_dir, vocabulary)
    if last:
        resuming.check(config, vocabulary, mask_class_ids)
    return vocabulary, mask_class_ids


def _build(
    config: Config,
    vocabulary: Vocabulary,
    mask_class_ids: tuple[int, ...],
    strategy: tf.distribute.Strategy,
) -> Run:
    """The model and what trains and evaluates it, with the weights that the seed draws."""
    vectors = _class_vectors(config, vocabulary, mask_class_ids)
    with strategy.scope():
        model = build_model(config, vocabulary.num_classes, vectors)
        optimizer = build_optimizer(config)
        average = MovingAverage(model, config.ema_decay) if config.ema_decay else None
    loaded = LoadedModel(model, config, vocabulary, mask_class_ids)
    saved = {"model": model, "optimizer": optimizer}
    if average:
        saved["average"] = average.checkpoint
    evaluator = Evaluator(loaded, average) if config.eval_records else None
    return Run(loaded, optimizer, average, tf.train.Checkpoint(**saved), evaluator, strategy)


def _class_vectors(
    config: Config, vocabulary: Vocabulary, mask_class_ids: tuple[int, ...]
) -> np.ndarray | None:
    """What T takes with transfer_input=embedding, [K, D]; says which words it lacks."""
    if config.transfer_input != "embedding":
        return None
    prefix, _, kind = config.transfer_embeddings.partition("_")
    if prefix == "permuted" and kind in class_weights.KINDS:
        return class_weights.permuted(config.init_checkpoint, kind, mask_class_ids, config.seed)
    lookup = class_vectors(config.transfer_embeddings, vocabulary.names, config.seed)
    print(lookup.report, file=sys.stderr)
    return lookup.vectors


def _restore(run: Run) -> int:
    """Resumes from the run's own last checkpoint, or takes over other weights; the step.

    Averages that the checkpoint does not have start from its weights.
    """
    model, config, vocabulary, _ = run.loaded
    last = latest(config.model_dir)  # of the chief
    starts_averages = run.average and not (last and holds_averages(last))
    if last:
        without_averages = tf.train.Checkpoint(model=model, optimizer=run.optimizer)
        restored = without_averages if starts_averages else run.checkpoint
        # A finished run never makes the optimizer's slots: TensorFlow would list each of them.
        checkpoints.restore(restored, last).expect_partial()
        step = int(run.optimizer.iterations.numpy())
        print(f"Resuming {last} at step {step}.", file=sys.stderr)
    else:
        step = 0
        if config.backbone_weights:
            print(imagenet.load_backbone(model, config), file=sys.stderr)
        if config.init_checkpoint:
            summary = checkpoints.initialize(model, vocabulary, config.init_checkpoint)
            print(summary, file=sys.stderr)
    if run.average and starts_averages:
        run.average.start()
    return step


def _loop(
    run: Run, start: int, dataset: tf.data.Dataset | None, interruption: Interruption
) -> None:
    """Trains from step `start` on, if steps are left; evaluates what was cut off before."""
    model, config, vocabulary, mask_class_ids = run.loaded
    steps = run.optimizer.iterations
    manager = RunCheckpoints(
        run.checkpoint,
        devices.checkpoint_directory(run.strategy, config.model_dir),
        max_to_keep=config.keep_checkpoints,
        step_counter=steps,
        checkpoint_interval=config.checkpoint_interval,
        last_checkpoint_step=start,  # a worker's own directory does not tell, and all save at once
    )
    with reading_errors((*config.train_records, *config.eval_records)):
        if run.evaluator:
            loop.make_up_evaluation(run.loaded, run.strategy, steps, run.evaluator)
        if start >= config.train_steps or loop.is_stopped(config, run.strategy):
            return
        warning = _check_masks(run, dataset)
        is_chief = devices.is_chief(run.strategy)
        if is_chief:
            saved = config.replace(feature_cache="")  # it is no part of what makes the result
            checkpoints.save_run(saved, vocabulary, mask_class_ids)  # not if the checkpoint misfits
        batches = _batches(run, start, dataset)
        trainer = Trainer(model, run.optimizer, batches, run.strategy, run.average, interruption)
        if is_chief:
            table = parameter_table.write(model, trainer.trained, config.model_dir)
            print(table if not start else table.splitlines()[-1], file=sys.stderr)
            if warning:
                print(warning, file=sys.stderr)
        with tensorboard_hparams.session(config) if is_chief else contextlib.nullcontext():
            loop.run(run.loaded, trainer, run.evaluator, manager, interruption)


def _check_masks(run: Run, dataset: tf.data.Dataset | None) -> str:
    """A warning of classes of set A without masks; UserError if the mask head would learn none."""
    _, config, vocabulary, mask_class_ids = run.loaded
    from_boxes = objective.learns_from_boxes(config)
    if config.has_masks and not from_boxes:
        supervision.require_set_a(mask_class_ids)
    if dataset is not None:  # what it holds is not known
        return ""
    records = find_records(config.train_records, check_sizes=not config.skip_corrupt_records)
    supervision.require_objects(records)
    if not config.has_masks:
        return ""
    return supervision.check(records, vocabulary, mask_class_ids, from_boxes)


def _batches(run: Run, start: int, dataset: tf.data.Dataset | None):
    """Batches from step `start` on, distributed over the devices."""
    _, config, vocabulary, mask_class_ids = run.loaded
    if not config.has_masks:
        mask_class_ids = ()  # no mask is decoded where no loss asks for one
    if dataset is not None:
        own = batch.train_on(dataset, vocabulary.num_classes, mask_class_ids, start)
        return run.strategy.experimental_distribute_dataset(own)

    def from_records(
        step: int, context: tf.distribute.InputContext | None = None
    ) -> tf.data.Dataset:
        return make_dataset(
            config.train_records,
            config,
            vocabulary,
            mask_class_ids,
            training=True,
            seed=config.seed,
            start_step=step,
            context=context,
        )

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        if config.feature_cache:
            return feature_cache.training_dataset(run.loaded, from_records, start)
        return from_records(start, context)

    return run.strategy.distribute_datasets_from_function(of_worker)


def _report(run: Run, start: int) -> dict:
    """Says where the run is; the results of the last evaluation."""
    config = run.loaded.config
    if start >= config.train_steps or int(run.optimizer.iterations.numpy()) == start:
        print(f"{config.model_dir} is already trained to step {start}.", file=sys.stderr)
    else:
        print(f"Checkpoints and TensorBoard logs are in {config.model_dir}", file=sys.stderr)
    return run.evaluator.results if run.evaluator else {}
