"""Random Problems, small enough to try every answer."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate, combinations
from typing import Literal

from planner.solver.minimise import Settings
from planner.solver.problem import Axis, Block, Goal, Group, Kind, Option, Problem, Receive, Split
from planner.solver.solve import Solved, solve
from tests.planner.brute_force import divisions, host_of, may_follow

NOTHING = Receive(same_ns=0, inside_ns=0, near_ns=0, far_ns=0)


@cache
def tiny_problem(seed: int) -> Problem:
    """Return a random problem: 2 to 4 devices on 1 or 2 hosts, 2 to 4 layers of 1 or 2 kinds; every field varies."""
    return _Tiny(seed).problem()


@cache
def tiny_answer(seed: int) -> Solved | None:
    """Return the solver's answer to a tiny problem, solved once for all tests."""
    return solve(tiny_problem(seed), Settings())


def in_quanta(problem: Problem, quantum_ns: int) -> Problem:
    """Return the problem with all times in quanta of so many ns."""

    def changed(block: Block) -> Block:
        return replace(block, options=tuple(replace(option, quantum_ns=quantum_ns) for option in block.options))

    return replace(
        problem,
        groups=tuple(replace(group, quantum_ns=quantum_ns) for group in problem.groups),
        first=changed(problem.first),
        last=changed(problem.last),
        tail=changed(problem.tail) if problem.tail else None,
    )


