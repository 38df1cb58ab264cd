"""Open and read files whose place a stranger may have filled: with a pipe, a device, something huge, or a link.

    read_regular   a file that the user named, or the one that its link leads to
    read_inside    a file of a directory that may come from a stranger: a plan's, or a checkpoint's
    open_inside    the same, as a descriptor, for a file of any size

What is in such a directory must be in it: a link that leads out of it is refused, so that nothing else of the user's is
read by its name and copied into a plan. A Hugging Face cache keeps its files as links, from ``snapshots/<revision>/``
into the ``blobs`` beside ``snapshots``; these are followed. Only regular files are opened, and none is waited for.

All functions raise OSError with the reason as ``strerror``. They hold against what lies in a directory, not against a
program that exchanges links while they run.
"""

import errno
import os
import stat
from pathlib import Path


def read_regular(file: Path, most: int) -> bytes:
    """Return the bytes of a regular file of at most ``most`` bytes, or of the one that a link leads to."""
    return _read(open_regular(file), file, most)


def read_inside(directory: Path, name: str, most: int) -> bytes:
    """Return the bytes of a regular file of at most ``most`` bytes; ``name``: its path from the directory."""
    return _read(open_inside(directory, name), directory / name, most)


def open_regular(file: Path) -> int:
    """Return a descriptor of a regular file, or of the one that a link leads to, open for reading."""
    _check_name(file)
    _check_regular(file.stat(), file)  # before it is opened, as that alone may do something on a device
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check_regular(os.fstat(descriptor), file)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_inside(directory: Path, name: str) -> int:
    """Return a descriptor of a regular file, open for reading; ``name``: its path from the directory."""
    return open_regular(resolved_inside(directory, name))


def resolved_inside(directory: Path, name: str) -> Path:
    """Return the path of a regular file in a directory, with all links followed; raise OSError for any other."""
    _check_name(directory / name)
    real, target = Path(os.path.realpath(directory)), Path(os.path.realpath(directory / name, strict=True))
    _check_regular(target.stat(), directory / name)
    allowed = [real, *(parent.parent / "blobs" for parent in real.parents if parent.name == "snapshots")]
    if not any(target.is_relative_to(place) for place in allowed):
        raise OSError(
            errno.EXDEV, f"a link to {target}, outside of {directory}, expected a file in it", str(directory / name)
        )
    return target


def kind_of(file: Path) -> str:
    """Return what lies at a path, or where a link there leads, in words; raise OSError where nothing does."""
    mode = file.stat().st_mode
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def _check_name(file: Path) -> None:
    """Raise OSError for a name that no file has, which Python refuses by a ValueError."""
    if "\0" in str(file):
        raise OSError(errno.EINVAL, "a NUL byte in the path, expected the path of a file", str(file))


def _check_regular(status: os.stat_result, file: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe, a socket or a device, expected a regular file", str(file))


def _read(descriptor: int, file: Path, most: int) -> bytes:
    """Return the bytes of an open file, and close it."""
    with os.fdopen(descriptor, "rb") as stream:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes > most:
            raise OSError(errno.EFBIG, f"{size_bytes} bytes, expected at most {most}", str(file))
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes, expected at most as many", str(file))
    return content
