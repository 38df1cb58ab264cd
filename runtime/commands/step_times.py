"""Times of a plan's steps: prefill, plain and EAGLE decoding, by phase and by part, beside the prediction.

A part takes from when the last of its devices has what it works on until the last of them is done, with the
all-reduces in which they wait for each other: as the plan predicts it. Devices of another machine than the first one's
are left out, as their clock is another. The phases add up to the step: ``verify`` is embedding, stages and lm_head one
after the other, ``collectives`` is the rest: hops from part to part, features and the step message, each from when the
last of its ranks is ready for it until the last of its receivers goes on, woken up where it sleeps. Behind the step
message every rank reads it, records it and commits, and goes on to the next step: that is ``commit`` and ``embed`` of
all devices of the base, whichever of them has the embedding. One sequence is timed: of a plan for more the parts have
no prediction, and the step has that of its schedule.

Beside the mean, the *best* time is the mean over the fastest tenth of the steps of all repeats: what the machine does
while no other program disturbs it. Parts are of the same steps and add up; the least time of each part, of different
steps, is less than any step takes. A tenth, since processes that share cores meet as in the very best step by chance.

A captured step has no parts to be timed: there the parts are those of steps that are launched operation by operation,
and add up to one of these; speed and step are those of captured ones, in a request of their own.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from plans.graphs import captures
from plans.schema import Plan
from plans.shared_memory import share_memory
from runtime.errors import RequestError
from runtime.request import Completion, RankTimings, Request, check_request, first_acceptance

if TYPE_CHECKING:
    from runtime.engine import Engine


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Requests to be timed."""

    prompt_tokens: int
    max_new_tokens: int
    repeats: int
    accept: int | None
    """Drafted tokens that every step of EAGLE decoding accepts; None: those that agree."""

    def requests(self, plan: Plan) -> dict[str, Request]:
        """Return a request for each mode, plain and eagle; raise RequestError where the plan cannot serve them."""
        context, vocabulary = plan.options.context, plan.model.vocab_size
        if self.prompt_tokens + self.max_new_tokens > context:
            raise RequestError(
                f"--prompt-tokens {self.prompt_tokens} and --max-new-tokens {self.max_new_tokens}: together more than "
                f"the plan's context of {context}"
            )
        ids = tuple((1 + number * 7) % vocabulary for number in range(self.prompt_tokens))
        modes = {"plain": False, **({"eagle": True} if plan.draft else {})}
        requests = {
            mode: Request(
                prompt_ids=ids,
                max_new_tokens=self.max_new_tokens,
                draft=draft,
                ignore_eos=True,
                stop=(),
                accept=self.accept if draft else None,
                timed=True,
            )
            for mode, draft in modes.items()
        }
        if self.accept is not None and plan.draft is None:
            check_request(plan, Request(prompt_ids=ids, max_new_tokens=1, draft=True, ignore_eos=True, stop=(),
                                        accept=self.accept))  # fmt: skip
        for request in requests.values():
            check_request(plan, request)
        return requests


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One phase or part of a step."""

    name: str
    measured_ns: int
    best_ns: int | None
    """Mean over the fastest tenth of the steps, which other programs disturbed least; None: not of single steps."""
    predicted_ns: int | None
    """None: the plan has no prediction, or not for this mode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """Times of plain or EAGLE decoding: those of the repeat with the median step; of prefill the median."""

    name: str
    tokens_per_s: float
    prefill_s: float
    step_s: float
    acceptance_length: float
    steps: int
    first_acceptance: float | None
    """Part of the steps that accepted a token of the first level; None in plain decoding, and where it is forced."""
    phases: tuple[Row, ...]
    """Rows draft, verify, commit, collectives, and the step that they add up to; where steps are captured, behind it
    the captured one."""
    parts: tuple[Row, ...]
    """Rows embed, each stage, head, draft, commit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeat:
    """Completions of all ranks of one repeat."""

    timed: list[Completion]
    """With the times of parts."""
    whole: list[Completion]
    """Of captured steps; where none are, ``timed``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Times of a plan."""

    plan_digest: str
    devices: dict[str, str]
    """Name of each physical device; of a CPU also the vector instructions of its products. By the plan's id."""
    load_s: float
    accept: int | None
    modes: tuple[Mode, ...]


