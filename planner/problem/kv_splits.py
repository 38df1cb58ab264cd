"""How a group may divide attention, as splits: every division of the KV heads, and which ways are worth offering."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.problem.device_sets import DeviceSet, divisions, repeated_divisions
from planner.solver.problem import Split
from plans.kv import KvDivision, KvShare
from plans.schema import Attention, KvAxis, Options


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A group of a set of devices but for their names."""

    way: KvDivision
    splits: tuple[tuple[Split, ...], ...]
    stage_bytes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subgroup:
    """Devices that share KV heads."""

    ns: tuple[int, ...]
    """In each kind of pass: of the slowest of them, with what they exchange."""
    bytes: tuple[int, ...]
    """Of each of them."""


def divided(
    each: DeviceSet,
    way: KvDivision,
    kv_heads: int,
    most_bundles: int,
    subgroup: Callable[[KvAxis, tuple[int, ...], int, bool], Subgroup],
    *,
    fixed_ns: int,
    times: tuple[int, ...],
) -> tuple[Split, ...]:
    """A split for each division of the KV heads, in so many bundles at most, over the subgroups of a way.

    ``subgroup``: of an axis, members, KV heads, and whether the group's leader is among them. ``times``: how often each
    kind of pass is made; all wait for the slowest subgroup in each.
    """
    parts, hosts = len(way.subgroups), len(each.hosts)
    if hosts == 1:
        dealt = divisions(kv_heads, most_bundles, parts)
    else:
        dealt = repeated_divisions(kv_heads, most_bundles, parts, hosts)
    starts = [sum(way.subgroups[:i]) for i in range(parts)]
    members = [each.devices[start : start + m] for start, m in zip(starts, way.subgroups, strict=True)]
    shares = [
        {k: subgroup(way.axis, members[s], k, s == 0) for k in {found[s] for found in dealt}} for s in range(parts)
    ]
    splits = []
    for division in dealt:
        chosen = [shares[s][k] for s, k in enumerate(division)]
        slowest = (n * max(found.ns[number] for found in chosen) for number, n in enumerate(times))
        splits.append(
            Split(
                shares=tuple(k for k, m in zip(division, way.subgroups, strict=True) for _ in range(m)),
                ns=fixed_ns + sum(slowest),
                bytes=tuple(nbytes for found in chosen for nbytes in found.bytes),
            )
        )
    return tuple(splits)


def parts_of(axis: KvAxis, members: Sequence[int], kv_heads: int) -> list[KvShare]:
    """The share of each member of a subgroup, but for its place there where that makes no difference to its size."""
    count, apart = len(members), axis == "context"
    return [KvShare(heads=kv_heads, axis=axis, parts=count, part=part if apart else 0) for part in range(count)]


def rotary_pairs(attention: Attention) -> int:
    """Rotary pairs of a head that may be divided: none where it is normed as a whole."""
    return 0 if attention.qk_norm else attention.head_dim // 2


def allows(attention: Attention, options: Options, way: KvDivision) -> bool:
    """Whether a layer can be divided so: each part of a head has equally many rotary pairs or query heads, each of a
    batch a sequence.
    """
    if len(way.subgroups) > attention.num_kv_heads:
        return False
    if way.axis == "heads":
        return all(attention.num_heads // attention.num_kv_heads % m == 0 for m in way.subgroups)
    if way.axis == "head_dim":
        pairs = rotary_pairs(attention)
        return pairs > 0 and all(pairs % m == 0 for m in way.subgroups)
    return way.axis != "batch" or max(way.subgroups) <= options.batch


def dominates(one: Variant, other: Variant) -> bool:
    """Whether whatever ``other`` can do, ``one`` can in no more time and no more bytes of any member.

    For each split of one layer it has one with no more of either; and already one layer of it saves what a stage
    takes more, once.
    """
    more = tuple(max(0, a - b) for a, b in zip(one.stage_bytes, other.stage_bytes, strict=True))
    return all(
        any(no_worse(split, listed, more) for split in splits)
        for splits, worse in zip(one.splits, other.splits, strict=True)
        for listed in worse
    )


def no_worse(one: Split, other: Split, more: tuple[int, ...]) -> bool:
    """Whether a split takes no more time and, with so many ``more`` bytes of each member, no more of them."""
    return one.ns <= other.ns and all(a + m <= b for a, b, m in zip(one.bytes, other.bytes, more, strict=True))
