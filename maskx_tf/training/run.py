"""A training run from configuration to checkpoints: devices, data, resuming, progress, logs."""

import contextlib
import dataclasses
import io
import json
import pathlib
import sys
from typing import Any

import numpy as np
import orbit
import tensorflow as tf

from maskx_tf import checkpoints
from maskx_tf import config as config_lib
from maskx_tf.checkpoints import LoadedModel, leftovers, resuming
from maskx_tf.checkpoints.model_dir import holds_averages
from maskx_tf.checkpoints.saving import RunCheckpoints, disk_errors
from maskx_tf.config import Config
from maskx_tf.data import supervision
from maskx_tf.data.classes import Vocabulary, load_mask_classes
from maskx_tf.data.pipeline import make_dataset
from maskx_tf.data.records.manifest import find_records, vocabulary_of
from maskx_tf.data.records.reader import reading_errors
from maskx_tf.data.word_vectors import class_vectors
from maskx_tf.errors import UserError
from maskx_tf.evaluation import report
from maskx_tf.frozen import training as feature_cache
from maskx_tf.model import build_model
from maskx_tf.system.interruption import Interrupted, Interruption
from maskx_tf.system.progress import Progress
from maskx_tf.training import devices, parameter_table, tensorboard_hparams
from maskx_tf.training.agreement import Agreement
from maskx_tf.training.devices import Cluster
from maskx_tf.training.moving_average import MovingAverage
from maskx_tf.training.optimizer import build_optimizer
from maskx_tf.training.steps import Trainer
from maskx_tf.training.validation import Evaluator
from maskx_tf.weights import imagenet

VALIDATION = "validation.json"  # of a run: the last evaluation while it was trained


def train(config: Config, cluster: Cluster | None = None) -> dict:
    """Trains the run that `config` describes, or resumes it where its last checkpoint is.

    Args:
      config: the options.
      cluster: the processes that train together, if there are several; each calls this.

    Returns:
      The results of the last evaluation; empty without `eval_records`, or if nothing was left to
      train or evaluate.

    Raises:
      UserError: what the configuration names does not exist or does not fit; the directory holds a
        run with other options; a step is not finite; the disk is full.
      Interrupted: SIGTERM or SIGINT came; the checkpoint of the last step is saved.
    """
    strategy = devices.make_strategy(config.num_gpus, cluster)
    _check(config, strategy)
    interruption = Interruption()
    is_chief = devices.is_chief(strategy)
    lock = leftovers.locked(config.model_dir) if is_chief else contextlib.nullcontext()
    with (
        interruption.handled(),
        disk_errors(config.model_dir),
        devices.lost_workers(strategy),
        lock,
    ):
        if is_chief:
            leftovers.recover(config.model_dir)
            leftovers.set_damaged_aside(config.model_dir)
        Agreement(strategy).wait()  # for what the chief leaves to be restored
        return _train(config, strategy, interruption)


