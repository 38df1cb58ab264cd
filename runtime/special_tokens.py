"""Special tokens of a tokenizer: what the files beside ``tokenizer.json`` name and add, by the rule of transformers 5.

    tokenizer_config.json      names (``bos_token``, ...), extra ones, and ``added_tokens_decoder``
    special_tokens_map.json    where the config has no ``added_tokens_decoder``: its fields take the config's places
    added_tokens.json          likewise: ids by text, as tokenizers before ``tokenizer.json`` were saved

Tokens that these files name and ``tokenizer.json`` does not have as added ones are added to the tokenizer, so that
their text is one token, and one that is skipped where special ones are.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from plans.files import read_inside
from runtime.errors import RequestError

CONFIG_FILE, MAP_FILE = "tokenizer_config.json", "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
FILES = (CONFIG_FILE, MAP_FILE, ADDED_FILE)
MOST_CONFIG_BYTES = 16 << 20
"""Largest ``tokenizer_config.json``; those of vocabularies with thousands of added tokens have a few MB."""
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that any tokenizer may have."""
DECODER = "added_tokens_decoder"
EXTRA, ADDITIONAL = "extra_special_tokens", "additional_special_tokens"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class SpecialTokens:
    """Special tokens that the files of a directory name."""

    def __init__(self, directory: Path, contents: Mapping[str, bytes]) -> None:
        """``contents``: those of the files that are there, by name. Raises RequestError for what is none of them."""
        self._directory = directory
        self._config, of_map, added = (_fields(directory / name, contents.get(name)) for name in FILES)
        self._map, self._added = ({}, {}) if DECODER in self._config else (of_map, added)

    @property
    def names(self) -> dict[str, str]:
        """Texts by name: ``eos_token`` and the like; raise RequestError for what is no token."""
        tokens = {name: self._named(name) for name in SPECIAL}
        return {name: str(token) for name, token in tokens.items() if token is not None}

    def add_to(self, tokenizer: Tokenizer) -> None:
        """Add what a tokenizer has not, or has with other flags; raise RequestError for what is no token.

        Of two for one text the later counts; one that has a name is special.
        """
        own = tokenizer.get_added_tokens_decoder()
        added: list[str | AddedToken] = list(self._decoder() if DECODER in self._config else self._with_added(own))
        there = {str(token) for token in (*own.values(), *added)}
        named = tuple(self._every_named())
        for token in (*named, *self._extra()):
            if str(token) not in there and token not in added:
                added.append(token)
        texts = set(map(str, named))
        tokenizer.add_tokens([_as_special(token) if str(token) in texts else _as_token(token) for token in added])

    def _named(self, name: str) -> str | AddedToken | None:
        own_text = name not in SPECIAL and isinstance(self._config.get(name), str)  # which the map does not replace
        if name in self._map and not own_text:
            token = _token(self._map[name], f"{self._directory / MAP_FILE}: {name}", plain=True)
            return _as_special(token) if isinstance(token, AddedToken) else token
        return _token(self._config.get(name), f"{self._directory / CONFIG_FILE}: {name}", plain=False)

    def _decoder(self) -> Iterator[AddedToken]:
        """Yield the tokens of ``added_tokens_decoder`` in the order of their ids."""
        where = f"{self._directory / CONFIG_FILE}: {DECODER}"
        table = self._config.get(DECODER) or {}
        if not isinstance(table, dict) or not all(key.isascii() and key.isdecimal() and len(key) < 20 for key in table):
            raise RequestError(f"{where}: expected a mapping of ids to tokens")
        for key in sorted(table, key=int):
            token = _token(table[key], f"{where}.{key}", plain=True) if isinstance(table[key], dict) else None
            if not isinstance(token, AddedToken):
                raise RequestError(f"{where}.{key}: expected a mapping with a text as content")
            yield token

    def _with_added(self, own: Mapping[int, AddedToken]) -> list[AddedToken]:
        """Return the tokenizer's own added tokens with those of ``added_tokens.json`` at other ids, by id."""
        special = self._special_texts()
        tokens: dict[int, AddedToken] = {}
        for text, number in self._added.items():
            where = f"{self._directory / ADDED_FILE}: {text!r}"
            if isinstance(number, bool) or not isinstance(number, int):
                raise RequestError(f"{where}: found {number!r}, expected the token's id")
            tokens[number] = AddedToken(
                str(_token(text, where, plain=True)), normalized=text not in special, special=text in special
            )
        return [token for _, token in sorted((tokens | dict(own)).items())]

    def _special_texts(self) -> set[str]:
        """Return the texts by which a token of ``added_tokens.json`` is special: those named, and lists of extra ones.

        A token that the config has as a mapping does not count.
        """
        config, of_map = self._config, self._map
        named = {name: config.get(name) for name in SPECIAL} | {
            name: _content(of_map[name]) for name in SPECIAL if name in of_map
        }
        extra = (config.get(EXTRA) or config.get(ADDITIONAL), [_content(token) for token in _listed(of_map.get(EXTRA))])
        texts = (*named.values(), *(text for tokens in extra for text in _listed(tokens)))
        return {text for text in texts if isinstance(text, str)}

    def _every_named(self) -> Iterator[str | AddedToken]:
        """Yield the tokens that have names."""
        fields = (*self._config.items(), *self._map.items())
        custom = (name for name, value in fields if name.endswith("_token") and isinstance(value, str | dict))
        for name in dict.fromkeys((*SPECIAL, *custom)):
            if (token := self._named(name)) is not None:
                yield token

    def _extra(self) -> Iterator[str | AddedToken]:
        """Yield the tokens of lists and mappings of extra ones."""
        in_config = EXTRA if self._config.get(EXTRA) else ADDITIONAL
        in_map = ADDITIONAL if EXTRA not in self._map and not self._config.keys() & {EXTRA, ADDITIONAL} else EXTRA
        for file, fields, field in ((CONFIG_FILE, self._config, in_config), (MAP_FILE, self._map, in_map)):
            where, values = f"{self._directory / file}: {field}", fields.get(field) or ()
            if not isinstance(values, dict | list | tuple):
                raise RequestError(
                    f"{where}: found {type(values).__name__}, expected a list of tokens or a mapping of named ones"
                )
            for value in values.values() if isinstance(values, dict) else values:
                if (token := _token(value, where, plain=True)) is not None:
                    yield token


