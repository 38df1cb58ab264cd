"""The command `bench`: times the steps of a plan."""

from pathlib import Path

import click

from runtime.commands.command import Command
from runtime.commands.options import AS_JSON, PLAN, QUIET, VERBOSE, Whole, load_module
from runtime.errors import RequestError

MOST_REPEATS = 1000


@click.command(
    "bench",
    short_help="Time prefill, plain and EAGLE decoding.",
    cls=Command,
    examples=(
        "PROGRAM bench plans/demo --accept 3 --repeats 5",
        "PROGRAM bench plans/x --profile-out profile.yaml --prompts questions.txt --chat",
    ),
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
@click.option(
    "--profile-out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Time nothing: decode prompts greedily, count which of the drafter's candidates the model chose, and write "
    "the acceptance profile that `planner build --profile` takes.",
)
@click.option(
    "--prompt", "prompts", metavar="TEXT", multiple=True, help="With --profile-out: a prompt; may be repeated."
)
@click.option(
    "--prompts", "prompts_file", metavar="FILE", type=click.Path(path_type=Path), help="The same: a prompt per line."
)
@click.option("--chat", is_flag=True, help="The same: prompts are messages, in the chat template of the tokenizer.")
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
    profile_out: Path | None,
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    chat: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Time prefill, plain and EAGLE decoding: each phase and part of a step, beside its predicted time.

    Figures are those of the repeat with the median step. Not under torchrun, where no process sees the times of all
    ranks.
    """
    if profile_out is not None:
        load_module("runtime.commands.profile").profile(
            directory,
            file=profile_out,
            texts=prompts,
            prompts_file=prompts_file,
            chat=chat,
            max_new_tokens=max_new_tokens,
            as_json=as_json,
            quiet=quiet,
        )
        return
    if prompts or prompts_file is not None or chat:
        raise RequestError("--prompt, --prompts and --chat: are for --profile-out; times do not depend on the text")
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
