"""Signals end a run at once, or at the next check where something would be lost."""

import os
import signal
import subprocess
import sys
import tempfile
import threading

import pytest

from maskx_tf.system.interruption import Interrupted, Interruption
from tests.harness import REPOSITORY


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_at_once(number, status):
    with pytest.raises(Interrupted) as raised, Interruption().handled():
        signal.raise_signal(number)
    assert raised.value.code == status and raised.value.signal_name == number.name


def test_deferred(capfd):
    interruption, reached = Interruption(), []
    with interruption.handled():
        with interruption.deferred():
            assert not interruption.received
            signal.raise_signal(signal.SIGTERM)
            reached.append("after the signal")
            assert interruption.received
            with pytest.raises(Interrupted):
                interruption.end()
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)  # outside it, at once again
    assert reached
    assert capfd.readouterr().err == "SIGTERM: ending after this step, with a checkpoint.\n"


def test_the_second_ctrl_c_does_not_wait():
    interruption = Interruption()
    with interruption.handled(), interruption.deferred():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit) as raised:
            signal.raise_signal(signal.SIGINT)
    # Not `Interrupted`, upon which the run would save.
    assert raised.value.code == 130 and not isinstance(raised.value, Interrupted)


def test_sigterm_after_ctrl_c_waits():
    interruption = Interruption()
    with interruption.handled(), interruption.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted) as raised:
            interruption.end()
    assert raised.value.code == 143


def test_nohup_is_obeyed():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption().handled():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone():
    """What is written to it afterwards fails nowhere, so that the run can save and end."""
    script = (
        "import os, signal, sys, time\n"
        "from maskx_tf.system.interruption import Interruption\n"
        "interruption = Interruption()\n"
        "with interruption.handled(), interruption.deferred():\n"
        "    print('ready', flush=True)\n"
        "    while not interruption.received: time.sleep(0.01)\n"
        "    print('the last progress line', file=sys.stderr, flush=True)\n"
        "    open(sys.argv[1], 'w').write('saved')\n"
        "    interruption.end()\n"
    )
    main, terminal = os.openpty()
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen(
            [sys.executable, "-c", script, f"{directory}/file"],
            cwd=REPOSITORY,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        assert os.read(main, 5) == b"ready"
        os.close(main)  # the terminal's window
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=30) == 129
        assert os.listdir(directory) == ["file"]


def test_a_signal_that_came_to_another_process():
    with pytest.raises(Interrupted) as raised:
        Interruption().end()
    assert raised.value.code == 143


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Interruption().handled():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_another_thread_leaves_the_handlers_alone():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interruption().handled():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
