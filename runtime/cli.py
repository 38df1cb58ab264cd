"""`python -m runtime`: the only place that prints, reads the environment and exits.

stdout is data, stderr is for people; the exit code is the error's.
"""

import dataclasses
import json
import os
import select
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

from plans import codec
from plans.schema import Plan, PlanError
from runtime import report
from runtime.bench import Bench, measure
from runtime.chat import ChatTemplate, Turn
from runtime.comm import interface_towards
from runtime.errors import MachineError, RequestError, RuntimeRefusal
from runtime.images import check_images
from runtime.request import Request
from runtime.service import DEFAULT_NEW_TOKENS, Engine, Generation, Stream, load_plan, make_request
from runtime.text import TOKENIZER_FILE, load_tokenizer

DEFAULT_PROMPT = """\
import os
import re
import sys

__all__ = ["Parser", "parse"]


def parse(text, *, strict=False):
    \"\"\"Return the tree of a text.
"""
INTERRUPTED = 130

PLAN = click.argument("directory", metavar="PLAN", type=click.Path(path_type=Path))
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """How to continue prompts, as it was asked for."""

    max_new_tokens: int | None
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int | None
    stop: tuple[str, ...]
    draft: bool
    ignore_eos: bool

    def request(self, plan: Plan, ids: tuple[int, ...], *, reuse: bool = False) -> Request:
        return make_request(
            plan,
            ids,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            stop=self.stop,
            draft=self.draft,
            ignore_eos=self.ignore_eos,
            reuse=reuse,
        )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Execute plans: EAGLE decoding on exactly the devices that a plan names."""


@commands.command("run")
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
    plan = load_plan(directory)
    rank = _torchrun_rank(plan, directory)
    if rank is None:
        check_images(plan, directory, verify=False)  # before anything else is asked of the plan
    wanted = Asked(draft=not no_draft, **asked)
    if any(not text for text in wanted.stop):
        raise RequestError("--stop: found an empty text")
    if wanted.stop:
        load_tokenizer(directory)
    if system is not None and not chat:
        raise RequestError("--system: only with --chat")
    template = ChatTemplate(directory) if chat else None
    if interactive:
        if rank is not None or as_json or prompts or prompt_ids:
            raise RequestError("--interactive: not with --prompt, --prompt-ids, --json or torchrun")
        with Engine.open(directory, method="fork", verify=not no_verify) as engine:
            _interact(engine, wanted, template, system, verbose)
        return
    turns = [Turn(role="system", content=system)] if system is not None else []
    given: list[tuple[str | None, str | None]] = [(text, None) for text in prompts]
    given += [(None, ids) for ids in prompt_ids] if prompt_ids or prompts else [(None, None)]
    if prompts and prompt_ids:
        raise RequestError("--prompt and --prompt-ids: give one of them")
    every = [_prompt_ids(directory, text, ids, template, turns, piped=rank is None) for text, ids in given]
    requests = [wanted.request(plan, ids) for ids in every]
    with Engine.open(directory, rank=rank, method="fork", verify=not no_verify) as engine:
        if len(requests) > 1:
            _tell_all(engine.serve_batch(requests), rank, as_json, (directory / TOKENIZER_FILE).is_file())
            return
        stream = engine.serve(requests[0])
        if rank:
            stream.finished()
        elif as_json:
            click.echo(json.dumps(dataclasses.asdict(stream.finished())))
        else:
            _tell(stream, (directory / TOKENIZER_FILE).is_file(), verbose)


@commands.command("verify")
@PLAN
@click.option("--only", multiple=True, help="Only the image of this device, or of this host's; may be repeated.")
@AS_JSON
def verify_command(*, directory: Path, only: tuple[str, ...], as_json: bool) -> None:
    """Read every image of a plan and compare it with its digest; no model is loaded."""
    plan = load_plan(directory)
    for name in only:
        if not any(name in (device.id, device.host) for device in plan.devices):
            known = ", ".join(device.id for device in plan.devices)
            raise RequestError(f"--only {name}: not a device of the plan, which has {known}")
    chosen = [device.id for device in plan.devices if not only or {device.id, device.host} & set(only)]
    record = check_images(plan, directory, verify=True, devices=chosen)
    if as_json:
        images = [codec.encode(image) for image in record.images if image.device in chosen]
        click.echo(json.dumps({"plan": str(directory), "plan_digest": record.plan_sha256, "images": images}))
    said = "1 image is the one that was" if len(chosen) == 1 else f"{len(chosen)} images are those that were"
    click.echo(f"{directory}: {said} compiled", err=True)


@commands.command("bench")
@PLAN
@click.option("--prompt-tokens", metavar="N", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--max-new-tokens", metavar="N", type=click.IntRange(min=2), default=128, show_default=True)
@click.option("--repeats", metavar="N", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--accept", metavar="N", type=int, help="Every step accepts N drafted tokens, right or wrong.")
@AS_JSON
def bench_command(*, directory: Path, as_json: bool, **asked: Any) -> None:
    """Time prefill, plain and EAGLE decoding, phase by phase: medians of the repeats, after one that warms up."""
    plan = load_plan(directory)
    if _torchrun_rank(plan, directory) is not None:
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


def main() -> NoReturn:
    """Run a command; errors become one line on stderr, for programs an object too, and their exit code."""
    try:
        commands.main(standalone_mode=False)
    except (RuntimeRefusal, PlanError) as error:
        click.echo(f"error: {error}", err=True)
        if "--json" in sys.argv[1:] and os.environ.get("RANK", "0") == "0":
            told = {"type": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
            click.echo(json.dumps({"error": told}))
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # whoever read stdout has gone; nothing is left to say, nor to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


# ---- what is asked ----


def _torchrun_rank(plan: Plan, directory: Path) -> int | None:
    """The rank that torchrun made of this process; None where it did not."""
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or world is None:
        return None
    if int(world) != len(plan.devices):
        raise MachineError(
            f"{directory}: torchrun started {world} processes, the plan has {len(plan.devices)} devices: "
            "start one process per device"
        )
    interface = interface_towards(os.environ.get("MASTER_ADDR", "localhost"))
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return int(rank)


def _prompt_ids(
    directory: Path,
    prompt: str | None,
    ids: str | None,
    template: ChatTemplate | None,
    turns: list[Turn],
    *,
    piped: bool,
) -> tuple[int, ...]:
    """``piped``: without a prompt, stdin may have one."""
    if ids is not None:
        if template is not None:
            raise RequestError("--chat: give the message as text, with --prompt")
        try:
            return tuple(int(part) for part in ids.split(",")) if ids.strip() else ()
        except ValueError as error:
            raise RequestError(f"--prompt-ids: found {ids!r}, expected numbers like 1,2,3") from error
    tokenizer = load_tokenizer(directory)
    if prompt == "-":
        prompt = sys.stdin.read()
    elif prompt is None and piped:
        prompt = _piped() or None
    text = DEFAULT_PROMPT if prompt is None else prompt
    if template is not None:
        text = template.render([*turns, Turn(role="user", content=text)])
    return tuple(tokenizer.encode(text, add_special_tokens=template is None).ids)


def _piped() -> str:
    """What a pipe or a file has for stdin; empty where it is a terminal, or a pipe that nobody has written to."""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return ""  # closed, or no file at all
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind)):
        return ""
    return sys.stdin.read() if select.select([sys.stdin], [], [], 0)[0] else ""


# ---- a conversation ----


def _interact(engine: Engine, wanted: Asked, template: ChatTemplate | None, system: str | None, verbose: int) -> None:
    """Answer lines of stdin until it ends; each prompt is all that was said, of which the caches have the most part."""
    turns = [Turn(role="system", content=system)] if system is not None else []
    said: list[int] = []
    for line in _lines():
        asked = [*turns, Turn(role="user", content=line)]
        if template is not None:
            ids = engine.tokenizer.encode(template.render(asked), add_special_tokens=False).ids
        else:
            ids = [*said, *engine.tokenizer.encode(line, add_special_tokens=not said).ids]
        try:
            stream = engine.serve(wanted.request(engine.plan, tuple(ids), reuse=True))
        except RequestError as error:
            click.echo(f"error: {error}", err=True)
            continue
        with _stopping(engine):
            result = _tell(stream, True, verbose)
        turns = [*asked, Turn(role="assistant", content=result.text)]
        said = [*ids, *result.tokens]


def _lines() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


@contextmanager
def _stopping(engine: Engine) -> Iterator[None]:
    """Ctrl-C ends the answer, not the conversation."""
    before = signal.signal(signal.SIGINT, lambda number, frame: engine.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ---- what is shown ----


def _tell_all(generations: list[Generation], rank: int | None, as_json: bool, as_text: bool) -> None:
    """Print outputs that were decoded together, one after the other, or one object of all."""
    if rank:
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
        sys.stdout.flush()
    click.echo()
    result = stream.finished()
    if verbose:
        for line in (*report.acceptance_lines(result), *report.memory_lines(result)):
            click.echo(line, err=True)
    click.echo(report.summary(result), err=True)
    return result