def _train(config: Config, strategy: tf.distribute.Strategy, interruption: Interruption) -> dict:
    names = ", ".join(strategy.extended.worker_devices)
    print(f"Training {config.model_dir} ({config.mode}) on {names}", file=sys.stderr)
    vocabulary = (
        Vocabulary.load(config.vocabulary)
        if config.vocabulary
        else vocabulary_of(config.train_records)
    )
    mask_class_ids = load_mask_classes(config.mask_classes, vocabulary)
    _require_equal_workers(config, strategy, vocabulary, mask_class_ids)
    checkpoints.check_vocabulary(config.model_dir, vocabulary)
    if tf.train.latest_checkpoint(config.model_dir):
        resuming.check(config, vocabulary, mask_class_ids)
    with strategy.scope():
        model = build_model(config, vocabulary.num_classes, _class_vectors(config, vocabulary))
        optimizer = build_optimizer(config)
        average = MovingAverage(model, config.ema_decay) if config.ema_decay else None
    loaded = LoadedModel(model, config, vocabulary, mask_class_ids)
    parts = {"model": model, "optimizer": optimizer}
    if average:
        parts["average"] = average.checkpoint
    checkpoint = tf.train.Checkpoint(**parts)
    start = _restore_or_initialize(loaded, checkpoint, average)
    is_due = start > 0 and _next_evaluation(config, start - 1) == start
    missed = is_due and _last_validated(config.model_dir) != start
    Agreement(strategy).wait()  # all look before one evaluates
    manager = RunCheckpoints(
        checkpoint,
        devices.checkpoint_directory(strategy, config.model_dir),
        max_to_keep=config.keep_checkpoints,
        step_counter=optimizer.iterations,
        checkpoint_interval=config.checkpoint_interval,
        last_checkpoint_step=start,  # a worker's own directory does not tell, and all save at once
    )
    evaluator = Evaluator(loaded, average) if config.eval_records else None
    if evaluator and missed:
        print(f"Step {start} was not evaluated; evaluating it now.", file=sys.stderr)
        with reading_errors(config.eval_records):
            _evaluate(config, _controller(config, strategy, optimizer.iterations, evaluator))
    if start >= config.train_steps:
        print(f"{config.model_dir} is already trained to step {start}.", file=sys.stderr)
        return evaluator.results if evaluator else {}
    files = find_records(config.train_records, check_sizes=not config.skip_corrupt_records)
    warning = supervision.check(files, vocabulary, mask_class_ids) if config.has_masks else ""
    if devices.is_chief(strategy):
        saved = config.replace(feature_cache="")  # it is no part of what makes the result
        checkpoints.save_run(saved, vocabulary, mask_class_ids)  # not if the checkpoint misfits
        tensorboard_hparams.write_run(config)
    with reading_errors((*config.train_records, *config.eval_records)):
        dataset = _training_data(loaded, strategy, start)
        trainer = Trainer(model, optimizer, dataset, strategy, average, interruption)
        if devices.is_chief(strategy):
            table = parameter_table.write(model, trainer.trained, config.model_dir)
            print(table if not start else table.splitlines()[-1], file=sys.stderr)
            if warning:
                print(warning, file=sys.stderr)
        _run(config, trainer, evaluator, manager, interruption)
    print(f"Checkpoints and TensorBoard logs are in {config.model_dir}", file=sys.stderr)
    return evaluator.results if evaluator else {}


def _require_equal_workers(
    config: Config,
    strategy: tf.distribute.Strategy,
    vocabulary: Vocabulary,
    mask_class_ids: tuple[int, ...],
) -> None:
    values = {
        f"--{field.name}": config_lib.text_of(getattr(config, field.name))
        for field in dataclasses.fields(config)
    }
    values["the classes of --train_records"] = str(vocabulary.names)
    values["set A"] = str(mask_class_ids)
    values["the last checkpoint"] = str(tf.train.latest_checkpoint(config.model_dir))
    Agreement(strategy).require_equal(values)


def _class_vectors(config: Config, vocabulary: Vocabulary) -> np.ndarray | None:
    """What T takes with transfer_input=embedding, [K, D]; says which words it lacks."""
    if config.transfer_input != "embedding":
        return None
    found = class_vectors(config.transfer_embeddings, vocabulary.names, config.seed)
    print(found.report, file=sys.stderr)
    return found.vectors


def _check(config: Config, strategy: tf.distribute.Strategy) -> None:
    for name in ("model_dir", "train_records"):
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


def _restore_or_initialize(
    loaded: LoadedModel, checkpoint: tf.train.Checkpoint, average: MovingAverage | None
) -> int:
    """Resumes from the run's own last checkpoint, or takes over other weights; the step.

    Averages that the checkpoint does not have start from its weights.
    """
    latest = tf.train.latest_checkpoint(loaded.config.model_dir)  # of the chief
    if latest:
        begins = average is not None and not holds_averages(latest)
        kept = {"model": loaded.model, "optimizer": checkpoint.optimizer}
        checkpoints.restore(tf.train.Checkpoint(**kept) if begins else checkpoint, latest)
        if average and begins:
            average.start()
        step = int(checkpoint.optimizer.iterations.numpy())
        print(f"Resuming {latest} at step {step}.", file=sys.stderr)
        return step
    if loaded.config.backbone_weights:
        print(imagenet.load_backbone(loaded.model, loaded.config), file=sys.stderr)
    path = loaded.config.init_checkpoint
    if path:
        print(checkpoints.initialize(loaded.model, loaded.vocabulary, path), file=sys.stderr)
    if average:
        average.start()
    return 0


