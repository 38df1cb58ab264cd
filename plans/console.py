"""End of the commands of both packages: refusals as text, as JSON and as an exit code, and how much they print.

    error ─► describe(error) ─► Refusal ─► stderr: its text, for people
                                        ─► stdout: {"error": {...}}, for programs, where --json is given
                                        ─► the exit code

`describe` belongs to the package, because only it knows its errors; everything else is here. A pipe that its reader has
closed (``| head -1``) ends a command without a word.
"""

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TextIO

from plans import numbers, process, terminal
from plans.schema import SCHEMA_MAJOR, SCHEMA_MINOR

UNWRITTEN = 1
"""Exit code where the output could not be written, or nobody reads it."""
MOST_LINE = 4000
"""Most characters of a line of a refusal."""
USAGE = 2
"""Exit code of a command line that is refused."""

VERSION_MESSAGE = f"%(package)s %(version)s, plans of schema {SCHEMA_MAJOR}.{SCHEMA_MINOR}"
"""Message of `--version`, which click fills in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """An error as a command reports it."""

    exit_code: int
    text: str
    """For people, without a final newline."""
    data: Mapping[str, Any] | None
    """For programs: the value of ``error`` in the JSON object; None where no object can or should be written."""


INTERRUPTION = Refusal(exit_code=process.INTERRUPTED, text=process.INTERRUPTION, data=None)
"""The end of a command after Ctrl-C."""

_ENDS = {
    KeyboardInterrupt: INTERRUPTION,
    terminal.StdoutClosed: Refusal(
        exit_code=UNWRITTEN, text="error: stdout: cannot write: it is closed: open it, or send it to a file", data=None
    ),
}
"""Ends of a command that are those of both packages."""

Describe = Callable[[BaseException], Refusal | None]
"""Turns an error into a refusal; None for an error that is a bug and keeps its traceback."""


def error_data(error: BaseException, message: str, exit_code: int) -> dict[str, Any]:
    """Return the fields that every error has for programs: type, message and exit code."""
    return {"type": type(error).__name__, "message": message, "exit_code": exit_code}


def usage_data(message: str, exit_code: int = USAGE) -> dict[str, Any]:
    """Return the fields of a refused command line for programs, whatever class the parser has for it."""
    return {"type": "UsageError", "message": message, "exit_code": exit_code}


class ParserError(Protocol):
    """A refused command line, as click has it (ClickException)."""

    exit_code: ClassVar[int]

    def format_message(self) -> str:
        """Return the reason."""
        ...

    def show(self, file: TextIO | None = None) -> None:
        """Write the usage of the command, and the reason."""
        ...


def usage_refusal(error: ParserError) -> Refusal:
    """Return the refusal of a command line."""
    stream = io.StringIO()
    error.show(stream)
    data = usage_data(error.format_message(), error.exit_code)
    return Refusal(exit_code=error.exit_code, text=stream.getvalue().rstrip("\n"), data=data)


@contextmanager
def refusals_reported(
    describe: Describe,
    *,
    as_json: bool,
    indent: int | None = None,
    ending: Callable[[str], object] = lambda message: None,
) -> Iterator[None]:
    """Report an error that ``describe`` knows and exit with its code; let all others through.

    ``as_json``: also write the error as one JSON object to stdout, with this ``indent``. ``ending``: called with the
    text before the exit. Where nobody reads what is written, exit without a word; where a full disk takes no more of
    it, or stdout is closed, say so.
    """
    try:
        yield
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            _discard(stream)
        sys.exit(UNWRITTEN)
    except (Exception, KeyboardInterrupt) as error:
        refusal = _ENDS.get(type(error)) or describe(error)
        if refusal is None and isinstance(error, OSError) and error.errno == errno.ENOSPC:
            refusal = Refusal(exit_code=UNWRITTEN, text=f"error: stdout: cannot write: {error.strerror}", data=None)
        if refusal is None:
            raise
        if isinstance(error, OSError) and error.filename is None:
            _discard(sys.stdout)  # it is stdout that could not be written
        _write_line(sys.stderr, terminal.printable("\n".join(map(_cut, refusal.text.split("\n")))))
        if as_json and refusal.data is not None:
            _write_line(sys.stdout, json.dumps({"error": refusal.data}, indent=indent))
        ending(refusal.text)
        sys.exit(refusal.exit_code)


def verbosity(count: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return how much to print: the number of ``-v``, or of DEBUG where that is more; other values of DEBUG count 0."""
    value = environment.get("DEBUG", "")
    return max(count, numbers.whole(value, 0, 10**9) or 0)


def _cut(line: str) -> str:
    """Return a line of bounded length: what a file has is quoted in messages, and may be of any."""
    return line if len(line) <= MOST_LINE else f"{line[:MOST_LINE]}... of {len(line)} characters"


def _write_line(stream: TextIO | None, text: str) -> None:
    """Write a line, unless the stream is closed or nobody reads it any more."""
    if stream is None:
        return
    try:
        terminal.write(stream, f"{text}\n")
    except OSError:
        _discard(stream)


def _discard(stream: TextIO | None) -> None:
    """Send what is left in the stream's buffer to nowhere, so that the end of the process cannot fail on it."""
    if stream is None:
        return
    with suppress(OSError):  # a stream of a test, which is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
