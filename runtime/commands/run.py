"""The commands that decode: `run` and `bench`. They need torch; `runtime.cli` imports them when one is asked for."""

import dataclasses
import json
import os
import select
import signal
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tokenizers import Tokenizer

from plans.check import load
from plans.process import answered
from plans.schema import Plan
from runtime.chat import ChatTemplate, Turn
from runtime.commands import report
from runtime.commands.bench import Bench, measure
from runtime.commands.options import AS_JSON, PLAN
from runtime.engine import DEFAULT_NEW_TOKENS, Engine, Generation, Stream, Wanted, make_request
from runtime.errors import MachineError, RequestError
from runtime.image.verify import check_images
from runtime.processes.torchrun import Torchrun, interface_towards
from runtime.text import TOKENIZER_FILE, encode, load_tokenizer

DEFAULT_PROMPT = """\
import os
import re
import sys

__all__ = ["Parser", "parse"]


def parse(text, *, strict=False):
    \"\"\"Return the tree of a text.
"""
SILENCE_S = 10
"""How long a pipe that was not asked for may be silent."""


@click.command("run")
@PLAN
@click.option(
    "--prompt",
    "prompts",
    metavar="TEXT",
    multiple=True,
    help="Text to continue, - for all of stdin; default: stdin if it is piped. Several are decoded together.",
)
@click.option("--prompt-ids", metavar="1,2,3", multiple=True, help="Token ids to continue; may be repeated likewise.")
@click.option("--chat", is_flag=True, help="The prompt is a message, in the chat template of the tokenizer.")
@click.option("--system", metavar="TEXT", help="With --chat: the system message.")
@click.option("--interactive", is_flag=True, help="Prompts from stdin, a line each, that go on from one another.")
@click.option("--max-new-tokens", metavar="N", type=int, help=f"At most N; default {DEFAULT_NEW_TOKENS}, or what fits.")
@click.option("--temperature", metavar="T", type=float, default=0.0, show_default=True, help="0: greedy.")
@click.option("--top-k", metavar="K", type=int, help="Draw from the K most probable tokens; 0: from all.")
@click.option("--top-p", metavar="P", type=float, help="Then from the fewest that together reach P.")
@click.option("--seed", metavar="S", type=int, help="The same text again; default: one that is drawn, and told.")
@click.option("--no-draft", is_flag=True, help="Plain decoding.")
@click.option("--ignore-eos", is_flag=True, help="Go on after an end-of-sequence token.")
@click.option("--stop", metavar="TEXT", multiple=True, help="End before this text; may be repeated.")
@click.option("--no-verify", is_flag=True, help="Do not compare the images with their digests; their sizes are anyway.")
@AS_JSON
@click.option("-v", "--verbose", count=True, help="Acceptance per position; memory of each device, planned and made.")
def run_command(
    *,
    directory: Path,
    prompts: tuple[str, ...],
    prompt_ids: tuple[str, ...],
    chat: bool,
    system: str | None,
    interactive: bool,
    as_json: bool,
    verbose: int,
    no_draft: bool,
    no_verify: bool,
    **asked: Any,
) -> None:
    """Continue a prompt, streaming text as it is accepted."""
    plan = load(directory)
    torchrun = _torchrun(plan, directory)
    if torchrun is None:
        check_images(plan, directory, verify=False)  # before anything else is asked of the plan
    wanted: Wanted = {"draft": not no_draft, **asked}  # type: ignore[typeddict-item]  # click has checked them
    if any(not text for text in asked["stop"]):
        raise RequestError("--stop: found an empty text")
    if asked["stop"]:
        load_tokenizer(directory)
    if system is not None and not chat:
        raise RequestError("--system: only with --chat")
    talk = Talk(
        template=ChatTemplate(directory) if chat else None,
        turns=[Turn(role="system", content=system)] if system is not None else [],
    )
    if interactive:
        if torchrun is not None or as_json or prompts or prompt_ids:
            raise RequestError("--interactive: not with --prompt, --prompt-ids, --json or torchrun")
        if sys.stdin is None:
            raise RequestError("--interactive: stdin is closed")
        load_tokenizer(directory)
        with Engine.open(directory, method="fork", verify=not no_verify) as engine:
            _interact(engine, wanted, talk, verbose)
        return
    every = _prompts(directory, prompts, prompt_ids, talk, torchrun)
    requests = [make_request(plan, ids, wanted) for ids in every]
    with Engine.open(directory, torchrun=torchrun, method="fork", verify=not no_verify) as engine:
        if len(requests) > 1:
            _tell_all(engine.serve_batch(requests), torchrun, as_json, (directory / TOKENIZER_FILE).is_file())
            return
        stream = engine.serve(requests[0])
        if torchrun is not None and torchrun.rank:
            stream.finished()
        elif as_json:
            click.echo(json.dumps(dataclasses.asdict(stream.finished())))
        else:
            _tell(stream, (directory / TOKENIZER_FILE).is_file(), verbose)


