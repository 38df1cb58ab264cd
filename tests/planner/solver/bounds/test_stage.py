"""Numbers of layers of each kind that a stage may have, compared with all consecutive layers of a sequence."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from planner.solver.bounds.stage import windows


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.sets(st.integers(0, 2)))
def test_windows_are_the_numbers_of_layers_of_all_consecutive_layers(drawn: list[int], run: set[int]) -> None:
    kinds = sorted(set(drawn))
    layer_kinds = tuple(kinds.index(kind) for kind in drawn)
    stages = [layer_kinds[i:j] for i in range(len(drawn)) for j in range(i + 1, len(drawn) + 1)]
    run_stages = [stage for stage in stages if run.issuperset(stage)]
    expected = {tuple(Counter(stage)[kind] for kind in range(len(kinds))) for stage in run_stages}
    found = windows(layer_kinds, tuple(kind in run for kind in range(len(kinds))))
    listed = [tuple(counts) for counts in found.counts.tolist()]
    assert len(listed) == len(set(listed))
    assert set(listed) == expected
    assert found.layers.tolist() == sorted(map(sum, listed)) == [sum(counts) for counts in listed]
