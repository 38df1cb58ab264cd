"""Write files so that a crash leaves the old content or the new one, never a part of either.

    write bytes of a temporary file, fsync it  ►  rename it into place  ►  fsync the directory

A rename within a directory is atomic, but reaches the disk only with the directory. Each step is on disk before the
next begins. All functions raise OSError; callers say which output could not be written.
"""

import os
from pathlib import Path


def write_synced(file: Path, content: bytes) -> None:
    """Write a file, on disk when this returns; an existing one is overwritten in place."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to disk: renames and removals so far survive a crash."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(temporary: Path, file: Path) -> None:
    """Rename a synced file over another of the same directory, on disk when this returns."""
    temporary.rename(file)
    sync_directory(file.parent)


def replace(file: Path, content: bytes, temporary: Path) -> None:
    """Replace a small file in one step, by way of ``temporary`` in the same directory; on disk when this returns."""
    write_synced(temporary, content)
    put_in_place(temporary, file)
