"""The fork server: a process without threads that has imported what ranks need, and forks a process for each of them.

It can be started before torch is imported here, so that both import it at the same time.
"""

import multiprocessing
import signal
from multiprocessing import forkserver

from plans.process import defer_signals

PRELOADED = "runtime.processes.preloaded"


def start() -> None:
    """Start the fork server of this process, where none runs, and do not wait for its imports; raises OSError."""
    with defer_signals(signal.SIGINT, signal.SIGTERM):
        multiprocessing.get_context("forkserver").set_forkserver_preload([PRELOADED])
        forkserver.ensure_running()
