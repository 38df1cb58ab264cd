"""Progress of a stage on stderr, with the time left, and the processor time of all runs together."""

import json
import os
import resource
import sys
import time
from pathlib import Path


class Progress:
    """A stage of so many units; a line at most every few seconds, on a terminal always the same one."""

    INTERVAL_S = 5.0

    def __init__(self, stage: str, total: int, done: int = 0) -> None:
        self.stage, self.total, self.done, self.first = stage, total, done, done
        self.started = self.shown = time.monotonic()

    def advance(self, units: int, note: str) -> None:
        """Count units that are done and show the share, the time left and a note."""
        self.done += units
        now = time.monotonic()
        if now - self.shown < self.INTERVAL_S and self.done < self.total:
            return
        self.shown = now
        left = (now - self.started) / max(1, self.done - self.first) * (self.total - self.done)
        line = (
            f"{self.stage}: {self.done} of {self.total} ({self.done / self.total:.0%}), {duration(left)} left, {note}"
        )
        terminal = sys.stderr.isatty() and self.done < self.total
        sys.stderr.write(f"\r{line:<100}" if terminal else f"{line}\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 90 else f"{round(seconds)} s"


class Usage:
    """Processor seconds per stage of all runs on a work directory, one file per process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def seconds(self) -> float:
        """Return the processor time of this process so far."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    def add(self, stage: str, since: float) -> None:
        """Record the processor time of this process since it was ``since`` as that of a stage."""
        with (self.directory / "usage.jsonl").open("a") as file:
            file.write(
                json.dumps({"stage": stage, "seconds": round(self.seconds() - since, 3), "process": os.getpid()}) + "\n"
            )

    def minutes(self) -> dict[str, float]:
        """Return the minutes of each stage."""
        total: dict[str, float] = {}
        file = self.directory / "usage.jsonl"
        for line in file.read_text().splitlines() if file.exists() else []:
            record = json.loads(line)
            total[record["stage"]] = total.get(record["stage"], 0.0) + record["seconds"] / 60
        return total
