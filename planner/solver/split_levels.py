"""Splits of a stage told by how long they take: what every way to divide the coarse axis comes to.

Where all ways to divide it are listed, a split takes what its slowest member takes, and bytes grow evenly with shares,
nobody needs to know how many layers have which split, but how many take how long, and what each member has of them in
all. For any such sums there are splits: divisions of n layers, each within bounds, are a flow, and flows are whole
where their bounds are. So the same answers are found with fewer and less alike variables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from planner.solver.problem import Split

MANY_COLUMNS = 6
"""Fewer are not worth another form."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """Layers by the time that they take: of each, members have a share within bounds, which add up to ``total``."""

    ns: tuple[int, ...]
    """Of each level, ascending."""
    total: int
    least: tuple[int, ...]
    """Share of each member."""
    most: tuple[tuple[int, ...], ...]
    """Of each level, of each member: the most that it does in time."""
    fixed_bytes: tuple[int, ...]
    """Of each member, of each layer."""
    each_bytes: tuple[int, ...]
    """Of each member, of one more share."""

    def divided(self, layers: int, shares: Sequence[int]) -> list[tuple[tuple[int, ...], int]]:
        """Splits with their numbers of layers, as even as can be; ``shares``: of each member, in all of them.

        Each split has of each member the mean, rounded down or up: up for those who are owed most, and as often as
        the means of the rest stay between the same whole numbers.
        """
        found: list[tuple[tuple[int, ...], int]] = []
        left, owed = layers, list(shares)
        while left:
            floor = [each // left for each in owed]
            rest = [each % left for each in owed]
            up = sorted(range(len(owed)), key=lambda j: (-rest[j], j))[: self.total - sum(floor)]
            split = tuple(each + (j in up) for j, each in enumerate(floor))
            count = min(rest[j] if j in up else left - rest[j] for j in range(len(owed)))
            found.append((split, count))
            left -= count
            owed = [each - count * share for each, share in zip(owed, split, strict=True)]
        return found


@lru_cache(maxsize=1024)
def levels(splits: tuple[Split, ...]) -> Levels | None:
    """The same as ``splits``, or None where they are few, or not all there are, or not told by time and sums."""
    if len(splits) < MANY_COLUMNS or len(splits[0].shares) < 2:
        return None
    members = range(len(splits[0].shares))
    (total, *others) = {sum(split.shares) for split in splits}
    shares = [sorted({split.shares[j] for split in splits}) for j in members]
    if others or any(each != list(range(each[0], each[-1] + 1)) for each in shares):
        return None
    if len(splits) != _count([(each[0], each[-1]) for each in shares], total):
        return None
    slowest = [_slowest(splits, j) for j in members]
    if any(split.ns != max(slowest[j][split.shares[j]] for j in members) for split in splits):
        return None
    loads = [_affine({(split.shares[j], split.bytes[j]) for split in splits}) for j in members]
    times = sorted({split.ns for split in splits})
    found = [load for load in loads if load is not None]
    if len(found) < len(loads) or len(times) * (len(members) + 1) >= len(splits):
        return None
    return Levels(
        ns=tuple(times),
        total=total,
        least=tuple(each[0] for each in shares),
        most=tuple(tuple(max(s for s in shares[j] if slowest[j][s] <= time) for j in members) for time in times),
        fixed_bytes=tuple(fixed for fixed, _ in found),
        each_bytes=tuple(each for _, each in found),
    )


def _slowest(splits: Sequence[Split], member: int) -> dict[int, int]:
    """What each share of a member takes, at most: less than any split with it, or with a larger share, does."""
    found: dict[int, int] = {}
    for split in splits:
        for share in range(1, split.shares[member] + 1):
            found[share] = min(split.ns, found.get(share, split.ns))
    return found


def _count(ranges: Sequence[tuple[int, int]], total: int) -> int:
    """How many ways there are to add up to ``total`` with a number of each range."""
    ways = [1] + [0] * total
    for low, high in ranges:
        ways = [sum(ways[n - each] for each in range(low, high + 1) if each <= n) for n in range(total + 1)]
    return ways[total]


def _affine(points: set[tuple[int, int]]) -> tuple[int, int] | None:
    """(a, b) with bytes = a + b * share for all of them, if there are."""
    (first, low), (last, high) = min(points), max(points)
    each = (high - low) // (last - first) if last > first else 0
    fixed = low - each * first
    return (fixed, each) if all(nbytes == fixed + each * share for share, nbytes in points) else None
