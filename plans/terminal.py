"""The one door to stdout and stderr: what comes from files or from a model never controls a terminal.

A terminal obeys control characters (it can be made to set its title, answer as if somebody typed, or hide lines), and
bidirectional overrides show another text than there is. Names of files, keys of configs, messages of templates and
generated text may have them. A terminal therefore gets escapes in their place; messages are written so everywhere, as
they may be read on a terminal later. A pipe or file gets the data on stdout as it is.
"""

import re
import sys
from typing import TextIO

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]")
"""Control characters but tab and newline, separators of lines, bidirectional overrides, surrogates, annotations."""


class StdoutClosed(Exception):
    """Data for stdout, which is closed."""


def printable(text: str) -> str:
    """Return text with escapes for the characters that a terminal obeys instead of showing."""
    return _UNSEEN.sub(_escape, text)


def out(text: str = "", end: str = "\n", *, styled: bool = False) -> None:
    """Write data to stdout: as it is to a pipe or file, printable to a terminal; raise StdoutClosed where it is closed.

    ``styled``: with our own colours.
    """
    stream = sys.stdout
    if stream is None:
        raise StdoutClosed
    write(stream, f"{text}{end}" if styled or not stream.isatty() else f"{printable(text)}{end}")


def err(text: str, end: str = "\n", *, styled: bool = False) -> None:
    """Write a message to stderr, if it is open. ``styled``: with our own colours."""
    if sys.stderr is not None:
        write(sys.stderr, f"{text if styled else printable(text)}{end}")


def write(stream: TextIO, text: str) -> None:
    """Write text and flush it; characters that the stream's encoding lacks are escaped."""
    try:
        stream.write(text)
    except UnicodeEncodeError as error:
        stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
    stream.flush()


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
