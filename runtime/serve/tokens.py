"""Texts of requests to token ids, without the interpreter's lock, and no more of them than a request can use."""

from tokenizers import Tokenizer

from runtime.errors import RequestError
from runtime.text import TOKENIZER_FILE

LIKELY_CHARACTERS = 8
"""Characters of a token that are seldom exceeded; a text with more is tokenized from its beginning first."""
SLACK = 64
"""Tokens by which the end of a beginning may be divided otherwise in the whole text."""


def encode_within(tokenizer: Tokenizer, text: str, most: int, *, special: bool) -> list[int] | None:
    """Return the ids of a text; None where they are more than ``most``, which takes time for as many alone.

    Of a text that is likely to be too long, longer and longer beginnings are encoded, until one has too many tokens.
    Raises RequestError for invalid UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"character {error.start} is none: the text is not UTF-8") from error
    size = most * LIKELY_CHARACTERS
    while size < len(text):
        if len(_encode(tokenizer, text[:size], special=special)) > most + SLACK:
            return None
        size *= 2
    ids = _encode(tokenizer, text, special=special)
    return ids if len(ids) <= most else None


def _encode(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    try:
        # of a batch, because only then others run meanwhile
        ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids
    except Exception as error:  # the library raises nothing more precise, for parts that do not fit together
        raise RequestError(f"{TOKENIZER_FILE}: cannot encode the text: {error}") from error
    return ids
