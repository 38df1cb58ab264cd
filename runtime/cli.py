"""`python -m runtime`: with `runtime.commands` the only place that prints, reads the environment and exits.

stdout is data, stderr is for people; the exit code is the error's. What needs torch is imported when it is asked for:
to verify a plan takes no longer than to read it.
"""

import contextlib
import importlib
import io
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from plans import codec
from plans.check import load
from plans.process import VERSION_MESSAGE, answered, importing
from plans.schema import PlanError
from runtime.commands.options import AS_JSON, PLAN
from runtime.errors import MachineError, RequestError, RuntimeRefusal
from runtime.image.verify import check_images
from runtime.processes.thread_wait import wait_briefly
from runtime.processes.torchrun import Torchrun

INTERRUPTED = 130
DECODING = ("bench", "run")
"""Commands of `runtime.commands`."""


class Commands(click.Group):
    """Those that decode are imported when one of them, or help on all, is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*DECODING, *super().list_commands(ctx)])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in DECODING:
            return super().get_command(ctx, cmd_name)
        wait_briefly()
        with importing():
            module = importlib.import_module("runtime.commands.run")
        found: click.Command = getattr(module, f"{cmd_name}_command")
        return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="eagleplan", message=VERSION_MESSAGE)
def commands() -> None:
    """Execute plans: EAGLE decoding on exactly the devices that a plan names."""


@commands.command("verify")
@PLAN
@click.option("--only", multiple=True, help="Only the image of this device, or of this host's; may be repeated.")
@AS_JSON
def verify_command(*, directory: Path, only: tuple[str, ...], as_json: bool) -> None:
    """Read every image of a plan and compare it with its digest; no model is loaded."""
    plan = load(directory)
    for name in only:
        if not any(name in (device.id, device.host) for device in plan.devices):
            known = ", ".join(device.id for device in plan.devices)
            raise RequestError(f"--only {name}: not a device of the plan, which has {known}")
    chosen = [device.id for device in plan.devices if not only or {device.id, device.host} & set(only)]
    record = check_images(plan, directory, verify=True, devices=chosen)
    if as_json:
        images = [codec.encode(image) for image in record.images if image.device in chosen]
        click.echo(json.dumps({"plan": str(directory), "plan_digest": record.plan_sha256, "images": images}))
    said = "1 image is the one that was" if len(chosen) == 1 else f"{len(chosen)} images are those that were"
    click.echo(f"{directory}: {said} compiled", err=True)


def main() -> NoReturn:
    """Run a command; errors become one line on stderr, for programs an object too, and their exit code."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # as in arguments: what is no text is refused as a prompt
    try:
        with answered(signal.SIGTERM, _terminate):
            commands.main(standalone_mode=False)
    except (RuntimeRefusal, PlanError) as error:
        click.echo(f"error: {error}", err=True)
        if "--json" in sys.argv[1:] and os.environ.get("RANK", "0") == "0":
            told = {"type": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
            click.echo(json.dumps({"error": told}))
        _end(error.exit_code, str(error))
    except click.ClickException as error:
        error.show()
        _end(error.exit_code, error.format_message())
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted", err=True)
        _end(INTERRUPTED, "interrupted")
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # of which whoever read stdout need not be told
            click.echo(f"error: {error}", err=True)
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left of the output goes nowhere
        _end(1, str(error))
    sys.exit(0)


def _end(code: int, message: str) -> NoReturn:
    """Exit with a code; under torchrun the other processes are told why."""
    with contextlib.suppress(MachineError):
        if (torchrun := Torchrun.of(os.environ)) is not None:
            importlib.import_module("runtime.processes.torchrun_store").tell_failure(torchrun, message)
    sys.exit(code)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Leave as at an error, so that ranks are ended too."""
    sys.exit(128 + number)
