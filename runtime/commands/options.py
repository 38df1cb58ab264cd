"""Options and output that several commands share, and the import of modules that take long."""

import importlib
import os
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from plans import numbers
from plans.console import verbosity
from plans.deferred import unused_deferred
from plans.format import quote
from plans.process import importing
from plans.terminal import err
from runtime.errors import MachineError

ADDRESS_SPACE = 10**9
"""Least address space of a process, in bytes: torch's libraries take half of it and LLVM's a sixth, beside the threads'
stacks. With less they end the process themselves, each in its own words."""


class Whole(click.ParamType):  # type: ignore[type-arg] # older versions are not generic
    """A whole number of 64 bits, at least ``least``; the command knows the range."""

    name = "whole number"

    def __init__(self, least: int = -numbers.MOST_INT64, most: int = numbers.MOST_INT64) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return text as a number, a default as it is."""
        number = value if isinstance(value, int) else numbers.whole(value, self.least, self.most)
        if number is None:
            self.fail(f"found {quote(value)}, expected a whole number from {self.least} to {self.most}", param, ctx)
        return number


class Number(click.ParamType):  # type: ignore[type-arg] # older versions are not generic
    """A finite number; the command knows the range."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return text as a number, a default as it is."""
        number = value if isinstance(value, float) else numbers.decimal(value, -sys.float_info.max, sys.float_info.max)
        if number is None:
            self.fail(f"found {quote(value)}, expected a decimal number", param, ctx)
        return number


class Directory(click.ParamType):  # type: ignore[type-arg] # older versions are not generic
    """A directory; whether it is that of a plan is for the command to find out."""

    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return text as a path; an empty one would be the current directory."""
        if not value:
            self.fail("found an empty text, expected a directory", param, ctx)
        return Path(value)


PLAN = click.argument("directory", metavar="PLAN", type=Directory())
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")

QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr while the plan is loaded.")


def _verbosity(context: click.Context, parameter: click.Parameter, count: int) -> int:
    return verbosity(count)


VERBOSE = click.option(
    "-v",
    "--verbose",
    count=True,
    callback=_verbosity,
    help="Devices, layers, KV heads and memory of each device (or DEBUG=1). -vv: and every tensor (or DEBUG=2).",
)


def to_stderr(lines: Iterable[str]) -> None:
    """Write lines for people."""
    for line in lines:
        err(line)


def load_module(name: str) -> Any:
    """Import a module when it is needed, with what takes long to be imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's; its threads would spin, and nothing here multiplies
    with importing():
        return importlib.import_module(name)


def load_torch_module(name: str) -> Any:
    """Import a module that needs torch, when it is needed; raise MachineError where torch cannot be loaded."""
    with importing():
        return load_torch_module_in_thread(name)


def load_torch_module_in_thread(name: str) -> Any:
    """Import a module like ``load_torch_module``, in any thread: Ctrl-C does not end it."""
    most_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most_bytes != resource.RLIM_INFINITY and most_bytes < ADDRESS_SPACE:
        raise MachineError(
            f"torch cannot be loaded: the address space is limited to {most_bytes} bytes, expected {ADDRESS_SPACE} at "
            "least: see `ulimit -v`"
        )
    try:
        with unused_deferred():
            importlib.import_module("torch")
    except (ImportError, OSError, MemoryError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise MachineError(f"torch cannot be loaded: {reason}: see `ulimit -a`, or install it again") from error
    return importlib.import_module(name)
