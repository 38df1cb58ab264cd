"""Norms, gates, queries and keys, and the best logits, by Triton's interpreter, against torch in float64."""

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plans.schema import Activation
from runtime.model.kv_codes import MOST_CODE, decoded, encoded, scales_of
from runtime.model.layers import rotary_table, rotate
from runtime.model.mask import WORD, words_of
from runtime.model.triton_kernels import float8, heads, launch, masks, rowwise, tables, top
from tests.runtime.model.triton_kernels.interpreted import launched, near, seeded

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
EXAMPLES = settings(max_examples=12, deadline=None)


@EXAMPLES
@given(dtype=DTYPES, rows=st.integers(1, 4), columns=st.integers(1, 300), offset=st.booleans())
def test_norm(dtype: torch.dtype, rows: int, columns: int, offset: bool) -> None:
    wide, weight = seeded(rows, columns + 3, dtype=dtype), seeded(columns, dtype=dtype)
    x = wide[:, :columns]
    out = rowwise.norm(x, weight, 1e-5, offset=offset)
    assert near(out, functional.rms_norm(x.double(), (columns,), weight.double() + offset, 1e-5), roundings=4)


@EXAMPLES
@given(
    dtype=DTYPES, rows=st.integers(1, 4), columns=st.integers(1, 300), norm=st.sampled_from([None, False, True]),
    multiplier=st.sampled_from([1.0, 0.3]), following=st.sampled_from([None, False, True]),
)  # fmt: skip
def test_an_output_is_added_to_the_residual_and_the_sum_has_its_norm(
    dtype: torch.dtype, rows: int, columns: int, norm: bool | None, multiplier: float, following: bool | None
) -> None:
    """The norm that follows has the bits of the norm alone."""
    weight, next_weight = seeded(columns, dtype=dtype), seeded(columns, dtype=dtype, seed=2)
    x, residual = seeded(rows, columns + 3, dtype=dtype)[:, :columns], seeded(rows, columns, dtype=dtype, seed=1)
    out = x.double() if norm is None else functional.rms_norm(x.double(), (columns,), weight.double() + norm, 1e-5)
    expected = residual.double() + multiplier * out
    normed = rowwise.add(
        residual, x, None if norm is None else (weight, 1e-5, norm), multiplier,
        None if following is None else (next_weight, 1e-3, following),
    )  # fmt: skip
    assert near(residual, expected, roundings=4)
    if following is None:
        assert normed is None
    else:
        assert normed is not None
        assert torch.equal(normed, rowwise.norm(residual, next_weight, 1e-3, offset=following))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [5, 1100])
