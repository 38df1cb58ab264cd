"""Typed getters of an inventory's fields; each raises InventoryError: the path, what was found, what is expected.

``fields``: a mapping of the file; ``path``: where it is.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from planner.errors import InventoryError
from planner.hardware import units
from plans.format import quote, shown

CLASS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Names of types of devices and classes of links."""
CLASS_LETTERS = "lower-case letters, digits, '.', '_' and '-'"
MOST = 1 << 16
"""Largest number of rows of a product, members of a group, or devices at once that a file may name."""


def mapping(data: Any, prefix: str, allowed: tuple[str, ...], expected: str) -> Mapping[str, Any]:
    """Return ``data`` as a mapping of ``allowed`` keys; a message is ``prefix`` followed by the key."""
    if not isinstance(data, dict):
        raise InventoryError(f"{prefix.rstrip('.: ')}: found {_kind(data)}, expected {expected}")
    for key in data:
        if key not in allowed:
            hint = nearest(key, allowed) or f", expected one of {', '.join(allowed)}"
            raise InventoryError(f"{prefix}{shown(key)}: unknown field{hint}")
    return data


def sequence(data: Any, path: str, expected: str) -> list[Any]:
    """Return ``data`` as a sequence."""
    if data is None:
        raise InventoryError(f"{path}: missing, expected {expected}")
    if not isinstance(data, list):
        raise InventoryError(f"{path}: found {_kind(data)}, expected {expected}")
    return data


def text(
    fields: Mapping[str, Any],
    name: str,
    path: str,
    pattern: re.Pattern[str],
    expected: str,
    near: Callable[[Any], str] = lambda value: "",
) -> str:
    """Return a name of the letters of ``pattern``; ``near``: words on what may have been meant instead of a value."""
    value = fields.get(name)
    if type(value) is not str or not pattern.fullmatch(value):
        found = f"found {quote(value)}" if name in fields else "missing"
        raise InventoryError(f"{path}.{name}: {found}, expected a name of {expected}{near(value)}")
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a question for the nearest known name, empty where none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {matches[0]}?" if matches else ""


def _kind(data: Any) -> str:
    names = {dict: "a mapping", list: "a sequence", type(None): "nothing"}
    return names.get(type(data), repr(data))


def figure(fields: Mapping[str, Any], name: str, quantity: units.Quantity, default: int | None, path: str) -> int:
    """Return a quantity in base units; raise InventoryError for a zero that is no reserve or fixed time."""
    if name not in fields:
        if default is None:
            raise InventoryError(f"{path}.{name}: missing, expected a quantity like {quantity.example}")
        return default
    value = units.parse(quantity, fields[name], f"{path}.{name}")
    if value == 0 and name not in ("reserve", "overhead", "pass", "table", "latency"):
        raise InventoryError(f"{path}.{name}: found {fields[name]}, expected more than zero")
    return value


def rising(fields: Mapping[str, Any], name: str, last: int, path: str) -> int:
    """Return a whole number above the last one of a sequence."""
    value = fields.get(name)
    if type(value) is not int or not last < value <= MOST:
        raise InventoryError(f"{path}.{name}: found {quote(value)}, expected a number from {last + 1} to {MOST}")
    return value
