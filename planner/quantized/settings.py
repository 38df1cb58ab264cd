"""Read the settings of a quantizer key by key: each is used or known to be harmless, any other is refused by name."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from planner.errors import ConfigError
from plans.format import quote, shown

MOST_PATTERN = 2000
"""Most characters of a regular expression."""
MOST_MATCH_S = 1.0
"""Longest time to match an expression with one name: some take exponential time."""
NOT_READ = "not read here: give the checkpoint before quantization"
"""What is said of a way to quantize that is known, and not read."""


class Settings:
    """A mapping of a config; methods raise ConfigError with the path of the key."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: found {quote(values)}, expected an object")
        self.where = where
        self._values: Mapping[str, Any] = values
        self._read: set[str] = set()

    def fail(self, name: str, problem: str) -> ConfigError:
        """Return the error of a key, to be raised."""
        return ConfigError(f"{self.where}.{shown(name)}: {problem}")

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a key; a null counts as an absent key."""
        self._read.add(name)
        value = self._values.get(name)
        return default if value is None else value

    def one_of(self, name: str, allowed: Sequence[Any], default: Any, reason: str = NOT_READ) -> Any:
        """Return a value that is one of those that are read."""
        value = self.get(name, default)
        if not any(type(value) is type(other) and value == other for other in allowed):
            expected = " or ".join(quote(other) for other in allowed)
            raise self.fail(name, f"found {quote(value)}, expected {expected}: {reason}")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        """Return true or false."""
        return bool(self.one_of(name, (True, False), default, "one of the two"))

    def names(self, name: str) -> tuple[str, ...]:
        """Return a list of names, empty where the key is absent."""
        value = self.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.fail(name, f"found {quote(value)}, expected a list of names")
        return tuple(value)

    def inner(self, name: str) -> "Settings":
        """Return the settings inside a key."""
        return Settings(self.get(name), f"{self.where}.{shown(name)}")

    def items(self) -> Iterable[tuple[str, "Settings"]]:
        """Yield all keys with the settings inside them."""
        for name in self._values:
            yield name, self.inner(name)

    def finish(self, *harmless: str) -> None:
        """Raise ConfigError for a key that was not read and is not harmless."""
        for name, value in self._values.items():
            if value is not None and name not in self._read and name not in harmless:
                raise self.fail(name, "unknown key: not known here, and it may change how weights are stored")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """A regular expression of a config, which names the layers whose names begin as it says."""

    expression: "regex.Pattern[str]"
    where: str
    anywhere: bool = False
    """It names those too within whose names something is as it says."""

    @classmethod
    def read(cls, text: str, settings: Settings, name: str, *, anywhere: bool = False) -> "Pattern":
        """Compile an expression; raise ConfigError."""
        where = f"{settings.where}.{shown(name)}: found {quote(text)}"
        if len(text) > MOST_PATTERN:
            raise ConfigError(f"{where}, expected a regular expression of at most {MOST_PATTERN} characters")
        try:
            return cls(expression=regex.compile(text), where=where, anywhere=anywhere)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ConfigError(f"{where}, expected a regular expression: {error}") from error

    def has(self, module: str) -> bool:
        """Return True where the expression names a layer; raise ConfigError past the limit of time."""
        find = self.expression.search if self.anywhere else self.expression.match
        try:
            return find(module, timeout=MOST_MATCH_S) is not None
        except TimeoutError as error:
            raise ConfigError(
                f"{self.where}, expected a regular expression that is matched with {quote(module)} in {MOST_MATCH_S} s"
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """Names of layers, or beginnings or ends of them: whole words between dots; a star stands for any part.

    ``layers.0.`` and ``.gate``, by which programs that look for parts of names tell words, are these words.
    """

    expression: "re.Pattern[str]"

    @classmethod
    def read(cls, *names: str) -> "Names":
        """Compile a list of names, which may be empty."""
        words = [name.strip(".") for name in names]
        either = "|".join(".*".join(re.escape(part) for part in name.split("*")) for name in words if name) or "(?!)"
        return cls(expression=re.compile(rf"(?:^|\.)(?:{either})(?:\.|$)"))

    def have(self, module: str) -> bool:
        """Return True where a layer is named."""
        return self.expression.search(module) is not None


def block_of(settings: Settings, value: object, name: str) -> tuple[int, int]:
    """Return rows and columns of blocks that share a scale; raise ConfigError."""
    if isinstance(value, str):  # older versions: "128x128"
        parts: Sequence[object] = [int(part) if part.isdecimal() else part for part in value.split("x")]
    else:
        parts = value if isinstance(value, list) else []
    if len(parts) == 2 and all(type(size) is int and 16 <= size <= 1024 for size in parts):
        return int(str(parts[0])), int(str(parts[1]))
    raise settings.fail(name, f"found {quote(value)}, expected rows and columns of a block, such as [128, 128]")
