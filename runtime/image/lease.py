"""Guard a mapped image with a lease: a program that opens it for writing waits while this process is told and ends.

Without a lease, a file that is truncated under its mapping faults at the next access (SIGBUS), wherever that is. With a
lease of the kernel (fcntl(2), F_SETLEASE) the writer is held back until this process has ended, which takes about one
step. There are no leases on some network file systems, for files of other users, outside Linux, and in threads other
than the main one; there the fault remains, and the parent of the ranks reports the device.
"""

import fcntl
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from runtime.errors import ImageTruncated


def guard(descriptor: int, file: Path) -> bool:
    """Raise ImageTruncated in this process when another opens the file for writing; return False without a lease.

    The guard lasts as long as any descriptor or mapping of this open file. The error names the file that was guarded
    last.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return False

    def refuse(number: int, frame: FrameType | None) -> None:
        raise ImageTruncated(f"{file}: another program writes to it, or truncates it, while it is mapped: verify it")

    signal.signal(signal.SIGIO, refuse)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True
