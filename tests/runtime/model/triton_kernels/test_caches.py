"""Rows of the KV cache by Triton's interpreter, against the operations of a CPU."""

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.decode.messages import NOTICE
from runtime.model import ops
from runtime.model.kvcache import KvCache
from runtime.model.triton_kernels import caches

SEQUENCES, TREE = 3, 5


def on_gpu() -> Any:
    return mock.patch.object(ops, "is_cpu", return_value=False)


def made(rows: int, dtype: torch.dtype, part: int, parts: int, wraps: bool, lengths: Tensor) -> KvCache:
    """Return a cache of two runs of layers, each value another."""
    runs = [torch.arange(layers * SEQUENCES * rows * 24).view(layers, SEQUENCES, rows, 4, 6) % 97 for layers in (1, 2)]
    cache = KvCache([run.to(dtype) for run in runs], TREE, part=part, parts=parts, wraps=wraps)
    cache.lengths.copy_(lengths)
    return cache


@settings(max_examples=20, deadline=None)
@given(
    rows=st.sampled_from([TREE + 4, TREE + 20]), parts=st.sampled_from([1, 3]), wraps=st.booleans(),
    own=st.sampled_from([slice(0, 3), slice(1, 3), slice(2, 3)]), width=st.integers(1, 4), data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn]),
)  # fmt: skip
def test_rows_are_appended_and_kept_as_on_a_cpu(
    rows: int, parts: int, wraps: bool, own: slice, width: int, data: st.DataObject, dtype: torch.dtype
) -> None:
    """Rings, caches divided by context, and sequences that have ended or keep nothing; row 0 takes padding."""
    room, count, part = (rows - TREE) * parts - 4, own.stop - own.start, data.draw(st.integers(0, parts - 1))
    lengths = torch.tensor([[data.draw(st.integers(0, 30 if wraps else room))] for _ in range(SEQUENCES)])
    accepted = torch.tensor([[data.draw(st.integers(-1, width - 1))] for _ in range(count)])
    path = torch.tensor([[data.draw(st.integers(0, TREE - 2)) for _ in range(width)] for _ in range(count)])
    expected, own_cache = (made(rows, dtype, part, parts, wraps, lengths) for _ in range(2))
    wide = torch.cat([accepted, accepted * 0 + 7], 1)[:, :1]  # of a wider tensor
    with on_gpu():
        got = own_cache.appended(width, wide, own)
    for ours, theirs in zip(got, expected.appended(width, accepted, own), strict=True):
        assert torch.equal(ours, theirs)
    with on_gpu():
        own_cache.keep(path, wide, TREE - 1, own)
    expected.keep(path, accepted, TREE - 1, own)
    assert torch.equal(own_cache.lengths, expected.lengths)
    for ours, theirs in zip(own_cache.layers, expected.layers, strict=True):
        assert torch.equal(ours[:, 1:].float(), theirs[:, 1:].float())


@pytest.mark.parametrize("count", [1, 3])
def test_the_accepted_nodes_of_a_message_are_those_of_sequences_that_have_not_ended(count: int) -> None:
    words = torch.tensor([[4 + 6 * NOTICE, 9], [2, 9], [0, 9]])[:count, 0]
    ended = torch.tensor([False, True, False])[:count]
    assert caches.committed(words, ended, NOTICE).tolist() == [4, -1, 0][:count]
