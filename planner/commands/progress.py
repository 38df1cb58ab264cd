"""How far a command is, for people: on a terminal what moves there, lines where there is none."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from planner.images.stream import Progress as Report
from plans.format import format_bytes

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


@contextlib.contextmanager
def trying(
    console: Console, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str], None]]:
    """Whom to tell what is tried next where nothing fits: a line on ``console`` that goes away, or lines to ``say``.

    There are none in the first LINE_S.
    """
    text = "nothing fits: trying what would help"
    if console.is_terminal:
        with console.status(text) as status:
            yield lambda words: status.update(f"{text}: {escape(words)}")
        return
    began = clock()
    yield lambda words: say(f"{text}: {words}") if clock() - began >= LINE_S else None


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
