"""What orbit drives: the training step with its variables and losses, and the evaluation."""

import math
from collections.abc import Callable

import orbit
import tensorflow as tf
import tf_keras

from maskx_tf import checkpoints, objective
from maskx_tf.errors import UserError
from maskx_tf.evaluation import curves, report, runner
from maskx_tf.evaluation.panel import validation_panel
from maskx_tf.model import MaskXRCNN

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

    Args:
      model: built under `strategy`.
      optimizer: made under `strategy`.
      dataset: batches of `data.pipeline`, distributed.
      strategy: over how many devices a step runs; every loss is a mean over the replica's images,
        gradients are averaged over replicas.
      losses: (model, *batch, seed) -> losses of a batch.
    """

    def __init__(
        self,
        model: MaskXRCNN,
        optimizer: tf_keras.optimizers.Optimizer,
        dataset: tf.data.Dataset,
        strategy: tf.distribute.Strategy,
        losses: Callable[..., objective.Losses] = objective.training_losses,
    ):
        super().__init__(dataset)
        self._losses = losses
        self.model, self.optimizer, self.strategy = model, optimizer, strategy
        self.trained = trained_variables(model)
        self.metrics: dict[str, tf_keras.metrics.Metric] = {}
        with strategy.scope():
            optimizer.build(self.trained)
            for name in ("loss", *self._loss_names()):
                self.metrics[name] = tf_keras.metrics.Mean(name)

    def _loss_names(self) -> tuple[str, ...]:
        boxes = ("rpn_score", "rpn_box", "class", "box")
        modes = {"end_to_end": (*boxes, "mask"), "stage1_boxes": boxes, "stage2_masks": ("mask",)}
        return modes[self.model.config.mode]

    def train_loop_begin(self) -> None:
        """Forgets the losses of the last loop."""
        for metric in self.metrics.values():
            metric.reset_state()

    def train_step(self, iterator) -> None:
        """One step on every replica."""
        self.strategy.run(self._replica_step, args=next(iterator))

    def _replica_step(self, *batch) -> None:
        replica = tf.distribute.get_replica_context()
        step = tf.cast(self.optimizer.iterations, tf.int32)
        place = step * replica.num_replicas_in_sync + replica.replica_id_in_sync_group
        seed = tf.stack([self.model.config.seed, place])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.trained)
            losses = self._losses(self.model, *batch, seed)
            values = {name: value for name, (value, _) in losses.items()}
            total = tf.add_n(list(values.values()))
            scaled = total / replica.num_replicas_in_sync
        gradients = tape.gradient(scaled, self.trained)
        self.optimizer.apply_gradients(zip(gradients, self.trained, strict=True))
        self.metrics["loss"].update_state(total)
        for name, value in values.items():
            self.metrics[name].update_state(value)

    def train_loop_end(self) -> dict[str, float]:
        """Mean losses and learning rate. Stops the run on a loss that is not finite."""
        outputs = {name: float(metric.result()) for name, metric in self.metrics.items()}
        bad = [name for name in self._loss_names() if not math.isfinite(outputs[name])]
        step = int(self.optimizer.iterations.numpy())
        if bad:
            raise UserError(
                f"loss {', '.join(bad)} is not finite at step {step}; the last checkpoint is kept. "
                f"Lower --learning_rate, lengthen --warmup_steps or set --clip_norm."
            )
        outputs["learning_rate"] = float(tf.convert_to_tensor(self.optimizer.learning_rate))
        return outputs


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
        """AP of boxes and masks on A, B and all classes; curves and panel go to TensorBoard."""
        del num_steps  # always the whole set
        self.results = self._evaluator.evaluate()
        picture = curves.pixels(curves.draw(self._evaluator.curves))
        tf.summary.image("precision_recall", picture[None])
        if self._loaded.config.panel_images:
            picture = validation_panel(*self._loaded)
            tf.summary.image("validation", picture[None])
        return report.scalars(self.results)