@click.command("bench")
@PLAN
@click.option("--prompt-tokens", metavar="N", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--max-new-tokens", metavar="N", type=click.IntRange(min=2), default=128, show_default=True)
@click.option("--repeats", metavar="N", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--accept", metavar="N", type=int, help="Every step accepts N drafted tokens, right or wrong.")
@AS_JSON
def bench_command(*, directory: Path, as_json: bool, **asked: Any) -> None:
    """Time prefill, plain and EAGLE decoding, phase by phase: medians of the repeats, after one that warms up."""
    plan = load(directory)
    if _torchrun(plan, directory) is not None:
        raise RequestError("bench: not under torchrun, where no process sees the times of all ranks")
    bench = Bench(**asked)
    bench.requests(plan)
    check_images(plan, directory, verify=False)
    with Engine.open(directory, method="fork") as engine:
        measured = measure(engine, bench)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(measured)))
        return
    for line in report.bench_lines(measured):
        click.echo(line)


# ---- what is asked ----


def _torchrun(plan: Plan, directory: Path) -> Torchrun | None:
    """What torchrun told this process; None where it did not start it. Raises MachineError."""
    found = Torchrun.of(os.environ)
    if found is None:
        return None
    if found.world != len(plan.devices):
        raise MachineError(
            f"{directory}: torchrun started {found.world} processes, the plan has {len(plan.devices)} devices: "
            "start one process per device"
        )
    interface = interface_towards(found.host)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Talk:
    """What stands before a prompt, and around it."""

    template: ChatTemplate | None
    turns: list[Turn]

    def ids(self, tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
        """The tokens of a prompt."""
        if self.template is None:
            return encode(tokenizer, text)
        return encode(tokenizer, self.template.render([*self.turns, Turn(role="user", content=text)]), special=False)


def _prompts(
    directory: Path, prompts: tuple[str, ...], prompt_ids: tuple[str, ...], talk: Talk, torchrun: Torchrun | None
) -> list[tuple[int, ...]]:
    """The tokens of every prompt that was given; without one, of stdin or of the default prompt."""
    if prompts and prompt_ids:
        raise RequestError("--prompt and --prompt-ids: give one of them")
    if prompt_ids:
        if talk.template is not None:
            raise RequestError("--chat: give the message as text, with --prompt")
        return [_numbers(ids) for ids in prompt_ids]
    if torchrun is not None and "-" in prompts:
        raise RequestError("--prompt -: not under torchrun, whose processes have one stdin: give the text")
    tokenizer = load_tokenizer(directory)
    if prompts:
        texts = [_stdin() if text == "-" else text for text in prompts]
    elif torchrun is None and _is_piped():
        texts = [_stdin(silence_s=SILENCE_S)]
    else:
        texts = [DEFAULT_PROMPT]
        if torchrun is None or not torchrun.rank:
            click.echo("no --prompt, and nothing piped: this continues the default prompt", err=True)
    return [talk.ids(tokenizer, text) for text in texts]


def _numbers(ids: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in ids.split(",")) if ids.strip() else ()
    except ValueError as error:
        raise RequestError(f"--prompt-ids: found {ids!r}, expected numbers like 1,2,3") from error


def _is_piped() -> bool:
    """Whether stdin is a file, or somebody may write to it who is no terminal."""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False  # there is no stdin
    return stat.S_ISFIFO(kind) or stat.S_ISREG(kind) or stat.S_ISSOCK(kind)


def _stdin(silence_s: int | None = None) -> str:
    """All of stdin; raise RequestError where it cannot be read, or nothing comes for so long."""
    if sys.stdin is None:
        raise RequestError("--prompt -: stdin is closed")
    if silence_s is not None and not select.select([sys.stdin], [], [], silence_s)[0]:
        raise RequestError(
            f"stdin is a pipe, and nothing came from it for {silence_s} s: give --prompt TEXT, --prompt - to wait for "
            "it, or </dev/null for the default prompt"
        )
    return sys.stdin.read()


# ---- a conversation ----


def _interact(engine: Engine, wanted: Wanted, talk: Talk, verbose: int) -> None:
    """Answer lines of stdin until it ends; each prompt is all that was said, of which the caches have the most part."""
    wanted = wanted | Wanted(reuse=True)
    said: tuple[int, ...] = ()
    for line in _lines():
        try:
            ids = (
                talk.ids(engine.tokenizer, line)
                if talk.template is not None
                else (*said, *encode(engine.tokenizer, line, special=not said))
            )
            stream = engine.stream(ids, **wanted)
        except RequestError as error:
            click.echo(f"error: {error}", err=True)
            continue
        with answered(signal.SIGINT, lambda number, frame: engine.stop()):  # the answer ends, not the conversation
            result = _tell(stream, True, verbose)
        talk.turns.extend([Turn(role="user", content=line), Turn(role="assistant", content=result.text)])
        said = (*ids, *result.tokens)


def _lines() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


# ---- what is shown ----


def _tell_all(generations: list[Generation], torchrun: Torchrun | None, as_json: bool, as_text: bool) -> None:
    """Print outputs that were decoded together, one after the other, or one object of all."""
    if torchrun is not None and torchrun.rank:
        return
    if as_json:
        click.echo(json.dumps({"generations": [dataclasses.asdict(each) for each in generations]}))
        return
    for each in generations:
        click.echo(each.text if as_text else " ".join(map(str, each.tokens)))
        click.echo(report.summary(each), err=True)


def _tell(stream: Stream, as_text: bool, verbose: int) -> Generation:
    """Print an output as it comes, and then its figures."""
    for piece in stream:
        click.echo(piece if as_text else "".join(f"{token} " for token in piece.tokens), nl=False)
    click.echo()
    result = stream.finished()
    if verbose:
        for line in (*report.acceptance_lines(result), *report.memory_lines(result)):
            click.echo(line, err=True)
    click.echo(report.summary(result), err=True)
    return result
