"""Optimiser and learning-rate schedule: the published SGD, and AdamW for short runs."""

import tensorflow as tf
import tf_keras
from official.modeling.optimization import lr_schedule

from maskx_tf.config import Config
from maskx_tf.errors import UserError


def is_bias(variable: tf.Variable) -> bool:
    """Whether a variable is a bias, or an offset or scale of a normalisation: no weight decay."""
    # Not only the last part of the name: copies on other devices end in `box_bias/replica_1`.
    return "bias" in variable.name or variable.shape.rank < 2


class DetectronSGD(tf_keras.optimizers.Optimizer):
    """SGD with momentum as Detectron has it.

    v <- momentum * v + gradient + weight_decay * w;  w <- w - learning_rate * v. The learning rate
    stays outside the velocity, so that a cut takes effect at once; Keras' SGD keeps it inside,
    where Detectron has to rescale the velocity at every cut. Biases, to which offsets and scales of
    normalisations count here, have no decay and their own factor on the learning rate.

    Args:
      learning_rate: number or schedule.
      momentum: of the velocity.
      l2: weight decay of everything but biases, added to the gradient.
      bias_factor: factor on the learning rate of biases.
      **kwargs: of the Keras base class, e.g. `global_clipnorm`.
    """

    def __init__(
        self, learning_rate, momentum: float, l2: float, bias_factor: float, name="sgd", **kwargs
    ):
        super().__init__(name=name, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.momentum, self.l2, self.bias_factor = momentum, l2, bias_factor

    def build(self, var_list) -> None:
        """Creates one velocity for each variable."""
        super().build(var_list)
        if not hasattr(self, "velocities"):
            self.velocities = [self.add_variable_from_reference(v, "velocity") for v in var_list]

    def update_step(self, gradient, variable) -> None:
        """Applies one update."""
        learning_rate = tf.cast(self.learning_rate, variable.dtype)
        velocity = self.velocities[self._index_dict[self._var_key(variable)]]
        gradient = tf.convert_to_tensor(gradient)  # adds up IndexedSlices
        if is_bias(variable):
            learning_rate = learning_rate * self.bias_factor
        else:
            gradient += self.l2 * variable
        # Both updates in one pass and in place, as Keras' own do in four with copies.
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=learning_rate,
            grad=gradient,
            momentum=tf.cast(self.momentum, variable.dtype),
        )

    def get_config(self):
        """The options, for Keras."""
        options = {"momentum": self.momentum, "l2": self.l2, "bias_factor": self.bias_factor}
        rate = self._serialize_hyperparameter(self._learning_rate)
        return super().get_config() | options | {"learning_rate": rate}


def learning_rate_schedule(config: Config):
    """Linear warm-up from warmup_factor, then a cut by 10 at each of lr_steps.

    Raises:
      UserError: a cut is not after the warm-up.
    """
    if config.warmup_steps and config.lr_steps and config.lr_steps[0] <= config.warmup_steps:
        raise UserError(
            f"--lr_steps={','.join(map(str, config.lr_steps))} cuts the rate before the end of "
            f"--warmup_steps={config.warmup_steps}; shorten the warm-up or cut later."
        )
    cuts = config.lr_steps or (config.train_steps + 1,)  # Keras wants one: it is never reached
    rates = [config.learning_rate * 0.1**i for i in range(len(cuts) + 1)]
    # Keras' boundary belongs to the piece before it, the published one to the piece after.
    boundaries = [step - 1 for step in cuts]
    schedule = tf_keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
    if not config.warmup_steps:
        return schedule
    return lr_schedule.LinearWarmup(
        schedule, config.warmup_steps, config.learning_rate * config.warmup_factor
    )


def build_optimizer(config: Config) -> tf_keras.optimizers.Optimizer:
    """The optimiser of a configuration, with its schedule.

    With precision float16 it is a `LossScaleOptimizer`: small gradients would be zero. It scales
    the loss, and leaves out the update (the step counts) where a gradient overflows.
    """
    optimizer = _build_optimizer(config)
    if config.precision == "float16":
        return tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
    return optimizer


def _build_optimizer(config: Config) -> tf_keras.optimizers.Optimizer:
    schedule = learning_rate_schedule(config)
    clip = config.clip_norm or None
    if config.optimizer == "sgd":
        return DetectronSGD(
            schedule,
            config.momentum,
            config.weight_decay,
            config.bias_learning_rate_factor,
            global_clipnorm=clip,
        )
    optimizer = tf_keras.optimizers.AdamW(
        schedule, weight_decay=config.weight_decay, global_clipnorm=clip
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
