"""What the system is told of the use of a file, where it is one that can be told: it changes times, never results."""

import os
import sys


def will_read(descriptor: int, offset: int, nbytes: int) -> None:
    """Let the disk begin to read what will be asked for."""
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_WILLNEED)


def begin_to_write(descriptor: int, offset: int, nbytes: int) -> None:
    """Let the disk begin to write what is only in memory yet, without waiting for it."""
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)  # of dirty pages it means this


def reserve(descriptor: int, nbytes: int) -> None:
    """Take room for a file of this size; raise OSError where there is not as much."""
    if sys.platform == "linux":
        os.posix_fallocate(descriptor, 0, nbytes)
