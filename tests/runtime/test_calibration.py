"""Samples of this machine: all that the planner reads is there; nothing is said of how long anything takes."""

import json
import subprocess
import sys
import time
from unittest import mock

import pytest

from planner.hardware.measured import link_of, rates_of
from plans.dtypes import DTYPE_BYTES
from runtime.calibration import machine, rates
from runtime.errors import MachineError
from tests.planner.instances import ROOT

ROUNDS = 3
SMALL = """
import sys
from runtime.calibration import machine, rates
from runtime.cli import commands

rates.OUTPUTS = 64
rates.INPUTS.update(memory=64, cached=32)
rates.BYTES.update(memory=1 << 16, cached=1 << 14)
machine.SUMS, machine.ROUNDS = 5, 3
commands(sys.argv[1:])
"""
"""The program with small weights. It is a process of its own, as those that it forks must not have threads before."""


@pytest.mark.parametrize("processes", [1, 3])
def test_the_planner_makes_figures_of_the_samples(processes: int) -> None:
    command = [sys.executable, "-c", SMALL, "calibrate", "--processes", str(processes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    samples = json.loads(done.stdout)
    assert (samples["processes"], samples["threads"]) == (processes, max(1, samples["cores"] // processes))
    assert samples["values"] == {"memory": 64 * 64, "cached": 64 * 32}
    rates_at_once = rates_of(samples)
    assert [own.devices for own in rates_at_once] == ([1] if processes == 1 else [1, 2, 3])
    for own in rates_at_once:
        assert own.cached is not None
        assert own.cached.nbytes == 1 << 14
        for by_dtype in (own.rates, own.cached.rates):
            assert set(by_dtype) == set(DTYPE_BYTES)
            assert all(set(of_dtype.products) == set(rates.ROWS) for of_dtype in by_dtype.values())
    for by_held in samples["products_ns"].values():
        by_rows = [times for by_dtype in by_held.values() for times in by_dtype.values()]
        assert {len(times) for own in by_rows for times in own.values()} == {ROUNDS}
    assert {devices: len(times) for devices, times in samples["rows_ns"].items()} == dict.fromkeys(
        samples["products_ns"], ROUNDS
    )
    for by_dtype in samples["scores_ns"].values():
        assert {dims for own in by_dtype.values() for dims in own} == {str(dims) for dims in rates.SCORE_DIMS}
        assert {len(times) for own in by_dtype.values() for times in own.values()} == {ROUNDS}
    assert len(samples["message_ns"]) == (0 if processes == 1 else ROUNDS)
    groups = {(entry["members"], entry["message_bytes"]) for entry in samples["sums"]}
    assert groups == {(members, nbytes) for members in range(2, processes + 1) for nbytes in machine.MESSAGES}
    assert (link_of(samples) is None) == (processes == 1)


def test_a_process_that_dies_is_a_refusal() -> None:
    with (
        mock.patch.multiple(rates, OUTPUTS=64, BYTES=dict.fromkeys(rates.HELD, 1 << 16)),
        mock.patch.object(rates.Products, "samples", side_effect=SystemExit),
        pytest.raises(MachineError, match="died"),
    ):
        machine.measure(2, 60)


def test_a_machine_that_is_too_busy_is_a_refusal() -> None:
    with (
        mock.patch.multiple(rates, OUTPUTS=64, BYTES=dict.fromkeys(rates.HELD, 1 << 16)),
        mock.patch.object(rates.Products, "samples", side_effect=lambda *_: time.sleep(60)),
        pytest.raises(MachineError, match="too busy to be measured within 1 s"),
    ):
        machine.measure(2, 1)
