"""Measured step times: phases that add up to the step, parts per stage, forced acceptance lengths."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from plans.schema import Plan, ScheduledStep, Speculation
from runtime.commands import report, step_times
from runtime.commands.step_times import Bench, Mode, measure
from runtime.engine import Engine
from runtime.errors import RequestError
from runtime.request import RankTimings
from tests.runtime.small import compiled_plan

pytestmark = pytest.mark.usefixtures("one_core")

BENCH = Bench(prompt_tokens=5, max_new_tokens=16, repeats=2, accept=None)


@pytest.fixture(scope="module")
def plan_dir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    return compiled_plan(tmp_path_factory.mktemp("bench"))


def rows(mode: Mode) -> dict[str, int]:
    return {row.name: row.measured_ns for row in (*mode.phases, *mode.parts)}


@pytest.mark.parametrize("devices", [("a",), ("a", "b")])
def test_phases_add_up_to_the_step(devices: tuple[str, ...], tmp_path: Path) -> None:
    directory, plan = compiled_plan(tmp_path, devices)
    phases: list[str] = []
    with Engine.open(directory) as engine:
        measured = measure(engine, BENCH, phases.append)
    assert [phases[0], phases[-1], len(phases)] == [
        "decoding request 1 of 6 (plain)", "decoding request 6 of 6 (eagle)", 6
    ]  # fmt: skip
    assert [mode.name for mode in measured.modes] == ["plain", "eagle"]
    for mode in measured.modes:
        times = rows(mode)
        sum_of_phases = times["draft"] + times["verify"] + times["commit"] + times["collectives"]
        # at least the step; more where ranks overlap: on one core a part lasts while another rank runs
        assert 0.75 * times["step"] <= sum_of_phases <= (len(devices) + 0.25) * times["step"]
        assert times["step"] == round(mode.step_s * 1e9)
        assert min(times["embed"], times["stages[0]"], times["head"], times["commit"]) > 0
        assert (times["draft"] > 0) == (mode.name == "eagle")
        assert all(row.best_ns is not None and row.best_ns > 0 for row in mode.parts)
    predicted = {row.name: row.predicted_ns for row in (*measured.modes[1].phases, *measured.modes[1].parts)}
    assert predicted["stages[0]"] == plan.stages[0].predicted_ns
    assert predicted["step"] == plan.proof.objective_ns
    assert json.loads(json.dumps(dataclasses.asdict(measured)))["plan_digest"] == measured.plan_digest
    lines = list(report.bench_lines(measured))
    assert any("stages[0]" in line for line in lines)
    assert measured.modes[1].first_acceptance is not None
    assert sum("first drafted token accepted in" in line for line in lines) == 1


def test_a_part_takes_from_the_last_begin_to_the_last_end(tmp_path: Path) -> None:
    """A device that a message reaches later than the leader is waited for outside the part, and not in its sums."""
    _, plan = compiled_plan(tmp_path, ("a", "b"))
    every = step_times._parts(plan, drafted=True)
    first, second = (
        dict.fromkeys(every, ((begin, end), (1000 + begin, 1005 + begin))) for begin, end in ((0, 90), (70, 95))
    )
    ranks = [
        SimpleNamespace(timings=RankTimings(steps=(100, 100), parts=parts, groups={})) for parts in (first, second)
    ]
    times = step_times._times(plan, "eagle", ranks)  # type: ignore[arg-type]
    assert times["stages[0]"] == (95 - 70, 5)


def test_a_step_is_from_the_last_commit_of_the_base_to_the_next(tmp_path: Path) -> None:
    """Every device reads the step message and commits: until the last has gone on, none of the base computes."""
    _, plan = compiled_plan(tmp_path, ("a", "b"))
    first, second = (
        {"commit": ((begin, end), (begin + 100, end + 120)), "embed": ((end, end + wait),) * 2}
        for begin, end, wait in ((0, 10, 30), (8, 25, 5))
    )
    ranks = [SimpleNamespace(timings=RankTimings(steps=(40, 100), parts=parts, groups={})) for parts in (first, second)]
    assert step_times._steps_ns(plan, ranks) == [40, 120]  # type: ignore[arg-type]
    times = step_times._times(plan, "plain", ranks)  # type: ignore[arg-type]
    assert (times["commit"][0], times["embed"][0]) == (25 - 8, 40 - 25)


def test_the_best_steps_are_a_tenth_whose_parts_add_up(plan_dir: tuple[Path, Plan]) -> None:
    with Engine.open(plan_dir[0]) as engine:
        modes = measure(engine, dataclasses.replace(BENCH, repeats=3)).modes
    for mode in modes:
        best = {row.name: row.best_ns or 0 for row in (*mode.phases, *mode.parts)}
        parts = sum(row.best_ns or 0 for row in mode.parts)
        assert best["collectives"] == best["step"] - parts, "of one device nothing lies between parts"
        assert best["collectives"] < 0.01 * best["step"]


@pytest.mark.parametrize("accept", [0, 3])
def test_every_step_accepts_the_forced_length(accept: int, plan_dir: tuple[Path, Plan]) -> None:
    with Engine.open(plan_dir[0]) as engine:
        fresh = engine.generate([1, 2, 3], max_new_tokens=10).tokens
        plain, eagle = measure(engine, dataclasses.replace(BENCH, accept=accept)).modes
        assert (plain.acceptance_length, eagle.acceptance_length) == (1.0, accept + 1.0)
        assert (plain.first_acceptance, eagle.first_acceptance) == (None, None), "what is asked for is no measurement"
        assert engine.generate([1, 2, 3], max_new_tokens=10, reuse=True).tokens == fresh, (
            "no cache of the benchmark is reused"
        )


def test_a_length_that_no_step_accepts_is_refused(plan_dir: tuple[Path, Plan]) -> None:
    with pytest.raises(RequestError, match="accept: found 5, expected 0 to 4, the most"):
        dataclasses.replace(BENCH, accept=5).requests(plan_dir[1])


def test_one_sequence_of_several_is_predicted_by_the_schedule(plan_dir: tuple[Path, Plan]) -> None:
    _, plan = plan_dir
    options = dataclasses.replace(plan.options, batch=4)
    several = dataclasses.replace(plan, options=options)
    step = ScheduledStep(acceptance_ppm=2_000_000, predicted_ns=123)
    known = Speculation(
        profile_sha256="0" * 64, profile_source="", acceptance_ppm=2_000_000, plain_ns=1, trees=1, runner_up=None,
        schedule=(step,),
    )  # fmt: skip
    times = step_times._Step(whole=100, parts=dict.fromkeys(step_times._parts(plan, drafted=True), 7))
    for asked, ns in ((plan, plan.proof.objective_ns), (several, None),
                      (dataclasses.replace(several, speculation=known), 123)):  # fmt: skip
        *others, whole = step_times._phases(asked, "eagle", times, times)
        assert (whole.name, whole.predicted_ns) == ("step", ns)
        assert all((row.predicted_ns is None) == (asked is not plan) for row in others if row.name != "commit")
        assert step_times._scheduled_ns(asked, "plain") is None


def test_captured_steps_are_timed_beside_those_whose_parts_are(
    plan_dir: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_times, "captures", lambda plan: True)
    with Engine.open(plan_dir[0]) as engine:
        measured = measure(engine, BENCH)
    for mode in measured.modes:
        *others, launched, captured = mode.phases
        assert (launched.name, launched.predicted_ns, captured.name) == ("step, launched", None, "step")
        assert captured.measured_ns == round(mode.step_s * 1e9)
        sum_of_phases = sum(row.measured_ns for row in others)
        assert 0.75 * launched.measured_ns <= sum_of_phases <= 1.25 * launched.measured_ns
