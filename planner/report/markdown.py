"""Markdown whose texts from files cannot become links, HTML, mentions, table cells or any other markup.

A review is posted where people trust what a program writes, and a plan of a pull request has names that anybody chose:
of the family, hosts, types of devices and links. A text from a plan is put into a code span, in which neither Markdown
nor GitHub (mentions, issue numbers, bare addresses) finds anything. A template writes every string so, unless the
filter ``words`` says that it is of this program's own words and numbers.
"""

import re
from typing import Any

import jinja2

from plans.format import format_bytes, format_ns

_ESCAPED = re.compile(r"[`|\\]|[^ -~\w]")
"""Characters that would end the span or a table's cell, and those that are neither printable ASCII nor of a word."""


class Words(str):
    """Text of this program's own words and numbers, which is Markdown as it is."""


def code(text: str) -> Words:
    """Return text as a code span, with escapes for characters that would end it or are not seen; empty for none."""
    return Words(f"`{_ESCAPED.sub(_escape, text)}`") if text else Words()


def templates(folder: str) -> jinja2.Environment:
    """Return the environment of the Markdown templates in a folder of this package."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("planner.report", folder),
        autoescape=False,
        finalize=_written,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["words"] = Words
    environment.filters["bytes"] = lambda nbytes: Words(format_bytes(nbytes))
    environment.filters["ns"] = lambda duration_ns: Words(format_ns(duration_ns))
    return environment


def _written(value: Any) -> Any:
    """Return a value of a template as it is written: a string that is not of our own words as code."""
    return code(value) if isinstance(value, str) and not isinstance(value, Words) else value


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    if match[0] == "\\":
        return "\\\\"
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"
