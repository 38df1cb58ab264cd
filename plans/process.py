"""How the commands of both packages begin and end as processes."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from plans.schema import SCHEMA_MAJOR, SCHEMA_MINOR

VERSION_MESSAGE = f"%(package)s %(version)s, plans of schema {SCHEMA_MAJOR}.{SCHEMA_MINOR}"
"""Of `--version`, for click to fill in."""


@contextmanager
def answered(number: signal.Signals, handler: Callable[[int, FrameType | None], object] | int) -> Iterator[None]:
    """A signal is answered so for a while."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def importing() -> Iterator[None]:
    """What is imported takes a second, stays, and needs no clean-up: Ctrl-C ends the process, and nobody seeks garbage.

    Otherwise Ctrl-C would be an exception somewhere in a library, and a tenth of the time would go to the garbage.
    """
    before = signal.getsignal(signal.SIGINT)
    gc.disable()
    try:
        with answered(signal.SIGINT, signal.SIG_DFL if before is signal.default_int_handler else before):  # type: ignore[arg-type]
            yield
    finally:
        gc.enable()


@contextmanager
def ended_at_once() -> Iterator[None]:
    """A command that exits has closed all that it opened; to take its libraries down would take most of a second."""
    try:
        yield
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)
