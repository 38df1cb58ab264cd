"""The lock of a plan's directory: one command at a time writes a plan or compiles its images."""

import contextlib
import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

from planner.errors import OutputError
from plans.process import defer_signals

LOCK = ".lock"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that wait until files are in place."""

NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a directory in which this process can write nothing."""


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold the directory against other commands; raise OutputError where one of them holds it.

    The lock ends with the process, however that ends; the lock's file is removed at the end of the context. There is
    none in a directory in which nothing can be written: what is there already needs no lock, all else is refused.
    """
    file = directory / LOCK
    with output_errors(directory):
        descriptor = _lock(file)
    try:
        yield
    finally:
        if descriptor is not None:
            with defer_signals(*SIGNALS):
                with output_errors(directory):
                    file.unlink(missing_ok=True)
                os.close(descriptor)


def _lock(file: Path) -> int | None:
    """Return a descriptor of the lock's file, locked; None where no file can be written.

    Raise OutputError if another process has the lock.
    """
    while True:
        if os.path.lexists(file) and not stat.S_ISREG(file.lstat().st_mode):
            raise OutputError(f"{file}: a link or another special file, expected the lock of a command: take it away")
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno in NOT_WRITABLE:
                return None
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(f"{file.parent}: another command writes this plan: wait for it") from error
        except FileNotFoundError:
            pass  # the previous holder removed the file after it was opened here: the lock is on no name, so try again
        os.close(descriptor)


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into an OutputError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot write: {error.strerror or error}") from error
