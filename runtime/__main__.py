"""``python -m runtime``."""

import signal

HANDLED = signal.getsignal(signal.SIGINT)
if HANDLED is signal.default_int_handler:
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # to import torch takes seconds, in which Ctrl-C has nothing to clean up

from runtime.cli import main  # noqa: E402

if __name__ == "__main__":
    signal.signal(signal.SIGINT, HANDLED)
    main()
