"""The CPU operations of a layer against torch in float64, and in batches against row by row."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plans.schema import Activation
from runtime.model import ops
from runtime.model.kv_codes import MOST_CODE, decoded, encoded, scales_of
from runtime.model.layers import rotary_table, rotate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KEPT = [None, torch.int8, torch.float8_e4m3fn]
"""Dtypes of a KV cache; None: that of activations."""
PATHS = ((0,), (0, 1), (0, 2), (0, 1, 3), (0, 1, 4), (0, 1, 4, 5))
"""Nodes of a tree: its ancestors from the root on, and itself."""


def seeded(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def as_kept(cache: Tensor, kept: torch.dtype | None) -> Tensor:
    """Return a copy of a cache as one of ``kept`` has it."""
    return encoded(cache, kept) if kept in MOST_CODE else cache.to(kept or cache.dtype, copy=True)


def near(computed: Tensor, expected: Tensor, roundings: int = 1) -> bool:
    """Return whether the error is at most ``roundings`` roundings of the dtype, half a unit in the last place each."""
    step = torch.finfo(computed.dtype).eps * roundings * 0.51
    return bool(((computed.double() - expected).abs() <= step * expected.abs() + 2e-5).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 768, 100), (2, 15, 3), (3, 40, 7), (8, 1500, 33), (61, 192, 129)]
)
def test_a_product_is_rounded_once(dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    x, weight = seeded(rows, inputs, dtype=dtype), seeded(outputs, inputs, dtype=dtype) / inputs**0.5
    residual, bias = seeded(rows, outputs, dtype=dtype), seeded(1, outputs, dtype=dtype)
    exact = x.double() @ weight.double().T
    for added in (None, residual, bias):
        out = ops.product(x, weight.t(), added)
        assert out.dtype == dtype
        assert near(out, exact if added is None else exact + added.double())


@pytest.mark.parametrize(("inputs", "outputs"), [(9, 1), (9, 2), (700, 39), (5003, 21)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_long_product_does_not_depend_on_other_rows(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    """Rows of x that do not fit into the first level of cache together are multiplied in parts."""
    x, weight = seeded(30, inputs, dtype=dtype), seeded(outputs, inputs, dtype=dtype) / inputs**0.5
    alone = torch.cat([ops.product(x[row : row + 1], weight.t()) for row in range(30)])
    assert near(alone, x.double() @ weight.double().T)
    for count in (*range(2, 14), 30):
        assert torch.equal(ops.product(x[:count], weight.t()), alone[:count])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_product_does_not_depend_on_other_rows(dtype: torch.dtype, threads: int) -> None:
    """Bit for bit on any thread, so that verifying a tree gives the results of plain decoding."""
    x, weight, scale = seeded(14, 203, dtype=dtype), seeded(501, 203, dtype=dtype), seeded(203, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    gelu: Activation = "gelu_pytorch_tanh"
    together = ops.product(x, weight.t()), ops.norm(x, scale, 1e-5), ops.gated(x[:, :202]), ops.gated(x[:, :202], gelu)
    torch.set_num_threads(1)
    for count in range(2, 14):
        assert torch.equal(ops.product(x[:count], weight.t()), together[0][:count])
    for row in range(14):
        one = x[row : row + 1]
        gates = ops.gated(one[:, :202]), ops.gated(one[:, :202], gelu)
        alone = ops.product(one, weight.t()), ops.norm(one, scale, 1e-5), *gates
        assert all(torch.equal(many[row : row + 1], single) for many, single in zip(together, alone, strict=True))
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_grouped_product_equals_the_products_of_its_groups_and_rows(dtype: torch.dtype, threads: int) -> None:
    """Groups have no row, one or many, selected by an index."""
    x, weights = seeded(9, 75, dtype=dtype), seeded(5, 131, 75, dtype=dtype) / 75**0.5
    index, ends = torch.tensor([3, 3, 8, 0, *range(9), 1, 2]), torch.tensor([0, 1, 4, 4, 15])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    together = ops.grouped(x, index, weights, ends)
    assert torch.equal(ops.grouped(x[index], None, weights, ends), together)
    torch.set_num_threads(before)
    for row, group in enumerate([1, 2, 2, 2, *[4] * 11]):
        alone = (torch.arange(5) >= group).long()
        assert torch.equal(ops.grouped(x, index[row : row + 1], weights, alone), together[row : row + 1])
        assert near(together[row], x[index[row]].double() @ weights[group].double().T)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_and_gate(dtype: torch.dtype) -> None:
    x, scale, both = seeded(5, 203, dtype=dtype), seeded(203, dtype=dtype), seeded(5, 86, dtype=dtype) * 30
    exact = functional.rms_norm(x.double(), (203,), scale.double(), 1e-5)
    assert near(ops.norm(x, scale, 1e-5), exact, roundings=5)
    gate, up = both.double().chunk(2, 1)
    assert near(ops.gated(both), functional.silu(gate) * up, roundings=5)
    gelu = functional.gelu(gate, approximate="tanh") * up
    assert near(ops.gated(both, "gelu_pytorch_tanh"), gelu, roundings=5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dims"), [(4, 2, 24), (3, 3, 64), (8, 1, 6), (2, 1, 140)])
def test_attention_rotates_stores_and_is_limited_by_the_bias(
    dtype: torch.dtype, heads: int, kv_heads: int, dims: int
) -> None:
    """Two of three sequences have three rows each, written to cache rows given by a slice or by indices."""
    n, first, seen, columns = 3, 1, 2, 37
    qkv = seeded(2 * n, heads + 2 * kv_heads, dims, dtype=dtype)
    rotary = rotary_table(torch.linspace(1, 0.01, dims // 2), 2 * n, dtype).unsqueeze(2)
    bias = torch.where(seeded(2, 1, n, columns, dtype=torch.float32) > 0, 0.0, float("-inf")).to(dtype)
    bias[..., 4:7] = 0.0
    turned = qkv.double()
    rotate(turned[:, : heads + kv_heads], rotary.double())
    for written, scale in ((slice(6, 6 + n), None), (torch.tensor([51, 52, 53, 99, 98, 50]), 0.15625)):
        cache = seeded(3, 45, 2 * kv_heads, dims, dtype=dtype)
        expected = cache.double()
        if isinstance(written, slice):
            expected[first:, written] = turned[:, heads:].view(2, n, 2 * kv_heads, dims)
        else:
            expected.flatten(0, 1)[written] = turned[:, heads:]
        rotated = qkv.clone()
        factors = None if scale is None else torch.tensor([scale, 0.0])
        out = ops.attend(rotated, heads, cache, rotary, bias, seen, n, written, first, factors=factors)
        assert near(rotated, turned)
        assert near(cache, expected)
        keys, values = expected[first:, seen : seen + columns].transpose(1, 2).split(kv_heads, 1)
        q = turned[:, :heads].view(2, n, heads, dims).transpose(1, 2)
        whole = functional.scaled_dot_product_attention(
            q, keys, values, attn_mask=bias.double(), enable_gqa=heads != kv_heads, scale=scale
        )
        torch.testing.assert_close(
            out.double(), whole.transpose(1, 2).reshape(2 * n, -1), rtol=0, atol=12 * torch.finfo(dtype).eps
        )


@pytest.mark.parametrize("kept", MOST_CODE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dims"), [(4, 2, 24), (3, 3, 64), (8, 1, 6), (2, 1, 140)])
def test_attention_in_codes_writes_those_of_torch_and_reads_their_values(
    dtype: torch.dtype, heads: int, kv_heads: int, dims: int, kept: torch.dtype
) -> None:
    """With an infinity, and more rows than are summed at once; keys are not rotated, so that they are known exactly."""
    n, first, columns = 3, 1, 300
    qkv = seeded(2 * n, heads + 2 * kv_heads, dims, dtype=dtype)
    qkv[0, -1, 1], qkv[1, heads], qkv[2, heads, 0] = float("inf"), 0.0, 1e-30
    rotary = torch.stack([torch.ones(2 * n, 1, dims), torch.zeros(2 * n, 1, dims)]).to(dtype)
    bias = torch.where(seeded(2, 1, n, columns, dtype=torch.float32) > 0, 0.0, float("-inf")).to(dtype)
    bias[..., 4:7] = 0.0
    bias[0, :, :, n] = float("-inf")  # the row with the infinity
    for written in (slice(5, 5 + n), torch.tensor([315, 316, 317, 620, 621, 622])):
        cache = encoded(seeded(3, 310, 2 * kv_heads, dims, dtype=dtype), kept)
        expected, codes = cache.view(torch.uint8).clone(), encoded(qkv[:, heads:], kept).view(torch.uint8)
        if isinstance(written, slice):
            expected[first:, written] = codes.view(2, n, *codes.shape[1:])
        else:
            expected.flatten(0, 1)[written] = codes
        out = ops.attend(qkv.clone(), heads, cache, rotary, bias, 2, n, written, first)
        assert torch.equal(cache.view(torch.uint8), expected)
        keys, values = decoded(cache, dims).double()[first:, 2 : 2 + columns].transpose(1, 2).split(kv_heads, 1)
        q = qkv[:, :heads].double().view(2, n, heads, dims).transpose(1, 2)
        whole = functional.scaled_dot_product_attention(
            q, keys, values, attn_mask=bias.double(), enable_gqa=heads != kv_heads
        )
        torch.testing.assert_close(
            out.double(), whole.transpose(1, 2).reshape(2 * n, -1), rtol=0, atol=12 * torch.finfo(dtype).eps
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_in_float8_writes_the_codes_of_torch_and_reads_every_code(dtype: torch.dtype) -> None:
    """Values of all bits that 16-bit dtypes have, and those between two codes, beside one by which the scale is 1."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = codes[~codes.float().isnan()]
    if dtype == torch.float32:
        numbers = codes.float().sort().values
        values = torch.cat([numbers, (numbers[1:] + numbers[:-1]) / 2, seeded(65029, dtype=dtype)])
    else:
        values = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values.view(512, -1)[:, :127].nan_to_num(448).clamp(-448, 448)
    values = torch.cat([values, torch.full((512, 1), 448, dtype=dtype)], 1)
    qkv, rotary = torch.zeros(512, 3, 128, dtype=dtype), torch.zeros(2, 512, 1, 128, dtype=dtype)
    qkv[:, 2], cache = values, torch.zeros(1, 512, 2, 132, dtype=torch.float8_e4m3fn)
    ops.attend(qkv, 1, cache, rotary, torch.zeros(1, 1, 512, 512, dtype=dtype), 0, 0, slice(0, 512), 0)
    assert bool((scales_of(cache[0, :, 1]) == 1).all())
    written = cache[0, :, 1, :128].contiguous().view(torch.uint8)
    assert torch.equal(written, values.to(torch.float8_e4m3fn).view(torch.uint8))
    bias = torch.tensor([[[[0.0, float("-inf")]]]], dtype=dtype)
    for code in codes:
        one = torch.zeros(1, 2, 2, 76, dtype=torch.float8_e4m3fn)
        one[0, 0, 1, :72] = code
        scales_of(one)[0, 0, 1] = 0.5
        read = ops.attend(torch.zeros(1, 3, 72, dtype=dtype), 1, one, rotary[:, :1, :, :72], bias, 0, 0, slice(1, 2), 0)
        assert torch.equal(read.float(), code.float().mul(0.5).expand(1, 72))


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dims"), [(3, 3, 64), (4, 2, 30)])
def test_attention_of_a_row_does_not_depend_on_other_rows(
    dtype: torch.dtype, heads: int, kv_heads: int, dims: int, kept: torch.dtype | None
) -> None:
    rows, columns = 5, 37
    qkv, cache = seeded(rows, heads + 2 * kv_heads, dims, dtype=dtype), seeded(1, 40, 2 * kv_heads, dims, dtype=dtype)
    cache = as_kept(cache, kept)
    rotary = rotary_table(torch.linspace(1, 0.01, dims // 2), rows, dtype).unsqueeze(2)
    bias = torch.where(seeded(1, 1, rows, columns, dtype=torch.float32) > 0, 0.0, float("-inf")).to(dtype)
    together = ops.attend(qkv.clone(), heads, cache, rotary, bias, 0, 0, slice(0, rows), 0)
    for row in range(rows):
        own = slice(row, row + 1)
        alone = ops.attend(qkv[own].clone(), heads, cache, rotary[:, own], bias[:, :, own], 0, 0, own, 0)
        assert torch.equal(alone, together[own])


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(KEPT),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    dims=st.integers(3, 128).map(lambda half: 2 * half),
    before=st.integers(0, 150),
    cuts=st.lists(st.integers(1, 47), max_size=4, unique=True).map(sorted),
    threads=st.integers(1, 2),
)
def test_attention_of_a_chunk_does_not_depend_on_its_division(
    dtype: torch.dtype, kind: torch.dtype | None, kv_heads: int, group: int, dims: int, before: int, cuts: list[int],
    threads: int,
) -> None:  # fmt: skip
    """48 rows behind ``before`` positions, at once and in parts, with a window of as many columns as are there."""
    rows, heads = 48, kv_heads * group
    qkv = seeded(rows, heads + 2 * kv_heads, dims, dtype=dtype)
    kept = seeded(1, before + rows + 9, 2 * kv_heads, dims, dtype=dtype)
    rotary = rotary_table(torch.linspace(1, 0.01, dims // 2), rows, dtype).unsqueeze(2)
    own = torch.get_num_threads()

    def attended(first: int, last: int, cache: Tensor) -> Tensor:
        seen = (torch.arange(before + last) <= before + torch.arange(first, last)[:, None]).to(dtype)
        bias, written = seen.log()[None, None], slice(before + first, before + last)
        return ops.attend(qkv[first:last].clone(), heads, cache, rotary[:, first:last], bias, 0, 0, written, 0)

    whole = attended(0, rows, as_kept(kept, kind))
    try:
        torch.set_num_threads(threads)
        cache = as_kept(kept, kind)
        parts = [attended(first, last, cache) for first, last in pairwise([0, *cuts, rows])]
    finally:
        torch.set_num_threads(own)
    assert torch.equal(torch.cat(parts), whole)
    assert whole.isfinite().all()


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dims", "capped", "length"),
    [(2, 2, 64, False, 43), (8, 2, 30, True, 61), (5, 1, 24, True, 64), (3, 1, 80, False, 0)],
)
def test_attention_of_a_tree_node_equals_that_of_plain_decoding(
    dtype: torch.dtype, heads: int, kv_heads: int, dims: int, capped: bool, length: int, kept: torch.dtype | None
) -> None:
    """Bit for bit, for any cache rows, hidden columns and other rows, so that no token depends on a drafted one."""
    paths = PATHS
    nodes, columns = len(paths), [0.0 if row in path else float("-inf") for path in paths for row in range(len(paths))]
    qkv = seeded(nodes, heads + 2 * kv_heads, dims, dtype=dtype)
    table = rotary_table(torch.linspace(1, 0.01, dims // 2), length + nodes, dtype).unsqueeze(2)
    before = seeded(1, nodes + 90, 2 * kv_heads, dims, dtype=dtype)
    before = as_kept(before, kept)
    softmax = (torch.tensor([0.3, 2.0]), seeded(heads, dtype=dtype)) if capped else (None, None)

    def visible(count: int, of: int) -> list[float]:
        return [0.0] * count + [float("-inf")] * (of - count)

    bias = torch.cat([torch.tensor(columns).view(nodes, nodes), torch.tensor(visible(length, 67)).expand(nodes, -1)], 1)
    rotary = table[:, [length + len(path) - 1 for path in paths]]
    together = ops.attend(
        qkv.clone(), heads, before.clone(), rotary, bias.to(dtype)[None, None], 0, nodes, slice(0, nodes), 0, None,
        *softmax,
    )  # fmt: skip
    for path in paths:
        cache = before.clone()
        for depth, node in enumerate(path):
            own = torch.tensor([[0.0, *visible(length + depth, 77)]]).to(dtype)[None, None]
            rows, last = qkv[node : node + 1].clone(), slice(nodes - 1, nodes)
            turned = table[:, length + depth : length + depth + 1]
            alone = ops.attend(rows, heads, cache, turned, own, nodes - 1, 1, last, 0, None, *softmax)
            cache[:, nodes + length + depth] = cache[:, nodes - 1]
        assert torch.equal(alone, together[path[-1] : path[-1] + 1])


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    length=st.integers(0, 210),
    ring=st.sampled_from([64, 66, 79]),
    window=st.sampled_from([1, 3, 40, 59]),
)
def test_attention_in_a_ring_has_the_bits_of_plain_decoding_and_of_a_chunk(
    dtype: torch.dtype, length: int, ring: int, window: int
) -> None:
    """Nodes of a tree behind ``length`` positions, each node of a path by itself, and the path as a chunk."""
    heads, kv_heads, dims, nodes, path = 3, 1, 48, len(PATHS), PATHS[-1]
    qkv = seeded(nodes, heads + 2 * kv_heads, dims, dtype=dtype)
    table = rotary_table(torch.linspace(1, 0.01, dims // 2), length + nodes, dtype).unsqueeze(2)
    before, rows = seeded(1, nodes + ring, 2 * kv_heads, dims, dtype=dtype), torch.arange(ring)

    def sequence(end: int, positions: Tensor) -> Tensor:
        held = end - 1 - (end - 1 - rows) % ring  # of the last position in each row
        return (held >= 0) & (held <= positions[:, None]) & (held > positions[:, None] - window)

    def attended(cache: Tensor, of: Tensor, own: Tensor, positions: Tensor, end: int) -> Tensor:
        """``own`` [rows, tree]: visible nodes; none: the rows are a chunk."""
        tree = own.shape[1]
        bias = torch.cat([own, sequence(end, positions)], 1).to(dtype).log()[None, None]
        written = slice(nodes - tree, nodes) if tree else nodes + positions % ring
        oldest = torch.tensor([tree + (end % ring if end > ring else 0)])
        return ops.attend(
            qkv[of].clone(), heads, cache, table[:, positions], bias, nodes - tree, tree, written, 0, oldest,
            positions=positions, ring=ring,
        )  # fmt: skip

    depths = torch.tensor([len(path) - 1 for path in PATHS])
    visible = torch.tensor([[node in path[-window:] for node in range(nodes)] for path in PATHS])
    together = attended(before.clone(), torch.arange(nodes), visible, length + depths, length)
    cache, alone = before.clone(), []
    for depth, node in enumerate(path):
        position = torch.tensor([length + depth])
        alone.append(attended(cache, torch.tensor([node]), torch.ones(1, 1) > 0, position, length + depth))
        cache[:, nodes + (length + depth) % ring] = cache[:, nodes - 1]
    assert torch.equal(torch.cat(alone), together[list(path)])
    positions = length + torch.arange(len(path))
    none = torch.zeros(len(path), 0, dtype=torch.bool)
    chunk = attended(before.clone(), torch.tensor(path), none, positions, length + len(path))
    assert torch.equal(chunk, together[list(path)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "count"), [(1, 5, 5), (3, 1024, 3), (10, 999, 10)])
def test_top_is_the_best_of_the_log_softmax(dtype: torch.dtype, rows: int, columns: int, count: int) -> None:
    logits = seeded(rows, columns, dtype=dtype) * 4
    logits[:, 2] = logits[:, 4] = logits.amax(1)  # ties: the first wins
    tokens, scores = ops.top(logits, count)
    exact = torch.sort(logits.double().log_softmax(1), dim=1, descending=True, stable=True)
    assert torch.equal(tokens, exact.indices[:, :count])
    torch.testing.assert_close(scores.double(), exact.values[:, :count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (3, 1024), (10, 999), (2, 256), (2, 257)])
def test_highest_is_the_first_of_the_highest_logits(dtype: torch.dtype, rows: int, columns: int) -> None:
    logits = seeded(rows, columns + 3, dtype=dtype)[:, :columns] * 4
    logits[:, 2] = logits[:, columns - 1] = logits.amax(1) + 1
    words = torch.empty(rows, 2, dtype=torch.float64)
    assert torch.equal(ops.highest(logits), torch.full((rows,), 2))
    assert torch.equal(ops.highest(logits, words, 70), torch.full((rows,), 2))
    assert torch.equal(words, torch.stack([logits[:, 2].double(), torch.full((rows,), 72.0).double()], 1))
    logits[:, 2] = -1.0
    assert torch.equal(ops.highest(logits), logits.argmax(1))
    logits[0] = -torch.inf
    assert ops.highest(logits)[0] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [5, 256, 999])
def test_what_is_not_a_number_gives_tokens_of_the_vocabulary(dtype: torch.dtype, columns: int) -> None:
    logits = seeded(4, columns, dtype=dtype)
    logits[0], logits[1, 0], logits[2, columns - 1], logits[3, columns // 2 :] = [torch.nan] * 4
    of_members = torch.stack([ops.candidates(logits, 3, first) for first in (0, columns)])
    merged, _ = ops.merged(of_members, 3, dtype)
    for tokens, most in ((ops.highest(logits), columns), (ops.top(logits, 3)[0], columns), (merged, 2 * columns)):
        assert tokens.min() >= 0
        assert tokens.max() < most


def test_kernels_are_refused_a_stack_that_is_too_small_for_them() -> None:
    program = "import torch; from runtime.model import ops; ops.prepare(torch.float32, codes=False)"
    command = ["bash", "-c", 'ulimit -s 1024; exec "$@"', "-", sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1] == (
        "runtime.errors.MachineError: stack of a thread: found 1024 KiB, expected at least 2048: ulimit -s 2048"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divided", [(600, 400), (3, 997), (997, 3), (250, 250, 500)])
def test_candidates_of_members_together_are_the_best_of_all(dtype: torch.dtype, divided: tuple[int, ...]) -> None:
    """Also where a member has fewer logits than candidates; of equal ones the first member's is first."""
    logits = seeded(7, 1000, dtype=dtype) * 4
    logits[:, 999] = logits[:, 1] = logits.amax(1)
    firsts = [sum(divided[:number]) for number in range(len(divided))]
    parts = logits.split(divided, 1)
    gathered = torch.stack([ops.candidates(part, 5, first) for part, first in zip(parts, firsts, strict=True)])
    tokens, scores = ops.merged(gathered, 5, dtype)
    exact = torch.sort(logits.double().log_softmax(1), dim=1, descending=True, stable=True)
    assert torch.equal(tokens, exact.indices[:, :5])
    torch.testing.assert_close(scores.double(), exact.values[:, :5], rtol=0, atol=1e-5)
    for row in range(7):
        alone = torch.stack(
            [ops.candidates(part[row : row + 1], 5, first) for part, first in zip(parts, firsts, strict=True)]
        )
        assert torch.equal(alone, gathered[:, row : row + 1])
