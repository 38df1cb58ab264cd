"""The placement as a CP-SAT model: variables, constraints, and the answer that a solution stands for.

What the variables mean, in the words of :mod:`planner.solver.problem`:

    runs[G]            group G runs a stage           enters[G]   it is the first stage of its site
    first[G]           its stage is the first         last[G]     its stage is the last
    layers[G][k][c]    layers of kind k divided as split c
    units[G][k][j]     units of its member j over all its layers of kind k
    start[G]           layers before its stage; only where its place matters: layers are of several kinds, or to be kept
    on[b][x]           block b is on the option, and divided as the split, of its choice x
    shares[b][a][d]    pieces of axis a of block b on device d, none where the axis is shared
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations

from ortools.sat.python import cp_model

from planner.integers import PS_PER_NS
from planner.solver import limits
from planner.solver.problem import (
    Answer,
    Axis,
    Block,
    BlockAnswer,
    Option,
    Problem,
    Receive,
    Split,
    StageAnswer,
    granule_bytes,
)
from planner.solver.restriction import Restriction, everything
from planner.solver.symmetry import exchanged, moved
from planner.solver.variables import Bool, Linear


def most_step_ns(problem: Problem) -> int:
    """The longest step that is told from others: what takes longer is not found."""
    return min(limits.MOST_NS, limits.MOST_RANKED // _ties(problem))


def _ties(problem: Problem) -> int:
    """How many ranks there are for one time of a step."""
    return (len(problem.devices) + 1) * _stage_rank(problem)


def _stage_rank(problem: Problem) -> int:
    choices = sum(len(option.splits) for block in problem.blocks for option in block.options)
    return 1 + choices + len(problem.devices) * len(problem.groups)


@dataclass(frozen=True, slots=True)
class _Choice:
    """What a block may be: on an option, divided as a split."""

    option: Option
    split: Split
    index: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Link:
    """One possible sender or receiver of a link of the chain."""

    on: Bool
    devices: tuple[int, ...]


class Model:
    """Variables and constraints of a problem; one method per family of constraints."""

    def __init__(
        self,
        whole: Problem,
        restriction: Restriction,
        *,
        elastic: bool = False,
        placed: bool = False,
    ) -> None:
        """Build the model of ``whole`` restricted to ``restriction``.

        ``elastic``: devices may be short of memory. ``placed``: every stage has its place in the sequence.
        """
        self.restriction = restriction
        self.problem = problem = replace(
            whole,
            groups=tuple(whole.groups[g] for g in restriction.groups),
            counts=None if whole.counts is None else tuple(whole.counts[g] for g in restriction.groups),
        )
        self.blocks = tuple(whole.blocks)
        self.all_choices = everything(whole).choices
        self.choices = [
            [_Choice(block.options[o], block.options[o].splits[c], (o, c)) for o, c in kept]
            for block, kept in zip(self.blocks, restriction.choices, strict=True)
        ]
        self.model = cp_model.CpModel()
        self.quantum_ps = PS_PER_NS * problem.quantum_ns
        self.values: list[int] = []
        self.granule_bytes = granule_bytes(whole)
        self.host_of = {device: host for host, devices in enumerate(problem.hosts) for device in devices}
        self.load: list[list[Linear]] = [[] for _ in problem.devices]
        self.time: list[Linear] = []
        self.ands: dict[tuple[int, int], Bool] = {}
        self.devices_of: dict[int, dict[tuple[int, ...], Bool]] = {}
        groups = range(len(problem.groups))
        self.runs, self.enters, self.first, self.last = (
            [self._bool(f"{name}{i}") for i in groups] for name in ("runs", "enters", "first", "last")
        )
        self.used = [self._bool(f"used{d}") for d in range(len(problem.devices))]
        self.short = [self._int(limits.MOST_BYTES, f"short{d}") for d in range(len(problem.devices))] if elastic else []
        self.start: list[cp_model.IntVar] = []
        self._layers()
        self._stages()
        self._order_of_stages(placed)
        self._layer_time()
        self._blocks()
        self._chain()
        self._messages()
        self._capacity()
        self.ties = _ties(whole)
        self.step_ns = self._int(most_step_ns(whole), "step_ns")
        self.model.add(self.step_ns == sum(self.time))
        self.ranked_step: Linear = self.step_ns * self.ties + self._rank(whole)
        """The time of a step; of equal ones fewer stages are less, then groups and choices that come first."""

    def _rank(self, whole: Problem) -> Linear:
        """Number of stages, then the sum of the sites of groups and choices in the lists of the whole problem."""
        rank: Linear = 0
        for g, runs in zip(self.restriction.groups, self.runs, strict=True):
            rank += (_stage_rank(whole) + g) * runs
        for all_choices, choices, on in zip(self.all_choices, self.choices, self.on, strict=True):
            place = {key: position for position, key in enumerate(all_choices)}
            rank += sum(place[choice.index] * variable for choice, variable in zip(choices, on, strict=True))
        return rank

    # ---- variables ----

    def _bool(self, name: str) -> Bool:
        return self.model.new_bool_var(name)

    def _int(self, most: int, name: str) -> cp_model.IntVar:
        return self.model.new_int_var(0, most, name)

    def _both(self, one: Bool, other: Bool) -> Bool:
        """Whether both are true."""
        key = (one.index, other.index)
        if key not in self.ands:
            both = self.ands[key] = self._bool(f"and{one.index}_{other.index}")
            self.model.add_bool_and([one, other]).only_enforce_if(both)
            self.model.add_bool_or([one.negated(), other.negated(), both])
        return self.ands[key]

    def _layers(self) -> None:
        problem = self.problem
        self.layers = [
            [
                [self._int(problem.layers_of(k), f"n{i}_{k}_{c}") for c in range(len(g.splits[k]))]
                for k in range(len(g.splits))
            ]
            for i, g in enumerate(problem.groups)
        ]
        self.units = [
            [
                [self._int(problem.layers_of(k) * kind.units, f"u{i}_{k}_{j}") for j in range(len(g.devices))]
                for k, kind in enumerate(problem.kinds)
            ]
            for i, g in enumerate(problem.groups)
        ]
        self.size: list[Linear] = [sum(n for splits in kinds for n in splits) for kinds in self.layers]

    def _containing(self, device: int) -> list[int]:
        return [index for index, group in enumerate(self.problem.groups) if device in group.devices]

    # ---- stages ----

    def _stages(self) -> None:
        """Every layer runs in one stage; a device is in one group at most; a stage has a layer at least."""
        problem = self.problem
        for k in range(len(problem.kinds)):
            self.model.add(sum(n for kinds in self.layers for n in kinds[k]) == problem.layers_of(k))
        for i, (runs, kinds) in enumerate(zip(self.runs, self.layers, strict=True)):
            for k, splits in enumerate(kinds):
                self.model.add(sum(splits) <= problem.layers_of(k) * runs)
                self.model.add(sum(self.units[i][k]) == problem.kinds[k].units * sum(splits))
            self.model.add(self.size[i] >= runs)
            if problem.counts is not None:
                self.model.add(self.size[i] == problem.counts[i])
        for device in range(len(problem.devices)):
            self.model.add_at_most_one(self.runs[index] for index in self._containing(device))

    def _order_of_stages(self, placed: bool) -> None:
        """The stages of a site follow one another, so a site is entered once; hops are priced where they arrive."""
        problem = self.problem
        self.model.add_exactly_one(self.first)
        self.model.add_exactly_one(self.last)
        for index, group in enumerate(problem.groups):
            self.model.add_implication(self.enters[index], self.runs[index])
            self.model.add_implication(self.first[index], self.enters[index])
            self.model.add_implication(self.last[index], self.runs[index])
            self.time.append(group.hop_ns * (self.runs[index] - self.enters[index]))
            self.time.append(group.network_hop_ns * (self.enters[index] - self.first[index]))
        sites = sorted({group.site for group in problem.groups})
        self.here = {p: [i for i, group in enumerate(problem.groups) if group.site == p] for p in sites}
        self.visited = {site: self._bool(f"site{site}") for site in sites}
        for site, here in self.here.items():
            self.model.add(sum(self.enters[i] for i in here) == self.visited[site])
            for i in here:
                self.model.add_implication(self.runs[i], self.visited[site])
        if placed or len(problem.sequence) > 1:
            self._sequence()
        elif problem.ordered:
            self._listed_order()
        else:
            self._any_order()

    def leading(self, twins: Iterable[tuple[int, int]]) -> None:
        """Of hosts that may change places the first have the most layers."""
        layers = {site: sum(self.size[i] for i in here) for site, here in self.here.items()}
        for one, other in twins:
            to = exchanged(self.problem, one, other)
            fixed = self._moved_groups(to) + self._moved_choices(to)
            self.model.add(layers.get(one, 0) + self.problem.layers * sum(fixed) >= layers.get(other, 0))

    def _moved_groups(self, to: Sequence[int]) -> list[Bool]:
        """Whether groups over several hosts run that are others with these devices exchanged."""
        groups, hosts = self.problem.groups, len(self.problem.hosts)
        return [runs for runs, g in zip(self.runs, groups, strict=True) if g.site >= hosts and moved(g, to)]

    def _moved_choices(self, to: Sequence[int]) -> list[Bool]:
        """The same of blocks over several hosts."""
        return [
            on
            for variables, choices in zip(self.on, self.choices, strict=True)
            for on, choice in zip(variables, choices, strict=True)
            if len(choice.option.sites) > 1 and moved(choice.option, to)
        ]

    def _any_order(self) -> None:
        """Layers are alike, so only which stage enters a site, and which is first and last, makes a difference."""
        for here in self.here.values():
            for i in here:
                # The stage that enters a site is its last only when it is its only one.
                slack = len(self.problem.devices) * (2 - self.enters[i] - self.last[i])
                self.model.add(sum(self.runs[other] for other in here) <= 1 + slack)
            # A site that has the first and the last stage is the only one.
            ends = sum(self.first[i] + self.last[i] for i in here)
            self.model.add(sum(self.visited.values()) <= 1 + len(self.here) * (2 - ends))

    def _listed_order(self) -> None:
        for i, j in combinations(range(len(self.runs)), 2):
            self.model.add_implication(self.first[j], self.runs[i].negated())
            self.model.add_implication(self.last[i], self.runs[j].negated())
            if self.problem.groups[i].site == self.problem.groups[j].site:
                self.model.add_implication(self.enters[j], self.runs[i].negated())
                for between in range(i + 1, j):
                    if self.problem.groups[between].site != self.problem.groups[i].site:
                        stages = (self.runs[i], self.runs[between], self.runs[j])
                        self.model.add_bool_or([runs.negated() for runs in stages])

    def _sequence(self) -> None:
        """Stages are intervals of the sequence; which kinds they have is a difference of prefix sums."""
        problem, most = self.problem, self.problem.layers
        kinds = [kind for kind, count in problem.sequence for _ in range(count)]
        prefix = [[0, *accumulate(int(each == k) for each in kinds)] for k in range(len(problem.kinds))]
        self.start = [self._int(most, f"start{i}") for i in range(len(self.runs))]
        intervals = []
        for i, start in enumerate(self.start):
            size, end = self._int(most, f"size{i}"), self._int(most, f"end{i}")
            self.model.add(size == self.size[i])
            self.model.add(end == start + size)
            intervals.append(self.model.new_optional_interval_var(start, size, end, self.runs[i], f"stage{i}"))
            self.model.add(start <= most * self.runs[i])
            self.model.add(start <= most * (1 - self.first[i]))
            self.model.add(end >= most * self.last[i])
            for k in range(len(problem.kinds)) if len(problem.kinds) > 1 else ():
                before, after = self._int(most, f"before{i}_{k}"), self._int(most, f"after{i}_{k}")
                self.model.add_element(start, prefix[k], before)
                self.model.add_element(end, prefix[k], after)
                self.model.add(sum(self.layers[i][k]) == after - before)
        self.model.add_no_overlap(intervals)
        self._sequence_of_places()
        if problem.ordered:
            for i, j in combinations(range(len(self.runs)), 2):
                both = [self.runs[i], self.runs[j]]
                self.model.add(self.start[i] + self.size[i] <= self.start[j]).only_enforce_if(both)

    def _sequence_of_places(self) -> None:
        most = self.problem.layers
        intervals = []
        for site, here in self.here.items():
            visited = self.visited[site]
            start, size, end = (self._int(most, f"place_{name}{site}") for name in ("start", "size", "end"))
            self.model.add(size == sum(self.size[i] for i in here))
            self.model.add(end == start + size)
            intervals.append(self.model.new_optional_interval_var(start, size, end, visited, f"site{site}"))
            for i in here:
                self.model.add(start <= self.start[i]).only_enforce_if(self.runs[i])
                self.model.add(self.start[i] + self.size[i] <= end).only_enforce_if(self.runs[i])
                self.model.add(self.start[i] <= start).only_enforce_if(self.enters[i])
        self.model.add_no_overlap(intervals)

    def _layer_time(self) -> None:
        """A layer waits for its slowest share; units are dealt out over the whole stage."""
        problem = self.problem
        for i, group in enumerate(problem.groups):
            for j, device in enumerate(group.devices):
                self.load[device].append(group.stage_bytes[j] * self.runs[i])
            for k, kind in enumerate(problem.kinds):
                self.time.append(self._divided(self.layers[i][k], [split.ns for split in group.splits[k]]))
                rates = [kind.unit_ps[device] for device in group.devices]
                self.time.append(self._slowest(self.units[i][k], rates, problem.layers_of(k) * kind.units))
                for j, device in enumerate(group.devices):
                    self.load[device].append(kind.unit_bytes * self.units[i][k][j])
                self._coarse_loads(i, k)

    def _coarse_loads(self, i: int, k: int) -> None:
        """Bytes of the layers of a kind in a group, but for their units."""
        group = self.problem.groups[i]
        for n, split in zip(self.layers[i][k], group.splits[k], strict=True):
            for device, nbytes in zip(group.devices, split.bytes, strict=True):
                self.load[device].append(nbytes * n)

    def _divided(self, counts: Sequence[Linear], each_ns: Sequence[int]) -> Linear:
        """Time of layers, each of which is divided in one of several ways, in ns, counted in quanta."""
        if not each_ns:
            return 0
        quanta = self._int(self.problem.layers * max(each_ns) // self.problem.quantum_ns + 1, "quanta")
        fixed = sum(n * each for n, each in zip(counts, each_ns, strict=True))
        self.model.add(self.problem.quantum_ns * quanta >= fixed)
        return self.problem.quantum_ns * quanta

    def _slowest(self, counts: Sequence[Linear], rates_ps: Sequence[int], most: int) -> Linear:
        """Time of the slowest share, in ns, counted in quanta."""
        if not any(rates_ps):
            return 0
        quanta = self._int(most * max(rates_ps) // self.quantum_ps + 1, "quanta")
        for count, each in zip(counts, rates_ps, strict=True):
            self.model.add(self.quantum_ps * quanta >= count * each)
        return self.problem.quantum_ns * quanta

    # ---- blocks ----

    def _blocks(self) -> None:
        self.on: list[list[Bool]] = []
        self.shares: list[list[list[cp_model.IntVar]]] = []
        self.read: list[list[list[Linear]]] = []
        for b, block in enumerate(self.blocks):
            self._block(b, block)

    def _block(self, b: int, block: Block) -> None:
        """A block is one of its choices; its axes are dealt out over the option's devices."""
        on = [self._bool(f"on{b}_{x}") for x in range(len(self.choices[b]))]
        self.on.append(on)
        self.model.add_exactly_one(on)
        holders: list[list[Bool]] = [[] for _ in self.problem.devices]
        for variable, choice in zip(on, self.choices[b], strict=True):
            self.time.append(choice.split.ns * variable)
            for device, nbytes in zip(choice.option.devices, choice.split.bytes, strict=True):
                self.load[device].append(nbytes * variable)
                holders[device].append(variable)
        self.shares.append([])
        self.read.append([])
        for a, axis in enumerate(block.axes):
            self._axis(b, a, axis, holders)

    def _axis(self, b: int, a: int, axis: Axis, holders: Sequence[Sequence[Bool]]) -> None:
        counts = [self._int(axis.count if holders[d] else 0, f"share{b}_{a}_{d}") for d in range(len(holders))]
        self.shares[b].append(counts)
        for count, here in zip(counts, holders, strict=True):
            self.model.add(count <= axis.count * sum(here))
        shared = self._same_devices(b, 0 if axis.shared == "first" else 1) if axis.shared else 0
        self.model.add(sum(counts) == axis.count * (1 - shared))
        read: list[Linear] = list(counts)
        if axis.shared:
            owned = self.read[0 if axis.shared == "first" else 1][0]
            read = [self._read(mine, theirs, shared, axis.count) for mine, theirs in zip(counts, owned, strict=True)]
        self.read[b].append(read)
        if any(axis.each_ps):
            self.time.append(self._slowest(read, axis.each_ps, axis.count))
        for device, count in enumerate(counts):
            self.load[device].append(axis.each_bytes * count)

    def _read(self, mine: cp_model.IntVar, theirs: Linear, shared: Linear, most: int) -> Linear:
        """Pieces that a device reads: its own, or those of the block that it shares with."""
        read = self._int(most, f"read{mine.index}")
        self.model.add(read >= mine)
        self.model.add(read >= theirs - most * (1 - shared))
        return read

    def _same_devices(self, b: int, other: int) -> Linear:
        """Whether block b is on the devices of another."""
        mine, theirs = self._on_devices(b), self._on_devices(other)
        return sum(self._both(on, theirs[devices]) for devices, on in mine.items() if devices in theirs)

    def _on_devices(self, b: int) -> dict[tuple[int, ...], Bool]:
        """Whether block b is on exactly these devices."""
        if b not in self.devices_of:
            found: dict[tuple[int, ...], list[Bool]] = {}
            for on, choice in zip(self.on[b], self.choices[b], strict=True):
                found.setdefault(choice.option.devices, []).append(on)
            self.devices_of[b] = {devices: self._any(each) for devices, each in found.items()}
        return self.devices_of[b]

    def _any(self, exclusive: Sequence[Bool]) -> Bool:
        if len(exclusive) == 1:
            return exclusive[0]
        either = self._bool("any")
        self.model.add(sum(exclusive) == either)
        return either

    # ---- the chain ----

    def _chain(self) -> None:
        """The first stage receives from ``first``, ``last`` from the last stage, the tail from ``last``."""
        groups = self.problem.groups
        placed = [[_Link(on, devices) for devices, on in self._on_devices(b).items()] for b in range(len(self.blocks))]
        ends = [_Link(on, group.devices) for on, group in zip(self.last, groups, strict=True)]
        for on, group in zip(self.first, groups, strict=True):
            self._receive(_Link(on, group.devices), group.first, {group.site}, placed[0])
        for b, sources in ((1, ends), (2, placed[1]))[: len(self.blocks) - 1]:
            options = {choice.option.devices: choice.option for choice in self.choices[b]}
            for target in placed[b]:
                option = options[target.devices]
                self._receive(target, option.receive, set(option.sites), sources)

    def _receive(self, target: _Link, receive: Receive, sites: set[int], sources: Sequence[_Link]) -> None:
        def senders(test: Callable[[_Link], bool]) -> list[Bool]:
            return [source.on for source in sources if test(source)]

        same = senders(lambda s: s.devices == target.devices)
        inside = senders(lambda s: s.devices[0] in target.devices)
        near = senders(lambda s: s.devices[0] in target.devices or self.host_of[s.devices[0]] in sites)
        costs = (receive.far_ns, receive.near_ns, receive.inside_ns, receive.same_ns)
        self.time.append(receive.far_ns * target.on)
        for more, less, which in zip(costs[:-1], costs[1:], (near, inside, same), strict=True):
            if more == less or not which:
                continue
            if len(which) == len(sources):
                self.time.append((less - more) * target.on)
                continue
            saved = self._bool("saved")
            self.model.add_implication(saved, target.on)
            self.model.add(saved <= sum(which))
            self.model.add(saved >= target.on + sum(which) - 1)
            self.time.append((less - more) * saved)

    # ---- messages, memory ----

    def _messages(self) -> None:
        """Every device in use is told what was accepted: once per host over the network, then inside the host."""
        problem = self.problem
        reached = [self._bool(f"reached{h}") for h in range(len(problem.hosts))]
        for device, used in enumerate(self.used):
            users = [self.runs[index] for index in self._containing(device)]
            for b in range(len(self.blocks)):
                users += [on for devices, on in self._on_devices(b).items() if device in devices]
            self.model.add_max_equality(used, users) if users else self.model.add(used == 0)
        for host, devices in enumerate(problem.hosts):
            if problem.message_ns[host]:
                several = self._bool(f"several{host}")
                self.model.add(sum(self.used[d] for d in devices) <= 1 + (len(devices) - 1) * several)
                self.time.append(problem.message_ns[host] * several)
            for device in devices:
                self.model.add_implication(self.used[device], reached[host])
        self.time.append(problem.network_message_ns * (sum(reached) - 1))

    def _capacity(self) -> None:
        """Everything on a device fits.

        ``free`` is the least that a device in use has left, ``balance`` the least that any device has but the spare
        one, ``spare`` what lies on that: in granules. In bytes it would be a number partitioning problem, hard to
        prove and of no use to anybody.
        """
        problem, granule = self.problem, self.granule_bytes
        most = max(problem.capacity_bytes)
        self.free, self.balance = self._int(most // granule, "free"), self._int(most // granule, "balance")
        self.spare = self._int(most // granule + 1, "spare")
        for device, capacity in enumerate(problem.capacity_bytes):
            load = sum(self.load[device])
            if self.short:
                self.model.add(load <= capacity + self.short[device])
                continue
            self.model.add(load <= capacity)
            self.model.add(load + granule * self.free <= capacity).only_enforce_if(self.used[device])
            if problem.goal == "balance":
                if device == problem.spare:
                    self.model.add(load <= granule * self.spare)
                else:
                    self.model.add(load + granule * self.balance <= capacity)

    # ---- solutions ----

    def value(self, variable: cp_model.IntVar) -> int:
        """Of the solution found last."""
        return self.values[variable.index]

    def chosen(self) -> Restriction:
        """What the solution uses, in terms of the whole problem."""
        groups = (g for g, runs in zip(self.restriction.groups, self.runs, strict=True) if self.value(runs))
        pairs = (zip(choices, on, strict=True) for choices, on in zip(self.choices, self.on, strict=True))
        return Restriction(
            groups=tuple(groups),
            choices=tuple(tuple(choice.index for choice, on in each if self.value(on)) for each in pairs),
        )

    def forbid(self, structure: Restriction) -> None:
        """Exclude the solutions that use exactly this."""
        groups = zip(self.restriction.groups, self.runs, strict=True)
        literals = [runs.negated() if g in structure.groups else runs for g, runs in groups]
        for choices, on, (chosen,) in zip(self.choices, self.on, structure.choices, strict=True):
            literals += [
                variable.negated() for choice, variable in zip(choices, on, strict=True) if choice.index == chosen
            ]
        self.model.add_bool_or(literals)

    def structure(self) -> list[Bool]:
        """Which groups run a stage, and what each block is."""
        return [*self.runs, *(variable for on in self.on for variable in on)]

    def ends(self) -> list[tuple[cp_model.IntVar, int]]:
        """What orders the stages, once the structure is known; with the largest values."""
        flags = [*self.first, *self.enters, *self.last]
        return [(start, self.problem.layers) for start in self.start] + [(flag, 1) for flag in flags]

    def quantities(self) -> list[tuple[cp_model.IntVar, int]]:
        """Integers with their largest values, in the order in which they are settled."""
        problem = self.problem
        found = [(n, problem.layers) for kinds in self.layers for splits in kinds for n in splits]
        for k, kind in enumerate(problem.kinds):
            most = problem.layers_of(k) * kind.units
            found += [(u, most) for kinds in self.units for u in kinds[k]]
        for block, choices, axes in zip(self.blocks, self.choices, self.shares, strict=True):
            used = {device for choice in choices for device in choice.option.devices}
            for axis, counts in zip(block.axes, axes, strict=True):
                found += [(counts[device], axis.count) for device in sorted(used)]
        return found

    def answer(self) -> Answer:
        """The solution of a model of nothing but its structure, in terms of the whole problem."""
        stages = tuple(
            StageAnswer(
                group=self.restriction.groups[i],
                layers=tuple(self._all(counts) for counts in self.layers[i]),
                units=tuple(self._all(members) for members in self.units[i]),
            )
            for i in self._execution_order()
        )
        placed = [self._block_answer(b) for b in range(len(self.blocks))]
        return Answer(stages=stages, first=placed[0], last=placed[1], tail=placed[2] if len(placed) > 2 else None)

    def _block_answer(self, b: int) -> BlockAnswer:
        (choice,) = self.choices[b]
        shares = []
        for axis, counts in zip(self.blocks[b].axes, self.shares[b], strict=True):
            dealt = self._all(counts[device] for device in choice.option.devices)
            shares.append(dealt if sum(dealt) == axis.count else None)
        return BlockAnswer(option=choice.index[0], split=choice.index[1], shares=tuple(shares))

    def _execution_order(self) -> list[int]:
        """Groups that run a stage, first to last."""
        running = [index for index, variable in enumerate(self.runs) if self.value(variable)]
        if self.start:
            return sorted(running, key=lambda index: self.value(self.start[index]))
        if self.problem.ordered:
            return running
        sites = [group.site for group in self.problem.groups]
        first = next(index for index in running if self.value(self.first[index]))
        last = next(index for index in running if self.value(self.last[index]))

        def position(index: int) -> tuple[int, ...]:
            place_rank = 0 if sites[index] == sites[first] else 2 if sites[index] == sites[last] else 1
            stage_rank = 0 if self.value(self.enters[index]) else 2 if index == last else 1
            return place_rank, sites[index], stage_rank, index

        return sorted(running, key=position)

    def _all(self, variables: Iterable[cp_model.IntVar]) -> tuple[int, ...]:
        return tuple(self.value(variable) for variable in variables)
