"""Tokenizer of a plan, with the calls that users of transformers write: text in, ids or tensors out, and back.

    tokenizer(text).input_ids                         [n] as a list; of several texts a list of lists
    tokenizer(text, return_tensors="pt").input_ids    a tensor of shape [1, n]
    tokenizer.decode(ids)                             ids of shape [n] or [1, n], of any library
    tokenizer.apply_chat_template(messages, add_generation_prompt=True)

Names, defaults and results are those of ``PreTrainedTokenizerFast`` (transformers 5) on the same files, with two
exceptions: ``decode`` returns the text of one row [1, n] rather than a list of it, and what would need padding is
refused, since an engine takes prompts of any lengths.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from runtime.chat.template import ChatTemplate, Turn
from runtime.errors import RequestError
from runtime.request import TokenIds, as_python, token_ids
from runtime.special_tokens import read_special
from runtime.text import encode, load_tokenizer

MOST_IDS = 1 << 32
"""Ids of the library are 32 bits wide."""

Message = Mapping[str, str]
"""One turn of a conversation: ``role`` and ``content``."""
Tensors = Literal["pt"] | None


class Encoded(dict[str, Any]):
    """Result of encoding: ``input_ids`` and ``attention_mask``, by key or as attributes."""

    @property
    def input_ids(self) -> Any:
        """Ids: [n] of one text, [texts, n] of several or as a tensor."""
        return self["input_ids"]

    @property
    def attention_mask(self) -> Any:
        """Ones in the shape of ``input_ids``: nothing is padded."""
        return self["attention_mask"]


class PlanTokenizer:
    """The tokenizer beside a plan."""

    def __init__(self, directory: Path) -> None:
        """Load ``tokenizer.json``; raise RequestError where there is none, or none that can be read."""
        self.directory = directory
        self.backend: Tokenizer = load_tokenizer(directory)

    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool = True, return_tensors: Tensors = None
    ) -> Encoded:
        """Return the ids of one text, or of several; raise RequestError."""
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self.encode(one, add_special_tokens=add_special_tokens) for one in texts]
        if return_tensors is None and isinstance(text, str):
            return Encoded(input_ids=rows[0], attention_mask=[1] * len(rows[0]))
        if return_tensors is None:
            return Encoded(input_ids=rows, attention_mask=[[1] * len(row) for row in rows])
        ids = _tensor(rows, return_tensors)
        return Encoded(input_ids=ids, attention_mask=torch.ones_like(ids))

    def encode(self, text: str, *, add_special_tokens: bool = True, return_tensors: Tensors = None) -> Any:
        """Return the ids of a text: a list, or a tensor [1, n]; raise RequestError."""
        if not isinstance(text, str):
            raise RequestError(f"text: found {type(text).__name__}, expected a text")
        ids = list(encode(self.backend, text, special=add_special_tokens))
        return ids if return_tensors is None else _tensor([ids], return_tensors)

    def decode(self, token_ids: TokenIds | int, *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids of shape [n] or [1, n], or of one id; raise RequestError."""
        return str(self.backend.decode(_listed(token_ids), skip_special_tokens=skip_special_tokens))

    def batch_decode(self, sequences: Iterable[TokenIds], *, skip_special_tokens: bool = False) -> list[str]:
        """Return the text of each row of ids; raise RequestError."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in sequences]

    def apply_chat_template(
        self,
        conversation: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_tensors: Tensors = None,
        return_dict: bool = True,
    ) -> Any:
        """Return a conversation in the chat template: ids as ``__call__`` has them, or text unless ``tokenize``.

        ``return_dict``: False returns the ids alone. Raise RequestError where there is no template, or it refuses.
        """
        turns = [_turn(position, message) for position, message in enumerate(conversation)]
        text = self._template.render(turns, generation_prompt=add_generation_prompt)
        if not tokenize:
            return text
        encoded = self(text, add_special_tokens=False, return_tensors=return_tensors)
        return encoded if return_dict else encoded.input_ids

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Return the id of a token, or of each of several; that of ``unk_token``, or None, for one that is none."""
        if isinstance(tokens, str):
            number = self.backend.token_to_id(tokens)
            unknown = self.special_tokens_map.get("unk_token")
            return number if number is not None or unknown is None else self.backend.token_to_id(unknown)
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: TokenIds | int) -> Any:
        """Return the token of an id, or of each of several; None for one without; raise RequestError."""
        tokens = [self.backend.id_to_token(number) for number in _listed(ids)]
        return tokens[0] if isinstance(ids, int) else tokens

    def __len__(self) -> int:
        """Return the number of tokens, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def vocab_size(self) -> int:
        """Number of tokens without added ones."""
        return int(self.backend.get_vocab_size(with_added_tokens=False))

    @cached_property
    def special_tokens_map(self) -> dict[str, str]:
        """Special tokens by name: ``eos_token`` and the like; raise RequestError for files that name none properly."""
        return read_special(self.directory).names

    @property
    def bos_token(self) -> str | None:
        """Token at the beginning of a sequence."""
        return self.special_tokens_map.get("bos_token")

    @property
    def bos_token_id(self) -> int | None:
        """Id of ``bos_token``."""
        return self._id("bos_token")

    @property
    def eos_token(self) -> str | None:
        """Token at the end of a sequence."""
        return self.special_tokens_map.get("eos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of ``eos_token``."""
        return self._id("eos_token")

    @property
    def pad_token(self) -> str | None:
        """Token that fills rows; nothing here does."""
        return self.special_tokens_map.get("pad_token")

    @property
    def pad_token_id(self) -> int | None:
        """Id of ``pad_token``."""
        return self._id("pad_token")

    def _id(self, name: str) -> int | None:
        text = self.special_tokens_map.get(name)
        return None if text is None else self.backend.token_to_id(text)

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.directory)


def _listed(ids: Any) -> list[int]:
    """Return one id, or ids of shape [n] or [1, n], as the library takes them; raise RequestError for others."""
    plain = as_python("token_ids", ids)
    numbers = token_ids([plain] if isinstance(plain, int) else plain)
    for position, number in enumerate(numbers):
        if not 0 <= number < MOST_IDS:
            raise RequestError(f"token_ids[{position}]: found {number}, expected a token id")
    return list(numbers)


def _tensor(rows: list[list[int]], kind: object) -> Tensor:
    """Return rows of one length as a tensor; raise RequestError for others."""
    if kind != "pt":
        raise RequestError(f"return_tensors: found {kind!r}, expected 'pt' or None")
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise RequestError(
            f"return_tensors: texts of {lengths[0]} and {lengths[-1]} tokens: nothing is padded: leave return_tensors "
            "out, and give the lists to generate_batch"
        )
    return torch.tensor(rows, dtype=torch.int64)


def _turn(position: int, message: Any) -> Turn:
    """Return a message as a turn; raise RequestError for one that is none."""
    fields = dict(message) if isinstance(message, Mapping) else {}
    role, content = fields.get("role"), fields.get("content")
    if fields.keys() != {"role", "content"} or not isinstance(role, str) or not isinstance(content, str):
        raise RequestError(f"messages[{position}]: expected a mapping with the texts role and content")
    return Turn(role=role, content=content)  # type: ignore[arg-type] # the template refuses roles that it does not know
