"""What a person sees in a terminal: colours and bars, and nothing of TensorFlow's own."""

import os
import pty
import re
import subprocess
import sys
import termios
import textwrap

import pytest

from tests.harness import REPOSITORY

COLUMNS = 150
NOISE = re.compile(r"PredictCost|before absl::InitializeLog")


def in_terminal(script: str, *arguments: str) -> tuple[int, str]:
    """Exit code and all output of a script whose stdout and stderr are a terminal."""
    main, end = pty.openpty()
    termios.tcsetwinsize(end, (24, COLUMNS))
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=REPOSITORY,
        stdout=end,
        stderr=end,
    )
    os.close(end)
    output = b""
    while True:
        try:
            output += os.read(main, 1 << 16)
        except OSError:  # EIO: the last process has closed its end
            break
    os.close(main)
    return process.wait(timeout=60), output.decode()


def test_commands_see_the_terminal():
    code, output = in_terminal(
        """
        import sys
        from maskx_tf.system import cli
        cli.run(lambda: print(sys.stdout.isatty(), sys.stderr.isatty()))
        """
    )
    assert (code, output) == (0, "True True\r\n")


@pytest.mark.parametrize(("no_color", "title"), [("", "\033[1;31merror:\033[0m"), ("1", "error:")])
def test_an_error_is_red(no_color, title, monkeypatch):
    monkeypatch.setenv("NO_COLOR", no_color)
    script = "from maskx_tf.system import ending; ending.fail('no space.')"
    assert in_terminal(script) == (2, f"{title} no space.\r\n")


@pytest.mark.slow
def test_training_evaluation_and_prediction_show_only_what_is_ours(tmp_path):
    """Two steps with their evaluation, and detections of a picture, at crops of any number."""
    code, output = in_terminal(
        """
        import pathlib, sys
        from benchmarks import kill_training
        from maskx_tf import predict, training
        from maskx_tf.inference.detector import load_checkpoint

        def main():
            root = pathlib.Path(sys.argv[-1])
            records = kill_training.make_data(root)
            config = kill_training.make_config(records, root / "run", 2)
            training.train(config.replace(eval_records=(str(root / "records/val"),)))
            pictures = [next((root / "val").iterdir())]
            predict.predict(load_checkpoint(config.model_dir), pictures, [1], root / "out", 0.5)
            print("done")

        if __name__ == "__main__":  # making the records starts processes
            main()
        """,
        str(tmp_path),
    )
    assert code == 0 and output.endswith("done\r\n"), output[-2000:]
    assert "step 2/2" in output
    bars = [line for line in re.split("[\r\n]+", output) if " 1/1 [" in line]
    assert bars and {len(bar) for bar in bars} <= {COLUMNS - 1, COLUMNS}
    assert NOISE.findall(output) == []
