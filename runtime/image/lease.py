"""A mapped image is not to be changed: whoever opens it for writing waits while this process learns of it, and ends.

Without this, a file that is truncated under its mapping faults at the next access (SIGBUS), wherever that is. The
kernel calls it a lease (fcntl(2), F_SETLEASE): the writer is held back until the process has gone, which takes what a
step takes. There is none on some network file systems, of files of other users, outside Linux, and in other threads
than the main one; there the fault stays, and the parent of the ranks says which device it was.
"""

import fcntl
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from runtime.errors import ImageTruncated


def guard(descriptor: int, file: Path) -> bool:
    """From now on, while a descriptor or mapping of this open file is left, a writer of it raises ImageTruncated here.

    One file at a time: the last one that was guarded is the one that is named. False where there is no lease.
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
