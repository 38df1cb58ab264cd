"""Start and end of the commands of both packages as processes: imports, signals, exit."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from plans.schema import SCHEMA_MAJOR, SCHEMA_MINOR

VERSION_MESSAGE = f"%(package)s %(version)s, plans of schema {SCHEMA_MAJOR}.{SCHEMA_MINOR}"
"""Message of `--version`, which click fills in."""


@contextmanager
def answered(number: signal.Signals, handler: Callable[[int, FrameType | None], object] | int) -> Iterator[None]:
    """Install a handler of a signal within this context."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def importing() -> Iterator[None]:
    """Import heavy libraries in this context: Ctrl-C ends the process, and the garbage collector is off.

    Otherwise Ctrl-C would raise inside a library that is half imported, and a tenth of the time would be spent on
    collecting garbage of which there is none.
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
    """End the process at once when a command exits: its files are closed, and unloading libraries takes long."""
    try:
        yield
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)
