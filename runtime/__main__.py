"""``python -m runtime``."""

import os
import sys

from plans.signals import nothing_to_clean_up

with nothing_to_clean_up():
    from runtime.cli import main

if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        # all is closed; to take torch down would take most of a second
        os._exit(end.code if isinstance(end.code, int) else 1)
