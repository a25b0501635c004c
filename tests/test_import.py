"""`import maskx_tf`: fast, without TensorFlow; its functions stay what they are."""

import importlib
import inspect
import subprocess
import sys
import time

import pytest

import maskx_tf
from tests import harness


def run(script):
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=harness.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_fast_and_does_not_load_tensorflow():
    script = """
import sys, time
start = time.process_time()
import maskx_tf as mx
print(time.process_time() - start)
heavy = {"tensorflow", "tf_keras", "official", "numpy", "cv2", "absl"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
mx.Config(train_steps=10), mx.Detections, mx.UserError
assert "tensorflow" not in sys.modules
assert {"load", "build", "train", "evaluate", "Config", "Detections"} <= set(dir(mx))
"""
    assert float(run(script)) < 0.1


@pytest.mark.parametrize("first", ["command", "function"])
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_command_does_not_hide_the_function_of_its_name(name, first, monkeypatch):
    module = f"maskx_tf.{name}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    vars(maskx_tf).pop(name, None)
    if first == "function":
        assert inspect.isfunction(getattr(maskx_tf, name))
    command = importlib.import_module(module)
    assert inspect.ismodule(command) and command.define_flags
    assert inspect.isfunction(getattr(maskx_tf, name))
    scope: dict = {}
    exec(f"from maskx_tf import {name}; import {module} as again", scope)
    assert inspect.isfunction(scope[name])


def test_other_names_are_missed():
    with pytest.raises(AttributeError, match="module 'maskx_tf' has no attribute 'lode'"):
        maskx_tf.lode  # noqa: B018


def test_other_names_can_be_set(monkeypatch):
    monkeypatch.setattr(maskx_tf, "__version__", time)
    assert maskx_tf.__version__ is time
