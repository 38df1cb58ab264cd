"""A plan's directory while images come into it: one compile at a time, temporaries, and the order of renames."""

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from planner.errors import OutputError

TEMPORARY = ".compile-"
"""Prefix of what a killed run may leave, and the next removes."""
LOCK = ".lock"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory against another compile, without what a killed one left; raise OutputError.

    The lock goes with the process, however it ends; the file goes with the run.
    """
    file = directory / LOCK
    with output_errors(directory):
        descriptor = _lock(file)
    try:
        clean(directory)
        yield
    finally:
        with unbroken():
            clean(directory)
            with output_errors(directory):
                file.unlink(missing_ok=True)
            os.close(descriptor)


def _lock(file: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(f"{file.parent}: another compile of this plan is running: wait for it") from error
        except FileNotFoundError:
            pass  # who held it has just removed it: what is locked here is no file any more
        os.close(descriptor)


@contextlib.contextmanager
def output_errors(where: Path) -> Iterator[None]:
    """Turn a failure of the system to write into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{where}: cannot write: {error.strerror or error}") from error


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Signals that would end the command wait until this is over, so that it is not left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread alone
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    handlers = {kind: signal.signal(kind, note) for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
    for number in came[:1]:
        signal.raise_signal(number)


def temporary(file: Path) -> Path:
    """Where a file is written before it is put in place."""
    return file.with_name(f"{TEMPORARY}{file.name}")


def clean(directory: Path) -> None:
    """Remove what was not put in place."""
    with output_errors(directory):
        for file in directory.glob(f"{TEMPORARY}*"):
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            else:
                file.unlink(missing_ok=True)


def write(file: Path, text: str) -> None:
    """Write a small file in one step, on disk when this returns."""
    with output_errors(file.parent):
        _write_temporary(file, text)
        temporary(file).rename(file)
        _sync(file.parent)


def publish(images: Mapping[Path, Path], record: Path, text: str) -> None:
    """Put new images in place of old ones, by their temporary files, and then the ``record`` of them all.

    Between the first and the last rename there is no record, so nothing verifies.
    """
    directory = record.parent
    with unbroken(), output_errors(directory):
        _write_temporary(record, text)
        for file, new in images.items():
            _check_replaceable(file, new)
        if images:
            record.unlink(missing_ok=True)
            _sync(directory)
        for file, new in images.items():
            new.rename(file)
        _sync(directory)
        temporary(record).rename(record)
        _sync(directory)


def _check_replaceable(file: Path, new: Path) -> None:
    """What could keep a rename from being done is told while the old artifact is whole."""
    new.stat()
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{file.name} is a directory")


def _write_temporary(file: Path, text: str) -> None:
    with temporary(file).open("wb") as stream:
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
