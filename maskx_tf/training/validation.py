"""What orbit evaluates while a run trains: AP, curves and the validation panel."""

import contextlib

import orbit
import tensorflow as tf

from maskx_tf import checkpoints
from maskx_tf.evaluation import curves, report, runner
from maskx_tf.evaluation.panel import validation_panel
from maskx_tf.training.moving_average import MovingAverage


class Evaluator(orbit.AbstractEvaluator):
    """Evaluates the model on `config.eval_records` and draws the validation panel.

    Args:
      loaded: the model being trained, with its options and classes.
      average: what to evaluate in place of the model's own weights.
    """

    def __init__(self, loaded: checkpoints.LoadedModel, average: MovingAverage | None = None):
        self._loaded, self._average = loaded, average
        self._evaluator = runner.ModelEvaluator(*loaded)

    @property
    def results(self) -> dict:
        """Of the last evaluation; empty before."""
        return self._evaluator.results  # a dict of its own would be tracked, and no json any more

    def evaluate(self, num_steps: tf.Tensor) -> dict[str, float]:
        """AP of boxes and masks on A, B and all classes; curves and panel go to TensorBoard."""
        del num_steps  # always the whole set
        with self._average.in_use() if self._average else contextlib.nullcontext():
            self._evaluator.evaluate(per_class=True)
            picture = curves.pixels(curves.draw(self._evaluator.curves))
            tf.summary.image("precision_recall", picture[None])
            if self._loaded.config.panel_images:
                picture = validation_panel(*self._loaded)
                tf.summary.image("validation", picture[None])
        return report.scalars(self.results)
