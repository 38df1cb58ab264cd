"""`inventory` and `scan`: what a plan is made from."""

import re
import socket
from pathlib import Path
from typing import Any

import click

from planner.commands.console import DIRECTORY, put, refusals, say
from planner.errors import OutputError
from planner.families import scan
from planner.hardware.detect import detect
from planner.hardware.inventory import dump_inventory, load_inventory
from planner.hardware.nvml import read_machine
from plans import codec
from plans.format import format_bytes
from plans.schema import DTYPE_BYTES, DType


@click.command("inventory")
@click.argument("file", type=DIRECTORY, required=False)
@click.option("--detect", "detected", is_flag=True, help="Write the inventory of this machine, as NVML tells it.")
@click.option("--dtype", type=click.Choice(list(DTYPE_BYTES)), default="bfloat16", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
@refusals
def inventory_command(*, file: Path | None, detected: bool, dtype: Any, as_json: bool) -> None:
    """An inventory with every default written out (default: inventory.yaml); or with --detect that of this machine,
    to FILE where there is none yet, else to stdout."""
    if detected:
        write_detected(file, dtype, as_json)
        return
    devices = load_inventory(file or Path("inventory.yaml"), dtype)
    if as_json:
        put({"inventory": codec.encode(devices)})
    else:
        click.echo(dump_inventory(devices), nl=False)


def write_detected(file: Path | None, dtype: DType, as_json: bool) -> None:
    name = socket.gethostname().partition(".")[0]
    found = detect(read_machine(), name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) else "box0", dtype)
    for line in found.left_out:
        say(f"left out: {line}")
    if file is not None:
        try:
            with file.open("x") as stream:
                stream.write(found.text)
        except OSError as error:
            raise OutputError(f"{file}: cannot write the inventory: {error.strerror}: give a new file") from error
        say(f"{file}: {len(found.inventory.devices)} devices")
    if as_json:
        put({"inventory": codec.encode(found.inventory), "left_out": list(found.left_out)})
    elif file is None:
        click.echo(found.text, nl=False)


@click.command("scan")
@click.argument("checkpoint", type=DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
@refusals
def scan_command(*, checkpoint: Path, as_json: bool) -> None:
    """What a checkpoint holds, from its headers alone."""
    summary = scan(checkpoint)
    if as_json:
        put({"checkpoint": str(checkpoint), **codec.encode(summary)})
        return
    click.echo(f"{summary.num_tensors} tensors, {format_bytes(summary.nbytes)}, {', '.join(summary.dtypes)}")
    for block in summary.blocks:
        click.echo(f"  {block.block:<10} {block.num_tensors:>4} tensors  {format_bytes(block.nbytes):>10}")
