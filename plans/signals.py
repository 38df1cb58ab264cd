"""What signals do for a while; for the commands of both packages."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def answered(number: signal.Signals, handler: Callable[[int, FrameType | None], object] | int) -> Iterator[None]:
    """A signal is answered so."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def nothing_to_clean_up() -> Iterator[None]:
    """Ctrl-C ends the process at once, where it would be an exception: to import what a command needs takes seconds."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    with answered(signal.SIGINT, signal.SIG_DFL):
        yield
