"""Lower bounds of the step time by what an answer uses: a least for all answers, and more for each group and choice."""

import math
from dataclasses import dataclass

from planner.solver.problem import Problem
from planner.solver.restriction import Restriction


@dataclass(frozen=True, kw_only=True, slots=True)
class Excess:
    """A bound ``least`` of every answer, and by how much more an answer with a given group or choice is bounded.

    Any answer that uses group g takes at least ``least + groups[g]`` ns, and any answer with choice x of block b at
    least ``least + choices[b][x]``. Groups and choices that are not listed are in no answer.
    """

    least: float
    groups: dict[int, float]
    """ns beyond ``least``, by index of the group."""
    choices: tuple[dict[tuple[int, int], float], ...]
    """ns beyond ``least`` for each block, by the indices of an option and one of its splits."""

    @property
    def bound(self) -> float:
        """The bound of every answer: it uses one group at least, and one choice of each block."""
        cheapest = [min(self.groups.values(), default=math.inf)]
        cheapest += [min(known.values(), default=math.inf) for known in self.choices]
        return self.least + max(cheapest)

    def within(self, limit: float) -> "Excess":
        """Drop groups and choices that are in no answer of at most ``limit`` ns."""
        room = limit - self.least
        return Excess(
            least=self.least,
            groups={g: excess for g, excess in self.groups.items() if excess <= room},
            choices=tuple({key: excess for key, excess in known.items() if excess <= room} for known in self.choices),
        )

    def kept_by(self, other: "Excess") -> "Excess":
        """Drop groups and choices that ``other`` does not list."""
        return Excess(
            least=self.least,
            groups={g: excess for g, excess in self.groups.items() if g in other.groups},
            choices=tuple(
                {key: excess for key, excess in mine.items() if key in theirs}
                for mine, theirs in zip(self.choices, other.choices, strict=True)
            ),
        )

    def restriction(self) -> Restriction:
        """Return the listed groups and choices."""
        return Restriction(groups=tuple(self.groups), choices=tuple(map(tuple, self.choices)))


def no_answer(problem: Problem) -> Excess:
    """Return the bound of a problem that has no answer: nothing is listed."""
    return Excess(least=math.inf, groups={}, choices=tuple({} for _ in problem.blocks))
