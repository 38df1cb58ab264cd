"""Shares of the KV cache: which device of a group holds which KV heads, or which part of them."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from plans.schema import Attention, DraftPlacement, KvAxis, Stage

WINDOWS = 16
"""Most lengths of a window, the first rows of a cache that a forward attends to where it reads a bias: a handful of
shapes, all planned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KvShare:
    """One device's share of the KV cache of a layer."""

    heads: int
    """KV heads on the device, whole or in part."""
    axis: KvAxis
    """Dimension that its subgroup divides; by ``heads`` the query heads of KV heads that each member has whole."""
    parts: int
    """m: size of its subgroup."""
    part: int
    """Its index in the subgroup."""


def whole_heads(heads: int) -> KvShare:
    """Return the share of KV heads that no other device has a part of."""
    return KvShare(heads=heads, axis="heads", parts=1, part=0)


def part_range(total: int, share: KvShare) -> tuple[int, int]:
    """Return member i's part of n rows, dims or sequences that m members divide: [i * n div m, (i + 1) * n div m)."""
    return share.part * total // share.parts, (share.part + 1) * total // share.parts


def query_heads(attention: Attention, share: KvShare) -> int:
    """Return h, the query heads of a share: k * g, by ``heads`` divided over the subgroup."""
    parts = share.parts if share.axis == "heads" else 1
    return share.heads * -(-attention.num_heads // attention.num_kv_heads // parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class KvDivision:
    """Division of the KV cache over a group: consecutive subgroups, which divide their KV heads along an axis, or by
    ``heads`` repeat them and divide the query heads.
    """

    axis: KvAxis
    subgroups: tuple[int, ...]
    """Sizes in the order of the group; all 1 where no KV head is on several devices."""

    @property
    def starts(self) -> tuple[int, ...]:
        """Index in the group of the first member of each subgroup."""
        return tuple(sum(self.subgroups[:number]) for number in range(len(self.subgroups)))


def kv_division(group: Stage | DraftPlacement) -> KvDivision:
    """Return the division of the KV cache of a stage, or of the drafter."""
    alone = (1,) * len(group.devices)
    sizes = alone if group.kv_subgroups is None else group.kv_subgroups
    return KvDivision(axis=group.kv_axis or "heads", subgroups=sizes)


def kv_shares(group: Stage | DraftPlacement, kv_heads: tuple[int, ...]) -> tuple[KvShare, ...]:
    """Return the share of each member of a group with these KV heads per member."""
    division = kv_division(group)
    members = [(size, part) for size in division.subgroups for part in range(size)]
    return tuple(
        KvShare(heads=heads, axis=division.axis, parts=size, part=part)
        for heads, (size, part) in zip(kv_heads, members, strict=True)
    )


def kv_share(group: Stage | DraftPlacement, kv_heads: tuple[int, ...], member: int) -> KvShare:
    """Return the share of one member of a group with these KV heads per member."""
    division = kv_division(group)
    ends = list(accumulate(division.subgroups))
    number = bisect_right(ends, member)
    size = division.subgroups[number]
    return KvShare(heads=kv_heads[member], axis=division.axis, parts=size, part=member - (ends[number] - size))


def first_head(group: Stage | DraftPlacement, kv_heads: tuple[int, ...], member: int) -> int:
    """Return the first KV head of a member: the number of KV heads of the subgroups before its own."""
    first = start = 0
    for size in kv_division(group).subgroups:
        if start + size > member:
            return first
        first += kv_heads[start]
        start += size
    raise AssertionError("no such member")
