"""What orbit drives: the training step with its variables and losses, and the evaluation."""

import numpy as np
import orbit
import tensorflow as tf
import tf_keras

from maskx_tf import checkpoints, diagnosis, objective, step_guard
from maskx_tf.errors import UserError
from maskx_tf.evaluation import report, runner
from maskx_tf.evaluation.panel import validation_panel
from maskx_tf.interruption import Interruption
from maskx_tf.model import MaskXRCNN
from maskx_tf.optimizer import learning_rate_schedule

# Parts of the model that a mode trains, by the first part of a variable's name.
BOX_PARTS = ("backbone", "fpn", "rpn", "box_head")
MASK_PARTS = ("mask_head", "weight_transfer", "mask_weights")
TRAINED_PARTS = {
    "end_to_end": BOX_PARTS + MASK_PARTS,
    "stage1_boxes": BOX_PARTS,
    "stage2_masks": MASK_PARTS,
}


def trained_variables(model: MaskXRCNN) -> list[tf.Variable]:
    """The variables that the model's mode trains."""
    parts = TRAINED_PARTS[model.config.mode]
    # The variables of a layer that is not part of the mode get no gradient.
    return [v for v in model.trainable_variables if v.name.split("/")[1] in parts]


class Trainer(orbit.StandardTrainer):
    """The training loop that orbit drives; `train` returns the mean losses of its steps.

    The loop over steps is in Python: between two steps it can end, with `Interrupted` if a signal
    came or with a UserError if the step could not be applied, and the batch is at hand then.

    Args:
      model: built under `strategy`.
      optimizer: made under `strategy`.
      dataset: batches of `data.pipeline`, distributed.
      strategy: over how many devices a step runs; every loss is a mean over the replica's images,
        gradients are averaged over replicas.
      interruption: asked before each step whether to go on.
    """

    def __init__(
        self,
        model: MaskXRCNN,
        optimizer: tf_keras.optimizers.Optimizer,
        dataset: tf.data.Dataset,
        strategy: tf.distribute.Strategy,
        interruption: Interruption | None = None,
    ):
        options = orbit.StandardTrainerOptions(use_tf_function=False, use_tf_while_loop=False)
        super().__init__(dataset, options)
        self._interruption = interruption or Interruption()
        self.model, self.optimizer, self.strategy = model, optimizer, strategy
        self.trained = trained_variables(model)
        self._steps = 0  # taken; known without waiting for the device
        self.metrics: dict[str, tf_keras.metrics.Metric] = {}
        with strategy.scope():
            optimizer.build(self.trained)
            for name in ("loss", *self._loss_names()):
                self.metrics[name] = tf_keras.metrics.Mean(name)
            self.guard = step_guard.StepGuard(self._loss_names(), model.num_classes)
        self._step = tf.function(self._step_on_replicas, input_signature=dataset.element_spec)

    def _loss_names(self) -> tuple[str, ...]:
        boxes = ("rpn_score", "rpn_box", "class", "box")
        modes = {"end_to_end": (*boxes, "mask"), "stage1_boxes": boxes, "stage2_masks": ("mask",)}
        return modes[self.model.config.mode]

    def train_loop_begin(self) -> None:
        """Forgets the losses of the last loop."""
        self._steps = int(self.optimizer.iterations.numpy())
        for metric in self.metrics.values():
            metric.reset_state()

    def train_step(self, iterator) -> None:
        """One step on every replica; a step that is not finite ends the run and changes nothing."""
        self._interruption.check()
        batch = next(iterator)
        try:
            self._step(*batch)
        except tf.errors.OpError as error:
            if not step_guard.is_stop(error):
                raise
            self.optimizer.iterations.assign(self._steps)  # alone it went on
            raise self._diagnosis(batch) from None
        self._steps += 1

    def _step_on_replicas(self, features, labels) -> None:
        self.strategy.run(self._replica_step, args=(features, labels))

    def _replica_step(self, features, labels) -> None:
        replica = tf.distribute.get_replica_context()
        step = tf.cast(self.optimizer.iterations, tf.int32)
        place = step * replica.num_replicas_in_sync + replica.replica_id_in_sync_group
        seed = tf.stack([self.model.config.seed, place])
        features, labels, fault = self.guard.sanitize(features, labels)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.trained)
            losses = objective.training_losses(self.model, features, labels, seed)
            values = {name: value for name, (value, _) in losses.items()}
            total = tf.add_n(list(values.values()))
            scaled = total / replica.num_replicas_in_sync
        gradients = tape.gradient(scaled, self.trained)
        loss_scaling = isinstance(self.optimizer, tf_keras.mixed_precision.LossScaleOptimizer)
        gradients = self.guard.check(fault, values, gradients, scaled=loss_scaling)
        self.optimizer.apply_gradients(zip(gradients, self.trained, strict=True))
        self.metrics["loss"].update_state(total)
        for name, value in values.items():
            self.metrics[name].update_state(value)

    def train_loop_end(self) -> dict[str, float]:
        """Mean losses and learning rate."""
        outputs = {name: float(metric.result()) for name, metric in self.metrics.items()}
        outputs["learning_rate"] = float(tf.convert_to_tensor(self.optimizer.learning_rate))
        return outputs

    def _diagnosis(self, batch: tuple[dict, dict]) -> UserError:
        """What to say of a batch whose step was stopped."""
        config, step = self.model.config, self._steps
        # A batch norm may have taken in what the stopped step saw: its statistics tell nothing.
        weights = [v for v in self.model.weights if "moving_" not in v.name]
        bad = [v for v in weights if not np.isfinite(v.numpy()).all()]
        bad_step = diagnosis.BadStep(
            number=step + 1,
            batch={name: self._to_numpy(value) for part in batch for name, value in part.items()},
            history=self.guard.history(self.strategy),
            names=self.guard.names,
            learning_rate=float(learning_rate_schedule(config)(step)),
            bad_weights=tuple(checkpoints.variable_key(v) for v in bad),
        )
        return diagnosis.stop(bad_step, config, self.model.num_classes)

    def _to_numpy(self, value) -> np.ndarray:
        """What the replicas of this process have of a value, one after the other."""
        local = self.strategy.experimental_local_results(value)
        return np.concatenate([part.numpy() for part in local])


class Evaluator(orbit.AbstractEvaluator):
    """Evaluates the model on `config.eval_records` and draws the validation panel.

    Args:
      loaded: the model being trained, with its options and classes.
    """

    def __init__(self, loaded: checkpoints.LoadedModel):
        self._loaded = loaded
        self._evaluator = runner.ModelEvaluator(*loaded)
        self.results: dict = {}

    def evaluate(self, num_steps: tf.Tensor) -> dict[str, float]:
        """AP of boxes and masks on A, B and all classes; the panel goes to TensorBoard."""
        del num_steps  # always the whole set
        self.results = self._evaluator.evaluate()
        if self._loaded.config.panel_images:
            picture = validation_panel(*self._loaded)
            tf.summary.image("validation", picture[None])
        return report.scalars(self.results)
