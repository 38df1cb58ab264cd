"""Values of options: each function turns the text of an option into a value, or raises click's BadParameter."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

import click

from planner.families.aux_layers import parse_aux_layers
from planner.request import DEFAULT_TREE, LEAST_TREE, STATIC_PATHS
from plans import numbers
from plans.acceptance import PPM
from plans.check_inputs import MOST_CLIENTS, MOST_TREE, path_problems, static_tree
from plans.console import verbosity
from plans.format import quote
from plans.schema import Strategy, Tree

SIZES = {"total_token": DEFAULT_TREE.total_token, "depth": DEFAULT_TREE.depth, "top_k": DEFAULT_TREE.top_k}
TREES = ",".join(f"{name}={number}" for name, number in SIZES.items()) + ", one or more of these, or static"
"""What a draft tree is written as."""


class Whole(click.ParamType):  # type: ignore[type-arg] # older versions are not generic
    """A whole number within a range."""

    name = "whole number"

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return text as a number, a default as it is."""
        number = value if isinstance(value, int) else numbers.whole(value, self.least, self.most)
        if number is None:
            self.fail(f"found {quote(value)}, expected a whole number from {self.least} to {self.most}", param, ctx)
        return number


class Number(click.ParamType):  # type: ignore[type-arg] # older versions are not generic
    """A number within a range."""

    name = "number"

    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return text as a number, a default as it is."""
        number = value if isinstance(value, float) else numbers.decimal(value, self.least, self.most)
        if number is None:
            self.fail(f"found {quote(value)}, expected a number from {self.least:g} to {self.most:g}", param, ctx)
        return number


class OneOf(click.Choice):  # type: ignore[type-arg] # older versions are not generic
    """One of several names; a message has the beginning of another value, and all names."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a name as it is."""
        if value not in self.choices:
            self.fail(f"found {quote(value)}, expected one of {', '.join(self.choices)}", param, ctx)
        return value


class FilePath(click.ParamType):  # type: ignore[type-arg] # older versions are not generic
    """A file or directory; whether it exists is for the command to find out."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return text as a path; an empty one would be the current directory."""
        if not value:
            self.fail("found an empty text, expected a file or directory", param, ctx)
        return Path(value)


PATH = FilePath()


def parse_gap(context: click.Context, parameter: click.Parameter, value: str) -> float:
    """Parse a relative distance, as a percentage or a fraction, to a fraction."""
    fraction = _relative(value)
    if fraction is None or fraction == 1:
        raise click.BadParameter(f"found {quote(value)}, expected a fraction like 0.05 or 5%, from 0 to less than 100%")
    return fraction


def parse_of_step(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Parse a part of the step time, as a percentage or a fraction, to a fraction."""
    fraction = None if value is None else _relative(value)
    if value is not None and fraction is None:
        raise click.BadParameter(f"found {quote(value)}, expected a fraction of the step time like 2% or 0.02")
    return fraction


def _relative(value: str) -> float | None:
    """Parse ``0.05``, ``.05`` or ``5%``, to parts per million; None where it is no such text, or more than 100%."""
    number = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,20})?|\.[0-9]{1,20})(%?)", value)
    ppm = int(Decimal(number[1]) * (PPM // 100 if number[2] else PPM)) if number else -1
    return ppm / PPM if 0 <= ppm <= PPM else None


def parse_tree(context: click.Context, parameter: click.Parameter, value: str | None) -> Tree | None:
    """Parse ``total_token=60,depth=7,top_k=10``, each optional; ``static``; or ``static=0,1,0.0`` with its nodes."""
    if value is None:
        return None
    shape, equals, paths = value.partition("=")
    if shape == "static":
        return static_tree(_paths(paths) if equals else STATIC_PATHS)
    sizes = dict(SIZES)
    names = []
    for item in value.split(","):
        name, _, digits = item.partition("=")
        if name not in sizes:
            raise click.BadParameter(f"found {quote(name)}, expected {TREES}")
        if name in names:
            raise click.BadParameter(f"{name}: found twice, expected once")
        least, most = LEAST_TREE[name], MOST_TREE[name]
        number = numbers.whole(digits, least, most)
        if number is None:
            raise click.BadParameter(f"{name}: found {quote(digits)}, expected a whole number from {least} to {most}")
        names.append(name)
        sizes[name] = number
    return Tree(kind="dynamic", **sizes, paths=None)


def _paths(text: str) -> tuple[tuple[int, ...], ...]:
    """Parse tree nodes, each the ranks on the path from the root (0.1: second child of the first), in plan order."""
    for item in text.split(","):
        if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4})*", item):
            reason = f"found {quote(item)}, expected ranks of a node and of those above, as in 0.1"
            raise click.BadParameter(f"static: {reason}")
    nodes = [tuple(int(rank) for rank in item.split(".")) for item in text.split(",")]
    paths = tuple(sorted(nodes, key=lambda path: (len(path), path)))
    problem = next(path_problems(paths), None)
    if problem is not None:
        raise click.BadParameter(f"static: expected {problem}")
    return paths


def check_aux(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return the layers that an EAGLE-3 head reads, named by their inputs or by their outputs, as they are."""
    if value is not None and parse_aux_layers(value) is None:
        raise click.BadParameter(f"found {quote(value)}, expected inputs=2,18,33 or outputs=1,17,32, in order")
    return value


def parse_replicas(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | Literal["auto"] | None:
    """Parse a number of replicas, or ``auto``."""
    if value is None:
        return None
    if value == "auto":
        return "auto"
    number = numbers.whole(value, 1, MOST_CLIENTS)
    if number is None:
        raise click.BadParameter(f"found {quote(value)}, expected auto, or a number of replicas from 1")
    return number


def parse_context(context: click.Context, parameter: click.Parameter, value: str | None) -> int | str | None:
    """Parse a number of positions like ``4096``, in units of 1024 like ``32k``, or ``max``."""
    if value is None or value == "max":
        return value
    number = re.fullmatch(r"([0-9]{1,12})([kK]?)", value)
    positions = int(number[1]) * (1024 if number[2] else 1) if number else 0
    if positions < 1:
        raise click.BadParameter(f"found {quote(value)}, expected positions like 4096 or 32k (32 x 1024), or max")
    return positions


def parse_strategy(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str | None, Path | None]:
    """Parse the name of a strategy (``auto`` is ``latency``), with the device map of ``custom:FILE``."""
    if value is None:
        return None, None
    name, colon, file = ("latency" if value == "auto" else value).partition(":")
    if name not in get_args(Strategy) or (colon and (name != "custom" or not file)):
        raise click.BadParameter(f"found {quote(value)}, expected one of {', '.join(get_args(Strategy))} or auto")
    return name, Path(file) if file else None


def parse_verbosity(context: click.Context, parameter: click.Parameter, value: int) -> int:
    """Return the number of -v, or the environment variable DEBUG where it is larger."""
    return verbosity(value)
