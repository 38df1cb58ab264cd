"""Predicted times beside published measurements: bounds by kind of row, fitted or held back, and a source for each."""

import dataclasses
import itertools
import statistics

import pytest
from measured import BOUNDS, Row, SpeedUp, measured_table, predicted, speed_up_ratio

TABLE = measured_table()


@pytest.mark.parametrize("row", TABLE.rows, ids=[row.name for row in TABLE.rows])
def test_a_prediction_is_within_the_bound_of_its_kind(row: Row) -> None:
    """Dense models 20 %, steps with an EAGLE head 30 %, mixtures of experts 40 %."""
    line = predicted(row, TABLE)
    assert line.ratio == pytest.approx(1, abs=BOUNDS[line.kind])


@pytest.mark.parametrize("entry", TABLE.speed_ups, ids=[entry.row for entry in TABLE.speed_ups])
def test_speed_ups_with_the_shipped_profile_are_within_a_quarter(entry: SpeedUp) -> None:
    assert speed_up_ratio(entry, TABLE) == pytest.approx(1, abs=0.25)


def test_more_speed_ups_are_held_back_than_their_acceptance_fitted() -> None:
    fitted = [entry.in_profile for entry in TABLE.speed_ups]
    assert fitted.count(False) > fitted.count(True)


def test_a_step_yields_as_many_tokens_as_are_accepted() -> None:
    assert dataclasses.replace(TABLE.rows[0], tokens_per_s=400, acceptance=3.2).step_ms == 8


def test_the_fit_is_centred_and_more_rows_were_held_back_than_fitted() -> None:
    lines = [predicted(row, TABLE) for row in TABLE.rows]
    for kind in BOUNDS:
        fitted = [line.ratio for line in lines if line.kind == kind and line.row.fit]
        held_back = [line.ratio for line in lines if line.kind == kind and not line.row.fit]
        assert len(held_back) >= len(fitted) >= 3, kind
        assert statistics.geometric_mean(fitted) == pytest.approx(1, abs=0.1), kind
        assert statistics.geometric_mean(held_back) == pytest.approx(1, abs=0.1), kind


def test_rows_say_where_their_figure_stands() -> None:
    assert len({row.name for row in TABLE.rows}) == len(TABLE.rows) >= 10
    for row in TABLE.rows:
        assert row.source.startswith("https://"), row.name
        whole = row.tokens_per_s.is_integer() if isinstance(row.tokens_per_s, float) else True
        text = f"{row.tokens_per_s:.0f}" if whole else str(row.tokens_per_s)
        assert text in row.quote, row.name
        assert (row.head is None) == (row.tree is None) == (row.acceptance == 1.0), row.name
    for entry in TABLE.left_out:
        assert entry.source.startswith("https://")
        assert entry.reason


def test_a_box_of_nvlink_is_never_slower_than_one_of_pcie() -> None:
    for name in ("70b-8-h100-sglang", "70b-8-h100-eagle3-8", "llama-2-7b-2-a100-gpt-fast", "30b-a3b-4-h100-sglang"):
        row = next(row for row in TABLE.rows if row.name == name)
        times = [
            predicted(dataclasses.replace(row, link=link), TABLE).step_ms for link in ("nvlink4", "pcie5", "pcie4")
        ]
        assert times == sorted(times), name
        assert times[0] < times[1]


def test_a_chain_takes_longer_with_each_pass() -> None:
    row = next(row for row in TABLE.rows if row.name == "8b-h200-eagle3-chain-3")
    steps = []
    for length in range(2, 8):
        tree = {"total_token": length + 1, "depth": length - 1, "top_k": 1}
        steps.append(predicted(dataclasses.replace(row, tree=tree), TABLE).step_ms)
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert all(0.25 < gap < 0.6 for gap in gaps), gaps  # 0.38 ms of measured chains of 3, 5 and 7
