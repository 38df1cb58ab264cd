"""Kernels touch nothing but their operands: shapes and strides at random, and what is refused at the door."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.model import ops
from runtime.model.kernels.arguments import Attend
from runtime.model.kv_codes import stored_dims
from tests.runtime.model.kernels.touched import checked_run, touched

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_run", checked_run)


def zeros(*shape: int, dtype: torch.dtype, wider: int = 0) -> Tensor:
    """Return zeros of a shape, whose rows lie ``wider`` values further apart than they need."""
    return torch.zeros(*shape[:-1], shape[-1] + wider, dtype=dtype)[..., : shape[-1]]


sizes = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    rows=sizes,
    inputs=sizes,
    outputs=sizes,
    wider=st.integers(0, 3),
    threads=st.sampled_from([1, 2]),
    added=st.sampled_from([None, 1, "rows"]),
)
def test_products(
    dtype: torch.dtype, rows: int, inputs: int, outputs: int, wider: int, threads: int, added: str | int | None
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, weight = zeros(rows, inputs, dtype=dtype, wider=wider), zeros(outputs, inputs, dtype=dtype)
        more = None if added is None else zeros(rows if added == "rows" else 1, outputs, dtype=dtype, wider=wider)
        ops.product(x, weight.t(), more)
        ops.norm(x, weight[0], 1e-6)
        ops.gated(zeros(rows, 2 * inputs, dtype=dtype, wider=wider))
        logits = zeros(rows, outputs, dtype=dtype, wider=wider)
        ops.top(logits, min(outputs, 5))
        ops.highest(logits)
        ops.highest(logits, torch.zeros(rows, 2, dtype=torch.float64), 3)
        ops.merged(torch.stack([ops.candidates(logits, 5, first) for first in (0, outputs)]), 5, dtype)
        experts = torch.arange(rows) % 3
        chosen, order = torch.sort(experts, stable=True)
        ends = torch.searchsorted(chosen, torch.arange(4), right=True)
        weights = zeros(4, outputs, inputs, dtype=dtype)
        for index in (None, order):
            ops.grouped(x, index, weights, ends)
    finally:
        torch.set_num_threads(before)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    pairs=st.integers(1, 40),
    sequences=st.integers(1, 3),
    n=st.integers(1, 9),
    columns=st.integers(1, 70),
    indexed=st.booleans(),
    kind=st.sampled_from([None, torch.int8, torch.float8_e4m3fn]),
)
def test_attention(
    dtype: torch.dtype, kv_heads: int, group: int, pairs: int, sequences: int, n: int, columns: int, indexed: bool,
    kind: torch.dtype | None,
) -> None:  # fmt: skip
    heads, dim, rows = kv_heads * group, 2 * pairs, sequences * n
    qkv, out_rows = zeros(rows, heads + 2 * kv_heads, dim, dtype=dtype), max(n, columns) + 3
    kept = stored_dims(kind or dtype, dim)
    cache = zeros(sequences + 1, out_rows, 2 * kv_heads, kept, dtype=kind or dtype)
    rotary, bias = zeros(2, rows, 1, dim, dtype=dtype), zeros(sequences, 1, n, columns, dtype=dtype, wider=2)
    written = torch.arange(rows) if indexed else slice(3, 3 + n)
    ops.attend(qkv, heads, cache, rotary, bias, 2, min(columns, n), written, 1)


def operands(**changes: Tensor) -> tuple[Tensor, int, Tensor, Tensor, Tensor]:
    f32 = torch.float32
    chosen: dict[str, Tensor] = {
        "qkv": zeros(6, 8, 4, dtype=f32),
        "cache": zeros(2, 10, 4, 4, dtype=f32),
        "rotary": zeros(2, 6, 1, 4, dtype=f32),
        "bias": zeros(2, 1, 3, 7, dtype=f32),
    } | changes
    return chosen["qkv"], 4, chosen["cache"], chosen["rotary"], chosen["bias"]


@pytest.mark.parametrize(
    "changes",
    [
        {"rotary": zeros(2, 6, 1, 2, dtype=torch.float32)},
        {"rotary": zeros(2, 5, 1, 4, dtype=torch.float32)},
        {"cache": zeros(2, 10, 4, 2, dtype=torch.float32)},
        {"cache": zeros(2, 10, 2, 4, dtype=torch.float32)},
        {"cache": zeros(1, 10, 4, 4, dtype=torch.float32)},
        {"cache": zeros(2, 6, 4, 4, dtype=torch.float32)},
        {"bias": zeros(1, 1, 3, 7, dtype=torch.float32)},
        {"bias": zeros(2, 1, 3, 11, dtype=torch.float32)},
    ],
)
def test_operands_of_attention_that_do_not_agree(changes: dict[str, Tensor]) -> None:
    ops.attend(*operands(), 0, 3, slice(0, 3), 0)
    with pytest.raises(AssertionError):
        ops.attend(*operands(**changes), 0, 3, slice(0, 3), 0)


@pytest.mark.parametrize(("seen", "tree", "written", "first"), [
    (4, 3, slice(0, 3), 0), (0, 8, slice(0, 3), 0), (0, 3, slice(0, 4), 0), (0, 3, slice(0, 3), 1),
    (0, 3, torch.arange(5), 0),
])  # fmt: skip
def test_rows_of_the_cache_that_are_not_there(seen: int, tree: int, written: slice | Tensor, first: int) -> None:
    with pytest.raises(AssertionError):
        ops.attend(*operands(), seen, tree, written, first)


def test_other_operands_that_do_not_agree() -> None:
    f32 = torch.float32
    x, weight = zeros(3, 8, dtype=f32), zeros(5, 8, dtype=f32)
    for call in (
        lambda: ops.product(x[:, :7], weight.t()),
        lambda: ops.product(zeros(3, 9, dtype=f32), weight.t()),
        lambda: ops.product(x, weight.t(), zeros(2, 5, dtype=f32)),
        lambda: ops.product(x, weight.t(), zeros(3, 4, dtype=f32)),
        lambda: ops.norm(x, weight[0, :7], 1e-6),
        lambda: ops.top(x, 9),
        lambda: ops.top(x, 0),
        lambda: ops.highest(x, torch.zeros(3, 3, dtype=torch.float64)),
        lambda: ops.highest(x, torch.zeros(2, 2, dtype=torch.float64)),
        lambda: ops.merged(torch.zeros(2, 3, 8, dtype=torch.float64), 2, f32),
        lambda: ops.grouped(x, None, zeros(2, 5, 7, dtype=f32), torch.tensor([1, 3])),
        lambda: ops.grouped(x, None, zeros(2, 5, 8, dtype=f32), torch.tensor([1, 2, 3])),
    ):
        with pytest.raises(AssertionError):
            call()


def test_a_rotary_table_of_smaller_heads_would_be_read_beyond_its_end() -> None:
    """Layers of several head_dims had the table of one of them."""
    qkv, _, cache, rotary, bias = operands(rotary=zeros(2, 6, 1, 2, dtype=torch.float32))
    scratch = torch.zeros(4096)
    call = Attend(
        qkv=qkv.data_ptr(), cosines=rotary.data_ptr(), sines_offset=4 * rotary.stride(0), rows=6, rows_per_sequence=3,
        query_heads=4, kv_heads=2, head_dim=4, seen=cache.data_ptr(), sequence_stride=4 * cache.stride(0),
        row_stride=4 * cache.stride(1), all_rows=cache.data_ptr(), written_index=0, written=cache.data_ptr(),
        columns=7, tree_columns=3, oldest=0, positions=0, ring=0,
        bias=bias.data_ptr(), bias_sequence_stride=4 * bias.stride(0),
        bias_row_stride=4 * bias.stride(2), out=scratch.data_ptr(), scratch=scratch.data_ptr(),
        factors=0, sinks=0,
    )  # fmt: skip
    end = rotary.data_ptr() + rotary.nbytes
    assert max(stop for name, _, stop in touched(call, torch.float32) if name == "rotary") > end
