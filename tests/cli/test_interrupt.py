"""A signal ends a command, also one that does not react to it."""

import gc
import signal
import threading

import pytest

from rahf.cli import interrupt
from rahf.training.loop import Interrupt


@pytest.fixture(autouse=True)
def heard():
    """Python hears the signal, also where a shell started the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def ended():
    """Exit codes with which the process would have ended, and an event for the first."""
    codes, happened = [], threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        happened.set()

    stop = interrupt.watch(0.01, end)
    yield codes, happened
    stop()


def test_a_command_that_does_not_end_is_ended(ended):
    codes, happened = ended
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert happened.wait(20) and codes == [130]


def test_a_command_that_ends_by_itself_is_not():
    codes = []
    stop = interrupt.watch(600, codes.append)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    stop()
    assert codes == []


def test_a_run_that_saves_has_until_the_second_signal(ended):
    codes, happened = ended
    previous = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        signal.raise_signal(signal.SIGINT)
        assert not happened.wait(0.2) and codes == []
        signal.raise_signal(signal.SIGINT)
        assert happened.wait(20) and codes == [130]
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_run_says_at_once_that_it_stops_and_how_to_end_it(capfd):
    with Interrupt() as interrupt:
        assert not interrupt.at(1)
        signal.raise_signal(signal.SIGINT)
        said = capfd.readouterr().err
        assert said == "\nSIGINT: stopping after this step, with a checkpoint; Ctrl-C now ends at once, without one\n"
        assert interrupt.at(1) and interrupt.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_watch_needs_no_one_to_hold_it():  # its sockets are left to the end of the process
    codes, happened = [], threading.Event()
    interrupt.watch(0.01, lambda code: (codes.append(code), happened.set()))  # as `rahf` calls it
    gc.collect()
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert happened.wait(20) and codes == [130]
    finally:
        signal.set_wakeup_fd(-1)
        gc.collect()
