"""The command `run`: continues prompts."""

from pathlib import Path
from typing import Any

import click

from runtime.commands.command import Command
from runtime.commands.options import AS_JSON, PLAN, QUIET, VERBOSE, Number, Whole, load_module
from runtime.request import DEFAULT_NEW_TOKENS


@click.command(
    "run",
    short_help="Continue a prompt; text streams as it is accepted.",
    cls=Command,
    examples=(
        'PROGRAM run plans/demo --prompt "def parse(" --max-new-tokens 80',
        'git diff | PROGRAM run plans/x --prompt - --chat --system "Review this."',
        "PROGRAM run plans/x --interactive --chat --temperature 0.7",
    ),
)
@PLAN
@click.option(
    "--prompt",
    "prompts",
    metavar="TEXT",
    multiple=True,
    help="Text to continue; - is all of stdin. Default: stdin where it is piped, else a built-in prompt. Repeated: the "
    "prompts are decoded together, as many at a time as the plan's batch.",
)
@click.option("--prompt-ids", metavar="1,2,3", multiple=True, help="Token ids to continue; may be repeated likewise.")
@click.option("--chat", is_flag=True, help="The prompt is a message, in the chat template of the tokenizer.")
@click.option("--system", metavar="TEXT", help="With --chat: the system message.")
@click.option("--interactive", is_flag=True, help="A prompt per line of stdin, each going on from what was said.")
@click.option("--max-new-tokens", metavar="N", type=Whole(), help=f"Default: {DEFAULT_NEW_TOKENS}, or as many as fit.")
@click.option("--temperature", metavar="T", type=Number(), default=0.0, show_default=True, help="0: greedy.")
@click.option("--top-k", metavar="K", type=Whole(), help="Draw from the K most probable tokens; 0: from all.")
@click.option(
    "--top-p", metavar="P", type=Number(), help="Then from the fewest tokens that together have probability P."
)
@click.option(
    "--seed", metavar="S", type=Whole(), help="The same seed gives the same text. Default: random, and printed."
)
@click.option("--no-draft", is_flag=True, help="Plain decoding, without the EAGLE head.")
@click.option("--ignore-eos", is_flag=True, help="Go on after an end-of-sequence token.")
@click.option("--stop", metavar="TEXT", multiple=True, help="End before this text; may be repeated.")
@click.option("--no-verify", is_flag=True, help="Do not compare images with their digests; sizes are compared anyway.")
@AS_JSON
@QUIET
@VERBOSE
def run_command(
    *,
    directory: Path,
    prompts: tuple[str, ...],
    prompt_ids: tuple[str, ...],
    chat: bool,
    system: str | None,
    interactive: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    no_draft: bool,
    no_verify: bool,
    **options: Any,
) -> None:
    """Continue a prompt. The text goes to stdout as it is accepted, figures go to stderr.

    With several prompts a line on stderr labels each output. Ctrl-C ends the command with code 130; with --interactive
    it ends the answer.
    """
    load_module("runtime.commands.generate").run(
        directory,
        texts=prompts,
        token_ids=prompt_ids,
        chat=chat,
        system=system,
        interactive=interactive,
        as_json=as_json,
        quiet=quiet,
        verbose=verbose,
        verify=not no_verify,
        options={"draft": not no_draft, **options},
    )
