"""Conversations and texts to train on: read from files, rendered by the chat template, or invented by the base."""

import dataclasses
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from head_training.base import Base
from head_training.errors import TrainingError
from head_training.generation import Choice, answer_group

INVENTED_TOGETHER = 256
INVENTED_TOKENS = 64
INVENTED_TEMPERATURE = 0.9
INVENTED_TOP_P = 0.95
LEAST_CHARACTERS = 12
MARK = "\x00here\x00"
"""Stands for a user's text where a template is asked what goes before it."""
ROLES = ("system", "user", "assistant")
BEGINNING_TOKENS = 16
"""Tokens by which prompts are said to begin alike."""
WINDOWS_SORTED = 8
"""Groups among whose prompts those of similar length are answered together."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Token ids of a prompt, and those of the answer where the file gives one."""

    tokens: tuple[int, ...]
    answer: tuple[int, ...] | None = None


class Text:
    """Tokenizer of a checkpoint, and its chat template if ``chat``."""

    def __init__(self, directory: Path, *, chat: bool) -> None:
        file = directory / "tokenizer.json"
        try:
            self.tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more precise
            raise TrainingError(f"{file}: cannot be read: {error}") from error
        self.chat = chat
        self._template = AutoTokenizer.from_pretrained(directory) if chat else None
        if self._template is not None and not self._template.chat_template:
            raise TrainingError(f"{directory}: no chat template: give --no-chat to train on plain text")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; a rendered conversation has its special tokens already."""
        return list(self.tokenizer.encode(text, add_special_tokens=not self.chat).ids)

    def render(self, messages: Sequence[dict[str, str]], *, open_turn: bool = True) -> str:
        """Return a conversation, with ``open_turn`` up to where the model's next turn begins."""
        assert self._template is not None
        return str(self._template.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn))


def read_prompts(file: Path, text: Text, window: int) -> list[Prompt]:
    """Return the prompts of a file; raise TrainingError with the line that is none.

    JSONL: a mapping per line with ``prompt``, or ``messages`` as in chats, and perhaps ``answer``; messages that end
    with the assistant's have their answer. Other files: with a chat template a user's question per line, without one
    a text that is cut into prompts of ``window`` tokens.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{file}: cannot be read as text: {error}") from error
    if file.suffix == ".jsonl":
        lines = enumerate(content.splitlines(), start=1)
        prompts = [_from_record(f"{file}:{number}", line, text) for number, line in lines if line.strip()]
    elif text.chat:
        prompts = [
            _from_messages([{"role": "user", "content": line}], text) for line in content.splitlines() if line.strip()
        ]
    else:
        ids = text.encode(content)
        prompts = [Prompt(tokens=tuple(ids[i : i + window])) for i in range(0, len(ids) - window + 1, window)]
    if not prompts:
        raise TrainingError(f"{file}: no prompts, expected at least one")
    return prompts


def _from_record(where: str, line: str, text: Text) -> Prompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict) or ("prompt" in record) == ("messages" in record):
        raise TrainingError(f"{where}: expected a mapping with either prompt or messages")
    surplus = set(record) - {"prompt", "messages", "answer"}
    if surplus:
        raise TrainingError(f"{where}: {min(surplus)}: not known, expected prompt, messages or answer")
    answer = record.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise TrainingError(f"{where}: answer: found {type(answer).__name__}, expected a text")
    if "messages" in record:
        return _from_messages(_checked(where, record["messages"]), text, answer)
    if not isinstance(record["prompt"], str):
        raise TrainingError(f"{where}: prompt: found {type(record['prompt']).__name__}, expected a text")
    if text.chat:
        return _from_messages([{"role": "user", "content": record["prompt"]}], text, answer)
    tokens = tuple(text.encode(record["prompt"]))
    return Prompt(
        tokens=tokens, answer=None if answer is None else tuple(text.encode(record["prompt"] + answer)[len(tokens) :])
    )


def _checked(where: str, messages: Any) -> list[dict[str, str]]:
    """Return the messages of a record; raise TrainingError unless each has a known role and a text."""
    if not isinstance(messages, list) or not messages:
        raise TrainingError(f"{where}: messages: expected a list of at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"} or message["role"] not in ROLES:
            raise TrainingError(f"{where}: messages[{i}]: expected role (one of {', '.join(ROLES)}) and content")
        if not isinstance(message["content"], str):
            raise TrainingError(f"{where}: messages[{i}].content: expected a text")
    return messages


def _from_messages(messages: list[dict[str, str]], text: Text, answer: str | None = None) -> Prompt:
    """Return the prompt of a conversation; one whose last message is the assistant's has its answer."""
    if not text.chat:
        raise TrainingError("messages: found with --no-chat: expected prompt, or a chat template")
    if answer is not None:
        messages = [*messages, {"role": "assistant", "content": answer}]
    if messages[-1]["role"] != "assistant":
        return Prompt(tokens=tuple(text.encode(text.render(messages))))
    before = text.encode(text.render(messages[:-1]))
    whole = text.encode(text.render(messages, open_turn=False))
    if whole[: len(before)] != before:
        raise TrainingError("chat template: an answer changes what stands before it: expected it appended")
    return Prompt(tokens=tuple(before), answer=tuple(whole[len(before) :]))


def invent(base: Base, text: Text, count: int, seed: int) -> Iterator[str]:
    """Yield different questions that the base writes as the user, where the template has the user's text (Magpie)."""
    rendered = text.render([{"role": "user", "content": MARK}])
    prefix = text.encode(rendered[: rendered.index(MARK)])
    known: set[str] = set()
    number = 0
    while len(known) < count:
        choice = Choice(temperature=INVENTED_TEMPERATURE, top_p=INVENTED_TOP_P, seed=seed + number)
        number += 1
        for row in answer_group(base, [prefix] * INVENTED_TOGETHER, INVENTED_TOKENS, choice, keep_states=False):
            question = text.tokenizer.decode(row.tokens[row.start :], skip_special_tokens=True).strip()
            ended = row.tokens[-1] in base.end_ids
            if ended and len(question) >= LEAST_CHARACTERS and question not in known and len(known) < count:
                known.add(question)
                yield question


def in_groups(prompts: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    """Return groups of at most ``size`` prompts of similar lengths, in an order that the prompts alone decide.

    Those that begin as most do, with the template's own system message, are together: what all begin with is run once.
    """
    order = list(prompts)
    random.Random(1).shuffle(order)
    beginnings = Counter(prompt.tokens[:BEGINNING_TOKENS] for prompt in prompts)
    usual = max(beginnings, key=lambda beginning: (beginnings[beginning], beginning), default=())
    groups = []
    for first in range(0, len(order), WINDOWS_SORTED * size):
        near = order[first : first + WINDOWS_SORTED * size]
        near.sort(key=lambda prompt: (prompt.tokens[:BEGINNING_TOKENS] != usual, len(prompt.tokens)))
        groups += [near[i : i + size] for i in range(0, len(near), size)]
    random.Random(2).shuffle(groups)
    return groups


def is_held_out(tokens: Sequence[int], one_in: int) -> bool:
    """Decide by a hash of a prompt whether it is kept for measuring: about one in so many."""
    digest = hashlib.sha256(json.dumps(list(tokens)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % one_in == 0
