"""Every command of the planner with its arguments, options, help and examples.

Nothing heavy is imported here (a test lists what): ``--help`` and a refused command line take no longer than click.
"""

import click

from planner.commands.build_declaration import BUILD
from planner.commands.command import Command
from planner.commands.options import (
    PATH,
    OneOf,
)
from planner.commands.parameters import json_option, plan_argument, solver_options, verbose
from plans.dtypes import DTYPE_BYTES

EXPORTED = ("vllm", "accelerate", "llama.cpp", "exllamav3")
"""Programs for which ``show`` writes arguments."""

INVENTORY = Command(
    "inventory",
    summary="Show an inventory of devices with its defaults, or detect this machine.",
    details=(
        "Without --detect: read FILE (default: inventory.yaml) and print it with every default written out.\n\n"
        "With --detect: describe the devices of this machine and print the inventory; with FILE, write it there. "
        "A file that exists is not overwritten.\n\n"
        "With --measure: time products and messages on this machine, for at most a minute, and write them with their "
        "spread into FILE, whose comments are not kept; one that does not exist is detected first."
    ),
    params=(
        click.Argument(["file"], type=PATH, required=False),
        click.Option(["--detect"], is_flag=True, help="Describe the devices of this machine."),
        click.Option(
            ["--measure"],
            is_flag=True,
            help="Measure this machine's CPU devices and write the figures into FILE, or to stdout.",
        ),
        click.Option(
            ["--dtype"],
            type=OneOf(list(DTYPE_BYTES)),
            default="bfloat16",
            show_default=True,
            help="Print the FLOP rates at this dtype.",
        ),
        json_option(),
        verbose("the figures of each device, and which are given in the file and which are the catalogue's"),
    ),
    examples=("--detect inventory.yaml", "--measure inventory.yaml", "inventory.yaml"),
)

SCAN = Command(
    "scan",
    summary="List the tensors of a checkpoint by block, from its headers alone.",
    details="CHECKPOINT is a directory with config.json and safetensors, or a config.json alone.",
    params=(
        click.Argument(["checkpoint"], type=PATH),
        json_option(),
        verbose("every tensor with its dtype, shape and bytes"),
    ),
    examples=("Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct --json"),
)

COMPILE = Command(
    "compile",
    summary="Compile the images of a plan from its checkpoints.",
    details=(
        "PLAN is the directory of a plan. Images whose inputs have not changed are kept. All new images are complete "
        "on disk before the first old one is replaced."
    ),
    params=(
        plan_argument(),
        click.Option(["--model"], type=PATH, help="Checkpoint directory.  [default: the demo model]"),
        click.Option(
            ["--draft"],
            type=PATH,
            help="Directory of the EAGLE head.  [default: the demo model's, where --model is left out]",
        ),
        click.Option(
            ["--only"], metavar="NAME", multiple=True, help="Only the images of this device or host; repeatable."
        ),
        click.Option(["--quiet", "-q"], is_flag=True, help="Write nothing to stderr but errors."),
        json_option(),
        verbose("the number of slots of each image", "each slot with its dtype and shape"),
    ),
    examples=(
        "plans/llama8b --model Llama-3.1-8B-Instruct --draft EAGLE3-LLaMA3.1-8B",
        "plans/llama8b --model Llama-3.1-8B-Instruct --only gpu0",
    ),
)

SHOW = Command(
    "show",
    summary="Show a plan: stages, shares, memory of each device, predicted times.",
    details=(
        "PLAN is the directory of a plan, or of a fleet, which is shown with its templates, replicas and unused "
        "devices."
    ),
    params=(
        plan_argument(),
        json_option("Write the plan and its summary to stdout as one JSON object."),
        click.Option(["--markdown"], is_flag=True, help="Write Markdown for a review."),
        click.Option(["--html", "html_file"], type=PATH, metavar="FILE", help="Write one self-contained HTML file."),
        click.Option(["--device-map"], is_flag=True, help="Write a Hugging Face device_map, where no layer is split."),
        click.Option(
            ["--export"],
            type=OneOf(EXPORTED),
            help="Write the nearest arguments of this program, with comments; refused where it would place otherwise.",
        ),
        click.Option(
            ["--slot"], metavar="NAME", help="Write which bytes of which checkpoint files a slot of the images is from."
        ),
        click.Option(
            ["--model"],
            type=PATH,
            help="With --slot: the checkpoint.  [default: the one that was compiled]",
        ),
        click.Option(["--draft"], type=PATH, help="With --slot: the EAGLE head.  [default: the one that was compiled]"),
        click.Option(
            ["--launch"],
            is_flag=True,
            help="Of a fleet: write what starts its replicas to FLEET/launch: commands of each host, systemd units, a "
            "docker-compose file, nginx in front of the servers.",
        ),
        verbose("every device of the inventory", "the layers, tensors and KV cache of each device"),
    ),
    examples=("plans/demo", "plans/demo --html demo.html", "plans/demo --slot layers.0.qkv.weight"),
)

DIFF = Command(
    "diff",
    summary="Compare two plans: step time, layers and bytes that move, every field.",
    details="A and B are directories of plans, or of fleets. The exit code is 0 for equal ones, else 1.",
    params=(
        plan_argument("a"),
        plan_argument("b"),
        json_option(),
        click.Option(["--markdown"], is_flag=True, help="Write Markdown for a review."),
        verbose("the memory of each device, before and after", "the predicted time of each part, before and after"),
    ),
    examples=("plans/before plans/after", "plans/before plans/after --markdown"),
)

CHECK = Command(
    "check",
    summary="Solve plans again from their own inputs; exit code 1 if one differs.",
    details=(
        "PLANS are directories of plans or fleets. No weights are read: the configs in the directory and the inventory "
        "and options in plan.yaml are all it takes."
    ),
    params=(
        click.Argument(["plans"], type=PATH, nargs=-1, required=True),
        *solver_options(),
        json_option(),
        verbose("what was compared, and how long it took", "each objective with its proven bound"),
    ),
    examples=("plans/*", "plans/demo --json"),
)

COMMANDS = {command.name: command for command in (INVENTORY, SCAN, BUILD, COMPILE, SHOW, DIFF, CHECK)}
"""Commands by name, in the order in which they are used."""
