"""Reading of small files whose place a stranger may have filled: a pipe, a device or something huge."""

import errno
import os
import stat
from pathlib import Path


def read_regular(file: Path, most: int) -> bytes:
    """Return the bytes of a regular file of at most ``most`` bytes, or of the one that a link leads to.

    Raise OSError with the reason as ``strerror`` for any other, at once: a FIFO without a writer does not block.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "a pipe, a socket or a device, expected a regular file", str(file))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes, expected at most {most}", str(file))
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes, expected at most as many", str(file))
    return content
