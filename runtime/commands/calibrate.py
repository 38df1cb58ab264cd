"""The command `calibrate`: samples of this machine's speed, for `planner inventory --measure`."""

import click

from runtime.commands.command import Command
from runtime.commands.options import Whole, load_module

MOST_PROCESSES = 16


@click.command(
    "calibrate",
    short_help="Time this machine's CPU, for an inventory.",
    cls=Command,
    examples=("PROGRAM calibrate --processes 2",),
)
@click.option(
    "--processes",
    metavar="N",
    type=Whole(1, MOST_PROCESSES),
    default=1,
    show_default=True,
    help="Processes, as the devices of a plan, that compute alone, some at once, and all at once, and share the cores.",
)
@click.option(
    "--within",
    "within_s",
    metavar="SECONDS",
    type=Whole(5, 600),
    default=50,
    show_default=True,
    help="End with exit code 5 where the machine is so busy that it takes longer.",
)
def calibrate_command(*, processes: int, within_s: int) -> None:
    """Write the times of products and sums on this machine's CPU as one JSON object: samples in ns, no means.

    `python -m planner inventory --measure` runs this and makes figures of it. GPUs are not measured.
    """
    load_module("runtime.commands.calibration").calibrate(processes, within_s)