class _Tiny:
    """Draws a problem; the figures of devices depend on their ``alike`` only, so that devices of a class are equal."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.count = rng.choice((2, 3, 3, 4))
        border = rng.randint(1, self.count - 1) if rng.random() < 0.6 else self.count
        self.hosts = tuple(h for h in (tuple(range(border)), tuple(range(border, self.count))) if h)
        self.alike = tuple(range(self.count))
        if rng.random() < 0.3:
            self.alike = tuple(min(host) for host in self.hosts for _ in host)
        self.coarse = 2 if self.count == 4 else rng.randint(2, 3)
        self.scale = rng.choice((1, 1, 40, 250))
        """Factor of all bytes: the granule is 1 for scale 1, about 2 for 40 and about 16 for 250."""

    def drawn(self, *key: object) -> random.Random:
        return random.Random(f"{self.seed} {key}")

    def classes(self, devices: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(self.alike[device] for device in devices))

    def bytes(self, most: int, *key: object) -> int:
        rng = self.drawn("bytes", *key)
        return rng.randint(0, most) * self.scale + rng.randint(0, 1) * (self.scale > 1)

    def problem(self) -> Problem:
        rng = self.rng
        sequence = rng.choice((((0, 2),), ((0, 3),), ((0, 4),), ((0, 1), (1, 1)), ((1, 1), (0, 2)), self._mixed()))
        if self.count == 4 and sum(count for _, count in sequence) > 3:
            sequence = ((0, 1), (1, 1), (0, 1))
        kinds = tuple(self._kind(number) for number in range(len({kind for kind, _ in sequence})))
        groups = tuple(
            replace(group, slowed_ps=self._slowed(group.devices, [kind.unit_ps for kind in kinds]))
            for group in self._groups(len(kinds))
        )
        first, last, tail = self._blocks()
        goal: Goal = rng.choice(("time", "time", "balance", "fill"))
        problem = Problem(
            devices=tuple(f"d{d}" for d in range(self.count)),
            capacity_bytes=(1,) * self.count,
            hosts=self.hosts,
            alike=self.alike,
            kinds=kinds,
            sequence=sequence,
            groups=groups,
            ordered=rng.random() < 0.2,
            counts=None,
            first=first,
            last=last,
            tail=tail,
            message_ns=tuple(rng.randint(0, 9) if len(host) > 1 else 0 for host in self.hosts),
            awake_ns=(None,) * len(self.hosts),
            waits_ns=((),) * len(self.hosts),
            network_message_ns=rng.randint(0, 9) if len(self.hosts) > 1 else 0,
            goal=goal,
            most_devices=None,
            simplify_ppm=0,
            tie_ppm=0,
            spare=rng.randrange(self.count) if goal == "balance" and rng.random() < 0.5 else None,
        )
        changes: dict[str, object] = {"capacity_bytes": self._capacity(problem)}
        if rng.random() < 0.15:
            changes["counts"] = self._counts(problem)
        if rng.random() < 0.4:
            changes["awake_ns"] = tuple(rng.choice((None, rng.randint(0, ns))) for ns in problem.message_ns)
            changes["waits_ns"] = tuple(map(self._waits, self.hosts))
        return replace(problem, **changes)  # type: ignore[arg-type]

    def _waits(self, host: tuple[int, ...]) -> tuple[int, ...]:
        """Draw by how much later the last of so many devices of a host is told."""
        more = [0, *(self.rng.choice((0, self.rng.randint(1, 9))) for _ in host[1:])]
        return self.rng.choice(((), tuple(accumulate(more))))

    def _mixed(self) -> tuple[tuple[int, int], ...]:
        return self.rng.choice((((0, 1), (1, 1), (0, 1)), ((0, 2), (1, 2)), ((1, 1), (0, 1), (1, 1), (0, 1))))

    def _capacity(self, problem: Problem) -> tuple[int, ...]:
        """Draw capacities, from too tight to loose, around the bytes of the whole model."""
        need = sum(kind.units * kind.unit_bytes * problem.layers_of(k) for k, kind in enumerate(problem.kinds))
        need += sum(axis.count * axis.each_bytes for block in problem.blocks for axis in block.axes)
        need += (8 * self.coarse * problem.layers + 12 * self.coarse + 6 * self.count) * self.scale
        room = self.rng.choice((0.75, 0.9, 1.0, 1.2, 1.5, 2.0)) * need / self.count
        return tuple(1 + round(room * self.drawn("capacity", look).uniform(0.7, 1.7)) for look in self.alike)

    def _counts(self, problem: Problem) -> tuple[int, ...]:
        """Draw fixed layers per group, for a legal sequence of stages."""
        stages: list[int] = []
        while len(stages) < problem.layers:
            able = [i for i in range(len(problem.groups)) if may_follow(problem, tuple(stages), i)]
            if not able or (stages and self.rng.random() < 0.4):
                break
            stages.append(self.rng.choice(able))
        divided = [counts for counts in divisions(problem.layers, len(stages)) if min(counts) > 0]
        layers = dict(zip(stages, self.rng.choice(divided), strict=True))
        return tuple(layers.get(index, 0) for index in range(len(problem.groups)))

    def _kind(self, number: int) -> Kind:
        rng = self.drawn("kind", number)
        return Kind(
            units=rng.randint(1, 3 if self.count < 4 else 2),
            unit_bytes=self.bytes(9, "kind", number) + 1,
            unit_ps=self._rates(9000, "kind", number),
        )

    def _rates(self, most: int, *key: object) -> tuple[int, ...]:
        slowest = self.drawn("slowest", *key).randint(1, most)
        return tuple(self.drawn("rate", *key, look).randint(1, slowest) for look in self.alike)

    def _slowed(self, devices: tuple[int, ...], alone_ps: list[tuple[int, ...]]) -> tuple[tuple[int, ...], ...] | None:
        """Draw the times of pieces on members that compute at once; of two machines in three they are as alone."""
        if len(devices) == 1 or self.drawn("shared cores").random() < 2 / 3:
            return None
        factor = self.drawn("slowed", len(devices)).uniform(1, 3)
        return tuple(tuple(math.ceil(factor * times[device]) for device in devices) for times in alone_ps)

    def _groups(self, kinds: int) -> tuple[Group, ...]:
        """Draw groups in random order: most inside a host, some over both hosts, at times two on the same devices."""
        groups: list[Group] = []
        site = len(self.hosts)
        for size in range(1, self.coarse + 1):
            for devices in combinations(range(self.count), size):
                over = len({host_of(self.hosts, device) for device in devices})
                for variant, chance in enumerate((1.0 if size == 1 else 0.7 if over == 1 else 0.35, 0.15)):
                    if self.drawn("group", self.classes(devices), variant).random() < chance:
                        where = host_of(self.hosts, devices[0]) if over == 1 else site
                        site += over > 1
                        groups.append(self._group(devices, where, kinds, variant))
        self.rng.shuffle(groups)
        return tuple(groups)

    def _group(self, devices: tuple[int, ...], site: int, kinds: int, variant: int) -> Group:
        key = ("group", self.classes(devices), variant)
        rng = self.drawn(*key, "times")
        lacking = rng.randrange(kinds) if kinds > 1 and rng.random() < 0.2 else None
        return Group(
            devices=devices,
            site=site,
            splits=tuple(() if k == lacking else self._splits(devices, 8, *key, k) for k in range(kinds)),
            hop_ns=rng.randint(0, 20),
            network_hop_ns=rng.randint(0, 40),
            first=self._receive(*key),
            stage_bytes=tuple(self.bytes(6, *key, self.alike[device]) for device in devices),
            quantum_ns=self._quantum(devices),
        )

    def _quantum(self, devices: Sequence[int]) -> int:
        return self.drawn("quantum", self.classes(devices)).choice((1, 1, 4))

    def _receive(self, *key: object) -> Receive:
        rng = self.drawn(*key, "receive")
        same, inside, near, far = sorted(rng.randint(0, 25) for _ in range(4))
        return Receive(same_ns=rng.choice((0, same)), inside_ns=inside, near_ns=near, far_ns=far)

    def _splits(self, devices: tuple[int, ...], nbytes: int, *key: object) -> tuple[Split, ...]:
        slowness = self.drawn(*key, "slowness").randint(1, 20)
        splits = []
        for shares in divisions(self.coarse, len(devices)):
            members = [(self.alike[device], share) for device, share in zip(devices, shares, strict=True)]
            if min(shares) > 0:
                splits.append(
                    Split(
                        shares=shares,
                        ns=max(shares) * slowness + self.drawn(*key, sorted(members)).randint(0, 9),
                        bytes=tuple(nbytes * self.scale * n + self.bytes(4, *key, look) for look, n in members),
                    )
                )
        return tuple(splits)

    def _blocks(self) -> tuple[Block, Block, Block | None]:
        rng = self.rng
        first = self._axis("first", rng.randint(1, 3), None)
        tied = rng.random() < 0.3
        last = self._axis("last", first.count if tied else rng.randint(1, 3), "first" if tied else None)
        tail = None
        if rng.random() < 0.6:
            axes = []
            for number in range(rng.randint(0, 3)):
                shared: Literal["first", "last"] | None = rng.choice(("first", "last", None))
                count = {"first": first.count, "last": last.count, None: rng.randint(1, 2)}[shared]
                axes.append(self._axis(f"tail {number}", count, shared))
            tail = self._block("tail", tuple(axes))
        return self._block("first", (first,)), self._block("last", (last,)), tail

    def _axis(self, name: str, count: int, shared: Literal["first", "last"] | None) -> Axis:
        return Axis(
            count=count,
            each_bytes=self.bytes(9, name),
            each_ps=self._rates(7000, name),
            shared=shared,
            read_bytes=tuple(self.bytes(3, name, "read", look) for look in self.alike),
        )

    def _block(self, name: str, axes: tuple[Axis, ...]) -> Block:
        options = []
        chance = self.rng.choice((0.2, 0.5))
        for size in range(1, self.coarse + 1):
            for devices in combinations(range(self.count), size):
                if self.drawn(name, self.classes(devices)).random() < chance:
                    options.append(self._option(name, devices))
        if not options:
            options = [self._option(name, (device,)) for device in self.rng.choice(self.hosts)]
        self.rng.shuffle(options)
        times = [axis.each_ps for axis in axes]
        slowed = (replace(option, slowed_ps=self._slowed(option.devices, times)) for option in options)
        return Block(options=tuple(slowed), axes=axes)

    def _option(self, name: str, devices: tuple[int, ...]) -> Option:
        key = (name, self.classes(devices))
        splits = self._splits(devices, 3, *key)
        if len(splits) > 1 and self.drawn(*key, "one").random() < 0.5:
            # Most real blocks have one split: they are divided only along their axes.
            even = tuple(self.bytes(6, *key, self.alike[device]) for device in devices)
            splits = (Split(shares=splits[0].shares, ns=splits[0].ns, bytes=even),)
        return Option(
            devices=devices,
            sites=tuple(sorted({host_of(self.hosts, device) for device in devices})),
            splits=splits,
            receive=NOTHING if name == "first" else self._receive(*key),
            quantum_ns=self._quantum(devices),
        )
