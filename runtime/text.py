"""From tokens to what the caller gets: where the output ends, and text that never splits a character."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from runtime.errors import RequestError

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt and how far to continue it."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    draft: bool
    """False: plain decoding, also on a plan with a draft."""
    ignore_eos: bool
    stop: tuple[str, ...]
    """The output ends before the first of these in its text."""


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer beside a plan; raise RequestError where there is none."""
    file = directory / TOKENIZER_FILE
    if not file.is_file():
        raise RequestError(
            f"{file}: not there, so text cannot be read or stopped at: give --prompt-ids, without --stop"
        )
    return Tokenizer.from_file(str(file))


class Output:
    """The output of one request: takes the tokens of each step, cuts them where it ends, and makes text of them.

    It ends at ``max_new_tokens``, after an end-of-sequence token (which is its last) or, in text, before a stop string
    (the token that completes it is the last).
    """

    def __init__(self, request: Request, eos: tuple[int, ...], tokenizer: Tokenizer | None) -> None:
        """``tokenizer``: None where nobody reads the text and there is no stop string."""
        assert tokenizer is not None or not request.stop
        self.tokens: list[int] = []
        self.finished = False
        self._request = request
        self._eos = frozenset() if request.ignore_eos else frozenset(eos)
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._text = ""
        self._shown = 0

    def take(self, tokens: list[int]) -> list[int]:
        """The tokens of one step that belong to the output."""
        kept = []
        for token in tokens:
            if self.finished:
                break
            kept.append(token)
            self._append(token)
        return kept

    def piece(self) -> str:
        """Text that became certain since the last call."""
        end = len(self._text) if self.finished else len(self._text) - self._held()
        piece = self._text[self._shown : end]
        self._shown = max(end, self._shown)
        return piece

    @property
    def text(self) -> str:
        """All text so far, cut at a stop string."""
        return self._text

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        self.finished = token in self._eos or len(self.tokens) == self._request.max_new_tokens
        if self._tokenizer is None:
            return
        self._text += self._decoder.step(self._tokenizer, token) or ""
        if self.finished:
            # bytes of a character that never became whole
            whole = self._tokenizer.decode(self.tokens, skip_special_tokens=True)
            self._text += whole[len(self._text) :] if whole.startswith(self._text) else ""
        ends = [end for end in (self._text.find(stop) for stop in self._request.stop) if end >= 0]
        if ends:
            self.finished = True
            self._text = self._text[: min(ends)]

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        return max(
            (size for stop in self._request.stop for size in range(1, len(stop)) if self._text.endswith(stop[:size])),
            default=0,
        )