def test_rows_of_a_table_in_codes(dtype: torch.dtype, columns: int) -> None:
    """The tokens are a column of a wider tensor, as in a plain step of several sequences."""
    codes = torch.randint(256, (9, columns), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    scales, tokens = seeded(9, 1, dtype=torch.bfloat16), torch.tensor([[3, 7], [8, 7], [0, 7], [3, 7]])[:, 0]
    out = tables.look_up(tokens, codes, scales, dtype)
    assert out.dtype == dtype
    assert near(out, ((codes.double() - 128) * scales.double())[tokens], roundings=2)


@EXAMPLES
@given(
    dtype=DTYPES, rows=st.integers(1, 3), channels=st.integers(1, 1500),
    activation=st.sampled_from(["silu", "gelu_pytorch_tanh"]),
)  # fmt: skip
def test_gate(dtype: torch.dtype, rows: int, channels: int, activation: Activation) -> None:
    both = seeded(rows, 2 * channels, dtype=dtype) * 5
    gate, up = both.double().chunk(2, 1)
    act = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
    assert near(rowwise.gated(both, activation), act * up, roundings=4)


def test_every_float8_is_read_and_every_float_is_rounded_as_by_torch() -> None:
    every = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    values = every.view(torch.float8_e4m3fn).float()
    assert torch.equal(launched(float8.widened, every, torch.float32).nan_to_num(999.0), values.nan_to_num(999.0))
    finite = torch.unique(values.nan_to_num(0.0))
    between = torch.cat([(finite[1:] + finite[:-1]) / 2, finite])
    near_them = torch.cat([torch.nextafter(between, torch.tensor(end)) for end in (-1e9, 1e9)])
    tried = torch.cat([between, near_them, seeded(500) * 2**-6, seeded(500) * 50, torch.tensor([float("nan")])])
    tried = tried.clamp(-448, 448)
    assert torch.equal(launched(float8.narrowed, tried, torch.uint8), tried.to(torch.float8_e4m3fn).view(torch.uint8))


@EXAMPLES
@given(
    dtype=st.sampled_from([torch.float32, torch.float16]),
    kept=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    sizes=st.sampled_from([(4, 2, 24), (3, 1, 16), (8, 2, 64), (2, 2, 10)]),
    n=st.integers(1, 4), normed=st.sampled_from([None, False, True]), together=st.booleans(), scales=st.booleans(),
    by_index=st.booleans(),
)  # fmt: skip
def test_queries_and_keys_are_normed_rotated_and_stored(
    dtype: torch.dtype, kept: torch.dtype, sizes: tuple[int, int, int], n: int, normed: bool | None, together: bool,
    scales: bool, by_index: bool,
) -> None:  # fmt: skip
    """Each head has its norm, or all heads of a row together.

    Of three sequences the last two take part; positions behind the table's end take its last row.
    """
    query_heads, kv_heads, dims = sizes
    rows, rotated = 2 * n, query_heads + kv_heads
    qkv = seeded(rows, query_heads + 2 * kv_heads, dims, dtype=dtype) * 30
    cache = seeded(3, 12, 2 * kv_heads, dims).to(kept)
    table = rotary_table(torch.linspace(1, 0.01, dims // 2), 9, dtype)
    positions = torch.tensor([3, 8, 1, 99, 0, 5, 6, 2])[:rows]
    q_dims, k_dims = (query_heads * dims, kv_heads * dims) if together else (dims, dims)
    q_weight, k_weight = seeded(q_dims, dtype=dtype, seed=1), seeded(k_dims, dtype=dtype, seed=2)
    factors = torch.linspace(0.5, 2, 9).to(dtype) if scales else None
    written = torch.tensor([35, 1, 2, 20, 21, 7, 30, 31])[:rows] if by_index else slice(5, 5 + n)
    norms = None if normed is None else (q_weight, k_weight, 1e-5, normed)
    turned, stored = qkv.double(), cache.double()
    if normed is not None:
        for weight, part in ((q_weight, turned[:, :query_heads]), (k_weight, turned[:, query_heads:rotated])):
            own = part.reshape(rows, -1, len(weight))
            part.copy_(functional.rms_norm(own, (len(weight),), weight.double() + normed, 1e-5).view_as(part))
    at = positions.clamp(max=8)
    if factors is not None:
        turned[:, :query_heads] *= factors.double()[at].view(-1, 1, 1)
    rotate(turned[:, :rotated], table.double()[:, at].unsqueeze(2))
    most = torch.finfo(kept).max
    kv = turned[:, query_heads:].to(dtype).double().clamp(-most, most).to(kept).double()
    if isinstance(written, slice):
        stored[1:, written] = kv.view(2, n, 2 * kv_heads, dims)
    else:
        stored.flatten(0, 1)[written] = kv
    heads.rotate_and_store(qkv, query_heads, cache, table, positions, written, 1, norms=norms, factors=factors)
    assert near(qkv[:, :query_heads], turned[:, :query_heads], roundings=4)
    off = (cache.double() - stored).abs() / (stored.abs() * torch.finfo(kept).eps + 1e-3)
    assert bool((off <= 2.0).all())


@EXAMPLES
@given(
    dtype=DTYPES, sizes=st.sampled_from([(4, 2, 24), (3, 1, 16), (8, 2, 64), (2, 2, 10)]), n=st.integers(1, 4),
    by_index=st.booleans(), kept=st.sampled_from(list(MOST_CODE)), scale=st.sampled_from([0.0, 1e-41, 1e-3, 30.0]),
    strange=st.sampled_from([None, "inf", "nan"]),
)  # fmt: skip
def test_keys_and_values_are_stored_as_codes_with_the_bits_of_torch(
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    n: int,
    by_index: bool,
    kept: torch.dtype,
    scale: float,
    strange: str | None,
) -> None:
    """Without a rotation keys are what they were, and so are the rows that nothing is written to."""
    query_heads, kv_heads, dims = sizes
    rows = 2 * n
    qkv = seeded(rows, query_heads + 2 * kv_heads, dims).mul(scale).to(dtype)
    if strange is not None:
        qkv[0, query_heads + kv_heads, 3] = float(strange)
    cache = encoded(seeded(3, 12, 2 * kv_heads, dims, seed=1), kept)
    table = torch.stack([torch.ones(9, dims), torch.zeros(9, dims)]).to(dtype)
    written = torch.tensor([35, 1, 2, 20, 21, 7, 30, 31])[:rows] if by_index else slice(5, 5 + n)
    expected, codes = cache.clone(), encoded(qkv[:, query_heads:], kept)
    if isinstance(written, slice):
        expected[1:, written] = codes.view(2, n, *codes.shape[1:])
    else:
        expected.flatten(0, 1)[written] = codes
    heads.rotate_and_store(qkv, query_heads, cache, table, torch.zeros(rows, dtype=torch.int64), written, 1)
    assert torch.equal(cache[..., :dims], expected[..., :dims])
    assert torch.equal(scales_of(cache).nan_to_num(9.0), scales_of(expected).nan_to_num(9.0))
    assert bool(decoded(codes, dims).isnan().any()) == (strange == "nan")


@EXAMPLES
@given(
    dtype=DTYPES, rows=st.integers(1, 3), columns=st.sampled_from([1, 7, 300, 4097]), count=st.integers(1, 7),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_top_is_the_best_of_the_log_softmax(dtype: torch.dtype, rows: int, columns: int, count: int, seed: int) -> None:
    count = min(count, columns)
    logits = seeded(rows, columns, dtype=dtype, seed=seed) * 4  # 16 bits have equal ones
    logits[:, :: max(1, columns // 5)] = logits.amax(1, keepdim=True)
    tokens, scores = top.top(logits, count)
    exact = torch.sort(logits.double().log_softmax(1), dim=1, descending=True, stable=True)
    assert torch.equal(tokens, exact.indices[:, :count])
    torch.testing.assert_close(scores.double(), exact.values[:, :count], rtol=0, atol=1e-5)


@EXAMPLES
@given(
    dtype=DTYPES, rows=st.integers(1, 3), shares=st.lists(st.sampled_from([1, 7, 4100]), min_size=1, max_size=3),
    count=st.integers(1, 7), seed=st.integers(0, 9),
)  # fmt: skip
def test_top_of_divided_logits_is_that_of_the_whole(
    dtype: torch.dtype, rows: int, shares: list[int], count: int, seed: int
) -> None:
    """Also where a member has fewer rows than are asked for."""
    logits = (seeded(rows, sum(shares), seed=seed) * 4).to(dtype)
    count = min(count, logits.shape[1])
    firsts = [sum(shares[:member]) for member in range(len(shares))]
    parts = zip(logits.split(shares, 1), firsts, strict=True)
    tokens, scores = top.of_all(torch.stack([top.words(own, count, first) for own, first in parts]), count)
    exact = torch.sort(logits.double().log_softmax(1), dim=1, descending=True, stable=True)
    assert torch.equal(tokens, exact.indices[:, :count])
    torch.testing.assert_close(scores.double(), exact.values[:, :count], rtol=0, atol=1e-5)


def test_what_is_not_a_number_gives_tokens_of_the_vocabulary() -> None:
    tokens, _ = top.top(torch.full((2, 5), float("nan")), 3)
    assert bool(((tokens >= 0) & (tokens < 5)).all())


@pytest.mark.parametrize("nodes", [1, 5, 40])
def test_ancestors_are_bits_and_their_number_is_the_depth(nodes: int) -> None:
    visible = torch.eye(nodes, dtype=torch.bool).repeat(2, 1, 1)
    for tree, step in enumerate((1, 2)):
        for node in range(1, nodes):
            visible[tree, node] |= visible[tree, (node - 1) // step]
    lengths = torch.tensor([[3], [100]])
    words, positions = masks.packed(visible, lengths)
    bits = torch.stack([(words >> bit) & 1 for bit in range(WORD)], 2).flatten(1)[:, :nodes]
    assert torch.equal(bits.bool(), visible.flatten(0, 1))
    assert torch.equal(words_of(visible.flatten(0, 1)), words)
    assert torch.equal(positions.view(2, nodes), visible.sum(2) - 1 + lengths)


def test_blocks_are_the_least_that_hold_all() -> None:
    assert [launch.power_of_two(count) for count in (0, 1, 2, 3, 64, 65)] == [1, 1, 2, 4, 64, 128]
    assert [launch.ceil_div(count, 4) for count in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_rows_that_nobody_has_start_nothing() -> None:
    none: Tensor = seeded(0, 6)
    assert rowwise.norm(none, seeded(6), 1e-5).shape == (0, 6)
    assert rowwise.gated(none).shape == (0, 3)
    assert top.top(none, 2)[0].shape == (0, 2)


@EXAMPLES
@given(
    dtype=DTYPES, rows=st.integers(1, 4), columns=st.integers(1, 300), gathers=st.booleans(), normed=st.booleans(),
    keep=st.booleans(),
)  # fmt: skip
def test_embeddings_and_states_are_joined_behind_their_norms(
    dtype: torch.dtype, rows: int, columns: int, gathers: bool, normed: bool, keep: bool
) -> None:
    """With the bits of the norms alone; tokens are a column of a wider tensor."""
    table, hidden = seeded(9, columns, dtype=dtype), seeded(4 if gathers else rows, columns, dtype=dtype, seed=1)
    tokens = torch.tensor([[3, 7], [8, 7], [0, 7], [3, 7]])[:rows, 0]
    parents = torch.tensor([2, 0, 3, 2])[:rows] if gathers else None
    first, second = seeded(columns, dtype=dtype, seed=2), seeded(columns, dtype=dtype, seed=3)
    norms = ((first, 1e-5, False), (second, 1e-3, False)) if normed else None
    joined, kept = rowwise.join(tokens, table, hidden, parents, norms, keep=keep)
    states = [table[tokens], hidden if parents is None else hidden[parents]]
    if keep:
        assert torch.equal(kept, states[1])
    if norms is not None:
        states = [rowwise.norm(x, weight, eps) for x, (weight, eps, _) in zip(states, norms, strict=True)]
    assert torch.equal(joined, torch.cat(states, 1))
