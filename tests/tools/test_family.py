"""The wider family of tools/bench_family.py has every candidate in it, so its best is never slower."""

import bench_family
import pytest

from planner.errors import NotProvenError
from planner.solver.problem import Problem


@pytest.mark.parametrize("seed", [0, 3, 39])
def test_the_best_of_the_wider_family_is_never_slower(seed: int) -> None:
    trial = bench_family.run_trial(seed, 3)
    assert not trial.impossible
    assert trial.wider >= trial.candidates
    assert trial.missed < 0.05


def test_a_step_that_only_the_wider_family_has_is_counted_as_missed() -> None:
    trial = bench_family.Trial(
        seed=0,
        machine=bench_family.MACHINES[0],
        devices=2,
        has_head=False,
        candidates=3,
        wider=4,
        candidate_ns=1000,
        wider_ns=990,
    )
    assert trial.missed == pytest.approx(0.01)
    assert next(iter(bench_family.rows([trial]))) == (trial.machine, "1", "1", "1.00%", "1.000%", "0", "0")


def test_a_trial_that_is_not_proven_is_counted_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    known = bench_family.run_trial(3, 3)

    def refuse(problem: Problem) -> int | None:
        raise NotProvenError("step time: not proven optimal within the limit", objective_ns=2, bound_ns=1)

    monkeypatch.setattr(bench_family, "least_step_ns", refuse)
    trial = bench_family.run_trial(3, 3)
    assert not trial.proven
    assert not trial.impossible
    *_, everything = bench_family.rows([known, trial])
    *_, alone = bench_family.rows([known])
    assert (everything[1], everything[2:-1], everything[-1]) == ("2", alone[2:-1], "1")
