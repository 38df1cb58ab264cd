"""``inventory --measure``: figures of this machine's CPU devices, written into an inventory."""

from pathlib import Path

from planner.api import detecting, measuring
from planner.commands.console import put, say
from planner.commands.inventory import say_devices
from planner.errors import OutputError
from planner.hardware.inventory import parse_inventory, read_inventory
from plans import codec, durable
from plans.schema import DType
from plans.strict_yaml import dump_yaml, load_yaml
from plans.terminal import out


def run(*, file: Path | None, dtype: DType, as_json: bool, verbose: int) -> None:
    """Measure this machine and write the inventory with the figures: into ``file``, or without one to stdout.

    Where ``file`` does not exist, or there is none, the machine is detected first. Comments of a file are not kept.
    """
    if file is not None and file.exists():
        data = read_inventory(file)
    else:
        data = load_yaml(detecting.detect(dtype).text, "detected")
    data, lines = measuring.measure(data, str(file or "detected"))
    for line in lines:
        say(line)
    inventory, text = parse_inventory(data, str(file or "measured")).at(dtype), dump_yaml(data)
    say_devices(data, inventory, verbose)
    if file is not None:
        try:
            durable.write_whole(file, text)
        except OSError as error:
            raise OutputError(f"{file}: cannot write the inventory: {error.strerror}") from error
        say(f"{file}: written")
    if as_json:
        put({"inventory": codec.encode(inventory), "measured": list(lines)})
    elif file is None:
        out(text, end="")
