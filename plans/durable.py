"""Write files so that a crash leaves the old content or the new one, never a part of either.

    write bytes of a temporary file, fsync it  ►  rename it into place  ►  fsync the directory

A rename within a directory is atomic, but reaches the disk only with the directory. Each step is on disk before the
next begins. All functions raise OSError; callers say which output could not be written.
"""

import os
from pathlib import Path


def write_synced(file: Path, content: bytes) -> None:
    """Write a new file, on disk when this returns.

    What has the name is removed first, so that a link under it is never followed, nor a pipe waited for.
    """
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb") as stream:
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


def write_whole(file: Path, text: str) -> None:
    """Write a file that the user named, so that no part of it is ever there; a pipe or device is written as it is.

    Of a link, what it leads to is replaced.
    """
    if file.exists() and not file.is_file():
        file.write_text(text)
        return
    target = file.resolve()
    temporary = target.with_name(f".{os.getpid()}.new")  # of a length that any directory takes
    try:
        replace(target, text.encode(), temporary)
    finally:
        temporary.unlink(missing_ok=True)


def write_new(file: Path, text: str) -> None:
    """Write a file that the user named and that is not there yet, likewise; raise FileExistsError where it is."""
    file.touch(exist_ok=False)
    try:
        write_whole(file, text)
    except OSError:
        file.unlink()
        raise
