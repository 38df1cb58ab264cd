"""How far a compile is, for people: a bar on a terminal, lines where there is none."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from planner.stream import Progress as Report
from plans.diff import format_bytes

LINE_S = 1.0
"""Between two lines at least; and there is one for a tenth of the bytes at most."""


@contextlib.contextmanager
def shown(console: Console, say: Callable[[str], None]) -> Iterator[Report]:
    """What to report to: a bar with bytes, rate and time left on ``console``, or lines to ``say``."""
    if not console.is_terminal:
        yield Lines(say)
        return
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("images", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class Lines:
    """Bytes, rate and time left, at most a line each tenth; the last one when all is written."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._began = self._last = clock()
        self._tenth = 0

    def __call__(self, done: int, total: int) -> None:
        now, tenth = self._clock(), 10 * done // max(1, total)
        if tenth <= self._tenth or (now - self._last < LINE_S and done < total):
            return
        self._last, self._tenth = now, tenth
        rate = done / max(1e-9, now - self._began)
        left = f", {(total - done) / rate:.0f} s left" if done < total else f" in {now - self._began:.1f} s"
        self._say(f"images: {format_bytes(done)} of {format_bytes(total)}, {format_bytes(round(rate))}/s{left}")
