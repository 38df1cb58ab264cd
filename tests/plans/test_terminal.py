"""The door to stdout and stderr: a terminal gets no control characters, a pipe gets data as it is."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plans import terminal

HOSTILE = "a\x1b]0;pwned\x07\rb\x9b31m\u202egpj.exe\u2066\x00\x7f\u2028\udc80c\td\n"
ESCAPED = "a\\x1b]0;pwned\\x07\\x0db\\x9b31m\\u202egpj.exe\\u2066\\x00\\x7f\\u2028\\udc80c\td\n"


class Screen(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_escapes_and_a_pipe_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, written in ((Screen(), ESCAPED), (io.StringIO(), HOSTILE)):
        monkeypatch.setattr("sys.stdout", stream)
        terminal.out(HOSTILE, end="")
        assert stream.getvalue() == written


def test_messages_are_escaped_wherever_they_go(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (Screen(), io.StringIO()):
        monkeypatch.setattr("sys.stderr", stream)
        terminal.err(HOSTILE, end="")
        assert stream.getvalue() == ESCAPED


def test_own_colours_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, door in (("sys.stdout", terminal.out), ("sys.stderr", terminal.err)):
        stream = Screen()
        monkeypatch.setattr(name, stream)
        door("\x1b[1mbold\x1b[0m", styled=True)
        assert stream.getvalue() == "\x1b[1mbold\x1b[0m\n"


def test_data_is_not_lost_in_silence_where_stdout_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    with pytest.raises(terminal.StdoutClosed):
        terminal.out("x")
    terminal.err("x")


def test_what_an_encoding_lacks_is_escaped() -> None:
    for encoding, written in (("ascii", b"\\xe9\\u2588\\udc80\n"), ("utf-8", "é█\\udc80\n".encode())):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding)
        terminal.write(stream, "é█\udc80\n")
        assert raw.getvalue() == written


@given(st.text())
def test_no_control_character_is_left_and_letters_stay(text: str) -> None:
    shown = terminal.printable(text)
    assert all(letter in "\t\n" or unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp") for letter in shown)
    assert not {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI"} & set(map(unicodedata.bidirectional, shown))
    if text.isprintable():
        assert shown == text


def test_text_of_any_script_is_left_alone() -> None:
    text = "é 中文\u3000 \u0645\u06cc\u200c\u062e \u200f👩\u200d💻 हिन्दी \xa0"
    assert terminal.printable(text) == text
