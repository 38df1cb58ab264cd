"""Expected gain of drafting, in words and as data: tokens per second, and the acceptance from which on it pays."""

from typing import Any

from plans.codec import encode
from plans.format import format_ns
from plans.schema import Plan, RunnerUp, ScheduledStep, ScheduledTree, Speculation, Tree

PPM, NS_PER_S = 1_000_000, 1_000_000_000


def speculation_data(plan: Plan, speculation: Speculation | None) -> dict[str, Any]:
    """Return the figures of ``build --json``; ``speculation``: None where no draft was given, or nothing is known."""
    step_ns = plan.proof.objective_ns
    plain_ns = speculation.plain_ns if speculation else None
    acceptance = speculation.acceptance_ppm if speculation else None
    if plan.draft is None:
        plain_ns, acceptance = step_ns, PPM
    return {
        "expected_tokens_per_s": None if acceptance is None else tokens_per_s(plan, acceptance, step_ns),
        "plain_tokens_per_s": None if plain_ns is None else tokens_per_s(plan, PPM, plain_ns),
        "expected_acceptance": None if acceptance is None else acceptance / PPM,
        "break_even_acceptance": None if plan.draft is None or plain_ns is None else round(step_ns / plain_ns, 6),
        "tree": encode(plan.options.tree),
        "schedule": [_range_data(entry, step) for entry, step in _ranges(plan)] or None,
    }


def _ranges(plan: Plan) -> list[tuple[ScheduledTree, ScheduledStep]]:
    """Return the ranges of the schedule with what is predicted of them; none where it is not known."""
    steps = plan.speculation.schedule if plan.speculation else None
    return list(zip(plan.options.schedule or (), steps, strict=True)) if steps else []


def _range_data(entry: ScheduledTree, step: ScheduledStep) -> dict[str, Any]:
    return {
        "sequences": entry.sequences,
        "tree": encode(entry.tree),
        "expected_tokens_per_s": _rate(entry.sequences, step.acceptance_ppm, step.predicted_ns),
        "expected_acceptance": step.acceptance_ppm / PPM,
        "step_ns": step.predicted_ns,
    }


def tokens_per_s(plan: Plan, acceptance_ppm: int, step_ns: int) -> float:
    """Return batch * acceptance / step."""
    return _rate(plan.options.batch, acceptance_ppm, step_ns)


def _rate(sequences: int, acceptance_ppm: int, step_ns: int) -> float:
    return round(sequences * acceptance_ppm / PPM * NS_PER_S / max(1, step_ns), 3)


def speculation_lines(plan: Plan, speculation: Speculation | None, *, same_placement: bool = False) -> tuple[str, ...]:
    """Return what is expected with the plan and without its draft, as lines; nothing where both are unknown.

    ``same_placement``: plain decoding is on the plan's placement, else on the best one for it.
    """
    step_ns = plan.proof.objective_ns
    if speculation is None:
        plain = f"plain decoding: {tokens_per_s(plan, PPM, step_ns):.1f} tokens/s, {format_ns(step_ns)} per step"
        return (plain,) if plan.draft is None else ()
    plain_ns = speculation.plain_ns
    plain = f"{tokens_per_s(plan, PPM, plain_ns):.1f} tokens/s, {format_ns(plain_ns)} per step"
    other = speculation.runner_up
    if plan.draft is None:
        line = f"no draft: plain decoding is expected to be the fastest, {plain}"
        return (line, *([f"next best of those that were solved: {_runner_up(plan, other)}"] if other else []))
    acceptance, pays_ppm = speculation.acceptance_ppm, step_ns * PPM // max(1, plain_ns)
    assert plan.options.tree is not None, "a draft comes with a tree"
    where = "on this placement" if same_placement else "on the best placement for that"
    lines = [
        f"with the draft, {tree_words(plan.options.tree)}: "
        f"{tokens_per_s(plan, acceptance, step_ns):.1f} tokens/s expected, "
        f"{acceptance / PPM:.2f} tokens per step of {format_ns(step_ns)}",
        f"without the draft, {where}: {plain}; drafting pays from {pays_ppm / PPM:.2f} tokens per step",
    ]
    if acceptance <= pays_ppm and plan.options.keep_draft:
        lines.append("the draft is kept for fewer sequences, as --schedule keep asks")
    elif acceptance <= pays_ppm:
        lines.append("the draft is expected to lose: plan with --objective tokens, or with --no-draft")
    if other is not None:
        lines.append(f"next best of those that were solved: {_runner_up(plan, other)}")
    return (*lines, *_schedule_lines(plan))


def _schedule_lines(plan: Plan) -> list[str]:
    """Return the ranges of the schedule with the expectation at their first number of sequences."""
    lines = []
    for entry, step in _ranges(plan):
        what = "plain decoding" if entry.tree is None else tree_words(entry.tree)
        speed = _rate(entry.sequences, step.acceptance_ppm, step.predicted_ns)
        tokens = "" if entry.tree is None else f", {step.acceptance_ppm / PPM:.2f} tokens"
        lines.append(
            f"from {entry.sequences} running: {what}, {speed:.1f} tokens/s{tokens}, "
            f"{format_ns(step.predicted_ns)} per step"
        )
    return lines


def _runner_up(plan: Plan, other: RunnerUp) -> str:
    speed = tokens_per_s(plan, other.acceptance_ppm, other.least_ns)
    drafted = f", {other.acceptance_ppm / PPM:.2f} tokens" if other.tree is not None else ""
    what = "plain decoding" if other.tree is None else tree_words(other.tree)
    return f"{what}, {speed:.1f} tokens/s{drafted}, {format_ns(other.least_ns)} per step"


def tree_words(tree: Tree) -> str:
    """Return a dynamic tree as ``--tree`` takes it, another one by its kind."""
    if tree.kind == "static":
        return f"a static tree of {tree.total_token} nodes"
    return f"total_token={tree.total_token},depth={tree.depth},top_k={tree.top_k}"
