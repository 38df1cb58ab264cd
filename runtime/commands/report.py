"""Figures of a run and of a bench as lines of text."""

import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from plans.format import format_bytes, format_s
from plans.schema import Plan
from runtime.request import Completion, MemoryReading, first_acceptance

if TYPE_CHECKING:
    from runtime.commands.step_times import Measured
    from runtime.generation import Generation
    from runtime.processes.rank_process import Started

LEAST_FIRST_ACCEPTANCE = 0.3
"""Part of the steps that accept the first drafted token, below which an EAGLE head is not read as it was trained: with
wrong layers published heads accept 1 to 10 %, with the right ones 45 to 75 %
(https://github.com/vllm-project/vllm/issues/43671, https://github.com/vllm-project/vllm/pull/32628)."""
LEAST_STEPS = 16
"""Fewer steps tell nothing."""
STARTED = 19
"""Position of the start time among the fields behind the name in /proc/PID/stat (proc_pid_stat(5): field 22)."""


def summary(result: "Generation") -> str:
    """Return one line: tokens, speed, acceptance, seed and plan."""
    seed = "" if result.seed is None else f"seed {result.seed}, "
    return (
        f"{len(result.tokens)} tokens, {result.tokens_per_s:.1f} tokens/s, "
        f"mean acceptance length {result.acceptance_length:.2f}, {seed}plan {result.plan_digest[:16]}"
    )


def start_line(begun: list[tuple[str, float]], age_s: float) -> str:
    """Return one line: the time from the start of the process to the first token, and that of each phase.

    ``begun``: of a `Status`, the last one a moment ago; ``age_s``: age of the process now.
    """
    (result, all_s), before_s = begun[-1], age_s - begun[-1][1]
    phases = {"imports and checks": before_s + begun[0][1]}
    for (phase, start), (_, end) in pairwise(begun):
        name = phase.partition(" (")[0]
        phases[name] = phases.get(name, 0.0) + end - start
    told = ", ".join(f"{time_s:.2f} {name}" for name, time_s in phases.items())
    return f"{result} {before_s + all_s:.2f} s after the start: {told}"


def process_age_s() -> float:
    """Return the seconds since this process was started, to a hundredth; Linux only, like the rest."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[STARTED]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def acceptance_lines(result: "Generation") -> Iterator[str]:
    """Yield for each drafted level in how many of the steps a token of it was accepted, the first one in any case."""
    lengths = result.accept_lengths
    for position in range(1, max(1, *lengths) + 1 if lengths else 1):
        accepted = sum(length >= position for length in lengths)
        yield f"position {position:2}   {accepted / len(lengths):6.1%} of {len(lengths)} steps"
    yield from low_acceptance(first_acceptance(lengths), len(lengths))


def low_acceptance(first: float | None, steps: int) -> Iterator[str]:
    """Yield a warning where so few steps accept a token of the first level that the EAGLE head is hardly in order."""
    if first is not None and first < LEAST_FIRST_ACCEPTANCE and steps >= LEAST_STEPS:
        yield (
            f"warning: only {first:.1%} of {steps} steps accept the first drafted token, of a head that fits the model "
            "45 % and more: the usual causes are other layers of the model than it was trained on (--aux-layers), "
            "norm_before_residual, or another base model than its own"
        )


def memory_lines(result: "Generation") -> Iterator[str]:
    """Yield the bytes of each device, term by term: planned, and allocated."""
    for row in result.devices:
        for term, planned in row.planned_bytes.items():
            yield f"{row.device:12}{term:14}{planned:14} planned{row.measured_bytes[term]:14} allocated"


def device_lines(plan: Plan, started: list["Started"], first: int) -> Iterator[str]:
    """Yield each rank's physical device, and its memory before and after loading; ``first``: rank of the first."""
    for rank, start in enumerate(started, first):
        device = plan.devices[rank].id
        yield f"{device}: {start.device}, loaded in {format_s(start.load_s)}"
        yield f"{device}: memory before: {_memory(start.before)}"
        yield f"{device}: memory loaded: {_memory(start.loaded)}"


def after_lines(plan: Plan, completions: list[Completion], first: int) -> Iterator[str]:
    """Yield the memory of each rank's device after a request; ``first``: rank of the first completion."""
    for rank, completion in enumerate(completions, first):
        yield f"{plan.devices[rank].id}: memory after: {_memory(completion.memory)}"


def _memory(reading: MemoryReading) -> str:
    return (
        f"{format_bytes(reading.free_bytes)} free of {format_bytes(reading.total_bytes)}, process "
        f"{format_bytes(reading.process_bytes)}"
    )


def bench_lines(measured: "Measured") -> Iterator[str]:
    """Yield the devices, a table of modes, then of each mode the phases and parts of a step."""
    for device, name in measured.devices.items():
        yield f"{device}: {name}"
    yield ""
    yield f"{'':8}{'tokens/s':>10}{'prefill ms':>12}{'step ms':>10}{'acceptance':>12}"
    for mode in measured.modes:
        yield (
            f"{mode.name:8}{mode.tokens_per_s:10.1f}{mode.prefill_s * 1e3:12.2f}{mode.step_s * 1e3:10.2f}"
            f"{mode.acceptance_length:12.2f}"
        )
    for mode in measured.modes:
        if mode.first_acceptance is not None:
            yield f"{mode.name:8}first drafted token accepted in {mode.first_acceptance:.1%} of {mode.steps} steps"
            yield from low_acceptance(mode.first_acceptance, mode.steps)
    for mode in measured.modes:
        yield ""
        yield f"{mode.name + ', ms per step':24}{'measured':>10}{'predicted':>11}"
        for row in (*mode.phases, *mode.parts):
            predicted = "" if row.predicted_ns is None else f"{row.predicted_ns / 1e6:11.3f}"
            yield f"  {row.name:22}{row.measured_ns / 1e6:10.3f}{predicted}"
