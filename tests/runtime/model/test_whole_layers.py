"""Layers as one kernel have the bits of their steps one by one, in every dtype, alone and in a group."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from plans.schema import WeightFormat
from runtime.comm.groups import Group
from runtime.model import ops, whole_layers
from runtime.model.blocks import Eagle3Layer, Layer
from runtime.model.kernels.arguments import MANY_ROWS
from runtime.model.kv_codes import MOST_CODE, encoded
from runtime.model.layers import WHOLE, Attend, Attention, GatedMlp, Linear, Norm, Rows, rotary_table
from runtime.model.scores import PLAIN, Scores
from runtime.model.whole_layers import WholeLayers, are_whole
from tests.runtime.model.kernels.touched import checked_run_layer
from tests.runtime.model.test_coded import random_weight, reordered

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ALONE = Group(name="stages[0]", ranks=(0,), rank=0, handle=None)


def seeded(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed)).to(dtype)


def linear(inputs: int, outputs: int, dtype: torch.dtype, *, bias: bool = False, seed: int = 0) -> Linear:
    weight = (seeded(outputs, inputs, dtype=torch.float32, seed=seed) / inputs**0.5).to(dtype)
    return Linear(weight=weight.t(), bias=seeded(outputs, dtype=dtype) if bias else None)


def capped(heads: int, dtype: torch.dtype, seed: int) -> Scores:
    sinks, factors = seeded(heads, dtype=dtype, seed=seed), torch.tensor([0.2, 3.0])
    return Scores(scale=0.2, softcap=3.0, sinks=sinks, factors=factors)


def make_layer(
    dtype: torch.dtype, seed: int, *, hidden: int, heads: int, kv_heads: int, dims: int, channels: int, normed: bool,
    group: Group = ALONE,
) -> Layer:  # fmt: skip
    norm = Norm(weight=seeded(dims, dtype=dtype, seed=seed), eps=1e-6) if normed else None
    return Layer(
        attention_norm=Norm(weight=seeded(hidden, dtype=dtype, seed=seed), eps=1e-5),
        attention=Attention(
            qkv=linear(hidden, (heads + 2 * kv_heads) * dims, dtype, bias=normed, seed=seed),
            o=linear(heads * dims, hidden, dtype, seed=seed),
            query_heads=heads,
            kv_heads=kv_heads,
            head_dim=dims,
            group=group,
            attend=WHOLE,
            q_norm=norm,
            k_norm=norm,
            scores=PLAIN if normed else capped(heads, dtype, seed),
        ),
        mlp_norm=Norm(weight=seeded(hidden, dtype=dtype, seed=seed + 1), eps=1e-5),
        mlp=GatedMlp(
            gate_up=linear(hidden, 2 * channels, dtype, seed=seed),
            down=linear(channels, hidden, dtype, seed=seed),
            group=group,
            down_bias=None,
        ),
    )


def make_rows(dtype: torch.dtype, n: int, dims: int, *, indexed: bool, sequences: int = 2, t: int = 37) -> Rows:
    """Return n rows of each of two sequences of a cache of three, of 45 rows each."""
    bias = torch.where(seeded(sequences, 1, n, t, dtype=torch.float32) > 0, 0.0, float("-inf")).to(dtype)
    bias[..., 4:7] = 0.0
    rotary = rotary_table(torch.linspace(1, 0.01, dims // 2), sequences * n, dtype).unsqueeze(2)
    written = torch.arange(sequences * n) + 50 if indexed else slice(6, 6 + n)
    return Rows(
        rotary=(rotary,), bias=bias, sequences=slice(1, 1 + sequences), seen=slice(2, 2 + t), tree=3, written=written,
        own=None,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare every access of a layer with its operand."""
    monkeypatch.setattr(ops, "_run_layer", checked_run_layer)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("threads", "kept"), [(1, None), (2, None), (2, torch.int8), (2, torch.float8_e4m3fn)])