def _training_data(loaded: LoadedModel, strategy: tf.distribute.Strategy, start: int):
    """Batches from step `start` on, distributed."""
    config = loaded.config
    # No mask is decoded where no loss asks for one.
    mask_class_ids = loaded.mask_class_ids if loaded.has_masks else ()

    def batches(step: int, context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        return make_dataset(
            config.train_records,
            config,
            loaded.vocabulary,
            mask_class_ids,
            training=True,
            seed=config.seed,
            start_step=step,
            context=context,
        )

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        if config.feature_cache:
            return feature_cache.training_dataset(loaded, batches, start)
        return batches(start, context)

    return strategy.distribute_datasets_from_function(of_worker)


def _run(
    config: Config,
    trainer: Trainer,
    evaluator: Evaluator | None,
    manager: RunCheckpoints,
    interruption: Interruption,
) -> None:
    step = trainer.optimizer.iterations
    progress = Progress(config.train_steps, config.batch_size)

    def report_progress(outputs: dict) -> None:
        outputs["images_per_second"] = progress(int(step.numpy()), outputs)

    def steps_per_loop(now: int) -> int:
        """To the next multiple of an interval; summaries and checkpoints are made after a loop."""
        intervals = (config.summary_interval, config.checkpoint_interval)
        return min(interval - int(now) % interval for interval in intervals)

    controller = _controller(
        config,
        trainer.strategy,
        step,
        evaluator,
        trainer=trainer,
        steps_per_loop=steps_per_loop,
        checkpoint_manager=manager,
        train_actions=[report_progress],
    )
    while (now := int(step.numpy())) < config.train_steps:
        progress.start(now)
        # It ends with a checkpoint, so that nothing is lost if the evaluation fails.
        _train_until(_next_evaluation(config, now), controller, interruption)
        if evaluator:
            _evaluate(config, controller)


def _controller(
    config: Config,
    strategy: tf.distribute.Strategy,
    step: tf.Variable,
    evaluator: Evaluator | None,
    **training: Any,
) -> orbit.Controller:
    logs = pathlib.Path(config.model_dir) if devices.is_chief(strategy) else None
    with _without_reports():
        return orbit.Controller(
            evaluator=evaluator,
            strategy=strategy,
            global_step=step,
            summary_dir=logs and str(logs / "train"),
            eval_summary_dir=logs and str(logs / "validation"),
            **training,
        )


def _without_reports() -> contextlib.redirect_stdout:
    """Keeps back what Orbit prints of each loop; `Progress` says the same in one line."""
    return contextlib.redirect_stdout(io.StringIO())


def _evaluate(config: Config, controller: orbit.Controller) -> None:
    """Evaluates the present step, for TensorBoard and `VALIDATION`."""
    with _without_reports():
        controller.evaluate()
    if devices.is_chief(controller.strategy):
        results = {"step": int(controller.global_step.numpy()), **controller.evaluator.results}
        report.write_json(results, str(pathlib.Path(config.model_dir, VALIDATION)))


def _next_evaluation(config: Config, step: int) -> int:
    """The first step after `step` that is evaluated; the last one where none is before."""
    if not (config.eval_records and config.eval_interval):
        return config.train_steps
    return min((step // config.eval_interval + 1) * config.eval_interval, config.train_steps)


def _last_validated(model_dir: str) -> int | None:
    """The last step that a run evaluated."""
    try:
        return json.loads(pathlib.Path(model_dir, VALIDATION).read_bytes())["step"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _train_until(step: int, controller: orbit.Controller, interruption: Interruption) -> None:
    """Trains and saves; a signal ends it after the present step, which is saved."""
    with interruption.deferred():
        try:
            with _without_reports():
                controller.train(step)
            controller.trainer.check_interruption()
        except Interrupted as interrupted:
            controller.save_checkpoint()
            print(
                f"{interrupted.signal_name}: saved "
                f"{controller.checkpoint_manager.latest_checkpoint}; repeat the command to resume.",
                file=sys.stderr,
            )
            raise
