"""The lines that a person reads while training runs."""

import io

import pytest

from maskx_tf.system.progress import Progress, format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (187, "3:07 min"),
        (3599.7, "1:00 h"),
        (18_180, "5:03 h"),
        (360_000, "100:00 h"),
    ],
)
def test_duration(seconds, text):
    assert format_duration(seconds) == text


def test_lines():
    now, stream = [100.0], io.StringIO()
    progress = Progress(90_000, 16, stream=stream, clock=lambda: now[0])
    progress.start(980)
    now[0] += 8
    losses = {"loss": 2.71828, "rpn_score": 0.0512, "mask": 0.6931, "learning_rate": 0.02}
    speed = progress(1000, losses)
    now[0] += 5
    progress(1020, losses | {"loss": 2.5})
    assert speed == pytest.approx(40)
    assert stream.getvalue() == (
        "step  1000/90000  loss 2.718  rpn_score 0.051  mask 0.693  learning_rate 0.020  "
        "2.50 steps/s  40.0 images/s  ETA 9:53 h\n"
        "step  1020/90000  loss 2.500  rpn_score 0.051  mask 0.693  learning_rate 0.020  "
        "4.00 steps/s  64.0 images/s  ETA 6:10 h\n"
    )


def test_small_values_keep_two_digits():
    stream = io.StringIO()
    progress = Progress(20, 2, stream=stream, clock=lambda: 1.0)
    progress.start(0)
    progress(10, {"rpn_box": 0.0, "learning_rate": 0.000_25})
    assert "rpn_box 0.000  learning_rate 2.5e-04  " in stream.getvalue()


def test_the_last_step_has_nothing_left():
    stream = io.StringIO()
    progress = Progress(20, 2, stream=stream, clock=lambda: 1.0)
    progress.start(0)
    progress(20, {})
    assert stream.getvalue().endswith("ETA 0 s\n")
