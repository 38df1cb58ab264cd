"""Softmax of the scores of queries and keys, and attention block by block of the cache.

    score  = scale * q · k                      capped: c * tanh(score / c)
    weight = exp(score + bias) / (sum of exp(score + bias) over the columns, and exp(sink))

Blocks are of SCORE_COLUMNS rows of the cache, in float32, with a running maximum M and sum S:

    scores = scale * q · k, capped, + bias      head_dim: q · k summed over the subgroup first
    M' = max(M, max of scores)                  S' = S exp(M - M') + sum of exp(scores - M')
    out' = out exp(M - M') + exp(scores - M') · v

Letters as in ``layers``. Temporaries are bounded by `scratch.scores` and `scratch.columns` in plans/layer_buffers.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from plans.step import score_blocks
from runtime.comm.groups import Group
from runtime.model.kv_codes import MOST_CODE, decoded


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Parameters of the softmax of one layer, for the query heads of a device."""

    scale: float | None
    """None: 1 / sqrt(D), of whole heads."""
    softcap: float | None
    """c; None: scores are not capped."""
    sinks: Tensor | None
    """[h]: a score without a value of each query head; None: there is none."""
    factors: Tensor | None
    """float32 [2]: scale and c, 0 for none, as the kernels take them; None: 1 / sqrt(D), and none."""

    def beside_sinks(self, weight: Tensor) -> Tensor:
        """Return the part of the softmax that is not the sinks' [B, h, n]; ``weight`` [B, h, n]: log-sum-exp of scores.

        It is exp(w) / (exp(w) + exp(sink)).
        """
        assert self.sinks is not None
        return torch.sigmoid(weight - self.sinks.float().unsqueeze(-1))


PLAIN = Scores(scale=None, softcap=None, sinks=None, factors=None)
"""Parameters of most models."""


def streamed(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scores: Scores, buffer: Tensor, group: Group | None
) -> tuple[Tensor, Tensor]:
    """Attend to a part of the cache; return out [B, h, n, D] and the logarithm of the sum of exp(score) [B, h, n].

    ``q``, ``k``, ``v``, ``bias`` as in ``layers.Attend``. A row that sees nothing has zeros and -inf. Scores are
    computed in ``buffer`` and summed over ``group`` unless it is None; sinks are left to the caller.
    """
    sequences, heads, n, dims = q.shape
    kv_heads, width = k.shape[1], k.shape[2]
    scale = dims**-0.5 if scores.scale is None else scores.scale
    rows = q.float().mul_(scale).reshape(sequences, kv_heads, heads // kv_heads * n, dims)
    out = torch.zeros_like(rows)
    high = torch.full((sequences, heads, n), float("-inf"), dtype=torch.float32, device=q.device)
    total = torch.zeros_like(high)
    for block in score_blocks(width):
        columns = block.stop - block.start
        by_kv_head = buffer[: sequences * heads * n * columns].view(sequences, kv_heads, -1, columns)
        torch.matmul(rows, _floats(k[:, :, block], dims).transpose(2, 3), out=by_kv_head)
        if group is not None:
            group.all_reduce(by_kv_head)
        if scores.softcap is not None:
            by_kv_head.div_(scores.softcap).tanh_().mul_(scores.softcap)
        seen = by_kv_head.view(sequences, heads, n, columns).add_(bias[..., block])
        higher = torch.maximum(high, seen.amax(-1))
        base = higher.clamp(min=torch.finfo(torch.float32).min)  # a row that sees nothing is not inf - inf
        weights = seen.sub_(base.unsqueeze(-1)).exp_()
        kept = (high - base).exp_()
        total = total.mul_(kept).add_(weights.sum(-1))
        out.mul_(kept.view(sequences, kv_heads, -1, 1)).add_(torch.matmul(by_kv_head, _floats(v[:, :, block], dims)))
        high = higher
    out = out.view(sequences, heads, n, dims).div_(total.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1))
    return out, high.add_(total.log_())


def _floats(cached: Tensor, dims: int) -> Tensor:
    """Return rows of the cache [B, k, columns, D] in float32."""
    return decoded(cached, dims) if cached.dtype in MOST_CODE else cached.float()
