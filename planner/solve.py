"""The placement as a CP-SAT model, solved to a proof. The one place that knows the solver.

What the variables mean, in the words of :mod:`planner.problem`:

    runs[G]      group G runs a stage                 enters[G]   it is the first stage of its host
    first[G]     its stage is the first               last[G]     its stage is the last
    layers[G][c] layers of G divided as column c      units[G][j] units of its member j over all its layers
    first_rows[d], last_rows[d]                       rows of the two tables on device d
    tail[t][c]   the tail is on its group t, divided as column c; tail_units[d], tail_first[d], tail_last[d] likewise

Objectives in lexicographic order, each proven optimal and then fixed: the time of a step; the number of stages; an
order over groups. Then, with only these groups left: an order over stages and over the division of the tail; the least
free memory of a device in use, in granules, maximised; a total order over quantities. So there is one answer.
"""

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from planner.cost import PS_PER_NS
from planner.errors import NotProvenError
from planner.problem import Answer, Problem, StageAnswer, TailAnswer, TailGroup

Linear = cp_model.LinearExpr | int

DETERMINISTIC_LIMIT = 600.0
"""Of one objective, in the solver's own units of work (about a second each): the same on every machine."""

FREE_BITS = 12
"""Free memory is compared in granules: the largest capacity has so many bits of them."""

PACK_BITS = 55
"""Ordered variables are minimised together as digits of one number of at most so many bits."""


