"""The cache against a list of rows."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.kvcache import GRANULE, KvCache

TREE = 6
ROWS = 64


def cache_of(rows: int = ROWS) -> KvCache:
    return KvCache([torch.zeros(2, 1, rows, 2, 1), torch.zeros(1, 1, rows, 4, 1)], TREE)


def write(cache: KvCache, rows: slice | torch.Tensor, values: list[int]) -> None:
    for layer in cache.layers:
        layer[rows] = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).expand(-1, *layer.shape[1:])


def sequence(cache: KvCache) -> list[int]:
    rows = {tuple(layer[TREE : TREE + cache.length, 0, 0].tolist()) for layer in cache.layers}
    assert len(rows) == 1, "all layers move together"
    return [int(value) for value in rows.pop()]


@given(st.data())
def test_keep_moves_the_path_behind_what_is_committed(data: st.DataObject) -> None:
    cache, expected = cache_of(), []
    width, last = 8, data.draw(st.integers(0, 7))
    write(cache, cache.append(width, last), list(range(1, width + 1)))
    cache.commit(last + 1)
    expected += list(range(1, last + 2))
    for step in range(1, 5):
        nodes = data.draw(st.sampled_from([1, 3, TREE]))
        write(cache, cache.tree(nodes), [step * 100 + node for node in range(nodes)])
        accepted = data.draw(st.integers(0, nodes - 1))
        path = [0, *sorted(data.draw(st.permutations(range(1, nodes)))[:accepted])]
        padded = path + [path[-1]] * (nodes - len(path))
        cache.keep(torch.tensor(padded), accepted, nodes)
        expected += [step * 100 + node for node in path]
        assert sequence(cache) == expected
    cut = data.draw(st.integers(0, len(expected)))
    cache.truncate(cut)
    assert sequence(cache) == expected[:cut]


def test_the_last_row_is_used_and_nothing_is_written_behind_it() -> None:
    cache = cache_of()
    cache.commit(ROWS - TREE - 2)
    assert cache.append(4, 3).tolist() == [ROWS - 2, ROWS - 1, 0, 0]


def test_rows_that_do_not_count_go_to_row_0() -> None:
    cache = cache_of()
    cache.commit(3)
    assert cache.append(4, 1).tolist() == [TREE + 3, TREE + 4, 0, 0]
    assert cache.append(4, torch.tensor([2])).tolist() == [TREE + 3, TREE + 4, TREE + 5, 0]


@given(st.integers(1, 200), st.integers(0, 13_000), st.integers(0, 64))
def test_windows_are_few_and_hold_what_is_asked(blocks: int, length: int, appended: int) -> None:
    cache = cache_of(blocks * GRANULE)
    cache.commit(min(length, cache.rows - TREE))
    window = cache.window(appended)
    assert min(TREE + cache.length + appended, cache.rows) <= window <= cache.rows
    cache.truncate(0)
    seen = set()
    for end in range(0, cache.rows - TREE + 1, 7):
        cache.length = end
        seen.add(cache.window(0))
    assert len(seen) <= 16
