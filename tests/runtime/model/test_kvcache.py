"""The KV cache against lists of rows per sequence, on one member and divided over several."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.model.kvcache import GRANULE, KvCache

TREE = 6
ROWS = 64
ALL = slice(None)


def cache_of(rows: int = ROWS, batch: int = 2, part: int = 0, parts: int = 1, *, wraps: bool = False) -> KvCache:
    runs = [torch.zeros(2, batch, rows, 2, 1), torch.zeros(1, batch, rows, 4, 1)]
    return KvCache(runs, TREE, part=part, parts=parts, wraps=wraps)


def commit(cache: KvCache, rows: list[int]) -> None:
    cache.commit(torch.tensor(rows).unsqueeze(1) - 1, ALL)
    cache.know(rows, ALL)


def write(cache: KvCache, rows: torch.Tensor, values: list[int]) -> None:
    """Write a value to each row; ``rows`` index the rows of all sequences."""
    for layer in cache.layers:
        flat = layer.flatten(0, 1)
        flat[rows] = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).expand(-1, *flat.shape[1:])


def write_trees(cache: KvCache, nodes: int, values: list[list[int]]) -> None:
    for layer in cache.layers:
        layer[:, cache.tree(nodes)] = torch.tensor(values, dtype=torch.float32)[:, :, None, None]


def sequence(members: list[KvCache], number: int) -> list[int]:
    """Return the committed values of a sequence, gathered from the members that divide its positions."""
    length = int(members[0].lengths[number])
    values = []
    for position in range(length):
        cache = members[position % len(members)]
        rows = {int(layer[number, TREE + position // len(members), 0, 0]) for layer in cache.layers}
        assert len(rows) == 1, "all layers hold the same rows"
        values.append(rows.pop())
    return values


@given(st.integers(1, 3), st.data())
def test_keep_moves_the_accepted_path_behind_the_committed_rows(parts: int, data: st.DataObject) -> None:
    members = [cache_of(part=part, parts=parts) for part in range(parts)]
    expected: list[list[int]] = [[], []]
    lasts = [data.draw(st.integers(0, 7)), data.draw(st.integers(0, 7))]
    for cache in members:
        for number, last in enumerate(lasts):
            rows = cache.append(8, torch.tensor([[last]]), slice(number, number + 1))
            write(cache, rows, [number * 10_000 + value for value in range(1, 9)])
        commit(cache, [last + 1 for last in lasts])
    for number, last in enumerate(lasts):
        expected[number] += [number * 10_000 + value for value in range(1, last + 2)]
    for step in range(1, 5):
        nodes = data.draw(st.sampled_from([1, 3, TREE]))
        paths, counts, values = [], [], []
        for number in range(2):
            counts.append(data.draw(st.integers(-1, nodes - 1)))
            path = [0, *sorted(data.draw(st.permutations(range(1, nodes)))[: max(0, counts[-1])])]
            values.append([number * 10_000 + step * 100 + node for node in range(nodes)])
            expected[number] += [values[-1][node] for node in path[: counts[-1] + 1]]
            paths.append(path + [path[-1]] * (nodes - len(path)))
        for cache in members:
            write_trees(cache, nodes, values)
            accepted = torch.tensor(counts).unsqueeze(1)
            cache.keep(torch.tensor(paths), accepted, nodes, ALL)
            cache.know([count + 1 for count in counts], ALL)
        assert [sequence(members, number) for number in range(2)] == expected
    cuts = [data.draw(st.integers(0, len(known))) for known in expected]
    for cache in members:
        for number, cut in enumerate(cuts):
            cache.restart(number, number, cut)
    assert [sequence(members, number) for number in range(2)] == [
        known[:cut] for known, cut in zip(expected, cuts, strict=True)
    ]
    for cache in members:
        assert cache.lengths.flatten().tolist() == cache._known == cuts
        cache.commit_one(1, 3)
        assert cache.lengths.flatten().tolist() == cache._known == [cuts[0], cuts[1] + 3]
        cache.restart(1, 0, cuts[0])
    assert [sequence(members, number) for number in range(2)] == [expected[0][: cuts[0]]] * 2, "copied from the other"


def test_the_last_row_is_used_and_no_row_beyond_it() -> None:
    cache = cache_of()
    commit(cache, [ROWS - TREE - 2, 0])
    assert cache.append(4, torch.tensor([[3]]), slice(0, 1)).tolist() == [ROWS - 2, ROWS - 1, 0, 0]


def test_padding_rows_go_to_row_0_of_their_sequence() -> None:
    cache = cache_of()
    commit(cache, [3, 1])
    first = [TREE + 3, TREE + 4, 0, 0]
    assert cache.append(4, torch.tensor([[1]]), slice(0, 1)).tolist() == first
    second = [ROWS + TREE + 1, ROWS + TREE + 2, ROWS + TREE + 3, ROWS]
    assert cache.append(4, torch.tensor([[1], [2]]), ALL).tolist() == [*first, *second]
    assert cache.append(4, torch.tensor([[-1], [2]]), ALL).tolist() == [0, 0, 0, 0, *second]


def test_positions_go_round_the_members() -> None:
    first, second = (cache_of(part=part, parts=2) for part in range(2))
    for cache in (first, second):
        commit(cache, [3, 0])
    last = torch.tensor([[2]])
    assert first.append(4, last, slice(0, 1)).tolist() == [0, TREE + 2, 0, 0]
    assert second.append(4, last, slice(0, 1)).tolist() == [TREE + 1, 0, TREE + 2, 0]
    assert first.columns[:3].tolist() == [0, 2, 4]
    assert second.columns[:3].tolist() == [1, 3, 5]


@given(st.integers(1, 200), st.integers(0, 13_000), st.integers(0, 64), st.integers(1, 3))
def test_windows_have_few_lengths_and_cover_the_needed_rows(
    blocks: int, length: int, appended: int, parts: int
) -> None:
    cache = cache_of(blocks * GRANULE, parts=parts)
    commit(cache, [min(length, (cache.rows - TREE) * parts), 0])
    window = cache.window(appended, slice(None))
    needed = TREE + -(-(int(cache.lengths.max()) + appended) // parts)
    assert min(needed, cache.rows) <= window <= cache.rows
    cache.restart(0, 0, 0)
    seen, known = set(), 0
    for end in range(0, (cache.rows - TREE) * parts + 1, 41):
        commit(cache, [end - known, 0])
        known = end
        seen.add(cache.window(0, slice(None)))
    assert len(seen) <= 16


@given(st.integers(1, 3), st.data())
def test_a_ring_has_the_last_positions_in_order(parts: int, data: st.DataObject) -> None:
    members = [cache_of(ROWS, part=part, parts=parts, wraps=True) for part in range(parts)]
    ring = ROWS - TREE
    lengths = [0, 0]
    for step in range(data.draw(st.integers(1, 6))):
        counts = [data.draw(st.integers(1, min(ring, 40))) for _ in range(2)]
        for cache in members:
            for number, count in enumerate(counts):
                own = slice(number, number + 1)
                values = [number * 10_000 + lengths[number] + value for value in range(count)]
                write(cache, cache.append(count, torch.tensor([[count - 1]]), own), values)
            commit(cache, counts)
        lengths = [length + count for length, count in zip(lengths, counts, strict=True)]
        ends = torch.tensor(lengths).unsqueeze(1)
        for cache in members:
            held = cache.held(ends, ring)
            for number, length in enumerate(lengths):
                own = [position for position in range(length) if position % parts == cache.part][-ring:]
                assert sorted(position for position in held[number].tolist() if position >= 0) == own
                stored = cache.layers[0][number, TREE:, 0, 0].tolist()
                assert all(
                    stored[row] == number * 10_000 + position
                    for row, position in enumerate(held[number].tolist())
                    if position >= 0
                ), step
                if parts == 1:
                    first = int(cache.oldest(ends, 0)[number])
                    turned = [*held[number, first:].tolist(), *held[number, :first].tolist()]
                    assert [position for position in turned if position >= 0] == own
