"""The master problem of a fleet: how many of equal hosts are divided in which way, and who gets the running sequences.

Integers only: a *form* is something that takes devices, a *choice* a form with places for sequences and the speed of
each. Variables, by the letters used below:

    y[c, p]   hosts of class c that are divided by pattern p, which is a multiset of forms
    x[c, f]   parts of form f of the one host of class c, where it has no patterns: counts of its devices are enough
    n[j]      replicas of choice j
    k[j]      running sequences on all of them

Objectives in lexicographic order, each proven and fixed: the most speed in all, Σ speed_j k_j; the fewest devices; the
fewest replicas; then n and k of the choices in order, the most of the first. So there is one answer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ortools.sat.python import cp_model

from planner.solver.minimise import SAME_OF_MANY, Infeasible, Settings, minimise


@dataclass(frozen=True, kw_only=True, slots=True)
class HostClass:
    """Hosts that nothing tells apart, with the ways to divide one of them."""

    hosts: int
    patterns: tuple[tuple[int, ...], ...]
    """Forms of the parts, each as often as it is there."""
    devices: tuple[int, ...] = ()
    """In place of patterns, of a host that is alone: its devices, by classes of equal ones."""
    parts: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """With ``devices``: each form and the devices that it takes, by class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A form with places."""

    form: int
    fewest: int
    """Least running sequences of a replica."""
    places: int
    """Most of them."""
    speed: int
    """Of each running sequence, in millionths of a token per second."""
    devices: int
    hosts: tuple[int, ...]
    """Whole hosts that it takes, by class; all 0 where it is a part of a host, as patterns have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What the replicas are for."""

    clients: int | None
    """Running sequences in all; None: as many as there are places."""
    replicas: int | None
    """Replicas in all; None: any number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Numbers of replicas and sequences by choice, and how hosts are divided."""

    speed: int
    """Of all sequences together."""
    replicas: tuple[int, ...]
    sequences: tuple[int, ...]
    hosts: tuple[tuple[tuple[tuple[int, ...], int], ...], ...]
    """By class: patterns, each with the number of hosts that it divides."""


@dataclass(kw_only=True)
class _Model:
    """The CP-SAT model with its variables."""

    classes: Sequence[HostClass]
    choices: Sequence[Choice]
    load: Load
    model: cp_model.CpModel = field(default_factory=cp_model.CpModel)
    values: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        most = self._most()
        self.n = [self.model.new_int_var(0, count, f"n{j}") for j, count in enumerate(most)]
        self.k = [
            self.model.new_int_var(0, count * choice.places, f"k{j}")
            for j, (count, choice) in enumerate(zip(most, self.choices, strict=True))
        ]
        self.y = [
            [self.model.new_int_var(0, of_class.hosts, f"y{c}_{p}") for p in range(len(of_class.patterns))]
            for c, of_class in enumerate(self.classes)
        ]
        self.x = [
            [self.model.new_int_var(0, _times(of_class, taken), f"x{c}_{form}") for form, taken in of_class.parts]
            for c, of_class in enumerate(self.classes)
        ]
        self._hosts()
        self._parts()
        self._sequences()

    def _most(self) -> list[int]:
        """Return the most replicas of each choice."""
        counts: Counter[int] = Counter()
        for of_class in self.classes:
            in_one = Counter({form: _times(of_class, taken) for form, taken in of_class.parts})
            for pattern in of_class.patterns:
                in_one |= Counter(pattern)
            counts.update({form: of_class.hosts * times for form, times in in_one.items()})
        return [
            min(c.hosts // own for c, own in zip(self.classes, choice.hosts, strict=True) if own)
            if any(choice.hosts)
            else counts[choice.form]
            for choice in self.choices
        ]

    def _hosts(self) -> None:
        """A host is divided in one way, or is part of one replica over several, or is not in use."""
        for c, of_class in enumerate(self.classes):
            whole = sum(choice.hosts[c] * n for choice, n in zip(self.choices, self.n, strict=True) if choice.hosts[c])
            self.model.add(sum(self.y[c]) + whole <= of_class.hosts)
            for number, devices in enumerate(of_class.devices):
                parts = zip(of_class.parts, self.x[c], strict=True)
                taken = sum(counts[number] * x for (_, counts), x in parts if counts[number])
                self.model.add(taken + devices * whole <= devices)

    def _parts(self) -> None:
        """There are no more replicas of a form than hosts are divided into parts of it."""
        parts: dict[int, list[cp_model.LinearExprT]] = {}
        for of_class, by_pattern, by_form in zip(self.classes, self.y, self.x, strict=True):
            for pattern, hosts in zip(of_class.patterns, by_pattern, strict=True):
                for form, times in Counter(pattern).items():
                    parts.setdefault(form, []).append(times * hosts)
            for (form, _), x in zip(of_class.parts, by_form, strict=True):
                parts.setdefault(form, []).append(x)
        replicas: dict[int, list[cp_model.LinearExprT]] = {}
        for choice, n in zip(self.choices, self.n, strict=True):
            if not any(choice.hosts):
                replicas.setdefault(choice.form, []).append(n)
        for form, own in replicas.items():
            self.model.add(sum(own) <= sum(parts.get(form, [])))

    def _sequences(self) -> None:
        """Every replica runs no fewer and no more sequences than its choice is for; all clients run."""
        for choice, n, k in zip(self.choices, self.n, self.k, strict=True):
            if self.load.clients is None:
                self.model.add(k == choice.places * n)
            else:
                self.model.add(k >= choice.fewest * n)
                self.model.add(k <= choice.places * n)
        if self.load.clients is not None:
            self.model.add(sum(self.k) == self.load.clients)
        self.model.add(sum(self.n) >= 1)
        if self.load.replicas is not None:
            self.model.add(sum(self.n) == self.load.replicas)

    def divided(self, number: int) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Return the patterns of a class, each with the number of hosts that it divides in the solution."""
        of_class, value = self.classes[number], self.values.__getitem__
        hosts = [(p, value(y.index)) for p, y in zip(of_class.patterns, self.y[number], strict=True)]
        alone = [f for (f, _), x in zip(of_class.parts, self.x[number], strict=True) for _ in range(value(x.index))]
        return (*hosts, (tuple(alone), 1))

    def settle(self, objective: cp_model.LinearExpr | int, what: str, settings: Settings) -> int:
        """Minimise an objective and keep its value; raise Infeasible, or NotProvenError past the limit."""
        value = minimise(self, objective, settings, what=what, mode=SAME_OF_MANY).value
        self.model.add(objective == value)
        return value


