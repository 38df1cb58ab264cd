"""Parses and writes quantities with units: text like ``24 GiB`` to an integer in the base unit, and back exactly."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from planner.errors import InventoryError
from plans.format import quote

MAX_VALUE = (1 << 63) - 1

_NUMBER_AND_UNIT = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([A-Za-zµ]+(?:/[A-Za-z]+)?)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """A kind of quantity: its units in base units, the ones used for writing, and an example for messages."""

    units: Mapping[str, Fraction]
    written: tuple[str, ...]
    """Largest first; the last is the base unit, in which every integer can be written."""
    example: str
    plain: bool = False
    """An integer without a unit is accepted, and counts base units."""
    most: int = MAX_VALUE
    """Largest value, in base units."""
    most_text: str = "2^63 - 1"
    """The same in words."""


def _powers(suffix: str, base: int, prefixes: str, scale: Fraction = Fraction(1)) -> dict[str, Fraction]:
    return {f"{prefix.strip()}{suffix}": scale * base**power for power, prefix in enumerate(prefixes.split(","))}


_BYTES = _powers("B", 1000, " ,k,M,G,T") | {"KB": Fraction(1000)} | _powers("iB", 1024, "-,K,M,G,T")
del _BYTES["-iB"]

SIZE = Quantity(
    units=_BYTES, written=("GiB", "MiB", "KiB", "B"), example="24 GiB", plain=True, most=1 << 50, most_text="1024 TiB"
)
BANDWIDTH = Quantity(
    units={f"{name}/s": value for name, value in _BYTES.items()} | _powers("bit/s", 1000, " ,k,M,G,T", Fraction(1, 8)),
    written=("GB/s", "MB/s", "kB/s", "B/s"),
    example="25 Gbit/s or 40 GB/s",
)
DURATION = Quantity(
    units={"s": Fraction(10**9), "ms": Fraction(10**6), "us": Fraction(1000), "µs": Fraction(1000), "ns": Fraction(1)},
    written=("ms", "us", "ns"),
    example="20 us",
    most=100 * 10**9,
    most_text="100 s",
)
RATE = Quantity(
    units=_powers("FLOP/s", 1000, " ,k,M,G,T,P"),
    written=("TFLOP/s", "GFLOP/s", "MFLOP/s", "FLOP/s"),
    example="312 TFLOP/s",
)


def parse(quantity: Quantity, data: Any, path: str) -> int:
    """Return the integer in base units, rounded down; raise InventoryError with the path for anything else."""
    if type(data) is int and quantity.plain:
        value = data
    elif type(data) is int or type(data) is float:
        raise InventoryError(f"{path}: found {data} without a unit, expected a quantity like {quantity.example}")
    elif type(data) is not str:
        raise InventoryError(f"{path}: found {quote(data)}, expected a quantity like {quantity.example}")
    else:
        value = _parse_text(quantity, data, path)
    if not 0 <= value <= quantity.most:
        most = quantity.most_text if quantity.most < MAX_VALUE else f"{quantity.most_text} {quantity.written[-1]}"
        raise InventoryError(f"{path}: found {data}, expected a quantity from 0 to {most}")
    return value


def _parse_text(quantity: Quantity, text: str, path: str) -> int:
    if text.lstrip().startswith("-"):
        raise InventoryError(
            f"{path}: found {quote(text)}, which is negative, expected a quantity like {quantity.example}"
        )
    match = _NUMBER_AND_UNIT.fullmatch(text.strip()) if len(text) <= 64 else None
    if match is None:
        raise InventoryError(f"{path}: found {quote(text)}, expected a quantity like {quantity.example}")
    number, unit = match.groups()
    if unit is None:
        raise InventoryError(f"{path}: found {quote(text)} without a unit, expected a quantity like {quantity.example}")
    if unit not in quantity.units:
        known = ", ".join(quantity.units)
        raise InventoryError(f"{path}: found {quote(text)} with unit {unit}, expected one of {known}")
    return int(Fraction(number) * quantity.units[unit])


def render(quantity: Quantity, value: int) -> str:
    """Return the shortest exact text: ``parse(quantity, render(quantity, value), path) == value``."""
    for unit in quantity.written:
        scale = int(quantity.units[unit])
        if value % scale == 0 and (value > 0 or scale == 1):
            return f"{value // scale} {unit}"
    raise AssertionError(f"no exact unit for {value}")


def mebibytes(nbytes: int) -> str:
    """Return a size in whole MiB, rounded down."""
    return f"{nbytes >> 20} MiB"


def megabytes_per_s(bytes_per_s: int) -> str:
    """Return a bandwidth rounded down to whole MB/s."""
    return render(BANDWIDTH, bytes_per_s // 10**6 * 10**6)


def gigaflops(flops_per_s: int) -> str:
    """Return a rate rounded down to whole GFLOP/s."""
    return render(RATE, flops_per_s // 10**9 * 10**9)
