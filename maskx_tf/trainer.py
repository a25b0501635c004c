"""What orbit drives: the training step with its variables and losses, and the evaluation."""

import contextlib
import math

import orbit
import tensorflow as tf
import tf_keras

from maskx_tf import checkpoints, objective, replicas
from maskx_tf.errors import UserError
from maskx_tf.evaluation import report, runner
from maskx_tf.evaluation.panel import validation_panel
from maskx_tf.model import MaskXRCNN
from maskx_tf.modes import trained_variables
from maskx_tf.moving_average import MovingAverage


class Trainer(orbit.StandardTrainer):
    """The training loop that orbit drives; `train` returns the mean losses of its steps.

    Args:
      model: built under `strategy`.
      optimizer: made under `strategy`.
      dataset: batches of `data.pipeline`, distributed.
      strategy: over how many devices a step runs; losses and gradients are those that one device
        would compute of all images of the step.
      average: of the weights, made under `strategy`, if there is to be one.
    """

    def __init__(
        self,
        model: MaskXRCNN,
        optimizer: tf_keras.optimizers.Optimizer,
        dataset: tf.data.Dataset,
        strategy: tf.distribute.Strategy,
        average: MovingAverage | None = None,
    ):
        super().__init__(dataset)
        self.average = average
        self.model, self.optimizer, self.strategy = model, optimizer, strategy
        self.trained = trained_variables(model)
        self._scales_loss = hasattr(optimizer, "get_scaled_loss")
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
        if self.average:
            self.average.update(self.strategy, self.optimizer.iterations)

    def _replica_step(self, features, labels) -> None:
        step = tf.cast(self.optimizer.iterations, tf.int32)
        seed = tf.stack([self.model.config.seed, step])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.trained)
            losses = objective.training_losses(self.model, features, labels, seed)
            shares = replicas.shares(losses)
            total = tf.add_n(list(shares.values()))
            scaled = self.optimizer.get_scaled_loss(total) if self._scales_loss else total
        gradients = tape.gradient(scaled, self.trained)
        if self._scales_loss:
            gradients = self.optimizer.get_unscaled_gradients(gradients)
        self.optimizer.apply_gradients(zip(gradients, self.trained, strict=True))
        for name, share in {"loss": total, **shares}.items():
            # A metric is a mean over steps and replicas.
            self.metrics[name].update_state(share * self.strategy.num_replicas_in_sync)

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
      average: what to evaluate in place of the model's own weights.
    """

    def __init__(self, loaded: checkpoints.LoadedModel, average: MovingAverage | None = None):
        self._loaded, self._average = loaded, average
        self._evaluator = runner.ModelEvaluator(*loaded)
        self.results: dict = {}

    def evaluate(self, num_steps: tf.Tensor) -> dict[str, float]:
        """AP of boxes and masks on A, B and all classes; the panel goes to TensorBoard."""
        del num_steps  # always the whole set
        with self._average.in_use() if self._average else contextlib.nullcontext():
            self.results = self._evaluator.evaluate()
            if self._loaded.config.panel_images:
                picture = validation_panel(*self._loaded)
                tf.summary.image("validation", picture[None])
        return report.scalars(self.results)
