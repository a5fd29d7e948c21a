"""SIGTERM and SIGHUP end a command as Ctrl-C does: schedulers and closed terminals send them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING = (signal.SIGTERM, signal.SIGHUP)
PATIENCE_S = 10.0  # what a scheduler waits before it kills is 30 s or more


class _Ending:
    """What this process was asked: the first signal, and when; how many blocks finish first."""

    number: int | None = None
    asked_s = 0.0
    blocks = 0

    def ask(self, number: int, frame: object) -> None:
        """The handler. A second signal changes nothing: launchers send one to each and to all."""
        if self.number is not None:
            return
        self.number, self.asked_s = number, time.monotonic()
        if not self.blocks:
            raise KeyboardInterrupt


_ending = _Ending()


@contextmanager
def keep_handlers() -> Iterator[list[int]]:
    """After this block SIGTERM and SIGHUP do what they did before it.

    Gives those that are not ignored, as SIGHUP is under nohup; none in other threads than the main.
    """
    main = threading.current_thread() is threading.main_thread()
    kept = {number: signal.getsignal(number) for number in ENDING} if main else {}
    try:
        yield [number for number, handler in kept.items() if handler is not signal.SIG_IGN]
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def end_on_signals() -> Iterator[None]:
    """In this block SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, once."""
    with keep_handlers() as taken:
        _ending.number, _ending.blocks = None, 0
        for number in taken:
            signal.signal(number, _ending.ask)
        try:
            yield
        finally:
            _ending.number = None


def find_signal() -> signal.Signals | None:
    """The signal that asked the present command to end."""
    return None if _ending.number is None else signal.Signals(_ending.number)


@contextmanager
def finish_first() -> Iterator[Callable[[], None]]:
    """A signal ends this block only after it, or after 10 s where it calls what it is given.

    Ctrl-C ends it at once. For the main thread.
    """

    def check() -> None:
        if _ending.number is not None and time.monotonic() - _ending.asked_s > PATIENCE_S:
            raise KeyboardInterrupt

    _ending.blocks += 1
    try:
        yield check
    finally:
        _ending.blocks -= 1
    if _ending.number is not None:
        raise KeyboardInterrupt


def ignore_signals() -> None:
    """From now on Ctrl-C, SIGTERM and SIGHUP do nothing: all is done, and Python unloads itself.

    They would end the process by the signal, without a line.
    """
    for number in (signal.SIGINT, *ENDING):
        signal.signal(number, signal.SIG_IGN)
