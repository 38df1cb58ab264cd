"""Strict JSON: one meaning per text, and a bounded cost."""

import re

import pytest

from plans.strict_json import FREE_BYTES, JsonError, loads

REFUSED = [
    (b"", "not valid JSON: Expecting value: line 1 column 1 (char 0)"),
    (b'{"a": 1, "a": 2}', "a: the name occurs twice"),
    (b'[{"b": {}, "\\u0062": 2}]', "b: the name occurs twice"),
    (b"[NaN]", "found NaN, which is not JSON"),
    (b"-Infinity", "found -Infinity, which is not JSON"),
    (b'"\xff"', "not valid JSON: 'utf-8' codec can't decode byte 0xff in position 1: invalid start byte"),
    (b"[" * 100_000, "not valid JSON: nested too deeply"),
    (b"[" + b"9" * 5000 + b"]", "not valid JSON here: a number of thousands of digits"),
    (b'{"a\\n": 1, "a\\n": 2}', r"'a\n' of 2 characters: the name occurs twice"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[str(row[0][:10]) for row in REFUSED])
def test_text_that_is_not_strict_json_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(JsonError, match="^" + re.escape(message)):
        loads(text)


@pytest.mark.parametrize("piece", [b"[],", b"{},", b'"\\u4e00",', b"0,", '"é",'.encode()])
def test_a_large_text_of_brackets_or_escapes_is_refused_unparsed(piece: bytes) -> None:
    def text(nbytes: int) -> bytes:
        return b"[" + piece * (nbytes // len(piece)) + b"0]"

    assert loads(text(1000))
    with pytest.raises(JsonError, match=r"brackets and escapes and \d+ commas, expected ASCII"):
        loads(text(2 * FREE_BYTES))
