"""Prompts of `run`: texts, token ids, stdin or the default prompt, with a chat template around them, as token ids."""

import os
import select
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from plans import numbers
from plans.format import quote
from plans.terminal import err
from runtime.chat.template import ChatTemplate, Turn
from runtime.errors import RequestError
from runtime.processes.torchrun import Torchrun
from runtime.text import encode, load_tokenizer

DEFAULT_PROMPT = """\
import os
import re
import sys

__all__ = ["Parser", "parse"]


def parse(text, *, strict=False):
    \"\"\"Return the tree of a text.
"""
SILENCE_S = 10
"""Seconds for which a pipe on stdin that was not asked for may be silent."""
LABEL_CHARACTERS = 60
"""Characters of a prompt in the line above its output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt, as its tokens and as the label of its output."""

    ids: tuple[int, ...]
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Turns before a prompt, and the chat template that renders them together."""

    template: ChatTemplate | None
    """None: prompts are plain text."""
    turns: list[Turn]

    def ids(self, tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
        """Return the tokens of a prompt behind the turns so far."""
        if self.template is None:
            return encode(tokenizer, text)
        return encode(tokenizer, self.template.render([*self.turns, Turn(role="user", content=text)]), special=False)


def read_prompts(
    directory: Path,
    texts: tuple[str, ...],
    token_ids: tuple[str, ...],
    conversation: Conversation,
    torchrun: Torchrun | None,
) -> list[Prompt]:
    """Return the prompts of the options; without any, that of stdin or the default prompt. Raises RequestError."""
    if texts and token_ids:
        raise RequestError("--prompt and --prompt-ids: give one of them")
    if token_ids:
        if conversation.template is not None:
            raise RequestError("--chat: give the message as text, with --prompt")
        return [Prompt(ids=_numbers(ids), label=_label(ids)) for ids in token_ids]
    if torchrun is not None and "-" in texts:
        raise RequestError("--prompt -: not under torchrun, whose processes have one stdin: give the text")
    tokenizer = load_tokenizer(directory)
    if texts:
        read = [read_stdin() if text == "-" else text for text in texts]
    elif torchrun is None and _is_piped():
        read = [read_stdin(silence_s=SILENCE_S)]
    else:
        read = [DEFAULT_PROMPT]
        if torchrun is None or not torchrun.rank:
            err("no --prompt, and nothing piped: this continues the default prompt:\n")
            err(DEFAULT_PROMPT, end="")
    return [Prompt(ids=conversation.ids(tokenizer, text), label=_label(text)) for text in read]


def _label(text: str) -> str:
    """Return the beginning of a prompt on one line."""
    return repr(text if len(text) <= LABEL_CHARACTERS else f"{text[:LABEL_CHARACTERS]}...")


def _numbers(ids: str) -> tuple[int, ...]:
    parts = [numbers.whole(part.strip(" "), 0, numbers.MOST_INT64) for part in ids.split(",")] if ids.strip() else []
    tokens = tuple(part for part in parts if part is not None)
    if len(tokens) < len(parts):
        raise RequestError(f"--prompt-ids: found {quote(ids)}, expected numbers like 1,2,3")
    return tokens


def _is_piped() -> bool:
    """Return True where stdin is a file, a pipe or a socket rather than a terminal or /dev/null."""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False  # there is no stdin
    return stat.S_ISFIFO(kind) or stat.S_ISREG(kind) or stat.S_ISSOCK(kind)


def read_stdin(silence_s: int | None = None) -> str:
    """Return all of stdin; raise RequestError where it is closed, or nothing comes for ``silence_s`` seconds."""
    if sys.stdin is None:
        raise RequestError("--prompt -: stdin is closed")
    if silence_s is not None and not select.select([sys.stdin], [], [], silence_s)[0]:
        raise RequestError(
            f"stdin is a pipe, and nothing came from it for {silence_s} s: give --prompt TEXT, --prompt - to wait for "
            "it, or </dev/null for the default prompt"
        )
    return sys.stdin.read()


def typed_lines() -> Iterator[str]:
    """Yield the lines of stdin that are not blank, each behind a ``> `` where stdin is a terminal."""
    while True:
        if sys.stdin.isatty():
            err("> ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")
