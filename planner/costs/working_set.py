"""Bytes of weights that a step reads, which the caches of a CPU may hold from one step to the next."""

from planner.costs.shares import BaseShares, DraftShares, sequence_of
from plans.kv import whole_heads
from plans.schema import Draft, Model, Options


def step_bytes(model: Model, draft: Draft | None, options: Options) -> int:
    """Return the bytes of the layers, the lm_head and the drafter, and of their KV caches, whoever holds them."""
    base = BaseShares(model=model, draft=draft, options=options)
    total = base.rows(model.vocab_size).traffic_bytes
    for kind, layers in sequence_of(model):
        own, heads = base.kinds[kind], whole_heads(base.kinds[kind].attention.num_kv_heads)
        works = base.attention(kind, heads), base.router(kind)
        units = own.mlp.units * base.unit(kind).traffic_bytes
        total += layers * (units + sum(work.traffic_bytes for work in works))
    if draft is not None:
        drafter = DraftShares(model=model, draft=draft, options=options)
        total += drafter.attention(0, whole_heads(draft.attention.num_kv_heads)).traffic_bytes
        total += drafter.divided_bytes
    return total
