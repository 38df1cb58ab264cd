"""Work of a rank's host amid the work of its device: collectives over a transport that the device does not know.

It is done where it comes. While a step is captured (``decode.graphs``) it ends a piece of the step and begins another:
a graph has nothing of the host.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Work = Callable[[], None]


class HostWork:
    """The work of one rank's host in its steps."""

    def __init__(self) -> None:
        self._take: Callable[[Work], None] | None = None

    def __call__(self, work: Work) -> None:
        """Do ``work``, which waits for the device itself; or hand it to who captures the step."""
        if self._take is None:
            work()
        else:
            self._take(work)

    @contextmanager
    def handed_to(self, take: Callable[[Work], None]) -> Iterator[None]:
        """Hand all work within this context to ``take``, which does it."""
        self._take = take
        try:
            yield
        finally:
            self._take = None
