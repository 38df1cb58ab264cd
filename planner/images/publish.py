"""Guard a plan's directory while its images are compiled, and put new images in place of old ones.

One compile at a time holds the directory. It writes under temporary names, which the next compile removes if this one
is killed, and publishes in an order of renames in which no mixture of old and new images ever verifies.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from planner.errors import OutputError
from plans import durable
from plans.process import defer_signals

TEMPORARY = ".compile-"
"""Prefix of the names of files that are not in place yet; a killed compile may leave some."""
LOCK = ".lock"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that wait until files are in place."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory against other compiles, and remove temporaries before and after; raise OutputError.

    The lock ends with the process, however that ends; the lock's file is removed at the end of the context.
    """
    file = directory / LOCK
    with output_errors(directory):
        descriptor = _lock(file)
    try:
        clean(directory)
        yield
    finally:
        with defer_signals(*SIGNALS):
            clean(directory)
            with output_errors(directory):
                file.unlink(missing_ok=True)
            os.close(descriptor)


def _lock(file: Path) -> int:
    """Return a descriptor of the lock's file, locked; raise OutputError if another process has the lock."""
    while True:
        if os.path.lexists(file) and not stat.S_ISREG(file.lstat().st_mode):
            raise OutputError(f"{file}: a link or another special file, expected the lock of a compile: take it away")
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(f"{file.parent}: another compile of this plan is running: wait for it") from error
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


def temporary(file: Path) -> Path:
    """Return the name under which a file is written until it is put in place."""
    return file.with_name(f"{TEMPORARY}{file.name}")


def clean(directory: Path) -> None:
    """Remove temporaries, files and directories; raise OutputError."""
    with output_errors(directory):
        for file in directory.glob(f"{TEMPORARY}*"):
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            else:
                file.unlink(missing_ok=True)


def write(file: Path, text: str) -> None:
    """Replace a small file in one step, on disk when this returns; raise OutputError."""
    with output_errors(file.parent):
        durable.replace(file, text.encode(), temporary(file))


def publish(images: Mapping[Path, Path], record: Path, text: str) -> None:
    """Put new images in place and then the ``record`` of all images; raise OutputError.

    ``images``: temporary file by final name, all in the directory of the record. Between the removal of the old record
    and the rename of the new one there is none, so no mixture of old and new images verifies.
    """
    directory = record.parent
    with defer_signals(*SIGNALS), output_errors(directory):
        durable.write_synced(temporary(record), text.encode())
        for file, new in images.items():
            _check_replaceable(file, new)
        if images:
            record.unlink(missing_ok=True)
            durable.sync_directory(directory)
        for file, new in images.items():
            new.rename(file)
        durable.sync_directory(directory)
        durable.put_in_place(temporary(record), record)


def _check_replaceable(file: Path, new: Path) -> None:
    """Raise OSError for what would make the rename fail, while the old artifact is still whole."""
    new.stat()
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{file.name} is a directory")
