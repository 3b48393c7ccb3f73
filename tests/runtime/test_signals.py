"""Requests to stop are noted once; a second one ends the process; afterwards all is as before."""

import os
import signal
import threading

from pretrain.runtime.signals import StopRequest


def test_a_signal_is_noted() -> None:
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGINT):
        request = StopRequest()
        with request.listen():
            assert not request.received
            os.kill(os.getpid(), number)
            assert request.received
            assert signal.getsignal(number) == signal.SIG_DFL, "the next one ends the process"
        assert signal.getsignal(signal.SIGTERM) is before


def test_handlers_of_libraries_are_replaced() -> None:
    request = StopRequest()
    with request.listen():
        signal.signal(signal.SIGTERM, lambda *_: None)
        request.take_over()
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.received


def test_what_was_received_stays_received() -> None:
    """A library may take the signals over after the first one came: the second one still ends the process."""
    request = StopRequest()
    with request.listen():
        os.kill(os.getpid(), signal.SIGINT)
        request.take_over()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_a_forked_worker_notes_nothing() -> None:
    request = StopRequest()
    with request.listen():
        if (child := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(int(request.received))
        assert os.waitpid(child, 0)[1] == 0


def test_other_threads_change_nothing() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def train() -> None:
        with StopRequest().listen():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [before]
