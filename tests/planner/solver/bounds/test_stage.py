"""Numbers of layers of each kind that a stage may have, compared with all consecutive layers of a sequence."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from planner.solver.bounds.stage import windows


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9))
def test_windows_are_the_numbers_of_layers_of_all_consecutive_layers(drawn: list[int]) -> None:
    kinds = sorted(set(drawn))
    layer_kinds = tuple(kinds.index(kind) for kind in drawn)
    stages = [layer_kinds[i:j] for i in range(len(drawn)) for j in range(i + 1, len(drawn) + 1)]
    expected = {tuple(Counter(stage)[kind] for kind in range(len(kinds))) for stage in stages}
    listed = [tuple(counts) for counts in windows(layer_kinds).tolist()]
    assert len(listed) == len(set(listed))
    assert set(listed) == expected
