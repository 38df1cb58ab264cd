"""Every command of the planner with its arguments, options, help and examples.

Nothing heavy is imported here (a test lists what): ``--help`` and a refused command line take no longer than click.
"""

from typing import get_args

import click

from planner.commands.command import Command, HiddenArgument
from planner.commands.options import (
    PATH,
    Number,
    OneOf,
    Whole,
    check_aux,
    parse_context,
    parse_gap,
    parse_of_step,
    parse_replicas,
    parse_strategy,
    parse_tree,
    parse_verbosity,
)
from planner.request import DEFAULT_TREE, MOST_DEFAULT_CONTEXT, MOST_POSITIONS, Objective, Schedule, tree_text
from planner.solver import limits
from plans.check_inputs import MOST_BATCH, MOST_CLIENTS, MOST_DEVICES, MOST_STALL_S
from plans.dtypes import DTYPE_BYTES, KV_DTYPE_BYTES
from plans.schema import KvAxis, RoundedWeights, Strategy

EXPORTED = ("vllm", "accelerate", "llama.cpp", "exllamav3")
"""Programs for which ``show`` writes arguments."""
MOST_WORKERS = 64
MOST_SOLVER_SEED = (1 << 31) - 1
"""Largest seed that CP-SAT takes."""


def verbose(once: str, twice: str = "") -> click.Option:
    """Return the option -v of a command that writes ``once`` to stderr, and with -vv ``twice`` too."""
    also = f"; -vv: also {twice}" if twice else ""
    text = f"Write to stderr {once}{also}. DEBUG={'1 and DEBUG=2 do' if twice else '1 does'} the same."
    return click.Option(["-v", "verbose"], count=True, callback=parse_verbosity, help=text)


def json_option(text: str = "Write one JSON object to stdout, also for an error.") -> click.Option:
    """Return the option --json."""
    return click.Option(["--json", "as_json"], is_flag=True, help=text)


def plan_argument(name: str = "plan") -> click.Argument:
    """Return the argument that is the directory of a plan."""
    return click.Argument([name], type=PATH)


def solver_options() -> tuple[click.Option, ...]:
    """Return hidden options for experiments with the solver; none of them changes the plan."""
    return (
        click.Option(["--workers"], type=Whole(1, MOST_WORKERS), default=1, hidden=True),
        click.Option(["--solver-seed"], type=Whole(0, MOST_SOLVER_SEED), default=0, hidden=True),
    )


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