def test_two_layers_have_the_bits_of_their_steps(dtype: torch.dtype, threads: int, kept: torch.dtype | None) -> None:
    sizes = {"hidden": 72, "heads": 6, "kv_heads": 3, "dims": 32, "channels": 203}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for normed in (False, True):
        layers = [make_layer(dtype, seed, normed=normed, **sizes) for seed in (1, 7)]
        caches = [seeded(3, 45, 6, 32, dtype=dtype, seed=seed) for seed in (1, 2)]
        caches = [encoded(cache, kept) if kept in MOST_CODE else cache.to(kept or dtype) for cache in caches]
        mine = [cache.clone() for cache in caches]
        assert are_whole(layers, mine)
        whole = WholeLayers(layers, mine)
        for n, indexed in ((1, False), (9, True), (3, False)):
            rows, hidden = make_rows(dtype, n, 32, indexed=indexed), seeded(2 * n, 72, dtype=dtype)
            residual = whole.begin(hidden, rows)
            assert torch.equal(residual, hidden)
            for number, (layer, cache) in enumerate(zip(layers, caches, strict=True)):
                hidden = layer(hidden, cache, rows)
                assert torch.equal(whole.run(number), hidden)
                assert torch.equal(mine[number].view(torch.uint8), cache.view(torch.uint8))
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_layers_of_one_call_have_the_bits_of_one_by_one(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as their work allows, of each row, and up to where the residual is read."""
    before, sizes = torch.get_num_threads(), {"hidden": 64, "heads": 4, "kv_heads": 2, "dims": 32, "channels": 96}
    torch.set_num_threads(threads)
    layers = [make_layer(torch.float32, seed, normed=seed == 2, **sizes) for seed in (1, 2, 3, 4)]
    caches = [seeded(3, 45, 4, 32, dtype=torch.float32, seed=seed) for seed in (1, 2, 3, 4)]
    mine = [cache.clone() for cache in caches]
    one_by_one, together = WholeLayers(layers, caches), WholeLayers(layers, mine)
    weights = one_by_one._layers[0].weights
    for n, end, work, parts in (
        (1, 4, 1 << 30, [4]),
        (1, 3, 1 << 30, [3]),
        (2, 4, 9 * weights, [2, 4]),
        (3, 2, 1, [1, 2]),
    ):
        monkeypatch.setattr(whole_layers, "TOGETHER_WORK", work)
        rows, hidden = make_rows(torch.float32, n, 32, indexed=False), seeded(2 * n, 64, dtype=torch.float32)
        one_by_one.begin(hidden, rows)
        expected = [one_by_one.run(number) for number in range(end)][-1]
        residual, number, ends = together.begin(hidden, rows), 0, []
        while number < end:
            number = together.run_more(number, end)
            ends.append(number)
        assert ends == parts
        assert torch.equal(residual, expected)
        assert all(torch.equal(a, b) for a, b in zip(caches, mine, strict=True))
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels", [96, 203])
def test_a_layer_of_many_rows_has_the_bits_of_fewer(threads: int, channels: int) -> None:
    """Of float32, whose products of many rows are those with panels, and of channels that panels do not fit."""
    before, n = torch.get_num_threads(), MANY_ROWS // 2 + 3
    torch.set_num_threads(threads)
    layer = make_layer(torch.float32, 1, hidden=64, heads=4, kv_heads=2, dims=32, channels=channels, normed=True)
    rows, hidden = make_rows(torch.float32, n, 32, indexed=False, t=n + 6), seeded(2 * n, 64, dtype=torch.float32)
    caches = [seeded(3, n + 20, 4, 32, dtype=torch.float32) for _ in range(2)]
    whole = WholeLayers([layer], caches[:1])
    whole.begin(hidden, rows)
    together = whole.run(0).clone()
    steps = layer(hidden, caches[1], rows)
    torch.set_num_threads(before)
    assert torch.equal(together, steps)
    assert torch.equal(caches[0], caches[1])
    normed = ops.norm(hidden, layer.attention_norm.weight, layer.attention_norm.eps)
    alone = torch.cat([ops.product(normed[row : row + 1], layer.attention.qkv.weight) for row in range(2 * n)])
    assert torch.equal(ops.product(normed, layer.attention.qkv.weight), alone)


IN_CODES = [
    WeightFormat(code="int4", group=32, zeros=False, scale="bfloat16"),
    WeightFormat(code="int8", group=None, zeros=False, scale="float32"),
    WeightFormat(code="int4", group=64, zeros=True, scale="float16"),
    WeightFormat(code="float8_e4m3fn", group=None, zeros=False, scale="bfloat16"),
]


def in_codes(layer: Layer, names: Sequence[str], forms: Sequence[WeightFormat]) -> Layer:
    """Return a layer with some matrices of random codes, each of the next format."""
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(mlp, GatedMlp)
    owners: dict[str, Any] = {"qkv": attention, "o": attention, "gate_up": mlp, "down": mlp}
    changed = {}
    for number, name in enumerate(names):
        linear = getattr(owners[name], name)
        inputs, outputs = linear.weight.shape
        weight, _ = random_weight(forms[number % len(forms)], outputs, inputs, number)
        weight.scales.mul_(0.01)
        weight = reordered(weight, number) if number % 2 else weight
        changed[name] = replace(linear, weight=weight)
    return replace(
        layer,
        attention=replace(attention, **{name: changed[name] for name in ("qkv", "o") if name in changed}),
        mlp=replace(mlp, **{name: changed[name] for name in ("gate_up", "down") if name in changed}),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_layers_in_codes_have_the_bits_of_their_steps(dtype: torch.dtype, threads: int) -> None:
    sizes = {"hidden": 64, "heads": 4, "kv_heads": 2, "dims": 32, "channels": 192, "normed": True}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    first, second = (make_layer(dtype, seed, **sizes) for seed in (1, 7))
    for layers in (
        [in_codes(first, ("qkv", "o", "gate_up", "down"), IN_CODES), in_codes(second, ("down", "qkv"), IN_CODES[1:])],
        [first, in_codes(second, ("qkv", "o", "gate_up", "down"), IN_CODES[1:2])],
    ):
        caches = [seeded(3, 45, 4, 32, dtype=dtype, seed=seed) for seed in (1, 2)]
        mine = [cache.clone() for cache in caches]
        assert are_whole(layers, mine)
        whole = WholeLayers(layers, mine)
        for n, indexed in ((1, False), (9, True), (3, False)):
            rows, hidden = make_rows(dtype, n, 32, indexed=indexed), seeded(2 * n, 64, dtype=dtype)
            whole.begin(hidden, rows)
            for number, (layer, cache) in enumerate(zip(layers, caches, strict=True)):
                hidden = layer(hidden, cache, rows)
                assert torch.equal(whole.run(number), hidden)
                assert torch.equal(mine[number], cache)
                assert hidden.isfinite().all()
    torch.set_num_threads(before)


def test_layers_may_differ_in_their_kv_heads() -> None:
    sizes = {"hidden": 64, "dims": 32, "channels": 40, "normed": False}
    layers = [make_layer(torch.float32, heads, heads=heads, kv_heads=heads // 2, **sizes) for heads in (2, 4, 8)]
    caches = [seeded(3, 45, heads, 32, dtype=torch.float32) for heads in (2, 4, 8)]
    mine, hidden = [cache.clone() for cache in caches], seeded(6, 64, dtype=torch.float32)
    whole, rows = WholeLayers(layers, mine), make_rows(torch.float32, 3, 32, indexed=False)
    whole.begin(hidden, rows)
    for number, (layer, cache) in enumerate(zip(layers, caches, strict=True)):
        hidden = layer(hidden, cache, rows)
        assert torch.equal(whole.run(number), hidden)
        assert torch.equal(mine[number], cache)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
def test_the_layers_of_eagle_heads_have_the_bits_of_their_steps(dtype: torch.dtype, normed: bool) -> None:
    """EAGLE-3 attends over (embedding, hidden); the first layer of an EAGLE-1 head has no norm before the attention."""
    sizes = {"hidden": 64, "heads": 2, "kv_heads": 1, "dims": 32, "channels": 40, "normed": False}
    plain, rows = make_layer(dtype, 3, **sizes), make_rows(dtype, 2, 32, indexed=False)
    norms = [Norm(weight=seeded(64, dtype=dtype, seed=seed), eps=1e-5) for seed in (1, 2)]
    wide = replace(plain.attention, qkv=linear(128, 128, dtype))
    eagle3 = Eagle3Layer(norm_before_residual=normed, input_norm=norms[0], hidden_norm=norms[1], attention=wide,
                         mlp_norm=plain.mlp_norm, mlp=plain.mlp)  # fmt: skip
    embedded, hidden = seeded(4, 64, dtype=dtype, seed=1), seeded(4, 64, dtype=dtype, seed=2)
    caches = [seeded(3, 45, 2, 32, dtype=dtype) for _ in range(2)]
    expected = eagle3(*eagle3.entered(embedded, hidden), caches[0], rows)
    whole = WholeLayers([eagle3], caches[1:])
    joined, residual = eagle3.entered(embedded, hidden)
    whole.begin(residual, rows, joined)
    assert torch.equal(whole.run(0), expected)
    first = replace(plain, attention_norm=None)
    expected, whole = first(hidden, caches[0], rows), WholeLayers([first], caches[1:])
    whole.begin(hidden, rows)
    assert torch.equal(whole.run(0), expected)
    assert torch.equal(caches[0], caches[1])
    assert not are_whole([eagle3, eagle3], caches)


@pytest.mark.parametrize("rank", [0, 1])
def test_halves_of_a_layer_leave_the_sums_to_the_group(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each member computes its share; the leader alone adds the residual."""
    sums: list[Tensor] = []
    monkeypatch.setattr(Group, "all_reduce", lambda self, tensor: sums.append(tensor.clone()))
    group = Group(name="stages[0]", ranks=(0, 1), rank=rank, handle=MagicMock())
    layer = make_layer(torch.float32, 3, hidden=64, heads=2, kv_heads=1, dims=32, channels=40, normed=True, group=group)
    cache, hidden = seeded(3, 45, 2, 32, dtype=torch.float32), seeded(6, 64, dtype=torch.float32)
    rows = make_rows(torch.float32, 3, 32, indexed=False)
    expected, mine = layer(hidden, cache, rows), WholeLayers([layer], [cache])
    mine.begin(hidden, rows)
    assert torch.equal(mine.run(0), expected)
    assert len(sums) == 4
    assert torch.equal(sums[2], sums[0])
    assert torch.equal(sums[3], sums[1])


def test_layers_that_are_no_single_kernel() -> None:
    sizes = {"hidden": 64, "heads": 2, "kv_heads": 1, "dims": 32, "channels": 40, "normed": False}
    layer, cache = make_layer(torch.float32, 3, **sizes), seeded(3, 45, 2, 32, dtype=torch.float32)
    assert are_whole([layer], [cache])
    assert not are_whole([layer], [cache.to(torch.float16)])
    biased = replace(layer.attention, o=linear(64, 64, torch.float32, bias=True))
    assert not are_whole([replace(layer, attention=biased)], [cache])
    assert not are_whole(
        [replace(layer, attention=replace(layer.attention, attend=Attend(by_bias=WHOLE.by_bias, by_mask=None)))],
        [cache],
    )
    empty = GatedMlp(gate_up=None, down=None, group=ALONE, down_bias=None)
    assert not are_whole([replace(layer, mlp=empty)], [cache])
