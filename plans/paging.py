"""Hints to the system on how a file is going to be used (Linux); they change times, never results."""

import errno
import os
import sys
from pathlib import Path


def will_read(descriptor: int, offset: int, nbytes: int) -> None:
    """Start reading a range of a file into the page cache."""
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_WILLNEED)


def is_cached(descriptor: int, offset: int) -> bool:
    """Tell whether a byte of a file is in the page cache; True where the file system does not tell."""
    if sys.platform != "linux":
        return True
    try:
        return bool(os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return True
        raise


def forget(descriptor: int, offset: int, nbytes: int) -> None:
    """Drop the whole pages of a range of a file that is not written to from the page cache."""
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)


def available_bytes() -> int | None:
    """Return the memory that the page cache may take without a program losing any; None where it is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:
        return None
    found = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(kib) << 10 for _, kib, _ in found), None)


def begin_to_write(descriptor: int, offset: int, nbytes: int) -> None:
    """Start writing a range of a file that is only in the page cache, without waiting for it."""
    if sys.platform == "linux":
        os.posix_fadvise(
            descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED
        )  # for dirty pages this starts their writeback


def reserve(descriptor: int, nbytes: int) -> None:
    """Allocate disk space for a file of this size; raise OSError where there is not as much."""
    if sys.platform == "linux":
        os.posix_fallocate(descriptor, 0, nbytes)
