"""Data of a plan that contradict the rest of it, and how messages show them."""

from collections.abc import Iterator
from dataclasses import dataclass

MOST_SHOWN = 16
"""Most entries of a sequence in a message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """One datum that contradicts the rest of the plan."""

    path: str
    value: str
    expected: str

    def __str__(self) -> str:
        return f"{self.path}: found {self.value}, expected {self.expected}"


def bad(path: str, value: object, expected: object) -> Violation:
    """Return the violation of a datum that has another value than is expected."""
    return Violation(path=path, value=show(value), expected=show(expected))


def show(value: object) -> str:
    """Return a datum as messages show it; of a long sequence the beginning."""
    if isinstance(value, tuple):
        more = [f"... of {len(value)}"] if len(value) > MOST_SHOWN else []
        return f"[{', '.join([*map(str, value[:MOST_SHOWN]), *more])}]"
    return "nothing" if value is None else str(value)


def in_range(path: str, value: float, least: float, most: float) -> Iterator[Violation]:
    """Yield the violation of a number that is less than ``least`` or more than ``most``."""
    if not least <= value <= most:
        yield bad(path, value, f"from {least} to {most}")
