"""Shares of the KV cache: which device of a group holds which KV heads, or which part of them."""

from dataclasses import dataclass

from plans.schema import Attention, DraftPlacement, KvAxis, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class KvShare:
    """What one device has of the KV cache of a layer."""

    heads: int
    """KV heads that it has, or has a part of."""
    axis: KvAxis
    """What its subgroup divides; by ``heads``, the query heads of KV heads that each member has whole."""
    parts: int
    """Size of its subgroup."""
    part: int
    """Its index there."""


def whole_heads(heads: int) -> KvShare:
    """KV heads that no other device has a part of."""
    return KvShare(heads=heads, axis="heads", parts=1, part=0)


def query_heads(attention: Attention, share: KvShare) -> int:
    """h: query heads that a share attends with; by ``heads`` they are divided over the subgroup."""
    parts = share.parts if share.axis == "heads" else 1
    return share.heads * -(-attention.num_heads // attention.num_kv_heads // parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class KvDivision:
    """How a group divides the KV cache: an axis, and subgroups of consecutive members that share heads along it, or by
    ``heads`` repeat them and divide their query heads.
    """

    axis: KvAxis
    subgroups: tuple[int, ...]
    """Sizes; all 1 for ``heads`` alone."""


def kv_division(group: Stage | DraftPlacement) -> KvDivision:
    """How a stage, or the group of the EAGLE head, divides its KV cache."""
    alone = (1,) * len(group.devices)
    sizes = alone if group.kv_subgroups is None else group.kv_subgroups
    return KvDivision(axis=group.kv_axis or "heads", subgroups=sizes)


def kv_shares(group: Stage | DraftPlacement, kv_heads: tuple[int, ...]) -> tuple[KvShare, ...]:
    """The share of each member of a group, whose KV heads are given."""
    divided = kv_division(group)
    places = [(size, part) for size in divided.subgroups for part in range(size)]
    return tuple(
        KvShare(heads=heads, axis=divided.axis, parts=size, part=part)
        for heads, (size, part) in zip(kv_heads, places, strict=True)
    )


def first_head(group: Stage | DraftPlacement, kv_heads: tuple[int, ...], member: int) -> int:
    """The first KV head of a member: what the subgroups before its own hold comes before it."""
    first = start = 0
    for size in kv_division(group).subgroups:
        if start + size > member:
            return first
        first += kv_heads[start]
        start += size
    raise AssertionError("no such member")
