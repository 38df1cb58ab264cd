"""The tokenizer beside a plan is a small regular file of its directory, or refused at once."""

import os
import sys
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from runtime.errors import RequestError
from runtime.request import Request
from runtime.text import MOST_TOKENIZER_BYTES, Output, encode, load_tokenizer
from tests.runtime.small import write_tokenizer


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("none", "not there, so text cannot be read"),
        ("link", "cannot be read: a link to .* outside of .*, expected a file in it"),
        ("fifo", "cannot be read: a pipe, a socket or a device"),
        ("device", "cannot be read: a pipe, a socket or a device"),
        ("huge", f"cannot be read: {1 << 40} bytes, expected at most {MOST_TOKENIZER_BYTES}"),
        ("directory", "cannot be read: Is a directory"),
        ("text", "not a tokenizer: "),
    ],
)
def test_a_tokenizer_that_is_none(kind: str, reason: str, tmp_path: Path) -> None:
    plan, other = tmp_path / "plan", tmp_path / "other"
    plan.mkdir()
    other.mkdir()
    write_tokenizer(other)
    file = plan / "tokenizer.json"
    if kind == "link":
        file.symlink_to(other / "tokenizer.json")
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "huge":
        file.touch()
        os.truncate(file, 1 << 40)
    elif kind == "directory":
        file.mkdir()
    elif kind == "text":
        file.write_text("{}")
    with pytest.raises(RequestError, match=reason) as caught:
        load_tokenizer(plan)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_tokenizer_may_be_a_link_within_the_directory(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "real.json")
    (tmp_path / "tokenizer.json").symlink_to("real.json")
    assert encode(load_tokenizer(tmp_path), "ab") == (0, 1)


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=3),
    pieces=st.lists(st.text("ab", max_size=5), min_size=1, max_size=12),
)
def test_stop_strings_are_found_and_held_as_by_looking_at_the_whole_text(stops: list[str], pieces: list[str]) -> None:
    vocabulary = {f"{piece}.": number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="?"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace(".", ""), decoders.Fuse()])
    request = Request(prompt_ids=(0,), max_new_tokens=len(pieces) + 1, draft=False, ignore_eos=True, stop=tuple(stops))
    output, text, shown = Output(request, (), tokenizer), "", ""
    for piece in pieces:
        output.take([vocabulary[f"{piece}."]])
        shown += output.piece()
        text += piece
        starts = [text.find(stop) for stop in stops if stop in text]
        if starts:
            assert (output.finish, shown) == ("stop", text[: min(starts)])
            return
        held = max(size for stop in stops for size in range(len(stop)) if text.endswith(stop[:size]))
        assert (output.finish, shown) == (None, text[: len(text) - held])


def test_the_work_of_stop_strings_is_bounded_by_the_text() -> None:
    """A stop string that the text is a beginning of at every token, and of which each mismatch leaves much."""
    stop = "a" * 4095 + "b"
    vocabulary = {"a" * 64: 0}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="?"))
    tokenizer.decoder = decoders.Fuse()
    request = Request(prompt_ids=(0,), max_new_tokens=2000, draft=False, ignore_eos=True, stop=(stop,))
    output, compared = Output(request, (), tokenizer), 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal compared
        compared += event == "call"

    sys.setprofile(count)
    try:
        output.take([0] * 1000)
    finally:
        sys.setprofile(None)
    assert compared < 2 * 64_000 + 10_000
    assert len(output.piece()) == 64_000 - 4095


def test_a_tokenizer_whose_parts_do_not_fit_is_refused_when_it_is_used() -> None:
    unknown = Tokenizer(models.WordLevel(vocab={"a": 0}, unk_token="[UNK]"))
    with pytest.raises(RequestError, match=r"^tokenizer\.json: cannot encode the prompt: "):
        encode(unknown, "b")
    request = Request(prompt_ids=(0,), max_new_tokens=8, draft=False, ignore_eos=True, stop=())
    output = Output(request, (), Tokenizer(models.WordLevel(vocab={"a": 0}, unk_token="a")))
    with pytest.raises(RequestError, match=r"^tokenizer\.json: cannot decode token -1: "):
        output.take([0, -1])
