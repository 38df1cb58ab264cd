"""The two vocabulary tables as blocks: the embedding, and the final norm with the lm_head.

Rows are dealt out in bundles, the one fine axis of each block.
"""

import math
from collections.abc import Sequence

from planner.costs.memory import Affine
from planner.costs.shares import BaseShares
from planner.problem.device_sets import DeviceSet
from planner.problem.links import NOTHING, Links
from planner.problem.quantum import Quanta
from planner.solver.problem import Axis, Block, Option, Split
from plans import step
from plans.schema import Draft, Model

MOST_ROW_UNIT = 64
"""Vocabulary rows of a bundle at most."""


def row_unit(model: Model, draft: Draft | None) -> int:
    """Return the vocabulary rows of one bundle: the largest power of two up to 64 that divides both vocabularies."""
    vocab = model.vocab_size
    both = math.gcd(vocab, draft.draft_vocab_size if draft else vocab)
    return math.gcd(both, MOST_ROW_UNIT)


def embed_block(shares: BaseShares, links: Links, quanta: Quanta, sets: Sequence[DeviceSet], bundle_rows: int) -> Block:
    """Return the embedding: a look-up on each device, and the sum of the rows over the group."""

    def option(device_set: DeviceSet) -> Option:
        members = device_set.devices
        split = Split(
            shares=(1,) * len(members),
            ns=embed_ns(shares, links, members),
            bytes=tuple(shares.embed_bytes(len(members), links.devices[d].kind == "cuda") for d in members),
        )
        return Option(
            devices=members,
            sites=device_set.hosts,
            splits=(split,),
            receive=NOTHING,
            quantum_ns=quanta.ns(members),
        )

    axis = Axis(
        count=shares.model.vocab_size // bundle_rows,
        each_bytes=shares.embed_table.slope * bundle_rows,
        read_bytes=(0,) * len(links.devices),
        each_ps=(0,) * len(links.devices),
        shared=None,
    )
    return Block(options=tuple(map(option, sets)), axes=(axis,))


def embed_ns(shares: BaseShares, links: Links, members: Sequence[int]) -> int:
    """Return the time of the embedding on these devices, which does not depend on their rows."""
    message = step.hidden_bytes(shares.model, shares.options)
    return fixed_embed_ns(shares, links, members) + links.all_reduce_ns(members, message)


def lm_head_ns(shares: BaseShares, links: Links, members: Sequence[int]) -> int:
    """Return the time of the lm_head on these devices besides that of its rows."""
    return fixed_head_ns(shares, links, members) + links.gather_ns(members, step.best_bytes(shares.options))


def fixed_head_ns(shares: BaseShares, links: Links, members: Sequence[int]) -> int:
    """Return the fixed work of the lm_head on these devices."""
    walks = shares.options.tree is not None
    return links.fixed_ns(members, lambda device: shares.kernels.lm_head_ns(device, walks=walks))


def fixed_embed_ns(shares: BaseShares, links: Links, members: Sequence[int]) -> int:
    """Return the fixed work of the embedding on these devices."""
    return links.fixed_ns(members, lambda device: shares.kernels.embed_ns(device, len(members)))


def lm_head_block(
    shares: BaseShares, links: Links, quanta: Quanta, sets: Sequence[DeviceSet], bundle_rows: int
) -> Block:
    """Return the final norm, whole on each device, and the lm_head, whose best tokens of each row are gathered.

    On the devices of the embedding a tied lm_head has its rows.
    """
    model, options = shares.model, shares.options
    hop_bytes = step.hop_bytes(model, shares.draft, options)
    work = shares.rows(bundle_rows)

    def head_bytes(device: int, group_size: int) -> Affine:
        return shares.head_bytes(group_size, links.devices[device].kind == "cuda")

    def option(device_set: DeviceSet) -> Option:
        members = device_set.devices
        split = Split(
            shares=(1,) * len(members),
            ns=lm_head_ns(shares, links, members),
            bytes=tuple(head_bytes(device, len(members)).fixed for device in members),
        )
        return Option(
            devices=members,
            sites=device_set.hosts,
            splits=(split,),
            receive=links.receive(device_set, hop_bytes),
            quantum_ns=quanta.ns(members),
            slowed_ps=links.slowed_ps(members, (work.ps,)),
        )

    axis = Axis(
        count=model.vocab_size // bundle_rows,
        each_bytes=shares.head_table.slope * bundle_rows,
        # Rows of a tied lm_head may be those of the embedding: their logits take memory all the same.
        read_bytes=tuple(head_bytes(device, 1).slope * bundle_rows for device in range(len(links.devices))),
        each_ps=links.each(work.ps),
        shared="first" if model.tied_head else None,
    )
    return Block(options=tuple(map(option, sets)), axes=(axis,))
