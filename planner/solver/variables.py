"""Types of CP-SAT expressions, and the builder that every part of the model adds its variables with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from planner.integers import PS_PER_NS

Linear = cp_model.LinearExpr | int

Bool = cp_model.IntVar

Devices = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Terms that a part of the model adds to the step time and to the bytes on devices."""

    time_ns: tuple[Linear, ...]
    load_bytes: tuple[tuple[int, Linear], ...]
    """(device, bytes), in any order; a device may be listed several times."""


class Builder:
    """A CP-SAT model under construction; variables are non-negative."""

    def __init__(self) -> None:
        self.model = cp_model.CpModel()
        self._ands: dict[tuple[int, int], Bool] = {}

    def flag(self, name: str) -> Bool:
        """Add a 0-1 variable."""
        return self.model.new_bool_var(name)

    def integer(self, most: int, name: str) -> cp_model.IntVar:
        """Add a variable in 0 … ``most``."""
        return self.model.new_int_var(0, most, name)

    def both(self, one: Bool, other: Bool) -> Bool:
        """Return a flag that is 1 exactly when both are; one and the same for equal arguments."""
        key = (one.index, other.index)
        if key not in self._ands:
            both = self._ands[key] = self.flag(f"and{one.index}_{other.index}")
            self.model.add_bool_and([one, other]).only_enforce_if(both)
            self.model.add_bool_or([one.negated(), other.negated(), both])
        return self._ands[key]

    def any_of(self, exclusive: Sequence[Bool]) -> Bool:
        """Return a flag that is 1 exactly when one of ``exclusive`` is, of which at most one is."""
        if len(exclusive) == 1:
            return exclusive[0]
        either = self.flag("any")
        self.model.add(sum(exclusive) == either)
        return either

    def slowest_ns(
        self,
        counts: Sequence[Linear],
        rates_ps: Sequence[int],
        most: int,
        quanta_ns: Mapping[int, Linear],
        slowed: Sequence[tuple[int, int, Bool]] = (),
    ) -> Linear:
        """Return max(count * rate) in whole quanta, where no count exceeds ``most``.

        ``quanta_ns``: the quanta that may be in use, with a flag each, 1 for the one that is; ``slowed``: index of a
        count, its rate where a flag is 1, and the flag. The number of quanta is bounded from below only: the step time
        is minimised, which makes it exact.
        """
        if not any(rates_ps):
            return 0
        slowest_ps = most * max(*rates_ps, *(rate_ps for _, rate_ps, _ in slowed), 0)
        slowest_ns: Linear = 0
        for quantum_ns, is_used in quanta_ns.items():
            most_quanta = slowest_ps // (PS_PER_NS * quantum_ns) + 1
            quanta = self.integer(most_quanta, "quanta")
            if len(quanta_ns) > 1:
                self.model.add(quanta <= most_quanta * is_used)
            slowest_ns += quantum_ns * quanta
        for count, rate_ps in zip(counts, rates_ps, strict=True):
            self.model.add(PS_PER_NS * slowest_ns >= count * rate_ps)
        for index, rate_ps, flag in slowed:
            self.model.add(PS_PER_NS * slowest_ns >= counts[index] * rate_ps).only_enforce_if(flag)
        return slowest_ns