def read_special(directory: Path) -> SpecialTokens:
    """Return the special tokens of a directory's files; raise RequestError."""
    return SpecialTokens(directory, special_contents(directory))


def special_contents(directory: Path) -> dict[str, bytes]:
    """Return the contents of the files that name special tokens, of those that are there; raise RequestError."""
    contents = {}
    for name in FILES:
        try:
            contents[name] = read_inside(directory, name, MOST_CONFIG_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RequestError(f"{directory / name}: cannot be read: {error.strerror}") from error
    return contents


def _fields(file: Path, content: bytes | None) -> dict[str, Any]:
    """Return the fields of a JSON file; nothing where there is none. Raise RequestError."""
    try:
        fields = {} if content is None else json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{file}: cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise RequestError(f"{file}: found {type(fields).__name__}, expected a mapping")
    return fields


def _token(value: Any, where: str, *, plain: bool) -> str | AddedToken | None:
    """Return a token as the file has it, None where there is none; raise RequestError for what is no token.

    ``plain``: a mapping needs no ``__type`` to be an AddedToken.
    """
    text = _content(value)
    if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError(f"{where}: found half of a surrogate pair, expected a text")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict) and (plain or value.get("__type") == "AddedToken"):
        content, flags = value.get("content"), {flag: value[flag] for flag in FLAGS if flag in value}
        if isinstance(content, str) and all(isinstance(flag, bool) for flag in flags.values()):
            return AddedToken(content, **flags)
    raise RequestError(
        f"{where}: found {type(value).__name__}, expected a text, or an AddedToken with a text as content"
    )


def _content(token: Any) -> Any:
    """Return the text of a token, which may be a mapping."""
    return token.get("content") if isinstance(token, dict) else token


def _listed(tokens: Any) -> list[Any]:
    """Return a list of tokens; nothing for what is none."""
    return tokens if isinstance(tokens, list) else []


def _as_token(token: str | AddedToken) -> AddedToken:
    return AddedToken(token, special=True) if isinstance(token, str) else token


def _as_special(token: str | AddedToken) -> AddedToken:
    """Return a token that has a name: it is special, whatever its fields say."""
    special = _as_token(token)
    special.special = True
    return special
