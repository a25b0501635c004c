"""A command of the project run by another one, in a process of its own."""

import shlex
import subprocess
import sys

from maskx_tf.errors import UserError
from maskx_tf.system import verbs
from maskx_tf.system.interruption import Interruption


def run(module: str, *arguments: str) -> None:
    """Runs a command, which is printed and ends with this process; UserError if it fails."""
    print(f"\n{verbs.command(module)} {shlex.join(arguments)}", flush=True)
    with Interruption().handled():
        process = subprocess.Popen([sys.executable, "-m", module, *arguments])
        try:
            status = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if status:
        raise UserError(f"{verbs.command(module)} failed; its message is above.")
