"""Figures of a run, for people."""

from collections.abc import Iterator

from runtime.commands.bench import Measured
from runtime.engine import Generation


def summary(result: Generation) -> str:
    """One line."""
    seed = "" if result.seed is None else f"seed {result.seed}, "
    return (
        f"{len(result.tokens)} tokens, {result.tokens_per_s:.1f} tokens/s, "
        f"mean acceptance length {result.acceptance_length:.2f}, {seed}plan {result.plan_digest[:16]}"
    )


def acceptance_lines(result: Generation) -> Iterator[str]:
    """For each drafted level, in how many of the steps a token of it was accepted."""
    lengths = result.accept_lengths
    for position in range(1, max(lengths, default=0) + 1):
        accepted = sum(length >= position for length in lengths)
        yield f"position {position:2}   {accepted / len(lengths):6.1%} of {len(lengths)} steps"


def memory_lines(result: Generation) -> Iterator[str]:
    """Bytes of each device, term by term."""
    for row in result.devices:
        for term, planned in row.planned_bytes.items():
            yield f"{row.device:12}{term:14}{planned:14} planned{row.measured_bytes[term]:14} made"


def bench_lines(measured: Measured) -> Iterator[str]:
    """Modes, then phases and parts of a step."""
    yield f"{'':8}{'tokens/s':>10}{'prefill ms':>12}{'step ms':>10}{'acceptance':>12}"
    for mode in measured.modes:
        yield (
            f"{mode.name:8}{mode.tokens_per_s:10.1f}{mode.prefill_s * 1e3:12.2f}{mode.step_s * 1e3:10.2f}"
            f"{mode.acceptance_length:12.2f}"
        )
    for mode in measured.modes:
        yield ""
        yield f"{mode.name + ', ms per step':24}{'measured':>10}{'predicted':>11}"
        for row in (*mode.phases, *mode.parts):
            predicted = "" if row.predicted_ns is None else f"{row.predicted_ns / 1e6:11.3f}"
            yield f"  {row.name:22}{row.measured_ns / 1e6:10.3f}{predicted}"
