"""Progress of a command: a bar or a spinner on a terminal, lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from planner.images.stream import Progress as Report
from plans.format import format_bytes, format_s
from plans.terminal import printable

LINE_S = 1.0
"""Least seconds between two lines; there is also at most one line per tenth of the bytes."""


@contextlib.contextmanager
def shown(console: Console, say: Callable[[str], None]) -> Iterator[Report]:
    """Yield a progress callback: it draws a bar with bytes, rate and time left on ``console``, or writes lines."""
    if not console.is_terminal:
        yield Lines(say)
        return
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        console.show_cursor(True)  # nothing brings it back where a signal ends the process
        task = progress.add_task("images", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextlib.contextmanager
def trying(
    console: Console, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str], None]]:
    """Yield a callback for the change tried next where nothing fits: it updates a spinner, or writes a line.

    No line is written in the first LINE_S seconds.
    """
    text = "nothing fits: trying what would help"
    if console.is_terminal:
        with console.status(text) as status:
            console.show_cursor(True)
            yield lambda words: status.update(f"{text}: {escape(printable(words))}")
        return
    began = clock()
    yield lambda words: say(f"{text}: {words}") if clock() - began >= LINE_S else None


class Lines:
    """A progress callback that writes bytes, rate and time left, at most a line per tenth; the last at the end."""

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
        left = f", {(total - done) / rate:.0f} s left" if done < total else f" in {format_s(now - self._began)}"
        self._say(f"images: {format_bytes(done)} of {format_bytes(total)}, {format_bytes(round(rate))}/s{left}")
