"""Work of `bench --profile-out`: decodes prompts and counts which of the drafter's candidates the base chose."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

from plans import codec, durable
from plans.acceptance import PPM, Drafted, Profile, counted, dump_profile, wilson_ppm
from plans.check import load
from plans.schema import Plan
from plans.terminal import out
from runtime.chat.template import ChatTemplate
from runtime.commands.loading import load_engine, stderr_status
from runtime.commands.options import to_stderr
from runtime.commands.prompts import Conversation, read_prompts
from runtime.errors import RequestError
from runtime.image.verify import check_images
from runtime.processes.torchrun import Torchrun
from runtime.request import Request, check_request

SHOWN_RANKS = 4
"""Ranks of a level in the table."""


def profile(
    directory: Path,
    *,
    file: Path,
    texts: tuple[str, ...],
    prompts_file: Path | None,
    chat: bool,
    max_new_tokens: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Decode the prompts, and write the profile of their drafts; raises what ``Engine.open`` raises."""
    plan = load(directory)
    if Torchrun.of(os.environ) is not None:
        raise RequestError("bench: not under torchrun, where every process would write the profile")
    conversation = Conversation(template=ChatTemplate(directory) if chat else None, turns=[])
    prompts = read_prompts(directory, (*texts, *_lines(prompts_file)), (), conversation, None)
    requests = [
        Request(
            prompt_ids=prompt.ids,
            max_new_tokens=min(max_new_tokens, max(1, plan.options.context - len(prompt.ids))),
            draft=True,
            ignore_eos=False,
            stop=(),
            recorded=True,
        )
        for prompt in prompts
    ]
    for request in requests:
        check_request(plan, request)
    check_images(plan, directory, verify=False)
    with stderr_status(quiet=quiet, torchrun=None) as status, load_engine(plan, directory, status) as engine:
        drafts: list[Drafted] = []
        lengths: list[int] = []
        tokens = 0
        for number, request in enumerate(requests):
            status(f"decoding prompt {number + 1} of {len(requests)}")
            result = engine.serve(request).finished()
            drafts += [draft for completion in engine.completions for draft in completion.drafts]
            lengths += result.accept_lengths
            tokens += len(result.tokens)
        status.end("done")
    measured = profile_of(plan, drafts, prompts=len(prompts), tokens=tokens)
    try:
        durable.write_whole(file, dump_profile(measured))
    except OSError as error:
        raise RequestError(f"--profile-out {file}: cannot write: {error.strerror}") from error
    acceptance = 1 + sum(lengths) / max(1, len(lengths))
    if as_json:
        out(json.dumps({"profile": str(file), "acceptance_length": acceptance, **dataclasses.asdict(measured)}))
        return
    for line in profile_lines(measured, acceptance, len(lengths)):
        out(line)
    to_stderr([f"{file}: written"])


def profile_of(plan: Plan, drafts: list[Drafted], *, prompts: int, tokens: int) -> Profile:
    """Return the profile of drafts that a plan's drafter made; raise PlanError where there are none."""
    tree = plan.options.tree
    assert tree is not None
    assert plan.draft is not None
    shape = f"total_token={tree.total_token},depth={tree.depth},top_k={tree.top_k}"
    source = f"{tokens} tokens behind {prompts} prompts, greedy, {shape}, plan {codec.digest(plan)[:16]}"
    return counted(drafts, drafter=plan.draft.kind, top_k=tree.top_k, source=source)


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = [line for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--prompts {file}: cannot read: {error}") from error
    if not lines:
        raise RequestError(f"--prompts {file}: found no line with a prompt")
    return lines


def profile_lines(profile: Profile, acceptance: float, steps: int) -> Iterator[str]:
    """Yield what was counted: the acceptance length, and by level and rank the rates with their 95 % intervals."""
    yield f"acceptance length {acceptance:.2f} over {steps} steps; {len(profile.contexts)} contexts"
    yield "of the nodes that the base agrees with, the children that it chose, in %:"
    yield f"{'level':>5}{'nodes':>8}" + "".join(f"{f'rank {rank}':>22}" for rank in range(SHOWN_RANKS))
    for depth in range(max(len(context.levels) for context in profile.contexts)):
        levels = [context.levels[depth] for context in profile.contexts if depth < len(context.levels)]
        nodes = sum(level.nodes for level in levels)
        cells = []
        for rank in range(min(SHOWN_RANKS, len(levels[0].chosen))):
            count = sum(level.chosen[rank] for level in levels)
            low, high = wilson_ppm(count, nodes)
            interval = f"({100 * low / PPM:.1f} to {100 * high / PPM:.1f})"
            cells.append(f"{100 * count / nodes:6.1f} {interval:>15}")
        yield f"{depth:5}{nodes:8}" + "".join(cells)
