"""The command `bench`: times the steps of a plan."""

from pathlib import Path

import click

from runtime.commands.options import AS_JSON, PLAN, QUIET, VERBOSE, Whole, load_module

MOST_REPEATS = 1000


@click.command(
    "bench",
    short_help="Time prefill, plain and EAGLE decoding.",
    epilog="Example: python -m runtime bench plans/demo --accept 3 --repeats 5",
)
@PLAN
@click.option(
    "--prompt-tokens",
    metavar="N",
    type=Whole(1),
    default=32,
    show_default=True,
    help="Tokens of the prompt; the ids are arbitrary.",
)
@click.option(
    "--max-new-tokens",
    metavar="N",
    type=Whole(2),
    default=128,
    show_default=True,
    help="New tokens of each request.",
)
@click.option(
    "--repeats",
    metavar="N",
    type=Whole(1, MOST_REPEATS),
    default=3,
    show_default=True,
    help="Requests of each mode, after one that warms up.",
)
@click.option(
    "--accept",
    metavar="N",
    type=Whole(),
    help="Every step accepts N drafted tokens, right or wrong: for random weights, whose drafts never agree.",
)
@AS_JSON
@QUIET
@VERBOSE
def bench_command(
    *,
    directory: Path,
    prompt_tokens: int,
    max_new_tokens: int,
    repeats: int,
    accept: int | None,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Time prefill, plain and EAGLE decoding: each phase and part of a step, beside its predicted time.

    Figures are those of the repeat with the median step. Not under torchrun, where no process sees the times of all
    ranks.
    """
    load_module("runtime.commands.measure").bench(
        directory,
        prompt_tokens=prompt_tokens,
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        accept=accept,
        as_json=as_json,
        quiet=quiet,
        verbose=verbose,
    )
