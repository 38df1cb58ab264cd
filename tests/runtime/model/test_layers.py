"""The arithmetic of a layer against its formulas, on one device and in shares."""

import pytest
import torch
from torch import Tensor

from plans.schema import WeightFormat
from plans.step import CONVERTED_ROWS, converted_blocks
from runtime.comm.groups import Group
from runtime.model.blocks import Embed, LmHead
from runtime.model.layers import GatedMlp, Linear, attend, hide, rotary_at, rotary_table, rotate
from runtime.model.weights import Coded, look_up

ALONE = Group(name="test", ranks=(0,), rank=0, handle=None)


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_rotation_turns_pairs_of_halves_by_position_times_frequency() -> None:
    inv_freq = torch.tensor([1.0, 0.1, 0.01])
    x = seeded(4, 2, 6)
    turned = x.clone()
    positions = torch.tensor([0, 3, 1, 9])
    (rotary,) = rotary_at([rotary_table(inv_freq, 10, torch.float32)], positions)
    rotate(turned, rotary)
    pairs = (
        torch.complex(x[..., :3], x[..., 3:]) * torch.polar(torch.ones(4, 3), positions[:, None] * inv_freq)[:, None]
    )
    torch.testing.assert_close(turned, torch.cat([pairs.real, pairs.imag], -1))


def test_positions_beyond_the_rotary_table_take_its_last_row() -> None:
    table = rotary_table(torch.tensor([1.0]), 4, torch.float32)
    (rotary,) = rotary_at([table], torch.tensor([3, 9]))
    assert torch.equal(rotary[:, 0], rotary[:, 1])


def test_attention_is_limited_to_the_keys_that_the_bias_allows() -> None:
    q, k, v = seeded(1, 4, 3, 8), seeded(1, 2, 10, 8), seeded(1, 2, 10, 5 + 3)
    visible = torch.zeros(3, 10, dtype=torch.bool)
    visible[0, 2] = visible[1, :4] = visible[2, 9] = visible[2, 0] = True
    bias = torch.empty(1, 1, 3, 10)
    hide(bias, visible)
    out = attend(q, k, v, bias).view(3, 4, 8)
    for row in range(3):
        for query_head in range(4):
            keys, values = k[0, query_head // 2][visible[row]], v[0, query_head // 2][visible[row]]
            expected = (keys @ q[0, query_head, row] / 8**0.5).softmax(0) @ values
            torch.testing.assert_close(out[row, query_head], expected)


@pytest.mark.parametrize(("batch", "heads", "kv_heads"), [(1, 4, 2), (2, 2, 2), (3, 4, 2), (2, 6, 2)])
@pytest.mark.parametrize(("rows", "blocks"), [(CONVERTED_ROWS, 1), (2 * CONVERTED_ROWS + 5, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_over_a_long_cache_is_that_over_its_values(
    batch: int, heads: int, kv_heads: int, rows: int, blocks: int, dtype: torch.dtype
) -> None:
    q, cache = seeded(batch, 5, heads, 8).transpose(1, 2), seeded(batch, rows, 2 * kv_heads, 8).to(dtype)
    assert len(converted_blocks(rows)) == blocks
    k, v = cache.transpose(1, 2).split(kv_heads, 1)
    visible = seeded(batch, 1, 5, rows) > 0
    visible[:, :, 1] = False
    visible[:, :, 1, 3] = True  # most blocks have nothing for this row
    bias = torch.empty(visible.shape)
    hide(bias, visible)
    group = heads // kv_heads
    keys, values = (x.float().repeat_interleave(group, 1) for x in (k, v))
    expected = ((q @ keys.transpose(2, 3)) / 8**0.5 + bias).softmax(-1) @ values  # [B, h, n, D]
    torch.testing.assert_close(attend(q, k, v, bias), expected.transpose(1, 2).reshape(batch * 5, -1))


def test_a_leader_without_mlp_channels_adds_residual_and_bias() -> None:
    residual, bias = seeded(2, 4), seeded(4)
    mlp = GatedMlp(gate_up=None, down=None, group=ALONE, down_bias=bias)
    assert torch.equal(mlp(seeded(2, 4), residual), residual + bias)


def test_gated_mlp() -> None:
    gate_up, down, x, residual = seeded(12, 4), seeded(4, 6), seeded(3, 4), seeded(3, 4)
    mlp = GatedMlp(
        gate_up=Linear(weight=gate_up.t(), bias=None),
        down=Linear(weight=down.t(), bias=seeded(4)),
        group=ALONE,
        down_bias=None,
    )
    hidden = torch.nn.functional.silu(x @ gate_up[:6].T) * (x @ gate_up[6:].T)
    torch.testing.assert_close(mlp(x, residual), residual + hidden @ down.T + seeded(4))


def test_a_share_of_the_embedding_is_zero_for_tokens_of_other_shares() -> None:
    table = seeded(10, 4)
    tokens = torch.tensor([0, 3, 6, 9])
    parts = [
        Embed(
            table=table[start:stop] if stop > start else None,
            first=start,
            rows=stop - start,
            whole=False,
            hidden=4,
            group=ALONE,
        )
        for start, stop in ((0, 3), (3, 3), (3, 10))
    ]
    assert torch.equal(sum(part(tokens, torch.float32) for part in parts), table[tokens])


def test_tables_in_codes_are_those_of_their_values() -> None:
    """Look-ups, best and highest tokens, of whole tables and of some of their rows; a row alone has its bits."""
    form = WeightFormat(code="int8", group=None, zeros=False, scale="bfloat16")
    codes, scales = (
        torch.arange(40 * 64).mul(131).remainder(251).view(40, 64).to(torch.uint8),
        seeded(40, 1).bfloat16() / 100,
    )
    coded = Coded(form=form, codes=codes, scales=scales, zeros=None, inputs=64)
    values, tokens, normed = (codes.float() - 128) * scales.float(), torch.tensor([3, 39, 3]), seeded(5, 64)
    assert torch.equal(look_up(tokens, coded, torch.float32), values[tokens])
    assert torch.equal(look_up(tokens, coded, torch.bfloat16), values[tokens].bfloat16())
    for start, stop in ((0, 40), (8, 33)):
        ours = LmHead(weight=coded.rows(start, stop), first=start, rows=stop - start, group=ALONE)
        theirs = LmHead(weight=values[start:stop].t(), first=start, rows=stop - start, group=ALONE)
        assert torch.equal(ours.best(normed), theirs.best(normed))
        for one, other in zip(ours.top(normed, 4), theirs.top(normed, 4), strict=True):
            torch.testing.assert_close(one, other)
        logits = ours._logits(normed, coded.rows(start, stop))
        assert torch.equal(logits[2:3], ours._logits(normed[2:3], coded.rows(start, stop)))


def test_lm_head_takes_the_first_of_equal_tokens_and_has_exact_log_probabilities() -> None:
    weight, normed = seeded(20, 4), seeded(3, 4)
    weight[7] = weight[3]
    head = LmHead(weight=weight.t(), first=0, rows=20, group=ALONE)
    logits = normed @ weight.T
    assert torch.equal(head.best(normed), logits.argmax(1))
    tokens, scores = head.top(normed, 5)
    torch.testing.assert_close(scores, logits.log_softmax(1).topk(5).values)
    torch.testing.assert_close(logits.gather(1, tokens), logits.topk(5).values)
