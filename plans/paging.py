"""Hints to the system on how a file is going to be used (Linux); they change times, never results."""

import os
import sys


def will_read(descriptor: int, offset: int, nbytes: int) -> None:
    """Start reading a range of a file into the page cache."""
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_WILLNEED)


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
