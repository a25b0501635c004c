"""Whether a training that is killed again and again ends with the weights of one that is not.

    python -m benchmarks.kill_training --kills=20 --steps=200

Trains a tiny model on Shapes on the CPU twice: undisturbed, and killed (SIGKILL) at random
moments, every other time while a checkpoint is being saved, each time followed by the same again.
Prints the kills, and compares every value of the last two checkpoints and the files left behind.
Trainings are forks of one process, so that TensorFlow is imported once; nothing else is shared.
"""

import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import flags

from maskx_tf import training
from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.system import cli
from maskx_tf.system.progress import format_duration
from tf_records.shapes import dataset as shapes
from tf_records.shapes.objects import SceneOptions

# What a run may leave in its directory.
_KEPT = re.compile(
    r"checkpoint|ckpt-\d+\.(index|data-00000-of-00001)|train\.flags|vocabulary\.json"
    r"|mask_classes\.json|parameters\.txt|train|validation|events\.out\..*"
)


def make_data(directory: pathlib.Path) -> pathlib.Path:
    """Records of 8 small images of Shapes; their directory."""
    options = SceneOptions(image_size=64, side=(20, 36))
    shapes.generate(str(directory), train_images=8, val_images=1, workers=1, options=options)
    return directory / "records" / "train"


def make_config(records: pathlib.Path, model_dir: pathlib.Path, steps: int) -> Config:
    """A model that trains a step in some milliseconds, with a checkpoint every 7 steps."""
    return Config(
        model_dir=str(model_dir), train_records=(str(records),), train_steps=steps, num_gpus=0,
        checkpoint_interval=7, summary_interval=1, keep_checkpoints=2, panel_images=0,
        batch_size=2, image_min_side=64, image_max_side=64, max_objects=5, mask_crop_size=28,
        pixel_std=(57.0, 57.0, 57.0), backbone="small", backbone_width=16,
        normalization="batch_norm", frozen_stages=0, fpn_filters=16, max_level=5, rpn_filters=16,
        rpn_batch_size=64, rpn_pre_nms_train=100, rpn_post_nms_train=50, roi_batch_size=32,
        roi_canonical_size=56.0, box_fc_units=32, mask_filters=16, mask_convs=1, mask_mlp=False,
        transfer_units=16, learning_rate=0.01, warmup_steps=steps // 4, lr_steps=(steps * 2 // 3,),
    )  # fmt: skip


class Training:
    """A training in a process of its own.

    Args:
      config: what is trained.
      log: file that takes its stderr.
    """

    def __init__(self, config: Config, log: pathlib.Path):
        self._config, self._log = config, log
        log.write_text("")
        sys.stdout.flush()
        sys.stderr.flush()
        self.process_id = os.fork()
        if not self.process_id:
            self._train()

    def _train(self) -> None:
        status = 1
        try:
            os.dup2(os.open(self._log, os.O_WRONLY | os.O_APPEND), 2)
            training.train(self._config)
            status = 0
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        except UserError as error:
            os.write(2, f"error: {error}\n".encode())
            status = 2
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds or the process has ended."""
        while not condition() and not self._ended():
            time.sleep(0.001)

    def step(self) -> int:
        """The last step of a progress line."""
        return max(map(int, re.findall(r"^step +(\d+)/", self._log.read_text(), re.MULTILINE)),
                   default=0)  # fmt: skip

    def is_saving(self) -> bool:
        """Whether files of a checkpoint are there that is not complete."""
        names = {path.name for path in pathlib.Path(self._config.model_dir).glob("ckpt-*")}
        indexed = {name.removesuffix(".index") for name in names if name.endswith(".index")}
        return any(name.split(".")[0] not in indexed for name in names)

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.process_id, signal.SIGKILL)

    def wait(self) -> int:
        """Waits for the end; the exit status, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.process_id, 0)[1])

    def _ended(self) -> bool:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process_id, options) is not None


def run(config: Config, log: pathlib.Path) -> None:
    """Trains to the end."""
    if Training(config, log).wait():
        raise RuntimeError(f"training failed: {log.read_text()[-2000:]}")


def _moments(steps: int) -> range:
    """The steps to kill in: late enough to be killed, early enough not to be done first."""
    return range(1, steps - 10)


def run_killed(config: Config, log: pathlib.Path, kills: int, seed: int) -> list[int]:
    """Trains to the end over so many kills; the step that each training was in when it died."""
    rng = random.Random(seed)
    targets = sorted(rng.sample(_moments(config.train_steps), kills))
    killed = []
    for number, target in enumerate(targets):
        current = Training(config, log)
        current.wait_until(lambda c=current, t=target: c.step() >= t)
        if number % 2:
            current.wait_until(current.is_saving)
        time.sleep(rng.uniform(0, 0.02))
        killed.append(current.step())
        current.kill()
        status = current.wait()
        if status != -signal.SIGKILL:
            raise RuntimeError(f"not killed but {status}: {log.read_text()[-2000:]}")
        print(f"killed in step {killed[-1] + 1}", flush=True)
    run(config, log)
    return killed


def differences(first: str, second: str) -> list[str]:
    """Names of the values that differ between the last checkpoints of two runs."""
    readers = [tf.train.load_checkpoint(directory) for directory in (first, second)]
    names = [set(reader.get_variable_to_shape_map()) for reader in readers]
    different = sorted(names[0] ^ names[1])
    for name in sorted(names[0] & names[1]):
        if "save_counter" not in name and "OBJECT_GRAPH" not in name:
            a, b = (reader.get_tensor(name) for reader in readers)
            if not np.array_equal(a, b, equal_nan=True):
                different.append(name)
    return different


def stray_files(model_dir: str) -> list[str]:
    """What a finished run should not have left."""
    paths = pathlib.Path(model_dir).rglob("*")
    return sorted(str(path) for path in paths if not _KEPT.fullmatch(path.name))


def main() -> None:
    """Trains twice and compares."""
    values = flags.FLAGS
    if values.kills > (most := len(_moments(values.steps))):
        raise UserError(f"--kills={values.kills}: --steps={values.steps} has room for {most}.")
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        records, log = make_data(root / "data"), root / "log"
        start = time.monotonic()
        undisturbed = make_config(records, root / "undisturbed", values.steps)
        run(undisturbed, log)
        once = time.monotonic() - start
        start = time.monotonic()
        killed = undisturbed.replace(model_dir=str(root / "killed"))
        run_killed(killed, log, values.kills, values.seed)
        seconds = time.monotonic() - start
        different = differences(undisturbed.model_dir, killed.model_dir)
        stray = stray_files(killed.model_dir)
    print(
        f"{values.kills} kills in {values.steps} steps: {len(different)} values differ, "
        f"{len(stray)} stray files; {format_duration(once)} undisturbed, "
        f"{format_duration(seconds)} with kills."
    )
    if different or stray:
        raise UserError(f"not the same: {', '.join((different + stray)[:10])}.")


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 20, "How often to kill.", lower_bound=0)
    flags.DEFINE_integer("steps", 200, "Training steps.", lower_bound=20)
    flags.DEFINE_integer("seed", 0, "Of the moments of the kills.")
    cli.run(main)
