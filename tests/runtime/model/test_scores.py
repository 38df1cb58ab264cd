"""Capped scores and sinks against plain softmax in double precision, on every path of attention."""

import pytest
import torch
from torch import Tensor

from plans.kv import KvShare
from plans.step import CONVERTED_ROWS
from runtime.comm.groups import Group
from runtime.model import layers, ops
from runtime.model.layers import rotary_table
from runtime.model.scores import Scores
from runtime.model.split_kv import ByContext, ByHeadDim

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HEADS, KV_HEADS, DIMS, N = 4, 2, 8, 3


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


def scores_of(softcap: float | None, *, sinks: bool, dtype: torch.dtype = torch.float32) -> Scores:
    own = seeded(HEADS, seed=7).to(dtype) if sinks else None
    return Scores(scale=0.9, softcap=softcap, sinks=own, factors=torch.tensor([0.9, softcap or 0.0]))


def expected(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scores: Scores) -> Tensor:
    """Return softmax(cap(scale * q k) + bias, with the sinks as a column more) v [B, n, h * D], in float64."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (k, v))
    raw = q.double() @ keys.transpose(2, 3) * (scores.scale or 0.0)
    if scores.softcap is not None:
        raw = scores.softcap * torch.tanh(raw / scores.softcap)
    raw = raw + bias.double()
    if scores.sinks is not None:
        sink = scores.sinks.double().view(1, -1, 1, 1).expand(*raw.shape[:3], 1)
        weights = torch.cat([raw, sink], -1).softmax(-1)[..., :-1]
    else:
        weights = raw.softmax(-1)
    return (weights @ values).transpose(1, 2).flatten(2)


def operands(batch: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k = seeded(batch, HEADS, N, DIMS), seeded(batch, KV_HEADS, rows, DIMS)
    bias = torch.where(seeded(batch, 1, N, rows) > 0, 0.0, float("-inf"))
    bias[..., 5] = 0.0
    return q * 3, k, seeded(batch, KV_HEADS, rows, DIMS, seed=1), bias


KINDS = [(2.0, False), (None, True), (2.0, True), (50.0, False)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("softcap", "sinks"), KINDS)
def test_the_kernel(dtype: torch.dtype, softcap: float | None, sinks: bool) -> None:
    scores, (q, k, v, bias) = scores_of(softcap, sinks=sinks, dtype=dtype), operands(2, 40)
    cache = torch.cat([k, v], 1).transpose(1, 2).contiguous().to(dtype)  # [B, t, 2k, D]
    bias[..., :N] = float("-inf")  # the rows that are written
    rotary = rotary_table(torch.zeros(DIMS // 2), 2 * N, dtype).unsqueeze(2)  # turns by nothing
    qkv = torch.cat([q.transpose(1, 2), torch.zeros(2, N, 2 * KV_HEADS, DIMS)], 2).flatten(0, 1).contiguous().to(dtype)
    out = ops.attend(
        qkv, HEADS, cache, rotary, bias.to(dtype), 0, 0, slice(0, N), 0, None, scores.factors, scores.sinks
    )  # fmt: skip
    keys, values = cache.transpose(1, 2).split(KV_HEADS, 1)
    theirs = expected(q.to(dtype), keys, values, bias, scores).flatten(0, 1)
    torch.testing.assert_close(out.double(), theirs, rtol=0, atol=64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("rows", [40, CONVERTED_ROWS + 70])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize(("softcap", "sinks"), KINDS)
def test_attention_by_torch(softcap: float | None, sinks: bool, stored: torch.dtype, rows: int) -> None:
    scores, (q, k, v, bias) = scores_of(softcap, sinks=sinks), operands(2, rows)
    k, v = k.to(stored), v.to(stored)
    out = layers.attend(q.clone(), k, v, bias, scores)
    torch.testing.assert_close(out.double(), expected(q, k, v, bias, scores).flatten(0, 1), rtol=0, atol=1e-5)


class Alone(Group):
    """A group of one, which is asked as one of several."""

    def all_reduce(self, tensor: Tensor) -> None:
        pass

    def all_gather(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        assert out is not None
        return out.copy_(tensor.unsqueeze(0))


@pytest.mark.parametrize(("softcap", "sinks"), KINDS)
def test_attention_of_a_subgroup(softcap: float | None, sinks: bool) -> None:
    scores, (q, k, v, bias) = scores_of(softcap, sinks=sinks), operands(1, 600)
    group = Alone(name="test", ranks=(0,), rank=0, handle=None)
    buffer, share = torch.empty(HEADS * N * 256), KvShare(heads=KV_HEADS, axis="context", parts=1, part=0)
    partial = torch.empty(2 * N * HEADS * (DIMS + 1))
    for attend in (
        ByHeadDim(group=group, buffer=buffer),
        ByContext(group=group, share=share, buffer=buffer, partial=partial),
    ):
        out = attend(q.clone(), k, v, bias, scores)
        torch.testing.assert_close(out.double(), expected(q, k, v, bias, scores).flatten(0, 1), rtol=0, atol=1e-5)
