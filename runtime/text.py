"""Text to token ids and back: the tokenizer beside a plan, and the output of a request, which ends where it must.

Text is handed out in pieces that never split a character and never go beyond a stop string.
"""

from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from plans.files import read_inside
from runtime.errors import RequestError
from runtime.request import Finish, Request
from runtime.special_tokens import SpecialTokens, special_contents

TOKENIZER_FILE = "tokenizer.json"
MOST_TOKENIZER_BYTES = 64 << 20
"""Largest tokenizer that is read; one of 262 000 tokens has 33 MB."""


def load_tokenizer(directory: Path) -> Tokenizer:
    """Return the tokenizer beside a plan with its special tokens; raise RequestError where none can be read."""
    file = directory / TOKENIZER_FILE
    try:
        content = read_inside(directory, TOKENIZER_FILE, MOST_TOKENIZER_BYTES)
    except FileNotFoundError as error:
        raise RequestError(
            f"{file}: not there, so text cannot be read or stopped at: give --prompt-ids, without --stop"
        ) from error
    except OSError as error:
        raise RequestError(f"{file}: cannot be read: {error.strerror}") from error
    return _parsed(directory, content, tuple(special_contents(directory).items()))


@lru_cache(maxsize=1)
def _parsed(directory: Path, content: bytes, special: tuple[tuple[str, bytes], ...]) -> Tokenizer:
    """Return the tokenizer of files' contents: once for a prompt and its output; one of 128 000 tokens takes 0.3 s."""
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more precise
        raise RequestError(f"{directory / TOKENIZER_FILE}: not a tokenizer: {error}") from error
    SpecialTokens(directory, dict(special)).add_to(tokenizer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, *, special: bool = True) -> tuple[int, ...]:
    """Return the ids of a text, with special tokens if ``special``; raise RequestError for invalid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"prompt: character {error.start} is none: the bytes are not UTF-8") from error
    try:
        return tuple(tokenizer.encode(text, add_special_tokens=special).ids)
    except Exception as error:  # the library raises nothing more precise, for parts that do not fit together
        raise RequestError(f"{TOKENIZER_FILE}: cannot encode the prompt: {error}") from error


class Output:
    """Output of one request: take the tokens of each step, cut them where the output ends, and decode them.

    The output ends at ``max_new_tokens``, after an end-of-sequence token (which is its last) or, in text, before a stop
    string (the token that completes it is the last).
    """

    def __init__(self, request: Request, eos: tuple[int, ...], tokenizer: Tokenizer | None) -> None:
        """``tokenizer``: None where the text is not needed: nobody reads it, and there is no stop string."""
        assert tokenizer is not None or not request.stop
        self.tokens: list[int] = []
        self.finish: Finish | None = None
        self._request = request
        self._eos = frozenset() if request.ignore_eos else frozenset(eos)
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stops = [_Search(stop) for stop in request.stop]
        self._text = ""
        self._shown = 0

    @property
    def ended_by(self) -> Finish:
        """Reason for the end of an output that has ended."""
        assert self.finish is not None, "steps have no end of their own"
        return self.finish

    @property
    def finished(self) -> bool:
        return self.finish is not None

    @property
    def left(self) -> int:
        """Tokens up to ``max_new_tokens``."""
        return self._request.max_new_tokens - len(self.tokens)

    def take(self, tokens: list[int]) -> list[int]:
        """Append the tokens of one step; return those that belong to the output."""
        kept = []
        for token in tokens:
            if self.finished:
                break
            kept.append(token)
            self._append(token)
        return kept

    def cancel(self) -> None:
        """End the output here, because nobody reads on."""
        if not self.finished:
            self.finish = "cancelled"

    def piece(self) -> str:
        """Return the text that became certain since the last call."""
        held = max((search.held for search in self._stops), default=0)
        end = len(self._text) if self.finished else len(self._text) - held
        piece = self._text[self._shown : end]
        self._shown = max(end, self._shown)
        return piece

    @property
    def text(self) -> str:
        """Text so far, cut at a stop string."""
        return self._text

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        if token in self._eos:
            self.finish = "eos"
        elif len(self.tokens) == self._request.max_new_tokens:
            self.finish = "length"
        if self._tokenizer is None:
            return
        before = len(self._text)
        try:
            self._decode(self._tokenizer, token)
        except Exception as error:  # as in `encode`
            raise RequestError(f"{TOKENIZER_FILE}: cannot decode token {token}: {error}") from error
        added = self._text[before:]
        starts = [before + start for search in self._stops if (start := search.read(added)) is not None]
        if starts:
            self.finish = "stop"
            self._text = self._text[: min(starts)]

    def _decode(self, tokenizer: Tokenizer, token: int) -> None:
        """Append the text that a token makes certain; of the last one all that is left."""
        self._text += self._decoder.step(tokenizer, token) or ""
        if self.finished:
            # append bytes of an incomplete character, which the stream decoder holds back
            whole = tokenizer.decode(self.tokens, skip_special_tokens=True)
            self._text += whole[len(self._text) :] if whole.startswith(self._text) else ""


class _Search:
    """Search for a stop string in a text that grows (Knuth, Morris and Pratt): in all as many comparisons as twice the
    characters of both, however the text came in pieces."""

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self.held = 0
        """Characters at the end of the text that are a beginning of the stop string: the most, but not all of it."""
        self._borders = [0, 0]
        """By n: the most characters, fewer than n, that are both a beginning and the end of the first n of the stop
        string."""
        for character in stop[1:]:
            self._borders.append(self._longer(self._borders[-1], character))

    def read(self, added: str) -> int | None:
        """Return where the stop string starts, from the beginning of ``added``, so 0 or less where it began before.

        None: not there yet. It is not read on after it was there.
        """
        for position, character in enumerate(added):
            self.held = self._longer(self.held, character)
            if self.held == len(self._stop):
                return position + 1 - self.held
        return None

    def _longer(self, held: int, character: str) -> int:
        """Return how much of the stop string the text ends with, from how much it did before a character."""
        while held and self._stop[held] != character:
            held = self._borders[held]
        return held + (self._stop[held] == character)