BUILD = Command(
    "build",
    summary="Place a model on an inventory, write the plan, compile its images.",
    details=(
        "Solve for the placement with the shortest predicted step, prove it, write plan.yaml and the configs to the "
        "directory --out, and compile one weight image per device beside them. Images are as large as the model. "
        "Without --model the embedded demo model is planned.\n\n"
        "A config.json alone has no tensors: it is planned, and no image is compiled."
    ),
    params=(
        click.Option(["--gpus", "inventory"], type=PATH, required=True, help="Inventory of devices (YAML)."),
        click.Option(
            ["--model"],
            type=PATH,
            help="Checkpoint directory, config.json, or org/name[@revision] in the Hugging Face cache.  "
            "[default: the demo model]",
        ),
        click.Option(
            ["--draft"],
            type=PATH,
            help="EAGLE head: the same.  [default: none, for the demo model its own]",
        ),
        click.Option(
            ["--aux-layers"],
            callback=check_aux,
            metavar="LAYERS",
            help="Layers of the model that an EAGLE-3 head reads, by inputs=2,18,33 or outputs=1,17,32.  [default: as "
            "its config says, where that is certain]",
        ),
        click.Option(["--no-draft"], is_flag=True, help="Decode without an EAGLE head; ignores --draft and --tree."),
        click.Option(
            ["--context"],
            callback=parse_context,
            metavar="N",
            help=(
                "Positions per sequence, prompt and new tokens together: 4096, 32k (32 x 1024), or max for the most "
                "that fits.  [default: the model's and the EAGLE head's limit, at most "
                f"{MOST_DEFAULT_CONTEXT // 1024}k]"
            ),
        ),
        click.Option(
            ["--batch"],
            type=Whole(1, MOST_BATCH),
            metavar="N",
            help="Sequences per batch.  [default: 1; with --clients chosen for each replica]",
        ),
        click.Option(
            ["--dtype"],
            type=OneOf(list(DTYPE_BYTES)),
            help="Dtype of weights and activations.  [default: the checkpoint's; float32 on CPUs alone]",
        ),
        click.Option(
            ["--weights"],
            type=OneOf(get_args(RoundedWeights)),
            help="Round the plain weights of the model's layers to this format, and the lm_head to 8 bits.  "
            "[default: as the checkpoint has them]",
        ),
        click.Option(
            ["--kv-dtype"], type=OneOf(list(KV_DTYPE_BYTES)), help="Dtype of the KV cache.  [default: --dtype]"
        ),
        click.Option(
            ["--kv", "kv_axis"],
            type=OneOf(get_args(KvAxis)),
            help="Divide the KV cache between devices along this axis.  [default: solved for, stage by stage]",
        ),
        click.Option(
            ["--strategy"],
            callback=parse_strategy,
            metavar="NAME",
            help=(
                f"{', '.join(name for name in get_args(Strategy) if name != 'custom')}: latency (or auto) minimises "
                "the step; the others place whole layers in that order.  [default: latency]"
            ),
        ),
        click.Option(
            ["--device-map"],
            type=PATH,
            metavar="FILE",
            help="Place modules as this Hugging Face device_map (YAML or JSON) says, instead of --strategy.",
        ),
        HiddenArgument(["map_file"], type=PATH, required=False),
        click.Option(
            ["--tree"],
            metavar="TREE",
            callback=parse_tree,
            help=f"Draft tree: {tree_text(DEFAULT_TREE)}, or static for that of EAGLE-1.  [default: chosen, see "
            "--objective]",
        ),
        click.Option(
            ["--objective"],
            type=OneOf((*get_args(Objective), "throughput")),
            help="tokens: choose the draft tree, or none, by expected tokens per second; step: the shortest step, of "
            f"--tree or {tree_text(DEFAULT_TREE)}; throughput: that of --replicas.  [default: tokens with a draft, but "
            "with --tree or --strategy step]",
        ),
        click.Option(
            ["--profile"],
            type=PATH,
            metavar="FILE",
            help="Acceptance profile of the EAGLE head, as `runtime bench --profile-out` counts it.  [default: "
            "acceptance.yaml beside its config, or published means of its kind]",
        ),
        click.Option(
            ["--schedule"],
            type=OneOf(get_args(Schedule)),
            default="on",
            help="With --objective tokens and --batch, on: choose a tree, or none, for each number of running "
            "sequences; off: one tree; keep: on, and keep the draft where plain decoding is faster with all.  "
            "[default: on]",
        ),
        click.Option(
            ["--prefill-chunk"],
            type=Whole(1, MOST_POSITIONS),
            metavar="N",
            help="Prompt tokens per forward pass.  [default: an eighth of the context, 64 to 512]",
        ),
        click.Option(
            ["--stall-timeout", "stall_timeout_s"],
            metavar="S",
            type=Whole(1, MOST_STALL_S),
            help="End a run after S seconds without progress.  [default: 6, more where a device is predicted slower]",
        ),
        click.Option(
            ["--gap"],
            metavar="X",
            callback=parse_gap,
            default="0",
            help="Accept a placement proven to be within X of the best, like 5% or 0.05.  [default: 0]",
        ),
        click.Option(
            ["--previous"],
            type=PATH,
            metavar="PLAN",
            help="Keep as many weights where this plan has them as --within allows.",
        ),
        click.Option(
            ["--within"],
            metavar="X",
            callback=parse_of_step,
            help="With --previous: accept a step longer than the shortest by X.  [default: 2%]",
        ),
        click.Option(
            ["--simplify"],
            metavar="X",
            callback=parse_of_step,
            help="Accept a step longer than the shortest by X for fewer devices, then fewer different runs of layers; "
            "0: only the shortest.  [default: 0.5%, with --replicas 0]",
        ),
        click.Option(
            ["--max-devices"],
            type=Whole(1, MOST_DEVICES),
            metavar="N",
            help="Most devices in use.  [default: all]",
        ),
        click.Option(
            ["--replicas"],
            callback=parse_replicas,
            metavar="auto|N",
            help="Divide the devices into replicas of the model, any number or N, for the most expected tokens per "
            "second in all; --out is then a fleet: fleet.yaml and a plan per kind of replica.",
        ),
        click.Option(
            ["--clients"],
            type=Whole(1, MOST_CLIENTS),
            metavar="N",
            help="With --replicas: sequences that run at once on all of them.  [default: one in every place]",
        ),
        click.Option(
            ["--min-tokens-per-s"],
            type=Number(0, 1e9),
            metavar="X",
            help="With --replicas: least expected tokens per second of every sequence.  [default: none]",
        ),
        click.Option(["--plan-only"], is_flag=True, help="Write the plan, compile no images."),
        click.Option(
            ["--out"],
            type=PATH,
            help="Directory of the plan and its images.  [default: plans/NAME in the current directory]",
        ),
        *solver_options(),
        click.Option(
            ["--solver-limit"],
            metavar="N",
            type=Number(0, limits.MOST_LIMIT),
            default=limits.DETERMINISTIC_LIMIT,
            help="Work of the solver after which it refuses with the gap reached; a unit is 1 to 2 seconds of a core. "
            f"At most {limits.MOST_LIMIT:g}.  [default: {limits.DETERMINISTIC_LIMIT:g}]",
        ),
        json_option(),
        verbose(
            "the devices found and the plan as tables, with the memory of each device",
            "the layers, tensors and KV cache of each device, and each objective with its proven bound",
        ),
    ),
    examples=(
        "--gpus inventory.yaml",
        "--gpus inventory.yaml --model Llama-3.1-8B-Instruct --draft EAGLE3-LLaMA3.1-8B --context 32k",
        "--gpus inventory.yaml --model config.json --batch 4 --plan-only",
        "--gpus inventory.yaml --model Llama-3.1-8B-Instruct --device-map map.json",
        "--gpus inventory.yaml --model Llama-3.1-8B-Instruct --replicas auto --clients 64 --min-tokens-per-s 20",
    ),
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
