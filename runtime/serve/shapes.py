"""Objects of the answers, as OpenAI names their fields: of a chat completion and a completion, whole and in chunks."""

import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from runtime.request import Finish

FINISH_REASON: dict[Finish, str] = {"eos": "stop", "stop": "stop", "length": "length", "cancelled": "stop"}
"""``finish_reason`` by the end of an output."""


@dataclass(kw_only=True, slots=True)
class Choice:
    """One output so far."""

    index: int
    prompt_tokens: int
    pieces: list[str] = field(default_factory=list)
    """Text so far."""
    tokens: int = 0
    accepted: int = 0
    """Drafted tokens that the steps accepted."""
    reused: int = 0
    """Tokens of the prompt whose KV cache rows were there already."""
    finish: Finish | None = None
    """None: it has not ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Fields that all objects of one answer have, and how each is built."""

    kind: Literal["chat", "text"]
    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Iterable[Choice]) -> dict[str, Any]:
        """Return the answer in one object."""
        listed = list(choices)
        answers = [
            self._choice(choice.index, "".join(choice.pieces), choice.finish, part="message") for choice in listed
        ]
        return self._object("chat.completion", answers) | {"usage": usage(listed)}

    def chunk(self, index: int, text: str, *, finish: Finish | None = None, first: bool = False) -> dict[str, Any]:
        """Return a part of the answer in a stream; ``first``: the part that names the role."""
        return self._object("chat.completion.chunk", [self._choice(index, text, finish, part="delta", first=first)])

    def last(self, choices: Iterable[Choice]) -> dict[str, Any]:
        """Return the last part of a stream: the usage, without choices."""
        return self._object("chat.completion.chunk", []) | {"usage": usage(choices)}

    def _object(self, chat_object: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if self.kind == 'chat' else 'cmpl'}-{self.id}",
            "object": chat_object if self.kind == "chat" else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def _choice(
        self, index: int, text: str, finish: Finish | None, *, part: str, first: bool = False
    ) -> dict[str, Any]:
        reason = None if finish is None else FINISH_REASON[finish]
        if self.kind == "text":
            return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
        content: dict[str, Any] = {"role": "assistant"} if first or part == "message" else {}
        if text or first or part == "message":
            content["content"] = text
        if part == "message":
            content["refusal"] = None
        return {"index": index, part: content, "logprobs": None, "finish_reason": reason}


def usage(choices: Iterable[Choice]) -> dict[str, Any]:
    """Return the tokens of all choices."""
    prompt = completion = cached = accepted = 0
    for choice in choices:
        prompt += choice.prompt_tokens
        completion += choice.tokens
        cached += choice.reused
        accepted += choice.accepted
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"accepted_prediction_tokens": min(accepted, completion)},
    }


def event(data: dict[str, Any]) -> bytes:
    """Return a server-sent event; JSON has no line ends of its own."""
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


DONE = b"data: [DONE]\n\n"
