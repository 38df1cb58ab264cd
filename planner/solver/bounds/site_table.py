"""The dynamic programme of one host: the least time of its stages with any of its devices.

Devices of a host that nothing tells apart form a *class*; a *state* is how many devices of each class may be used. The
recursion over states considers the first class that has a device left: that device is idle, or some group has it, so

    best[s] = min(best[s - one device], min over groups g with a device of that class, taken(g) <= s, of
                  best[s - taken(g)] + curve(g))

No two groups share a device, and every set of disjoint groups is covered, up to renaming of equal devices: in that the
programme is exact, and its curves are as good as those of :mod:`planner.solver.bounds.stage`. With S states, G
different groups and additions of cost c it is O(S G c).

The axis before that of the curve is how the host is entered:

    HOP      no stage has entered it yet: each pays the hop from the stage before, in the same host
    NETWORK  one stage enters it over the network
    FIRST    one stage is the first of all, and receives from the block ``first``

The devices of a host that are in use are told a message, in rounds of ``message_ns`` each by how many they are.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from planner.integers import rounds
from planner.solver.bounds.combine import Sums
from planner.solver.bounds.stage import Curve

HOP, NETWORK, FIRST = range(3)

Entry = tuple[float, float, float]
"""ns that a group pays beside its layers, by HOP, NETWORK, FIRST."""

State = tuple[int, ...]
"""Devices of each class of a host."""


def less(counts: State, taken: State) -> State:
    """Return how many devices of each class remain; negative where there are too few."""
    return tuple(count - number for count, number in zip(counts, taken, strict=True))


class SiteTable:
    """Least times of the stages of one host, for every state.

    ``best`` has the axes (devices of class 0, …, devices of the last class, entry, curve), without the message.
    """

    def __init__(
        self, counts: State, groups: Sequence[tuple[State, Entry, Curve]], sums: Sums, message_ns: int
    ) -> None:
        """``counts``: all devices of the host; ``groups``: the devices they take, their entry, and their curve."""
        self.message_ns = message_ns
        self.sums = sums
        self._fewer: dict[int, Curve] = {}
        cheapest: dict[tuple[State, Entry], Curve] = {}
        for taken, entry, curve in groups:
            known = cheapest.get((taken, entry))
            cheapest[taken, entry] = curve if known is None else np.minimum(known, curve)
        self._single = [
            (taken, single_stage_site(curve, entry)) for (taken, entry), curve in cheapest.items() if sum(taken) == 1
        ]
        self.best = np.full((*(count + 1 for count in counts), 3, sums.size), math.inf)
        nothing = (0,) * len(counts)
        self.best[nothing][HOP] = sums.no_layers()
        stages = [(taken, entry, sums.spread(curve)) for (taken, entry), curve in cheapest.items()]
        self._taken = np.array([taken for taken, _, _ in stages], dtype=np.int64).reshape(-1, len(counts))
        for state in product(*(range(count + 1) for count in counts)):
            if state != nothing:
                self._fill(state, stages)

    def _fill(self, state: State, stages: Sequence[tuple[State, Entry, Curve]]) -> None:
        """Compute ``best`` of a state from those of smaller ones."""
        first = next(number for number, count in enumerate(state) if count)
        best = self.best[(*state[:first], state[first] - 1, *state[first + 1 :])].copy()  # the device is idle
        fitting = (self._taken[:, first] > 0) & (self._taken <= state).all(axis=1)
        for number in np.flatnonzero(fitting).tolist():
            taken, entry, spread = stages[number]
            together = self.sums.plus(self.best[less(state, taken)], spread)
            np.minimum(best, _with_entry(together, entry), out=best)
        self.best[state] = best

    def site(self, state: State) -> Curve:
        """Return [entry]: the host as a part of an answer, with at most these devices, messages paid.

        HOP now means that no stage runs there.
        """
        most = rounds(sum(state))
        curves: Curve = self.best[state] + most * self.message_ns
        for number in range(1, most):
            curves = np.minimum(curves, self._within(1 << number)[state] + number * self.message_ns)
        for taken, single in self._single:
            if min(less(state, taken)) >= 0:
                curves = np.minimum(curves, single)
        curves[HOP] = self.sums.no_layers()
        return curves

    def _within(self, devices: int) -> Curve:
        """Return ``best`` with at most so many devices in all."""
        if devices not in self._fewer:
            best, states = self.best.copy(), self.best.shape[:-2]
            best[np.add.reduce(np.indices(states)) > devices] = math.inf
            for axis in range(len(states)):
                best = np.minimum.accumulate(best, axis=axis)
            self._fewer[devices] = best
        return self._fewer[devices]


class Closing:
    """Least times of all layers with a given group of a host, for given sites around the host."""

    def __init__(self, table: SiteTable, around: Curve) -> None:
        """``around``: [whether the first stage is in it]: all other sites together."""
        self.table = table
        self.around = around
        self._spread = [table.sums.spread(curve) for curve in around]
        self._with_around: dict[State, tuple[Curve, Curve]] = {}
        self._beside: dict[tuple[State, int, Entry], Curve] = {}

    def value(self, rest: State, taken: State, entry: Entry, curve: Curve) -> float:
        """Return the least ns of all layers when the group runs and other stages have at most the devices ``rest``."""
        key = (rest, sum(taken), entry)
        if key not in self._beside:
            self._beside[key] = self._all_beside(*key)
        return self.table.sums.all_layers(curve, self._beside[key])

    def _all_beside(self, rest: State, devices: int, entry: Entry) -> Curve:
        """Return the curve of all but the layers of a group of so many devices: its entry, its host, the other sites.

        Where another stage runs in the host, one more device at least is in use there.
        """
        if rest not in self._with_around:
            self._with_around[rest] = self._rest_and_around(rest)
        entered, not_entered = self._with_around[rest]
        entering = np.array([entry[FIRST], entry[NETWORK]])[:, None]
        several: Curve = np.minimum(entered + entry[HOP], (not_entered + entering).min(axis=0))
        several = several + rounds(devices + 1) * self.table.message_ns
        alone: Curve = (self.around + entering).min(axis=0) + rounds(devices) * self.table.message_ns
        return np.minimum(several, alone)

    def _rest_and_around(self, rest: State) -> tuple[Curve, Curve]:
        """Return the other stages of the host with all other sites: the host entered by one of them, and, as [whether
        the first stage is elsewhere], not entered yet."""
        best, (without_first, with_first), plus = self.table.best[rest], self._spread, self.table.sums.plus
        entered = np.minimum(plus(best[FIRST], without_first), plus(best[NETWORK], with_first))
        return entered, np.stack([plus(best[HOP], without_first), plus(best[HOP], with_first)])


def single_stage_site(curve: Curve, entry: Entry) -> Curve:
    """Return [entry]: a site with one stage."""
    return np.stack([np.full_like(curve, math.inf), curve + entry[NETWORK], curve + entry[FIRST]])


def _with_entry(stages: Curve, entry: Entry) -> Curve:
    """Return [entry] with what the last stage added pays: a hop, or the entry where none of the others has entered."""
    grown = stages + entry[HOP]
    for mode in (NETWORK, FIRST):
        grown[mode] = np.minimum(grown[mode], stages[HOP] + entry[mode])
    return grown