def _times(of_class: HostClass, taken: Sequence[int]) -> int:
    """Return how many parts of these devices a host has."""
    return min(devices // own for devices, own in zip(of_class.devices, taken, strict=True) if own)


def divide(
    classes: Sequence[HostClass], choices: Sequence[Choice], load: Load, settings: Settings, *, ties: bool
) -> Answer | None:
    """Return the best division, None where there is none; raise NotProvenError past the limit of the settings.

    ``ties``: settle all objectives; else the first one alone.
    """
    if not choices:
        return None
    problem = _Model(classes=classes, choices=choices, load=load)
    speed = sum(choice.speed * k for choice, k in zip(choices, problem.k, strict=True))
    try:
        best = -problem.settle(-speed, "tokens/s", settings)
    except Infeasible:
        return None
    if ties:
        problem.settle(sum(c.devices * n for c, n in zip(choices, problem.n, strict=True)), "devices", settings)
        problem.settle(sum(problem.n), "replicas", settings)
        problem.settle(sum(j * n for j, n in enumerate(problem.n)), "order of replicas", settings)
        numbered = enumerate(hosts for own in (*problem.y, *problem.x) for hosts in own)
        problem.settle(sum(number * hosts for number, hosts in numbered), "order of hosts", settings)
    value = problem.values.__getitem__
    return Answer(
        speed=best,
        replicas=tuple(value(n.index) for n in problem.n),
        sequences=tuple(value(k.index) for k in problem.k),
        hosts=tuple(problem.divided(c) for c in range(len(classes))),
    )


def most_replicas(classes: Sequence[HostClass], choices: Sequence[Choice], settings: Settings) -> int:
    """Return the most replicas of any division."""
    if not choices:
        return 0
    problem = _Model(classes=classes, choices=choices, load=Load(clients=None, replicas=None))
    try:
        return -problem.settle(-sum(problem.n), "replicas", settings)
    except Infeasible:
        return 0


def most_sequences(
    classes: Sequence[HostClass], choices: Sequence[Choice], replicas: int | None, settings: Settings
) -> int:
    """Return the most sequences that run at once on any division."""
    if not choices:
        return 0
    problem = _Model(classes=classes, choices=choices, load=Load(clients=None, replicas=replicas))
    try:
        return -problem.settle(-sum(problem.k), "sequences", settings)
    except Infeasible:
        return 0