class _Infeasible(Exception):
    """The solver has proven that there is no solution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How to search; none of it decides what is found."""

    workers: int = 1
    seed: int = 0
    gap_ppm: int = 0
    limit: float = DETERMINISTIC_LIMIT
    """Of one objective; past it there is no answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """One objective, minimised: its value and the proven bound, which are equal unless a gap was accepted."""

    what: str
    value: int
    bound: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Solved:
    """The answer and its proof: it takes ``objective_ns`` at most, exactly so unless a gap was accepted.

    ``bound_ns`` is then ``objective_ns``, or what was proven of every answer.
    """

    answer: Answer
    objective_ns: int
    bound_ns: int
    optima: tuple[Optimum, ...]
    """Of all objectives, in the order in which they were settled."""
    solve_s: float


def solve(problem: Problem, settings: Settings) -> Solved | None:
    """The one optimal answer, or None where the solver proves that nothing fits; raise NotProvenError with the gap."""
    try:
        return _solve(problem, settings)
    except _Infeasible:
        return None


def _solve(problem: Problem, settings: Settings) -> Solved:
    start = time.perf_counter()
    model = _Model(problem)
    step = _optimise(model, model.step_ns, settings, gap_ppm=settings.gap_ppm, what="step time")
    try:
        answer, optima = _settle(problem, model, step, settings)
    except NotProvenError as error:
        raise NotProvenError(str(error), objective_ns=step.value, bound_ns=step.bound) from error
    return Solved(
        answer=answer,
        objective_ns=step.value,
        bound_ns=step.bound,
        optima=optima,
        solve_s=time.perf_counter() - start,
    )


def _settle(
    problem: Problem, model: "_Model", step: Optimum, settings: Settings
) -> tuple[Answer, tuple[Optimum, ...]]:
    """The one answer among those with that step time, and all objectives that led to it."""
    model.model.add(model.step_ns <= step.value)
    if not settings.gap_ppm:  # otherwise the groups found are taken; the search itself is always the same
        stages = _optimise(model, sum(model.runs), settings, what="stages")
        model.model.add(sum(model.runs) == stages.value)
        if _has_rival(problem, model, step.value, settings):
            _order(model, [(variable, 1) for variable in model.structure()], settings)

    used, tail = model.chosen()
    small = _Model(_restrict(problem, used, tail))
    small.model.add(small.step_ns <= step.value)
    for index, runs in enumerate(small.runs):
        small.model.add(runs == (index < len(used)))
    _order(small, [(variable, 1) for variable in small.ends()], settings)
    free = _optimise(small, -small.free, settings, what="free memory")
    small.model.add(small.free >= -free.value)
    _order(small, small.quantities(), settings)
    return small.answer(used, tail), (*model.optima, *small.optima)


def _has_rival(problem: Problem, model: "_Model", step_ns: int, settings: Settings) -> bool:
    """Whether other groups are as good: without equal devices hardly ever, and then there is nothing to order."""
    rival = _Model(problem)
    rival.model.add(rival.step_ns <= step_ns)
    rival.model.add(sum(rival.runs) == sum(map(model.value, model.runs)))
    pairs = zip(rival.structure(), model.structure(), strict=True)
    rival.model.add_bool_or([theirs.negated() if model.value(ours) else theirs for theirs, ours in pairs])
    try:
        _optimise(rival, rival.step_ns, settings, what="another answer")
    except _Infeasible:
        return False
    return True


def fits(problem: Problem, settings: Settings) -> bool:
    """Whether any placement exists: found, or proven that there is none."""
    try:
        _optimise(_Model(problem), 0, settings, what="feasibility")
    except _Infeasible:
        return False
    return True


def shortfall(problem: Problem, settings: Settings) -> tuple[int, ...]:
    """The least bytes that are missing, in all, for any placement to exist: of each device."""
    model = _Model(problem, elastic=True)
    least = _optimise(model, sum(model.short), settings, what="missing bytes")
    model.model.add(sum(model.short) == least.value)
    _order(model, [(variable, 1 << 42) for variable in model.short], settings)
    return tuple(model.value(variable) for variable in model.short)


def _restrict(problem: Problem, used: Sequence[int], tail: int | None) -> Problem:
    """The problem with only the groups that the structure uses."""
    groups = tuple(problem.groups[index] for index in used)
    if tail is None or problem.tail is None:
        return dataclasses.replace(problem, groups=groups)
    chosen = problem.tail.groups[tail]
    place = used.index(chosen.group) if chosen.group in used else len(groups)
    if place == len(groups):
        groups += (problem.groups[chosen.group],)
    kept = dataclasses.replace(chosen, group=place)
    return dataclasses.replace(problem, groups=groups, tail=dataclasses.replace(problem.tail, groups=(kept,)))


class _Model:
    """Variables and constraints of a problem; one method per family of constraints."""

    def __init__(self, problem: Problem, *, elastic: bool = False) -> None:
        self.problem = problem
        self.model = cp_model.CpModel()
        self.quantum_ps = PS_PER_NS * problem.quantum_ns
        self.values: list[int] = []
        self.optima: list[Optimum] = []
        self.granule_bytes = 1 << max(0, max(problem.capacity_bytes).bit_length() - FREE_BITS)
        groups = problem.groups
        self.runs = [self._bool(f"runs{i}") for i in range(len(groups))]
        self.enters = [self._bool(f"enters{i}") for i in range(len(groups))]
        self.first = [self._bool(f"first{i}") for i in range(len(groups))]
        self.last = [self._bool(f"last{i}") for i in range(len(groups))]
        self.layers = [
            [self._int(problem.layers, f"n{i}_{c}") for c in range(len(g.columns))] for i, g in enumerate(groups)
        ]
        total = problem.layers * problem.units
        self.units = [[self._int(total, f"u{i}_{j}") for j in range(len(g.devices))] for i, g in enumerate(groups)]
        devices = range(len(problem.devices))
        self.first_rows = [self._int(problem.first_rows, f"first_rows{d}") for d in devices]
        self.last_rows = [self._int(problem.last_rows, f"last_rows{d}") for d in devices]
        self.used = [self._bool(f"used{d}") for d in devices]
        self.short = [self._int(1 << 50, f"short{d}") for d in devices] if elastic else []
        self.load: list[list[Linear]] = [[] for _ in devices]
        self.time: list[Linear] = [problem.fixed_ns]
        self._stages()
        self._order_of_stages()
        self._layer_time()
        self._tables()
        self._tail()
        self._messages()
        self._capacity()
        self.step_ns = self._int(1 << 60, "step_ns")
        self.model.add(self.step_ns == sum(self.time))

    def _bool(self, name: str) -> cp_model.IntVar:
        return self.model.new_bool_var(name)

    def _int(self, most: int, name: str) -> cp_model.IntVar:
        return self.model.new_int_var(0, most, name)

    def _containing(self, device: int) -> list[int]:
        return [index for index, group in enumerate(self.problem.groups) if device in group.devices]

    def _stages(self) -> None:
        """Every layer runs in one stage; a device is in one group at most; a stage has a layer at least."""
        problem = self.problem
        self.model.add(sum(n for columns in self.layers for n in columns) == problem.layers)
        for runs, columns, units in zip(self.runs, self.layers, self.units, strict=True):
            self.model.add(sum(columns) <= problem.layers * runs)
            self.model.add(sum(columns) >= runs)
            self.model.add(sum(units) == problem.units * sum(columns))
        for device in range(len(problem.devices)):
            self.model.add(sum(self.runs[index] for index in self._containing(device)) <= 1)

    def _order_of_stages(self) -> None:
        """The stages of a host follow one another, so a host is entered once; hops are priced where they arrive."""
        problem = self.problem
        self.model.add_exactly_one(self.first)
        self.model.add_exactly_one(self.last)
        for index, group in enumerate(problem.groups):
            self.model.add_implication(self.enters[index], self.runs[index])
            self.model.add_implication(self.first[index], self.enters[index])
            self.model.add_implication(self.last[index], self.runs[index])
            self.time.append(group.hop_ns * (self.runs[index] - self.enters[index]))
            self.time.append(group.network_hop_ns * (self.enters[index] - self.first[index]))
        hosts = range(len(problem.hosts))
        self.hosts = [self._bool(f"host{h}") for h in hosts]
        for host in hosts:
            here = [index for index, group in enumerate(problem.groups) if group.host == host]
            self.model.add(sum(self.enters[index] for index in here) == self.hosts[host])
            for index in here:
                self.model.add_implication(self.runs[index], self.hosts[host])
                # The stage that enters a host is its last only when it is its only one.
                slack = len(problem.devices) * (2 - self.enters[index] - self.last[index])
                self.model.add(sum(self.runs[other] for other in here) <= 1 + slack)
            # A host that has the first and the last stage is the only one.
            ends = sum(self.first[index] + self.last[index] for index in here)
            self.model.add(sum(self.hosts) <= 1 + len(problem.hosts) * (2 - ends))

    def _layer_time(self) -> None:
        """A layer waits for its slowest share; units are dealt out over the whole stage."""
        problem = self.problem
        for index, group in enumerate(problem.groups):
            self.time += [n * column.ns for n, column in zip(self.layers[index], group.columns, strict=True)]
            slowest = max(problem.unit_ps[device] for device in group.devices)
            quanta = self._int(problem.layers * problem.units * slowest // self.quantum_ps + 1, f"t{index}")
            for units, device in zip(self.units[index], group.devices, strict=True):
                self.model.add(self.quantum_ps * quanta >= units * problem.unit_ps[device])
            self.time.append(problem.quantum_ns * quanta)
            for j, device in enumerate(group.devices):
                self.load[device].append(group.stage_bytes[j] * self.runs[index])
                self.load[device].append(problem.unit_bytes * self.units[index][j])
                for n, column in zip(self.layers[index], group.columns, strict=True):
                    self.load[device].append(column.bytes[j] * n)

    def _tables(self) -> None:
        """Rows of the first table are on the first stage's devices, those of the last on the last stage's."""
        problem = self.problem
        self._spread(self.first_rows, self.first, problem.first_rows)
        self._spread(self.last_rows, self.last, problem.last_rows)
        quanta = self._slowest_rows(self.last_rows, problem.row_ps, problem.last_rows)
        self.time.append(problem.quantum_ns * quanta)
        for device in range(len(problem.devices)):
            self.load[device].append(problem.first_row_bytes * self.first_rows[device])
            self.load[device].append(problem.last_row_bytes * self.last_rows[device])
        for index, group in enumerate(problem.groups):
            self.time.append(group.first_ns * self.first[index] + group.last_ns * self.last[index])
            for j, device in enumerate(group.devices):
                self.load[device].append(group.last_bytes[j] * self.last[index])

    def _spread(self, rows: Sequence[cp_model.IntVar], holders: Sequence[cp_model.IntVar], total: int) -> None:
        self.model.add(sum(rows) == total)
        for device, count in enumerate(rows):
            self.model.add(count <= total * sum(holders[index] for index in self._containing(device)))

    def _slowest_rows(self, rows: Sequence[cp_model.IntVar], row_ps: Sequence[int], total: int) -> cp_model.IntVar:
        quanta = self._int(total * max(row_ps) // self.quantum_ps + 1, "rows_quanta")
        for count, each in zip(rows, row_ps, strict=True):
            self.model.add(self.quantum_ps * quanta >= count * each)
        return quanta

    def _tail(self) -> None:
        """The tail is on one group, in one column; tables that are the base's are shared where the base's lie."""
        problem, tail = self.problem, self.problem.tail
        groups = tail.groups if tail else ()
        self.tail = [[self._bool(f"tail{t}_{c}") for c in range(len(g.columns))] for t, g in enumerate(groups)]
        self.on = [self._bool(f"on{t}") for t in range(len(self.tail))]
        devices = range(len(self.problem.devices))
        self.tail_units = [self._int(tail.units if tail else 0, f"tail_units{d}") for d in devices]
        self.tail_first = [self._int(tail.first_rows if tail else 0, f"tail_first{d}") for d in devices]
        self.tail_last = [self._int(tail.last_rows if tail else 0, f"tail_last{d}") for d in devices]
        self.shared_first = [self._bool(f"shared_first{t}") for t in range(len(self.tail))]
        self.shared_last = [self._bool(f"shared_last{t}") for t in range(len(self.tail))]
        if tail is None:
            return
        self.model.add_exactly_one(self.on)
        for on, columns in zip(self.on, self.tail, strict=True):
            self.model.add(sum(columns) == on)
        for t, group in enumerate(tail.groups):
            self._receive(group, self.on[t])
            for variable, column in zip(self.tail[t], group.columns, strict=True):
                self.time.append(column.ns * variable)
                for j, device in enumerate(self.problem.groups[group.group].devices):
                    self.load[device].append(column.bytes[j] * variable)
        here = [[t for t, g in enumerate(tail.groups) if d in self.problem.groups[g.group].devices] for d in devices]
        rows_of = ((self.tail_first, tail.first_rows), (self.tail_last, tail.last_rows))
        for rows, total in ((self.tail_units, tail.units), *rows_of):
            for device in devices:
                self.model.add(rows[device] <= total * sum(self.on[t] for t in here[device]))
        self.model.add(sum(self.tail_units) == tail.units)
        self._share(self.shared_first, self.first, self.tail_first, tail.first_rows, tail.shares_first)
        self._share(self.shared_last, self.last, self.tail_last, tail.last_rows, tail.shares_last)
        self.time.append(problem.quantum_ns * self._slowest_rows(self.tail_units, tail.unit_ps, tail.units))
        quanta = self._slowest_rows(self.tail_last, tail.row_ps, tail.last_rows)
        shared = sum(self.shared_last)
        for device in devices:
            if tail.shares_last:
                # Of a shared table the tail reads the base's rows.
                away = tail.row_ps[device] * problem.last_rows * (1 - shared)
                self.model.add(self.quantum_ps * quanta >= self.last_rows[device] * tail.row_ps[device] - away)
            self.load[device].append(tail.unit_bytes * self.tail_units[device])
            self.load[device].append(tail.first_row_bytes * self.tail_first[device])
            self.load[device].append(tail.last_row_bytes * self.tail_last[device])
        self.time.append(problem.quantum_ns * quanta)

    def _receive(self, group: TailGroup, on: Linear) -> None:
        """Features come from the leader of the last stage: for less where it is a member, for more over the network."""
        assert self.problem.tail is not None
        members = self.problem.groups[group.group]
        leads = sum(self.last[i] for i, g in enumerate(self.problem.groups) if g.devices[0] in members.devices)
        here = sum(self.last[i] for i, g in enumerate(self.problem.groups) if g.host == members.host)
        inside = self._bool(f"inside{group.group}")
        away = self._bool(f"away{group.group}")
        self.model.add(inside <= on)
        self.model.add(inside <= leads)
        self.model.add(inside >= on + leads - 1)
        self.model.add(away >= on - here)
        self.time.append(group.receive_ns * on - (group.receive_ns - group.receive_inside_ns) * inside)
        self.time.append(self.problem.tail.network_ns * away)

    def _share(
        self,
        shared: Sequence[cp_model.IntVar],
        holds: Sequence[cp_model.IntVar],
        rows: Sequence[cp_model.IntVar],
        total: int,
        may: bool,
    ) -> None:
        """The tail's rows of a table: all of them, or none where the base's are shared, which needs the same group."""
        assert self.problem.tail is not None
        for variable, group, on in zip(shared, self.problem.tail.groups, self.on, strict=True):
            self.model.add(variable <= (on if may else 0))
            self.model.add(variable <= holds[group.group])
        self.model.add(sum(rows) == total * (1 - sum(shared)))

    def _messages(self) -> None:
        """Every device in use is told what was accepted: once per host over the network, then inside the host."""
        problem = self.problem
        tail_groups = problem.tail.groups if problem.tail else ()
        reached = [self._bool(f"reached{h}") for h in range(len(problem.hosts))]
        for device, used in enumerate(self.used):
            stage = sum(self.runs[index] for index in self._containing(device))
            tails = zip(self.on, tail_groups, strict=True)
            tail = sum(on for on, group in tails if device in problem.groups[group.group].devices)
            self.model.add(used >= stage)
            self.model.add(used >= tail)
            self.model.add(used <= stage + tail)
        for host, devices in enumerate(problem.hosts):
            several = self._bool(f"several{host}")
            self.model.add(sum(self.used[d] for d in devices) <= 1 + (len(devices) - 1) * several)
            self.time.append(problem.message_ns[host] * several)
            for device in devices:
                self.model.add(reached[host] >= self.used[device])
        self.time.append(problem.network_message_ns * (sum(reached) - 1))

    def _capacity(self) -> None:
        """Everything on a device fits; ``free`` is the least that a device in use has left, in granules.

        In bytes it would be a number partitioning problem, hard to prove and of no use to anybody.
        """
        problem = self.problem
        most = max(problem.capacity_bytes)
        self.free = self._int(most // self.granule_bytes, "free")
        for device, capacity in enumerate(problem.capacity_bytes):
            short = self.short[device] if self.short else 0
            load = sum(self.load[device])
            self.model.add(load <= capacity + short)
            if not self.short:
                slack = most * (1 - self.used[device])
                self.model.add(load + self.granule_bytes * self.free <= capacity + slack)

    def chosen(self) -> tuple[list[int], int | None]:
        """Groups that run a stage, by index, and the group of the tail."""
        running = [index for index, variable in enumerate(self.runs) if self.value(variable)]
        return running, next((t for t, variable in enumerate(self.on) if self.value(variable)), None)

    def structure(self) -> list[cp_model.IntVar]:
        """Which groups run a stage, and which has the tail."""
        return [*self.runs, *self.on]

    def ends(self) -> list[cp_model.IntVar]:
        """What orders the stages and divides the tail, once the groups are known."""
        tail = [variable for columns in self.tail for variable in columns]
        return [*self.first, *self.enters, *self.last, *tail, *self.shared_first, *self.shared_last]

    def execution_order(self) -> list[int]:
        """Groups that run a stage, first to last: host by host, in each from the stage that enters it."""
        running, _ = self.chosen()
        hosts = [group.host for group in self.problem.groups]
        first = next(index for index in running if self.value(self.first[index]))
        last = next(index for index in running if self.value(self.last[index]))

        def position(index: int) -> tuple[int, ...]:
            host_rank = 0 if hosts[index] == hosts[first] else 2 if hosts[index] == hosts[last] else 1
            stage_rank = 0 if self.value(self.enters[index]) else 2 if index == last else 1
            return host_rank, hosts[index], stage_rank, index

        return sorted(running, key=position)

    def quantities(self) -> list[tuple[cp_model.IntVar, int]]:
        """Integers with their largest values, in the order in which they are settled."""
        problem = self.problem
        counts = [(n, problem.layers) for columns in self.layers for n in columns]
        units = [(u, problem.layers * problem.units) for members in self.units for u in members]
        rows = [(r, problem.last_rows) for r in self.last_rows] + [(r, problem.first_rows) for r in self.first_rows]
        if problem.tail:
            rows += [(u, problem.tail.units) for u in self.tail_units]
            rows += [(r, problem.tail.last_rows) for r in self.tail_last]
            rows += [(r, problem.tail.first_rows) for r in self.tail_first]
        return [*counts, *units, *rows]

    def value(self, variable: cp_model.IntVar) -> int:
        """Of the solution found last."""
        return self.values[variable.index]

    def answer(self, used: Sequence[int], tail: int | None) -> Answer:
        """The solution of a restricted model in terms of the whole problem: its group i is ``used[i]``."""
        order = self.execution_order()
        first, last = (self.problem.groups[index].devices for index in (order[0], order[-1]))
        stages = (
            StageAnswer(group=used[i], layers=self._all(self.layers[i]), units=self._all(self.units[i])) for i in order
        )
        return Answer(
            stages=tuple(stages),
            first_rows=self._all(self.first_rows[d] for d in first),
            last_rows=self._all(self.last_rows[d] for d in last),
            tail=self._tail_answer(tail),
        )

    def _all(self, variables: Iterable[cp_model.IntVar]) -> tuple[int, ...]:
        return tuple(self.value(variable) for variable in variables)

    def _tail_answer(self, tail: int | None) -> TailAnswer | None:
        if tail is None or self.problem.tail is None:
            return None
        devices = self.problem.groups[self.problem.tail.groups[0].group].devices
        shared_first, shared_last = self.value(self.shared_first[0]), self.value(self.shared_last[0])
        return TailAnswer(
            group=tail,
            column=next(c for c, variable in enumerate(self.tail[0]) if self.value(variable)),
            units=self._all(self.tail_units[d] for d in devices),
            first_rows=None if shared_first else self._all(self.tail_first[d] for d in devices),
            last_rows=None if shared_last else self._all(self.tail_last[d] for d in devices),
        )


def _optimise(model: _Model, objective: Linear, settings: Settings, *, what: str, gap_ppm: int = 0) -> Optimum:
    """Minimise, keep the solution in the model as values and as the next hint.

    What a search with a gap finds depends on how it searches: so there it is always the same search.
    """
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1 if gap_ppm else settings.workers
    solver.parameters.random_seed = 0 if gap_ppm else settings.seed
    solver.parameters.cp_model_probing_level = 0  # costs more than it saves here, measured
    solver.parameters.max_deterministic_time = settings.limit
    solver.parameters.relative_gap_limit = gap_ppm / 1e6
    model.model.minimize(objective)
    status = solver.solve(model.model)
    if status == cp_model.INFEASIBLE:
        raise _Infeasible
    assert status != cp_model.MODEL_INVALID, model.model.validate()
    is_time = what == "step time"
    if status == cp_model.UNKNOWN:
        raise NotProvenError(
            f"{what}: no placement found within the deterministic limit of {settings.limit:g}",
            bound_ns=max(0, round(solver.best_objective_bound)) if is_time else None,
        )
    value, bound = round(solver.objective_value), round(solver.best_objective_bound)
    if status != cp_model.OPTIMAL:
        gap = (value - bound) / max(1, abs(value))
        raise NotProvenError(
            f"{what}: not proven optimal within the deterministic limit of {settings.limit:g}: found {value}, "
            f"bound {bound}, gap {gap:.2%}; accept one with --gap",
            objective_ns=value if is_time else None,
            bound_ns=bound if is_time else None,
        )
    model.values = list(solver.response_proto.solution)
    model.model.clear_hints()  # type: ignore[no-untyped-call]
    for index, found in enumerate(model.values):
        model.model.add_hint(model.model.get_int_var_from_proto_index(index), found)
    model.optima.append(Optimum(what=what, value=value, bound=min(value, bound), seconds=solver.wall_time))
    return model.optima[-1]


def _order(model: _Model, variables: Sequence[tuple[cp_model.IntVar, int]], settings: Settings) -> None:
    """Settle ``variables`` one after the other, each as large as those before allow: a total order over solutions."""
    pack: list[tuple[cp_model.IntVar, int]] = []
    bits = 0
    for variable, most in [*variables, (None, 0)]:
        width = most.bit_length()
        if pack and (variable is None or bits + width > PACK_BITS):
            shifts = [sum(w for _, w in pack[position + 1 :]) for position in range(len(pack))]
            objective = sum((1 << shift) * item for (item, _), shift in zip(pack, shifts, strict=True))
            _optimise(model, -objective, settings, what="order")
            for item, _ in pack:
                model.model.add(item == model.value(item))
            pack, bits = [], 0
        if variable is not None:
            pack.append((variable, width))
            bits += width
