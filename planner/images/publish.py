"""Guard a plan's directory while its images are compiled, and put new images in place of old ones.

One compile at a time holds the directory. It writes under temporary names, which the next compile removes if this one
is killed, and publishes in an order of renames in which no mixture of old and new images ever verifies.
"""

import contextlib
import errno
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from planner.directory_lock import SIGNALS, held, output_errors
from plans import durable
from plans.process import defer_signals

TEMPORARY = ".compile-"
"""Prefix of the names of files that are not in place yet; a killed compile may leave some."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory against other commands, and remove temporaries before and after; raise OutputError."""
    with held(directory):
        clean(directory)
        try:
            yield
        finally:
            with defer_signals(*SIGNALS):
                clean(directory)


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
