"""Samples of this machine: all that the planner reads is there; nothing is said of how long anything takes."""

import json
from unittest import mock

import pytest
from click.testing import CliRunner

from planner.hardware.measured import link_of, rates_of
from plans.dtypes import DTYPE_BYTES
from runtime.calibration import machine, rates
from runtime.cli import commands
from runtime.errors import MachineError


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "OUTPUTS", 256)
    monkeypatch.setattr(rates, "INPUTS", 64)
    monkeypatch.setattr(machine, "SUM_REPEATS", 5)


@pytest.mark.parametrize("processes", [1, 3])
def test_the_planner_makes_figures_of_the_samples(processes: int) -> None:
    done = CliRunner().invoke(commands, ["calibrate", "--processes", str(processes)])
    assert done.exit_code == 0, done.output
    samples = json.loads(done.stdout)
    assert (samples["processes"], samples["threads"]) == (processes, max(1, samples["cores"] // processes))
    assert samples["values"] == {"1": 64 * 256, "8": 64 * 256, "60": 64 * 64}
    own = rates_of(samples)
    assert set(own) == set(DTYPE_BYTES)
    assert all(set(of_dtype.products) == {1, 8, 60} for of_dtype in own.values())
    assert all(len(times) == rates.REPEATS for by_rows in samples["products_ns"].values() for times in by_rows.values())
    groups = {(entry["members"], entry["message_bytes"]) for entry in samples["sums"]}
    assert groups == {(members, nbytes) for members in range(2, processes + 1) for nbytes in machine.MESSAGES}
    assert (link_of(samples) is None) == (processes == 1)


def test_a_process_that_dies_is_a_refusal() -> None:
    with (
        mock.patch.object(rates.Products, "samples", side_effect=SystemExit),
        pytest.raises(MachineError, match="died"),
    ):
        machine.measure(2)
