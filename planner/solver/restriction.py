"""A subset of a problem's groups and block choices, and the problem restricted to it."""

from dataclasses import dataclass, replace

from planner.solver.problem import Option, Problem, Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Restriction:
    """Groups and block choices that an answer may use."""

    groups: tuple[int, ...]
    """Indices in ``Problem.groups``, ascending."""
    choices: tuple[tuple[tuple[int, int], ...], ...]
    """Per block, the pairs (option, split of that option) by index, ascending."""
    left_out: frozenset[tuple[int, int, int]] = frozenset()
    """Splits (group, kind, split of that kind) by which no layer is divided."""

    @property
    def possible(self) -> bool:
        """Has a group, and a choice of every block: otherwise there is no answer."""
        return bool(self.groups) and all(self.choices)

    def kept_by(self, other: "Restriction") -> "Restriction":
        """Return the groups and choices that are in both."""
        groups, choices = set(other.groups), [set(kept) for kept in other.choices]
        return Restriction(
            groups=tuple(g for g in self.groups if g in groups),
            choices=tuple(
                tuple(choice for choice in mine if choice in theirs)
                for mine, theirs in zip(self.choices, choices, strict=True)
            ),
            left_out=self.left_out | other.left_out,
        )


def everything(problem: Problem) -> Restriction:
    """Return the restriction that leaves nothing out."""
    return Restriction(
        groups=tuple(range(len(problem.groups))),
        choices=tuple(
            tuple((o, c) for o, option in enumerate(block.options) for c in range(len(option.splits)))
            for block in problem.blocks
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A placement of a block: an option, divided as one of its splits."""

    option: Option
    split: Split
    index: tuple[int, int]
    """(option, split of that option) in the whole problem."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Restricted:
    """A problem with the groups of a restriction alone, and the choices that are left of its blocks."""

    whole: Problem
    restriction: Restriction
    problem: Problem
    """``whole`` with fewer groups; blocks have all their options."""
    choices: tuple[tuple[Choice, ...], ...]
    """Per block, in the order of the restriction."""
    left_out: frozenset[tuple[int, int, int]]
    """Splits that are left out, by the index of the group in ``problem``."""


def restricted(whole: Problem, restriction: Restriction) -> Restricted:
    """Return the restricted problem."""
    groups = tuple(whole.groups[g] for g in restriction.groups)
    index = {g: i for i, g in enumerate(restriction.groups)}
    counts = None if whole.counts is None else tuple(whole.counts[g] for g in restriction.groups)
    choices = tuple(
        tuple(Choice(option=block.options[o], split=block.options[o].splits[c], index=(o, c)) for o, c in kept)
        for block, kept in zip(whole.blocks, restriction.choices, strict=True)
    )
    return Restricted(
        whole=whole,
        restriction=restriction,
        problem=replace(whole, groups=groups, counts=counts),
        choices=choices,
        left_out=frozenset((index[g], k, c) for g, k, c in restriction.left_out if g in index),
    )
