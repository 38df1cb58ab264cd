"""Command line ``python -m runtime``: chooses the command, and turns an error into text, JSON and an exit code.

stdout is for data, stderr for people. Nothing here needs torch: a command imports it when its work begins.
"""

import errno
import importlib
import io
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import click

from plans.command_names import unknown
from plans.console import INTERRUPTION, USAGE, VERSION_MESSAGE, Refusal, error_data, refusals_reported, usage_refusal
from plans.process import answered
from plans.schema import PlanError
from runtime.commands.bench import bench_command
from runtime.commands.calibrate import calibrate_command
from runtime.commands.run import run_command
from runtime.commands.serve import serve_command
from runtime.commands.verify import verify_command
from runtime.errors import MachineError, RuntimeRefusal
from runtime.processes.torchrun import Torchrun

UNWRITABLE = frozenset({errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC})
"""Errors of stdout, as those of files have their names."""

EPILOG = """\b
Exit codes:
    0  done
    1  the output could not be written
    2  bad input or usage: an option, the plan, a prompt that the plan cannot serve
    4  an image is missing, damaged or of another plan
    5  the machine is not the plan's, or a device died or made no progress
  130  interrupted with Ctrl-C; 143: terminated

\b
Environment:
  DEBUG=1, DEBUG=2   as -v and -vv
  NUMBA_CACHE_DIR    directory of the compiled CPU kernels
  GOMP_SPINCOUNT, OMP_WAIT_POLICY   left as they are; see runtime/README.md

Example: python -m runtime run plans/demo --prompt "def parse(" """


class Commands(click.Group):
    """The group of all commands."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(unknown(args[0], "runtime"))
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=EPILOG
)
@click.version_option(package_name="eagleplan", message=VERSION_MESSAGE)
def commands() -> None:
    """Execute plans: EAGLE decoding on exactly the devices that a plan names."""


for command in (bench_command, calibrate_command, run_command, serve_command, verify_command):
    commands.add_command(command)


def main() -> NoReturn:
    """Run a command and exit with its code."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(
            errors="surrogateescape"
        )  # as in arguments: bytes that are no text are refused as a prompt
    as_json = "--json" in sys.argv[1:] and os.environ.get("RANK", "0") == "0"
    with answered(signal.SIGTERM, _terminate), refusals_reported(describe, as_json=as_json, ending=_tell_torchrun):
        commands.main(standalone_mode=False)
    sys.exit(0)


def describe(error: BaseException) -> Refusal | None:
    """Return an error as a command reports it; None for a bug."""
    if isinstance(error, RuntimeRefusal | PlanError):
        text = f"error: {error}"
        return Refusal(exit_code=error.exit_code, text=text, data=error_data(error, str(error), error.exit_code))
    if isinstance(error, click.ClickException):
        return usage_refusal(error)
    if isinstance(error, click.Abort):  # click's name for Ctrl-C
        return INTERRUPTION
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
        return Refusal(exit_code=USAGE, text=f"error: {text}", data=error_data(error, text, USAGE))
    if isinstance(error, OSError):  # most likely stdout that cannot be written, so there is no object
        text = f"stdout: cannot write: {error.strerror}" if error.errno in UNWRITABLE else str(error)
        return Refusal(exit_code=1, text=f"error: {text}", data=None)
    return None


def _tell_torchrun(message: str) -> None:
    """Report to the other processes of torchrun why this one ends."""
    with suppress(MachineError):
        if (torchrun := Torchrun.of(os.environ)) is not None:
            importlib.import_module("runtime.processes.torchrun_store").tell_failure(torchrun, message)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Exit as at an error, so that rank processes are ended too."""
    sys.exit(128 + number)
