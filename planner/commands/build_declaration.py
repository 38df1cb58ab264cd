"""The command ``build`` with its options, help and examples; the other commands are in ``declarations``."""

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
)
from planner.commands.parameters import json_option, solver_options, verbose
from planner.request import DEFAULT_TREE, MOST_DEFAULT_CONTEXT, MOST_POSITIONS, Objective, Schedule, tree_text
from planner.solver import limits
from plans.check_inputs import MOST_BATCH, MOST_CLIENTS, MOST_DEVICES, MOST_STALL_S
from plans.dtypes import DTYPE_BYTES, KV_DTYPE_BYTES
from plans.schema import KvAxis, RoundedWeights, Strategy

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
