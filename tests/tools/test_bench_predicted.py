"""Phases of predicted and measured steps, side by side: each part of a step counts once, and ratios are counted."""

from pathlib import Path
from typing import Any

import bench_predicted
import pytest
from bench_predicted import PHASES, Row, Timed

from planner.problem.placed import draft_ns, messages_ns, plain_step_ns, step_ns
from tests.sample_plans import two_stage_plan

MS = 1_000_000


def phases(**best_ms: float) -> dict[str, dict[str, Any]]:
    """Return phases as `runtime bench` has them, without predictions of a mode that was not planned."""
    names = ("draft", "verify", "commit", "collectives", "step")
    return {name: {"name": name, "best_ns": round(best_ms.get(name, 0) * MS), "predicted_ns": None} for name in names}


@pytest.mark.parametrize("mode", ["plain", "eagle"])
def test_phases_add_up_to_the_step(mode: str) -> None:
    """What a part receives is predicted with the part, and counts as a message, as it is measured."""
    plan = two_stage_plan()
    measured = phases(draft=1, verify=2, commit=3, collectives=4, step=10)
    if mode == "eagle":
        measured["draft"]["predicted_ns"] = draft_ns(plan, plan.options)
        measured["step"]["predicted_ns"] = step_ns(plan, plan.options)
    timed = Timed(title="two stages", directory=Path(), plan=plan, modes={mode: measured})
    (row,) = bench_predicted.rows(timed)
    assert tuple(row.phases) == PHASES
    best = {name: phase["best_ns"] / MS for name, phase in row.phases.items()}
    assert best == {"draft": 1, "verify, commit": 5, "collectives": 4, "step": 10}
    *parts, step = (row.phases[name]["predicted_ns"] or 0 for name in PHASES)
    options = bench_predicted.options_of(plan, mode)
    assert parts[2] == sum(messages_ns(plan, options)) > 0
    assert sum(parts) == (plain_step_ns(plan) if mode == "plain" else step)


def test_ratios_are_counted_by_phase() -> None:
    def row(draft: float, step: float) -> Row:
        ratios = {"draft": draft, "verify, commit": 0, "collectives": 1, "step": step}
        return Row(
            title="t",
            mode="eagle",
            phases={name: {"best_ns": MS, "predicted_ns": round(MS * ratio)} for name, ratio in ratios.items()},
        )

    words = bench_predicted.within([row(0.9, 1.15), row(1.2, 0.8)])
    assert words == "within 15%: draft 1 of 2; verify, commit 0 of 0; collectives 2 of 2; step 1 of 2"
    assert row(0.9, 1.1).cells == ("t", "eagle", "1.00, 0.90: 0.90", "1.00", "1.00, 1.00: 1.00", "1.00, 1.10: 1.10")
