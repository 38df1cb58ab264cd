"""Divisions of attention over a device set, as splits. Optimality is proven over these alone.

A *KV division* (:class:`plans.kv.KvDivision`) is an axis and the sizes of subgroups; :func:`kv_divisions` lists them
for a group of n devices and K KV heads:

* ``heads`` with n subgroups of one device, where n <= K: every device has whole KV heads of its own.
* Subgroups of equal size m > 1, for every divisor m of n with n/m <= K, that divide each of their heads' cache along
  ``context``, ``head_dim`` or ``batch``; along ``heads`` (each member repeats the cache) only where n > K.
* Where n > K and K does not divide n, also K subgroups as equal as can be.

For each, *splits* are made: every way to deal K heads out over the subgroups, at least one each, in equal bundles of
heads (:func:`bundles`: at most 16, fewer where there would be more than MOST_SPLITS splits; a prime number of heads
above 16 is dealt out one by one), and always the even divisions, in which subgroups differ by one head at most. Over
several hosts the heads are dealt out equally to the hosts, and on each host in the same way, in at most 8 bundles or
evenly; and evenly to all subgroups.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, groupby
from operator import add, le, mul

from planner.problem.device_sets import DeviceSet
from planner.solver.problem import Split
from plans.kv import KvDivision, KvShare
from plans.quantized import divides
from plans.schema import Attention, KvAxis, Options

MOST_BUNDLES = 16
"""KV heads are dealt out one by one up to this number, beyond it in equal bundles."""

MOST_WIDE_BUNDLES = 8
"""Bundles on each host of a group over several hosts at most."""

MOST_SPLITS = 60_000
"""Splits of all candidates of one host at most; where there would be more, KV heads come in larger bundles."""


@cache
def kv_divisions(size: int, kv_heads: int, asked: KvAxis | None) -> tuple[KvDivision, ...]:
    """Return the divisions of ``kv_heads`` over a group of ``size`` that the docstring of this module lists.

    Heads are repeated in subgroups only where there are more members than heads: otherwise whole heads take less of
    every member, except for some uneven divisions, which take long to exclude. With an axis asked for, a group of
    several devices divides along that one.
    """
    divisions: list[KvDivision] = []
    if size == 1 or (size <= kv_heads and asked in (None, "heads")):
        divisions.append(KvDivision(axis="heads", subgroups=(1,) * size))
    divisors = [m for m in range(2, size + 1) if size % m == 0 and size // m <= kv_heads]
    sizes = [(m,) * (size // m) for m in divisors]
    if size > kv_heads and size % kv_heads:
        sizes.append(even(size, kv_heads))
    shared: tuple[KvAxis, ...] = ("context", "head_dim", "batch")
    axes: tuple[KvAxis, ...] = ("heads", *shared) if size > kv_heads else shared
    divisions += [KvDivision(axis=axis, subgroups=m) for axis in axes if asked in (None, axis) for m in sizes]
    return tuple(divisions)


@cache
def bundles(kv_heads: int, sizes: tuple[tuple[int, int], ...]) -> int:
    """Return the number of equal bundles of KV heads; ``sizes``: (size, number) of the sets that divide them."""
    fitting = [n for n in range(min(MOST_BUNDLES, kv_heads), 0, -1) if kv_heads % n == 0]
    if kv_heads > MOST_BUNDLES and fitting[0] == 1:
        fitting.insert(0, kv_heads)  # a prime number of heads comes in no bundles

    def splits(parts: int) -> int:
        return sum(number * math.comb(parts - 1, size - 1) for size, number in sizes if size <= parts)

    return next(n for n in fitting if splits(n) <= MOST_SPLITS or n == fitting[-1])


@cache
def head_divisions(kv_heads: int, most_bundles: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """Return every way to deal bundles out over ``parts``, at least one each, and every even division."""
    if parts > kv_heads:
        return ()
    heads = kv_heads // most_bundles
    dealt = compositions(most_bundles, parts) if parts <= most_bundles else ()
    in_bundles = (tuple(heads * part for part in shares) for shares in dealt)
    return tuple(dict.fromkeys((*in_bundles, *even_divisions(kv_heads, parts))))


@cache
def repeated_head_divisions(kv_heads: int, most_bundles: int, parts: int, hosts: int) -> tuple[tuple[int, ...], ...]:
    """Return the divisions that are the same on each of several hosts, where there are any, and an even one of all."""
    if parts > kv_heads:
        return ()
    repeated: Sequence[tuple[int, ...]] = ()
    if parts % hosts == 0 and kv_heads % hosts == 0:
        most = min(most_bundles, MOST_WIDE_BUNDLES)
        inside = max(n for n in range(1, most + 1) if kv_heads // hosts % n == 0)
        repeated = [shares * hosts for shares in head_divisions(kv_heads // hosts, inside, parts // hosts)]
    return tuple(dict.fromkeys((*repeated, even(kv_heads, parts))))


def even_divisions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yield ``total`` as ``parts`` numbers that differ by one at most, the larger ones at every place in a circle.

    Members of a class adjoin, so each class can have the larger numbers. Where more than one is larger, members of a
    class that have it may be any: they are alike.
    """
    shares = even(total, parts)
    for start in range(parts if total % parts else 1):
        yield shares[parts - start :] + shares[: parts - start]


