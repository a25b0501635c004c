"""The loop of a training: steps, progress lines, checkpoints and evaluations, driven by orbit."""

import contextlib
import io
import json
import pathlib
import sys
from typing import Any

import orbit
import tensorflow as tf

from maskx_tf.checkpoints import LoadedModel, best
from maskx_tf.checkpoints.listing import latest
from maskx_tf.checkpoints.saving import RunCheckpoints
from maskx_tf.config import Config
from maskx_tf.evaluation import report
from maskx_tf.system.interruption import Interrupted, Interruption
from maskx_tf.system.progress import Progress
from maskx_tf.training import devices
from maskx_tf.training.agreement import Agreement
from maskx_tf.training.steps import Trainer
from maskx_tf.training.validation import Evaluator

VALIDATION = "validation.json"  # of a run: the last evaluation while it was trained


def run(
    loaded: LoadedModel,
    trainer: Trainer,
    evaluator: Evaluator | None,
    manager: RunCheckpoints,
    interruption: Interruption,
) -> None:
    """Trains to `config.train_steps`; evaluates as often as `config.eval_interval` says.

    It ends before if `config.patience` evaluations in a row were no better.

    Raises:
      UserError: a step is not finite, or a checkpoint cannot be saved.
      Interrupted: a signal came; the checkpoint of the last step is saved.
    """
    config = loaded.config
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
            _evaluate(loaded, controller)
            if is_stopped(config, trainer.strategy):
                return


def is_stopped(config: Config, strategy: tf.distribute.Strategy) -> bool:
    """Whether a run's patience is at its end; says so. All processes have to ask."""
    Agreement(strategy).wait()  # until the chief has written what they look at
    if not best.is_exhausted(config):
        return False
    print(
        f"{config.patience} evaluations without a better {config.keep_best}: training ends here. "
        "A larger --patience goes on.",
        file=sys.stderr,
    )
    return True


def make_up_evaluation(
    loaded: LoadedModel, strategy: tf.distribute.Strategy, step: tf.Variable, evaluator: Evaluator
) -> None:
    """Evaluates the step that a run resumes at, if its evaluation was due and cut off."""
    config = loaded.config
    start = int(step.numpy())
    is_due = start > 0 and _next_evaluation(config, start - 1) == start
    is_missing = is_due and _last_validated(config.model_dir) != start
    Agreement(strategy).wait()  # all look before one evaluates
    if is_missing:
        print(f"Step {start} was not evaluated; evaluating it now.", file=sys.stderr)
        _evaluate(loaded, _controller(config, strategy, step, evaluator))


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


def _evaluate(loaded: LoadedModel, controller: orbit.Controller) -> None:
    """Evaluates the present step, for TensorBoard, the best checkpoint and `VALIDATION`.

    `VALIDATION` comes last: what is cut off before is done again.
    """
    _, config, vocabulary, mask_class_ids = loaded
    with _without_reports():
        controller.evaluate()
    if devices.is_chief(controller.strategy):
        step, results = int(controller.global_step.numpy()), controller.evaluator.results
        if config.keep_best:
            best.update(config, vocabulary, mask_class_ids, step, report.scalars(results))
        results = {"step": step, **results}
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
                f"{latest(controller.checkpoint_manager.model_dir)}; repeat the command to resume.",
                file=sys.stderr,
            )
            raise
