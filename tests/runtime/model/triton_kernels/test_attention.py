"""Attention by Triton's interpreter against softmax in float64 over the positions that a row may see."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plans.attention_splits import partial_rows, splits_of, step_splits
from runtime.model.kv_codes import MOST_CODE, decoded, encoded
from runtime.model.mask import Mask
from runtime.model.triton_kernels import attention
from runtime.model.triton_kernels.masks import packed
from tests.runtime.model.triton_kernels.interpreted import seeded

EXAMPLES = settings(max_examples=12, deadline=None)
SIZES = [(4, 2, 24), (3, 1, 16), (2, 2, 80), (5, 1, 32)]
START = 9
"""Rows of the cache before those of the sequences, more than the tree has."""


def held(end: int, ring: int, part: int, parts: int) -> list[int]:
    """Return the position in each row behind the tree's, -1 where there is none, written one after the other."""
    rows = [-1] * ring
    for position in range(end):
        if position % parts == part:
            rows[position // parts % ring] = position
    return rows


def attended(
    q: Tensor, cache: Tensor, visible: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return results [n, h, D] and log-sum-exp [n, h] of one sequence, of ``visible`` [n, T] rows of its cache."""
    group = q.shape[1] // (cache.shape[1] // 2)
    keys, values = (x.double().repeat_interleave(group, 1).transpose(0, 1) for x in cache.chunk(2, 1))
    scores = q.double().transpose(0, 1) @ keys.transpose(1, 2) * scale  # [h, n, T]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, float("-inf"))
    sums = scores.logsumexp(2)
    weights = (scores - sums.unsqueeze(2)).exp().nan_to_num(0.0)
    if sinks is not None:
        weights = weights * torch.sigmoid(sums - sinks.double().view(-1, 1)).unsqueeze(2)
    return (weights @ values).transpose(0, 1), sums.transpose(0, 1)


@EXAMPLES
@given(
    sizes=st.sampled_from(SIZES), dtype=st.sampled_from([torch.float32, torch.float16]),
    narrow=st.sampled_from([None, torch.float8_e4m3fn, torch.int8]),
    kind=st.sampled_from(["plain", "tree", "tree and chain", "chunk"]), lengths=st.tuples(*[st.integers(0, 150)] * 2),
    window=st.sampled_from([None, None, 3, 40]), parts=st.sampled_from([1, 1, 3]), splits=st.sampled_from([1, 2, 3]),
    softcap=st.sampled_from([None, 2.0]), sinks=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_rows_see_their_ancestors_and_their_positions(
    sizes: tuple[int, int, int], dtype: torch.dtype, narrow: torch.dtype | None, kind: str, lengths: tuple[int, int],
    window: int | None, parts: int, splits: int, softcap: float | None, sinks: bool, seed: int,
) -> None:  # fmt: skip
    """Two of three sequences take part, each at its own length; the last third of a cache is another device's."""
    (heads, kv_heads, dims), part, ring = sizes, parts - 1, 50 if window else 160
    rng = torch.Generator().manual_seed(seed)
    n = {"plain": 1, "tree": 7, "tree and chain": 5, "chunk": 6}[kind]
    tree = {"plain": 1, "tree": 7, "tree and chain": 9, "chunk": 0}[kind]
    ends, appended = torch.tensor(lengths).view(2, 1), n if kind == "chunk" else 0
    ancestors = torch.rand((2, n, max(1, tree)), generator=rng) < 0.4
    ancestors[:, :, 0] = True
    words, positions = packed(ancestors, ends)
    if kind == "chunk":
        words, positions = None, (ends + torch.arange(n)).flatten()
    written = seeded(3, START + ring, 2 * kv_heads, dims, seed=seed)
    cache = encoded(written, narrow) if narrow in MOST_CODE else written.to(narrow or dtype)
    read = decoded(cache, dims) if narrow in MOST_CODE else cache.to(dtype)
    qkv = seeded(2 * n, heads + 2 * kv_heads, dims, dtype=dtype, seed=seed)
    own_sinks = seeded(heads, dtype=dtype, seed=seed) if sinks else None
    mask = Mask(
        positions=positions, ancestors=words, lengths=ends, appended=appended, tree=tree, start=START, window=window,
        part=part, parts=parts, splits=splits, counters=torch.zeros(2 * kv_heads, dtype=torch.int32),
    )  # fmt: skip
    out = attention.attend(qkv, heads, cache, 1, mask, scale=0.7, softcap=softcap, sinks=own_sinks)
    partial = torch.empty(2 * n, heads, dims + 1)
    attention.attend_to_part(qkv, cache, 1, mask, partial, scale=0.7, softcap=softcap)
    assert mask.counters is not None
    assert not mask.counters.any(), "as the next launch wants them"
    for number in range(2):
        own = slice(number * n, (number + 1) * n)
        end = lengths[number] + appended
        at = torch.tensor(held(end, ring, part, parts))
        asking = positions[own].view(-1, 1)
        sequence = (at >= 0) & (at <= asking)
        if window is not None:
            sequence &= at > asking - window
        visible = torch.zeros(n, START + ring, dtype=torch.bool)
        visible[:, START:] = sequence
        if tree:
            visible[:, START - tree : START] = ancestors[number]
        q = qkv[own, :heads]
        expected, _ = attended(q, read[1 + number], visible, 0.7, softcap, own_sinks)
        whole, sums = attended(q, read[1 + number], visible, 0.7, softcap, None)
        error = (out[own].view(n, heads, dims).double() - expected).abs().max()
        assert error < (1e-5 if dtype == torch.float32 else 4e-3)
        assert (partial[own, :, :dims].double() - whole).abs().max() < (1e-5 if dtype == torch.float32 else 4e-3)
        seen = sums > float("-inf")
        assert torch.equal(partial[own, :, dims] > float("-inf"), seen)
        off = (partial[own, :, dims].double() - sums)[seen].abs()
        assert not len(off) or off.max() < (1e-4 if dtype == torch.float32 else 1e-2)
        single = replace(
            mask, positions=mask.positions[own], ancestors=None if words is None else words[own],
            lengths=ends[number : number + 1],
        )  # fmt: skip
        alone = attention.attend(
            qkv[own].clone(), heads, cache, 1 + number, single, scale=0.7, softcap=softcap, sinks=own_sinks
        )
        assert torch.equal(alone, out[own]), "a sequence has the same bits beside others"


def test_parts_of_a_cache_are_merged_and_a_member_keeps_its_columns() -> None:
    partial, sinks = seeded(3, 2, 4, 17), seeded(4)
    partial[1, 0, 2, 16] = float("-inf")  # it sees nothing
    weights = partial[..., 16].softmax(0).unsqueeze(3)
    factor = torch.sigmoid(partial[..., 16].logsumexp(0) - sinks).unsqueeze(2)
    expected = ((partial[..., :16] * weights).sum(0) * factor).flatten(1)
    out = torch.empty(2, 21)
    attention.merge(partial[..., :16], partial[..., 16], out, columns=(9, 30), sinks=sinks)
    torch.testing.assert_close(out, expected[:, 9:30])


@EXAMPLES
@given(
    sizes=st.sampled_from(SIZES), dtype=st.sampled_from([torch.float32, torch.float16]), nodes=st.sampled_from([5, 9]),
    length=st.integers(0, 150), window=st.sampled_from([None, 40]), splits=st.sampled_from([1, 3]),
    sinks=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_the_root_of_a_tree_has_the_bits_that_it_has_alone(
    sizes: tuple[int, int, int], dtype: torch.dtype, nodes: int, length: int, window: int | None, splits: int,
    *, sinks: bool, seed: int,
) -> None:  # fmt: skip
    """Whether attention merges its splits by itself or not: of the root alone it does, of 5 nodes of some heads too."""
    (heads, kv_heads, dims), ends = sizes, torch.tensor([[length]])
    ancestors = torch.rand((1, nodes, nodes), generator=torch.Generator().manual_seed(seed)) < 0.4
    ancestors[:, :, 0], ancestors[:, 0, 1:] = True, False
    words, positions = packed(ancestors, ends)
    own_sinks = seeded(heads, dtype=dtype, seed=seed) if sinks else None
    tree = Mask(
        positions=positions, ancestors=words, lengths=ends, appended=0, tree=nodes, start=START, window=window, part=0,
        parts=1, splits=splits, counters=torch.zeros(kv_heads, dtype=torch.int32),
    )  # fmt: skip
    cache = seeded(1, START + (50 if window else 160), 2 * kv_heads, dims, dtype=dtype, seed=seed)
    qkv = seeded(nodes, heads + 2 * kv_heads, dims, dtype=dtype, seed=seed)
    out = attention.attend(qkv, heads, cache, 0, tree, scale=0.7, sinks=own_sinks)
    cache[:, START - 1] = cache[:, START - nodes]
    plain = replace(tree, positions=positions[:1], ancestors=words[:1] & 1, tree=1)
    alone = attention.attend(qkv[:1].clone(), heads, cache, 0, plain, scale=0.7, sinks=own_sinks)
    assert torch.equal(alone, out[:1])


def test_splits_follow_from_the_plan_and_their_results_fit_into_its_scratch() -> None:
    assert [step_splits(8320, rows) for rows in (1, 60, 480, 4096, 5000)] == [16, 16, 8, 1, 1]
    assert [step_splits(rows, 60) for rows in (100, 300, 8320)] == [1, 2, 16]
    assert [splits_of(8320, rows, 480) for rows in (1, 60, 480, 512, 2000, 9999)] == [8, 8, 8, 7, 1, 1]
    for step_rows in (1, 60, 480, 4096, 5000):
        for rows in (1, 60, 512, 4096, 9999):
            if (splits := splits_of(8320, rows, step_rows)) > 1:
                assert splits * rows <= partial_rows(8320, step_rows) <= 4096
