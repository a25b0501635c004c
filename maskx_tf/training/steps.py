"""What orbit drives: the training step, with its variables and losses."""

import numpy as np
import orbit
import tensorflow as tf
import tf_keras

from maskx_tf import objective
from maskx_tf.errors import UserError
from maskx_tf.model import MaskXRCNN, trained_variables, variable_key
from maskx_tf.system.interruption import Interruption
from maskx_tf.training import diagnosis, step_guard
from maskx_tf.training.agreement import Agreement
from maskx_tf.training.moving_average import MovingAverage
from maskx_tf.training.optimizer import learning_rate_schedule


class Trainer(orbit.StandardTrainer):
    """The training loop that orbit drives; `train` returns the mean losses of its steps.

    The loop over steps is in Python: between two steps it can end, with `Interrupted` if a signal
    came or with a UserError if the step could not be applied, and the batch is at hand then.

    Args:
      model: built under `strategy`.
      optimizer: made under `strategy`.
      dataset: batches of `data.pipeline`, distributed.
      strategy: over how many devices a step runs; losses and gradients are those that one device
        would compute of all images of the step.
      average: of the weights, made under `strategy`, if there is to be one.
      interruption: asked before each step whether to go on.
    """

    def __init__(
        self,
        model: MaskXRCNN,
        optimizer: tf_keras.optimizers.Optimizer,
        dataset: tf.data.Dataset,
        strategy: tf.distribute.Strategy,
        average: MovingAverage | None = None,
        interruption: Interruption | None = None,
    ):
        options = orbit.StandardTrainerOptions(use_tf_function=False, use_tf_while_loop=False)
        super().__init__(dataset, options)
        self._interruption = interruption or Interruption()
        self._agreement = Agreement(strategy)
        self.average = average
        self.model, self.optimizer, self.strategy = model, optimizer, strategy
        self.trained = trained_variables(model)
        self._terms = objective.loss_terms(model.config, len(model.box_heads))
        names = tuple(term.name for term in self._terms)
        self._scales_loss = hasattr(optimizer, "get_scaled_loss")
        self._steps = 0  # taken; known without waiting for the device
        self.metrics: dict[str, tf_keras.metrics.Metric] = {}
        with strategy.scope():
            optimizer.build(self.trained)
            for name in ("loss", *names):
                self.metrics[name] = tf_keras.metrics.Mean(name)
            self.guard = step_guard.StepGuard(names, model.num_classes)
        self._step = tf.function(
            self._step_on_replicas, input_signature=dataset.element_spec, autograph=False
        )

    def train_loop_begin(self) -> None:
        """Forgets the losses of the last loop."""
        self._steps = int(self.optimizer.iterations.numpy())
        for metric in self.metrics.values():
            metric.reset_state()

    def train_step(self, iterator) -> None:
        """One step on every replica; a step that is not finite ends the run and changes nothing."""
        self.check_interruption()
        batch = next(iterator)
        try:
            self._step(*batch)
        except tf.errors.OpError as error:
            if not step_guard.is_stop(error):
                raise
            self.optimizer.iterations.assign(self._steps)  # alone it went on
            if "image" not in batch[0]:
                raise UserError(
                    f"step {self._steps + 1} is not finite; the last checkpoint is kept. Resume "
                    "without --feature_cache to learn why."
                ) from None
            raise self._diagnosis(batch) from None
        self._steps += 1

    def check_interruption(self) -> None:
        """Raises `Interrupted` in all processes if a signal has come in one."""
        if self._agreement.anywhere(self._interruption.received):
            self._interruption.end()

    def _step_on_replicas(self, features, labels) -> None:
        self.strategy.run(self._replica_step, args=(features, labels))
        if self.average:
            self.average.update(self.strategy, self.optimizer.iterations)

    def _replica_step(self, features, labels) -> None:
        step = tf.cast(self.optimizer.iterations, tf.int32)
        seed = tf.stack([self.model.config.seed, step])
        features, labels, fault = self.guard.sanitize(features, labels)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.trained)
            losses = objective.training_losses(self.model, features, labels, seed)
            shares = objective.shares(losses, self._terms, step)
            total = tf.add_n(list(shares.values()))
            scaled = self.optimizer.get_scaled_loss(total) if self._scales_loss else total
        gradients = [self._added_up(value) for value in tape.gradient(scaled, self.trained)]
        if self._scales_loss:
            gradients = self.optimizer.get_unscaled_gradients(gradients)
        gradients = self.guard.check(fault, shares, gradients, scaled=self._scales_loss)
        self.optimizer.apply_gradients(zip(gradients, self.trained, strict=True))
        for name, share in {"loss": total, **shares}.items():
            # A metric is a mean over steps and replicas.
            self.metrics[name].update_state(share * self.strategy.num_replicas_in_sync)

    def _added_up(
        self, gradient: tf.Tensor | tf.IndexedSlices | None
    ) -> tf.Tensor | tf.IndexedSlices | None:
        """A gradient whose norm is its own: a gathered row has a part of it from each RoI."""
        if not isinstance(gradient, tf.IndexedSlices):
            return gradient
        if self.model.config.clip_norm:  # the replicas' parts of a row are to be added up too
            return tf.convert_to_tensor(gradient)
        rows, places = tf.unique(gradient.indices)
        values = tf.math.unsorted_segment_sum(gradient.values, places, tf.size(rows))
        return tf.IndexedSlices(values, rows, gradient.dense_shape)

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
            bad_weights=tuple(variable_key(v) for v in bad),
        )
        return diagnosis.stop(bad_step, config, self.model.num_classes)

    def _to_numpy(self, value) -> np.ndarray:
        """What the replicas of this process have of a value, one after the other."""
        local = self.strategy.experimental_local_results(value)
        return np.concatenate([part.numpy() for part in local])
