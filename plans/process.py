"""Start and end of the commands of both packages as processes: imports, signals, exit.

It is the first module that a command imports, and imports nothing that takes time: until then Ctrl-C is Python's.
"""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

SIGNALLED = 128
"""Exit code above which a command was ended by a signal: the code is this plus the number of the signal."""
LAST_OUTPUT_S = 1.0
"""Seconds that the last output of a command which a signal ended may take."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell has it: 128 + SIGINT."""

INTERRUPTION = "interrupted"
"""Message after Ctrl-C."""


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
    collecting garbage of which there is none. Nor is what was imported looked through later.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        with ended_by_ctrl_c():
            yield
    finally:
        if collected:
            gc.freeze()
            gc.enable()


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """End the process at Ctrl-C within this context, where an error could be lost in what a library calls back."""
    before = signal.getsignal(signal.SIGINT)
    with answered(signal.SIGINT, _interrupt if before is signal.default_int_handler else before):  # type: ignore[arg-type]
        yield


@contextmanager
def defer_signals(*numbers: signal.Signals) -> Iterator[None]:
    """Defer these signals to the end of the context, so that it is not left half done.

    An error that a handler raises can also be lost within it: ``fork`` and the garbage collector call functions whose
    errors Python prints and ignores.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs signal handlers in the main thread only
        return
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    handlers = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for first in received[:1]:
        signal.raise_signal(first)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """End the process at once when a command exits: its files are closed, and unloading libraries takes long.

    A command that a signal ended does not wait for a reader of its output who reads no more (a pager). Ctrl-C ends it
    likewise where no command answers it: before one has begun, and after it.
    """
    try:
        yield
    except KeyboardInterrupt:
        _interrupt(signal.SIGINT, None)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if code > SIGNALLED:
            flush = threading.Thread(target=_flush, daemon=True)
            flush.start()
            flush.join(LAST_OUTPUT_S)
        else:
            _flush()
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End the process after Ctrl-C as a command ends, without unwinding what is half imported."""
    with suppress(OSError):  # stderr is closed
        os.write(2, f"{INTERRUPTION}\n".encode())
    os._exit(INTERRUPTED)
