"""What a person sees while training runs: one line of losses, speed and remaining time."""

import sys
import time


def format_duration(seconds: float) -> str:
    """`42 s`, `3:07 min` or `5:03 h`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}:{seconds:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def _short(value: float) -> str:
    """Three decimals, or two digits of what would vanish in them."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.1e}"


class Progress:
    """Prints a line to stderr each time it is called with the outputs of a training loop.

    Args:
      train_steps: step at which training ends.
      batch_size: images per step.
      stream: where lines go; None: stderr.
      clock: seconds; replaced in tests.
    """

    def __init__(self, train_steps: int, batch_size: int, stream=None, clock=time.monotonic):
        self._train_steps, self._batch_size = train_steps, batch_size
        self._stream, self._clock = stream or sys.stderr, clock
        self._last: tuple[int, float] | None = None

    def start(self, step: int) -> None:
        """Marks the step at which the clock starts."""
        self._last = (step, self._clock())

    def __call__(self, step: int, outputs: dict[str, float]) -> float:
        """Prints the line of `step`; returns images per second since the last one."""
        assert self._last is not None, "call start first"
        last_step, last_time = self._last
        now = self._clock()
        steps_per_second = (step - last_step) / max(now - last_time, 1e-9)
        self._last = (step, now)
        remaining = format_duration((self._train_steps - step) / max(steps_per_second, 1e-9))
        losses = "  ".join(f"{name} {_short(value)}" for name, value in outputs.items())
        print(
            f"step {step:>{len(str(self._train_steps))}}/{self._train_steps}  {losses}  "
            f"{steps_per_second:.2f} steps/s  {steps_per_second * self._batch_size:.1f} images/s  "
            f"ETA {remaining}",
            file=self._stream,
            flush=True,
        )
        return steps_per_second * self._batch_size
