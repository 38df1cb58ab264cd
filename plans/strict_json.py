"""Parse JSON from files that are not trusted: one meaning per text, and bounded time and memory.

Python's own parser accepts more than the standard (NaN, duplicate names) and takes many times the bytes of a text made
of brackets. Callers bound the number of bytes before they read them; this module bounds what those may cost.
"""

import json
from collections import Counter
from typing import Any

from plans.format import shown

FREE_BYTES = 1 << 20
"""A text of at most this many bytes is parsed whatever it holds: even of brackets alone it takes little memory."""
BYTES_PER_BRACKET, BYTES_PER_COMMA = 20, 6
"""Least bytes per bracket or escape, and per comma, of a larger text. A table of tensors keeps both: an entry of a
safetensors header takes at least 60 bytes, with three brackets and five commas."""


class JsonError(ValueError):
    """A text that is not strict JSON, or costs too much to parse; the message names no file."""


def loads(data: bytes, *, constants: bool = False) -> Any:
    """Parse UTF-8 JSON without duplicate names, NaN or infinity; raise JsonError.

    ``constants``: NaN and infinities are read as Python's own parser writes them, which published configs have.
    """
    _check_cost(data)
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=None if constants else _refuse_constant
        )
    except JsonError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise JsonError(f"not valid JSON: {error}") from error
    except RecursionError as error:
        raise JsonError("not valid JSON: nested too deeply") from error
    except ValueError as error:  # of Python's limit on the digits of an integer
        raise JsonError("not valid JSON here: a number of thousands of digits") from error


def _check_cost(data: bytes) -> None:
    """Raise JsonError for a large text that is not mostly names and numbers.

    Brackets and escapes cost many times their bytes to parse.
    """
    if len(data) <= FREE_BYTES:
        return
    brackets = data.count(b"{") + data.count(b"[") + data.count(b"\\")
    commas = data.count(b",")
    many = brackets * BYTES_PER_BRACKET > len(data) or commas * BYTES_PER_COMMA > len(data)
    if many or not data.isascii():
        raise JsonError(
            f"{len(data)} bytes with {brackets} brackets and escapes and {commas} commas, expected ASCII, at most one "
            f"bracket or escape in {BYTES_PER_BRACKET} bytes and one comma in {BYTES_PER_COMMA}: not a table of tensors"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise JsonError(f"{shown(twice)}: the name occurs twice")
    return table


def _refuse_constant(constant: str) -> None:
    raise JsonError(f"found {constant}, which is not JSON")
