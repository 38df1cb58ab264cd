"""The tokenizer beside a plan is a small regular file of its directory, or refused at once."""

import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

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


def test_a_tokenizer_whose_parts_do_not_fit_is_refused_when_it_is_used() -> None:
    unknown = Tokenizer(models.WordLevel(vocab={"a": 0}, unk_token="[UNK]"))
    with pytest.raises(RequestError, match=r"^tokenizer\.json: cannot encode the prompt: "):
        encode(unknown, "b")
    request = Request(prompt_ids=(0,), max_new_tokens=8, draft=False, ignore_eos=True, stop=())
    output = Output(request, (), Tokenizer(models.WordLevel(vocab={"a": 0}, unk_token="a")))
    with pytest.raises(RequestError, match=r"^tokenizer\.json: cannot decode token -1: "):
        output.take([0, -1])
