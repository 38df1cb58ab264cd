"""`python -m runtime`: the only place that prints, reads the environment and exits.

stdout is data, stderr is for people; the exit code is the error's.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import click

from plans import codec
from plans.check import require
from plans.schema import Plan, PlanError
from runtime.comm import Rendezvous
from runtime.engine import Completion, Piece, check_request
from runtime.errors import MachineError, RequestError, RuntimeRefusal
from runtime.images import check_images
from runtime.launch import Ended, Event, Started, run, serve
from runtime.text import TOKENIZER_FILE, Request, load_tokenizer

DEFAULT_PROMPT = """\
import os
import re
import sys

__all__ = ["Parser", "parse"]


def parse(text, *, strict=False):
    \"\"\"Return the tree of a text.
"""
DEFAULT_NEW_TOKENS = 200
INTERRUPTED = 130

PLAN = click.argument("directory", metavar="PLAN", type=click.Path(path_type=Path))


@dataclass(slots=True)
class Record:
    """What a run told, as it came."""

    load_s: float = 0.0
    completions: list[Completion] = field(default_factory=list)
    measured_bytes: list[dict[str, int]] = field(default_factory=list)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Execute plans: EAGLE decoding on exactly the devices that a plan names."""


@commands.command("run")
@PLAN
@click.option("--prompt", metavar="TEXT", help="Text to continue; needs the tokenizer beside the plan.")
@click.option("--prompt-ids", metavar="1,2,3", help="Token ids to continue.")
@click.option("--max-new-tokens", metavar="N", type=int, help=f"At most N; default {DEFAULT_NEW_TOKENS}, or what fits.")
@click.option("--temperature", metavar="T", type=float, default=0.0, help="Only 0: greedy.")
@click.option("--no-draft", is_flag=True, help="Plain decoding.")
@click.option("--ignore-eos", is_flag=True, help="Go on after an end-of-sequence token.")
@click.option("--stop", metavar="TEXT", multiple=True, help="End before this text; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("-v", "--verbose", count=True, help="Memory of each device, planned and measured.")
def run_command(
    directory: Path,
    prompt: str | None,
    prompt_ids: str | None,
    max_new_tokens: int | None,
    temperature: float,
    no_draft: bool,
    ignore_eos: bool,
    stop: tuple[str, ...],
    as_json: bool,
    verbose: int,
) -> None:
    """Continue a prompt, streaming text as it is accepted."""
    if temperature != 0:
        raise RequestError(f"--temperature: found {temperature:g}, expected 0: sampling is not supported yet")
    plan = _load(directory)
    _require_images(plan, directory)
    if any(not text for text in stop):
        raise RequestError("--stop: found an empty text")
    ids = _prompt_ids(directory, prompt, prompt_ids)
    if stop:
        load_tokenizer(directory)
    request = Request(
        prompt_ids=ids,
        max_new_tokens=_new_tokens(plan, len(ids), max_new_tokens),
        draft=not no_draft,
        ignore_eos=ignore_eos,
        stop=stop,
    )
    check_request(plan, request)
    texts = (directory / TOKENIZER_FILE).is_file()

    def show(piece: Piece) -> None:
        if not as_json:
            click.echo(piece.text if texts else "".join(f"{token} " for token in piece.tokens), nl=False)
            sys.stdout.flush()

    record = _execute(plan, directory, [request], show)
    if record is None:
        return
    completion = record.completions[0]
    if as_json:
        click.echo(json.dumps(_as_json(plan, record, completion)))
        return
    click.echo()
    if verbose:
        _show_memory(plan, record)
    click.echo(_summary(plan, completion), err=True)


@commands.command("verify")
@PLAN
def verify_command(directory: Path) -> None:
    """Read every image of a plan and compare it with its digest."""
    plan = _load(directory)
    check_images(plan, directory, verify=True)
    click.echo(f"{directory}: {len(plan.devices)} images are those that were compiled", err=True)


@commands.command("bench")
@PLAN
@click.option("--prompt-tokens", metavar="N", type=int, default=32, show_default=True)
@click.option("--max-new-tokens", metavar="N", type=int, default=128, show_default=True)
@click.option("--repeats", metavar="N", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def bench_command(directory: Path, prompt_tokens: int, max_new_tokens: int, repeats: int, as_json: bool) -> None:
    """Time prefill, plain decoding and EAGLE decoding; the best of the repeats, after one that warms up."""
    plan = _load(directory)
    _require_images(plan, directory)
    ids = tuple(1 + number * 7 % (plan.model.vocab_size - 1) for number in range(prompt_tokens))
    modes = {"plain": False, **({"eagle": True} if plan.draft else {})}
    requests = [
        Request(prompt_ids=ids, max_new_tokens=max_new_tokens, draft=draft, ignore_eos=True, stop=())
        for _ in range(repeats + 1)
        for draft in modes.values()
    ]
    check_request(plan, requests[0])
    record = _execute(plan, directory, requests, lambda piece: None)
    if record is None:
        return
    table = {}
    for number, mode in enumerate(modes):
        done = record.completions[number + len(modes) :: len(modes)]
        fastest = min(done, key=lambda completion: completion.decode_s)
        steps = len(fastest.accept_lengths) or max_new_tokens - 1
        table[mode] = {
            "tokens_per_s": fastest.tokens_per_s,
            "prefill_s": min(completion.prefill_s for completion in done),
            "step_s": fastest.decode_s / max(1, steps),
            "mean_acceptance_length": _acceptance(fastest),
        }
    if as_json:
        click.echo(json.dumps({**table, "plan_digest": codec.digest(plan), "load_s": record.load_s}))
        return
    click.echo(f"{'':8}{'tokens/s':>10}{'prefill ms':>12}{'step ms':>10}{'acceptance':>12}")
    for mode, row in table.items():
        numbers = f"{row['tokens_per_s']:10.1f}{row['prefill_s'] * 1e3:12.2f}{row['step_s'] * 1e3:10.2f}"
        click.echo(f"{mode:8}{numbers}{row['mean_acceptance_length']:12.2f}")


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


# ---- a run ----


def _load(directory: Path) -> Plan:
    """A plan that agrees with itself."""
    plan = codec.load(directory)
    require(plan, str(directory / "plan.yaml"))
    return plan


def _require_images(plan: Plan, directory: Path) -> None:
    """Refuse a plan without images before anything else is asked of it; torchrun's ranks each look at their own."""
    if "RANK" not in os.environ:
        check_images(plan, directory, verify=False)


def _execute(plan: Plan, directory: Path, requests: list[Request], show: Callable[[Piece], None]) -> Record | None:
    """Run requests here, or as the rank that torchrun made of this process; None on its ranks but 0."""
    record = Record()

    def take(event: Event) -> None:
        match event:
            case Started():
                record.load_s = event.load_s
            case Piece():
                show(event)
            case Completion():
                record.completions.append(event)
            case Ended():
                record.measured_bytes = event.measured_bytes

    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or world is None:
        hosts = {device.host for device in plan.devices}
        if len(hosts) > 1 and not all(device.kind == "cpu" for device in plan.devices):
            raise MachineError(f"{directory}: the plan has hosts {', '.join(sorted(hosts))}: start it with torchrun")
        run(plan, directory, requests, take)
        return record
    if int(world) != len(plan.devices):
        raise MachineError(
            f"{directory}: torchrun started {world} processes, the plan has {len(plan.devices)} devices: "
            "start one process per device"
        )
    silent: Callable[[Event], None] = lambda event: None  # noqa: E731
    serve(directory, int(rank), Rendezvous(file=None), requests, silent if int(rank) else take)
    return None if int(rank) else record


def _prompt_ids(directory: Path, prompt: str | None, ids: str | None) -> tuple[int, ...]:
    if prompt is not None and ids is not None:
        raise RequestError("--prompt and --prompt-ids: give one of them")
    if ids is not None:
        try:
            return tuple(int(part) for part in ids.split(",")) if ids.strip() else ()
        except ValueError as error:
            raise RequestError(f"--prompt-ids: found {ids!r}, expected numbers like 1,2,3") from error
    tokens: list[int] = load_tokenizer(directory).encode(DEFAULT_PROMPT if prompt is None else prompt).ids
    return tuple(tokens)


def _new_tokens(plan: Plan, prompt: int, asked: int | None) -> int:
    return max(1, min(DEFAULT_NEW_TOKENS, plan.options.context - prompt)) if asked is None else asked


# ---- what is shown ----


def _acceptance(completion: Completion) -> float:
    """Mean of accepted + 1; plain decoding commits one token per step."""
    lengths = completion.accept_lengths
    return sum(lengths) / len(lengths) + 1 if lengths else 1.0


def _summary(plan: Plan, completion: Completion) -> str:
    return (
        f"{len(completion.tokens)} tokens, {completion.tokens_per_s:.1f} tokens/s, "
        f"mean acceptance length {_acceptance(completion):.2f}, plan {codec.digest(plan)[:16]}"
    )


def _as_json(plan: Plan, record: Record, completion: Completion) -> dict[str, Any]:
    return {
        "prompt_ids": completion.prompt_ids,
        "tokens": completion.tokens,
        "text": completion.text,
        "accept_lengths": completion.accept_lengths,
        "load_s": record.load_s,
        "prefill_s": completion.prefill_s,
        "decode_s": completion.decode_s,
        "tokens_per_s": completion.tokens_per_s,
        "plan_digest": codec.digest(plan),
        "devices": _memory(plan, record),
    }


def _memory(plan: Plan, record: Record) -> list[dict[str, Any]]:
    rows = []
    for device, measured in zip(plan.devices, record.measured_bytes, strict=True):
        entry = next(entry for entry in plan.memory if entry.device == device.id)
        planned = {term: getattr(entry, f"{term}_bytes") for term in measured}
        rows.append({"device": device.id, "planned_bytes": planned, "measured_bytes": measured})
    return rows


def _show_memory(plan: Plan, record: Record) -> None:
    for row in _memory(plan, record):
        for term, planned in row["planned_bytes"].items():
            click.echo(
                f"{row['device']:12}{term:14}{planned:14} planned{row['measured_bytes'][term]:14} made", err=True
            )
