"""Signals end a run at once, or at the next check where something would be lost."""

import os
import signal
import threading

import pytest

from maskx_tf.system.interruption import Interrupted, Interruption


def send(number):
    """To this process; its Python handler has run when this returns."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_at_once(number, status):
    with pytest.raises(Interrupted) as raised, Interruption().handled():
        send(number)
    assert raised.value.code == status and raised.value.signal_name == number.name


def test_deferred(capfd):
    interruption, reached = Interruption(), []
    with interruption.handled():
        with interruption.deferred():
            assert not interruption.received
            send(signal.SIGTERM)
            reached.append("after the signal")
            assert interruption.received
            with pytest.raises(Interrupted):
                interruption.end()
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)  # outside it, at once again
    assert reached
    assert capfd.readouterr().err == "SIGTERM: ending after this step, with a checkpoint.\n"


def test_the_second_ctrl_c_does_not_wait():
    interruption = Interruption()
    with interruption.handled(), interruption.deferred():
        send(signal.SIGINT)
        with pytest.raises(SystemExit) as raised:
            send(signal.SIGINT)
    # Not `Interrupted`, upon which the run would save.
    assert raised.value.code == 130 and not isinstance(raised.value, Interrupted)


def test_sigterm_after_ctrl_c_waits():
    interruption = Interruption()
    with interruption.handled(), interruption.deferred():
        send(signal.SIGINT)
        send(signal.SIGTERM)
        with pytest.raises(Interrupted) as raised:
            interruption.end()
    assert raised.value.code == 143


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