def measure(engine: "Engine", bench: Bench, report: Callable[[str], object] = lambda phase: None) -> Measured:
    """Time a plan; the modes take turns, so that other load on the machine disturbs both alike.

    ``report``: told each request as it begins.
    """
    requests, captured = bench.requests(engine.plan), captures(engine.plan)
    runs: dict[str, list[Repeat]] = {mode: [] for mode in requests}
    digest = ""
    for number in range(bench.repeats + 1):
        for place, (mode, request) in enumerate(requests.items(), number * len(requests) + 1):
            report(f"decoding request {place} of {(bench.repeats + 1) * len(requests)} ({mode})")
            digest = engine.serve(request).finished().plan_digest
            timed = whole = engine.completions
            if captured:
                engine.serve(replace(request, timed=False)).finished()
                whole = engine.completions
            if number:  # the first one warms up
                runs[mode].append(Repeat(timed=timed, whole=whole))
    forced = bench.accept is not None
    modes = tuple(_mode(engine.plan, mode, completions, forced=forced) for mode, completions in runs.items())
    devices = {device.id: start.device for device, start in zip(engine.plan.devices, engine.started, strict=True)}
    return Measured(plan_digest=digest, devices=devices, load_s=engine.load_s, accept=bench.accept, modes=modes)


def _mode(plan: Plan, name: str, runs: list[Repeat], *, forced: bool) -> Mode:
    """Return the times of a mode; of one repeat, as the parts of another do not add up to its step.

    ``forced``: what is accepted was asked for.
    """
    median = sorted(runs, key=lambda run: _step_s(run.whole[0]))[(len(runs) - 1) // 2]
    first, of_parts = median.whole[0], median.timed[0]
    step_s = _step_s(first)
    mean = _mean(plan, name, of_parts=median.timed)
    best = _best(plan, name, [run.timed for run in runs])
    phases = tuple(_phases(plan, name, mean, best))
    if first is not of_parts:
        *others, launched = phases
        captured = replace(launched, name="step", measured_ns=round(step_s * 1e9), best_ns=None)
        phases = (*others, replace(launched, name="step, launched", predicted_ns=None), captured)
    return Mode(
        name=name,
        tokens_per_s=first.tokens_per_s,
        prefill_s=statistics.median(run.whole[0].prefill_s for run in runs),
        step_s=step_s,
        acceptance_length=first.acceptance_length,
        steps=_steps(first),
        first_acceptance=None if forced else first_acceptance(first.accept_lengths),
        phases=phases,
        parts=tuple(
            Row(name=part, measured_ns=ns, best_ns=best.parts[part], predicted_ns=_predicted(plan, part, name))
            for part, ns in mean.parts.items()
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """Ns of a step and of its parts."""

    whole: int
    parts: dict[str, int]

    def verify(self) -> int:
        return sum(ns for part, ns in self.parts.items() if part not in ("draft", "commit"))

    def rest(self) -> int:
        """Return what is in no part: messages, and waking up for them."""
        return max(0, self.whole - sum(self.parts.values()))


def _mean(plan: Plan, mode: str, of_parts: list[Completion]) -> _Step:
    """Return the mean step of a repeat."""
    first = of_parts[0]
    times = _times(plan, mode, of_parts)
    return _Step(
        whole=round(_step_s(first) * 1e9), parts={part: sum(own) // _steps(first) for part, own in times.items()}
    )


def _best(plan: Plan, mode: str, runs: list[list[Completion]]) -> _Step:
    """Return the mean of the fastest tenth of the steps of all repeats, of one step at least."""
    steps: list[_Step] = []
    for run in runs:
        times, whole = _times(plan, mode, run), _steps_ns(plan, run)
        steps += [
            _Step(whole=ns, parts={part: own[number] for part, own in times.items() if own})
            for number, ns in enumerate(whole[: min(map(len, filter(None, times.values())), default=0)])
        ]
    best = sorted(steps, key=lambda step: step.whole)[: max(1, len(steps) // 10)]
    count = max(1, len(best))
    return _Step(
        whole=sum(step.whole for step in best) // count,
        parts={
            part: sum(step.parts.get(part, 0) for step in best) // count
            for part in _parts(plan, drafted=mode == "eagle")
        },
    )


def _times(plan: Plan, mode: str, ranks: list[Completion]) -> dict[str, tuple[int, ...]]:
    """Return by part the time of every step: from when the last of its devices begins until the last one ends."""
    members = {"embed": _of_base(plan), "head": plan.head.devices, "commit": _of_base(plan)}
    members |= {f"stages[{number}]": stage.devices for number, stage in enumerate(plan.stages)}
    if plan.draft_placement is not None:
        members["draft"] = plan.draft_placement.devices
    times = {}
    for part in _parts(plan, drafted=mode == "eagle"):
        near = _numbers(plan, _on_one_machine(plan, members[part]))
        spans = [_timings(ranks[number]).parts.get(part, ()) for number in near]
        times[part] = tuple(
            max(end for _, end in of_step) - max(begin for begin, _ in of_step) for of_step in zip(*spans, strict=False)
        )
    return times


def _on_one_machine(plan: Plan, devices: Sequence[str]) -> list[str]:
    """Return those of some devices that have the clock of the first one."""
    hosts = {device.id: device.host for device in plan.inventory.devices}
    return [name for name in devices if share_memory(plan.inventory, (hosts[devices[0]], hosts[name]))]


def _of_base(plan: Plan) -> tuple[str, ...]:
    """Return the devices of embedding, stages and lm_head, that of the embedding first."""
    parts = (plan.embed.devices, *(stage.devices for stage in plan.stages), plan.head.devices)
    return tuple(dict.fromkeys(device for devices in parts for device in devices))


def _steps_ns(plan: Plan, ranks: list[Completion]) -> list[int]:
    """Return the time of every step: from the last commit of the base to that of the next step."""
    near = [_timings(ranks[number]) for number in _numbers(plan, _on_one_machine(plan, _of_base(plan)))]
    commits = [max(end for _, end in spans) for spans in zip(*(own.parts["commit"] for own in near), strict=False)]
    first = max((own.steps[0] for own in near if own.steps), default=0)
    return [first, *(end - begin for begin, end in pairwise(commits))]


def _numbers(plan: Plan, devices: Sequence[str]) -> list[int]:
    """Return the ranks of some devices."""
    numbers = {device.id: number for number, device in enumerate(plan.devices)}
    return [numbers[device] for device in devices]


def _phases(plan: Plan, mode: str, mean: _Step, best: _Step) -> Iterator[Row]:
    as_planned = _is_planned(plan, mode)
    whole = plan.proof.objective_ns if as_planned else _scheduled_ns(plan, mode)
    predicted = None
    if as_planned:
        predicted = _Step(whole=whole or 0, parts={part: _predicted(plan, part, mode) or 0 for part in mean.parts})
    draft, commit = (
        Row(
            name=part,
            measured_ns=mean.parts.get(part, 0),
            best_ns=best.parts.get(part, 0),
            predicted_ns=_predicted(plan, part, mode),
        )
        for part in ("draft", "commit")
    )
    yield draft
    yield Row(
        name="verify",
        measured_ns=mean.verify(),
        best_ns=best.verify(),
        predicted_ns=None if predicted is None else predicted.verify(),
    )
    yield commit
    yield Row(
        name="collectives",
        measured_ns=mean.rest(),
        best_ns=best.rest(),
        predicted_ns=None if predicted is None else predicted.rest(),
    )
    yield Row(name="step", measured_ns=mean.whole, best_ns=best.whole, predicted_ns=whole)


def _parts(plan: Plan, *, drafted: bool) -> list[str]:
    stages = [f"stages[{number}]" for number in range(len(plan.stages))]
    return ["embed", *stages, "head", *(["draft"] if drafted else []), "commit"]


def _is_planned(plan: Plan, mode: str) -> bool:
    """Tell whether the plan predicts the steps that are timed: one sequence, with its drafter where it has one."""
    return plan.options.batch == 1 and (mode == "eagle") == (plan.draft is not None)


def _scheduled_ns(plan: Plan, mode: str) -> int | None:
    """Return the step of one sequence of a plan for more, as its schedule predicts it; None where it does not."""
    steps = plan.speculation.schedule if plan.speculation is not None else None
    return steps[0].predicted_ns if steps and mode == "eagle" else None


def _predicted(plan: Plan, part: str, mode: str) -> int | None:
    """Return the predicted time of a part in ns; None where it was not planned for such steps."""
    if not _is_planned(plan, mode):
        return None
    placed = {"embed": plan.embed.predicted_ns, "head": plan.head.predicted_ns}
    placed |= {f"stages[{number}]": stage.predicted_ns for number, stage in enumerate(plan.stages)}
    if plan.draft_placement is not None:
        placed["draft"] = plan.draft_placement.predicted_ns
    return placed.get(part)


def _timings(completion: Completion) -> RankTimings:
    assert completion.timings is not None, "the requests of a bench are timed"
    return completion.timings


def _step_s(completion: Completion) -> float:
    return completion.decode_s / _steps(completion)


def _steps(completion: Completion) -> int:
    return max(1, len(completion.accept_lengths) or len(completion.tokens) - 1)