def even(total: int, parts: int) -> tuple[int, ...]:
    """Return ``total`` as ``parts`` numbers that differ by one at most, the larger first."""
    share, more = divmod(total, parts)
    return (share + 1,) * more + (share,) * (parts - more)


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to write ``total`` as ``parts`` positive numbers in order."""
    if parts == 1:
        yield (total,)
        return
    for first in range(1, total - parts + 2):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def sizes_of(sets: Iterable[DeviceSet]) -> tuple[tuple[int, int], ...]:
    """Return (size, number of candidates of that size) for the candidates of one host."""
    lengths = sorted(len(device_set.devices) for device_set in sets if len(device_set.hosts) == 1)
    return tuple((size, len(list(equal))) for size, equal in groupby(lengths))


# ---- prices of divisions ----


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One division of the KV cache over a device set, priced; it holds for all sets that differ only in names."""

    division: KvDivision
    splits: tuple[tuple[Split, ...], ...]
    """Splits of one layer of each kind; none where layers of the kind cannot be divided so."""
    stage_bytes: tuple[int, ...]
    """Bytes per member, once per stage, in the order of devices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subgroup:
    """Price of a subgroup: devices that share the cache of some KV heads."""

    ns: tuple[int, ...]
    """Time of each kind of pass: the slowest member and the exchange of partial results."""
    bytes: tuple[int, ...]
    """Bytes per member."""


def divided(
    device_set: DeviceSet,
    division: KvDivision,
    kv_heads: int,
    most_bundles: int,
    subgroup: Callable[[KvAxis, tuple[int, ...], int, bool], Subgroup],
    *,
    fixed_ns: int,
    times: tuple[int, ...],
    unit: int = 1,
) -> tuple[Split, ...]:
    """Return a split for every way to deal KV heads out over the subgroups of a division, all but the last of which
    have multiples of ``unit``.

    ``subgroup`` prices an axis, members and KV heads, with a flag for the group's leader. ``times``: passes of each
    kind in a step; the time is ``fixed_ns`` + Σ times · max over subgroups, since each pass waits for the slowest.
    """
    parts, hosts = len(division.subgroups), len(device_set.hosts)
    if hosts == 1:
        dealt = head_divisions(kv_heads, most_bundles, parts)
    else:
        dealt = repeated_head_divisions(kv_heads, most_bundles, parts, hosts)
    if unit > 1:
        dealt = tuple(heads for heads in dealt if not any(share % unit for share in heads[:-1]))
    sizes = zip(division.starts, division.subgroups, strict=True)
    members = [device_set.devices[start : start + m] for start, m in sizes]
    prices = [
        {k: subgroup(division.axis, members[s], k, s == 0) for k in {heads[s] for heads in dealt}} for s in range(parts)
    ]
    splits = []
    for heads in dealt:
        chosen = [of_part[k] for of_part, k in zip(prices, heads, strict=True)]
        slowest = map(max, zip(*(price.ns for price in chosen), strict=True))
        splits.append(
            Split(
                shares=_member_heads(heads, division.subgroups),
                ns=fixed_ns + sum(map(mul, times, slowest)),
                bytes=tuple(chain.from_iterable(price.bytes for price in chosen)),
            )
        )
    return tuple(splits)


@cache
def _member_heads(heads: tuple[int, ...], subgroups: tuple[int, ...]) -> tuple[int, ...]:
    """Return the KV heads of each member, given those of its subgroup."""
    return tuple(k for k, m in zip(heads, subgroups, strict=True) for _ in range(m))


def parts_of(axis: KvAxis, members: Sequence[int], kv_heads: int) -> list[KvShare]:
    """Return the share of every member of a subgroup; only along ``context`` does its size depend on the position."""
    count, apart = len(members), axis == "context"
    return [KvShare(heads=kv_heads, axis=axis, parts=count, part=part if apart else 0) for part in range(count)]


def rotary_pairs(attention: Attention) -> int:
    """Return the rotary pairs of a head that may be divided: none where the head is normed as a whole."""
    return 0 if attention.qk_norm else attention.head_dim // 2


def allows(attention: Attention, options: Options, division: KvDivision) -> bool:
    """Return whether a layer can be divided so.

    Every subgroup needs a KV head, and is one device where all heads are normed together: its members would add up the
    squares of the same heads. Every part of a head equally many query heads (``heads``) or rotary pairs
    (``head_dim``); every part of a batch a sequence. Columns of o in codes are cut between groups.
    """
    if len(division.subgroups) > attention.num_kv_heads:
        return False
    if attention.qk_norm_whole and max(division.subgroups) > 1:
        return False
    if not all(divides(attention, division.axis, m) for m in division.subgroups):
        return False
    if division.axis == "heads":
        return all(attention.num_heads // attention.num_kv_heads % m == 0 for m in division.subgroups)
    if division.axis == "head_dim":
        pairs = rotary_pairs(attention)
        return pairs > 0 and all(pairs % m == 0 for m in division.subgroups)
    return division.axis != "batch" or max(division.subgroups) <= options.batch


def dominates(one: Variant, other: Variant) -> bool:
    """Return whether ``one`` can do whatever ``other`` can, in no more time and no more bytes of any member.

    For every split of ``other``, ``one`` has a split with no more of either; and its savings on a single layer make up
    for the bytes that its stage takes more, once.
    """
    more = tuple(max(0, a - b) for a, b in zip(one.stage_bytes, other.stage_bytes, strict=True))
    return all(
        any(no_worse(split, listed, more) for split in splits)
        for splits, worse in zip(one.splits, other.splits, strict=True)
        for listed in worse
    )


def no_worse(one: Split, other: Split, more: tuple[int, ...]) -> bool:
    """Return whether ``one`` takes no more time than ``other``, nor, with ``more`` bytes per member, more memory."""
    return one.ns <= other.ns and all(map(le, map(add, one.bytes, more), other.bytes))
