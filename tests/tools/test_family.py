"""The wider family of tools/bench_family.py has every candidate in it, so its best is never slower."""

import bench_family
import pytest


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
    assert next(iter(bench_family.rows([trial]))) == (trial.machine, "1", "1", "1.00%", "1.000%", "0")
