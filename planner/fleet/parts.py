"""Parts of a machine that a replica may be on, and the ways to divide a host into them.

A part is a set of devices of one host, or several whole hosts. Two parts of one *form* (looks and links of their
devices, :mod:`planner.problem.machine`) have the same plans but for names, and so one template. A host is divided by a
*pattern*: the forms of its parts, as a multiset. Only patterns to which no further part can be added are listed.

Of devices and modules that nothing tells apart only numbers count. Devices whose links have no pattern are taken one by
one up to ``MOST_IRREGULAR``; of more, the module is taken whole or not at all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, combinations_with_replacement, product
from typing import Any

from planner.errors import InputError
from planner.problem.machine import Machine, Module, canonical_machine
from planner.problem.usable import part_of
from plans.schema import Inventory

MOST_IRREGULAR = 6
"""Most devices of irregular links of which every subset is a part."""
MOST_SUBSETS = 3000
"""Most subsets of a host, but for equal devices."""
MOST_PATTERNS = 12_000
"""Most patterns of a host: 8 unlike devices have 4140."""
MOST_WIDE = 3000
"""Most numbers of whole hosts, by class, that a replica may be on."""
MOST_HOSTS = 8
"""Most whole hosts of a replica."""

Form = tuple[Any, ...]
"""Everything that a plan depends on about a part but names; comparable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of one form; its devices are those of one example."""

    form: Form
    devices: tuple[int, ...]
    """Indices into the machine's devices, in canonical order."""
    hosts: tuple[int, ...]
    """Whole hosts in use, by host class; all 0 for a part of one host."""

    @property
    def is_wide(self) -> bool:
        """It is over several hosts."""
        return any(self.hosts)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a machine."""

    machine: Machine

    @cached_property
    def classes(self) -> tuple[tuple[int, ...], ...]:
        """Hosts that nothing tells apart, together."""
        return self.machine.equal_hosts

    def of_hosts(self) -> tuple[Part, ...]:
        """Return the parts of single hosts, the larger ones last; raise InputError for hosts of too many."""
        parts: dict[Form, Part] = {}
        for hosts in self.classes:
            module = self.machine.modules[hosts[0]]
            subsets = _limited(subsets_of(module), MOST_SUBSETS, self._host(hosts[0]), "subsets of devices")
            for subset in subsets:
                if subset:
                    form, devices = self.form(subset)
                    parts.setdefault(form, Part(form=form, devices=devices, hosts=(0,) * len(self.classes)))
        return tuple(sorted(parts.values(), key=lambda part: (len(part.devices), part.form)))

    def over_hosts(self, needed: Sequence[int], at_least: int) -> tuple[Part, ...]:
        """Return the parts of two or more whole hosts: at most as many as a class needs at most, by its memory.

        ``needed``: hosts of each class that have the memory of a replica; ``at_least``: hosts that a replica may be on
        in any case, as a faster sequence is worth more where there are few. Raise InputError for too many choices.
        """
        most = min(MOST_HOSTS, max(at_least, *needed))
        while most > 1 and self._wide_count(most) > MOST_WIDE:
            most -= 1
        if most < min(needed):
            raise InputError(
                f"--replicas: a replica needs {min(needed)} whole hosts, of which there are too many choices: expected "
                f"at most {MOST_HOSTS} hosts, and {MOST_WIDE} choices of hosts: give fewer kinds of hosts"
            )
        return tuple(self._wide(counts) for counts in self._counts(most))

    def form(self, devices: Sequence[int]) -> tuple[Form, tuple[int, ...]]:
        """Return the form of a set of devices, and these in canonical order."""
        part = canonical_machine(restricted(self.machine.inventory, devices))
        index = {device.id: number for number, device in enumerate(self.machine.inventory.devices)}
        hosts = tuple(
            (len(module.devices), module.form, host.transport)
            for module, host in zip(part.modules, part.inventory.hosts, strict=True)
        )
        return hosts, tuple(index[device.id] for device in part.inventory.devices)

    def counted(
        self, hosts: Sequence[int], numbers: Mapping[Form, int]
    ) -> tuple[tuple[int, ...], tuple[tuple[int, tuple[int, ...]], ...]] | None:
        """Return the devices of a host by class, and each part by number with its devices by class.

        None for a host whose links differ: there it matters which of equal devices a part has.
        """
        module = self.machine.modules[hosts[0]]
        classes = module.classes if module.kind == "joined" else ((module,),)
        if any(part.kind != "device" for of_class in classes for part in of_class):
            return None
        members = [{device for part in of_class for device in part.devices} for of_class in classes]
        parts = (
            (numbers[form], tuple(len(own.intersection(subset)) for own in members))
            for subset in subsets_of(module)
            if subset and (form := self.form(subset)[0]) in numbers
        )
        return tuple(map(len, members)), tuple(parts)

    def patterns(self, hosts: Sequence[int], number: Callable[[Form], int | None]) -> tuple[tuple[int, ...], ...]:
        """Return the ways to divide a host of a class, as sorted numbers of forms; raise InputError past the limit.

        ``number``: that of a form, None of one that holds no replica.
        """
        known: dict[Form, frozenset[tuple[int, ...]]] = {}

        def divide(devices: Sequence[int]) -> frozenset[tuple[int, ...]]:
            if not devices:
                return frozenset({()})
            form, _ = self.form(devices)
            if form not in known:
                known[form] = frozenset(chain([()], divided(devices)))
                if len(known[form]) > 5 * MOST_PATTERNS:
                    _refuse(self._host(hosts[0]), MOST_PATTERNS, "ways to divide it")
            return known[form]

        def divided(devices: Sequence[int]) -> Iterator[tuple[int, ...]]:
            for subset in subsets_of(self.module(devices)):
                own = number(self.form(subset)[0]) if subset else None
                if own is not None:
                    rest = [device for device in devices if device not in subset]
                    yield from ((*others, own) for others in divide(rest) if not others or others[-1] <= own)

        every = divide(self.machine.modules[hosts[0]].devices)
        less = {(*pattern[:i], *pattern[i + 1 :]) for pattern in every for i in range(len(pattern))}
        return tuple(sorted(_limited(every - less, MOST_PATTERNS, self._host(hosts[0]), "ways to divide it")))

    def module(self, devices: Sequence[int]) -> Module:
        """Return the module of some devices of a host, in the machine's indices."""
        part = canonical_machine(restricted(self.machine.inventory, devices))
        index = {device.id: number for number, device in enumerate(self.machine.inventory.devices)}
        return part.modules[0].renumbered({n: index[d.id] for n, d in enumerate(part.inventory.devices)})

    def _counts(self, most: int) -> Iterator[tuple[int, ...]]:
        """Yield the numbers of hosts by class, from two to ``most`` in all."""
        for total in range(2, most + 1):
            yield from (c for c in _divisions(total, [len(hosts) for hosts in self.classes]))

    def _wide_count(self, most: int) -> int:
        return sum(1 for _ in zip(self._counts(most), range(MOST_WIDE + 1), strict=False))

    def _wide(self, counts: tuple[int, ...]) -> Part:
        taken = [host for number, hosts in zip(counts, self.classes, strict=True) for host in hosts[:number]]
        form, devices = self.form([device for host in taken for device in self.machine.modules[host].devices])
        return Part(form=form, devices=devices, hosts=counts)

    def _host(self, number: int) -> str:
        return self.machine.inventory.hosts[number].name


def subsets_of(module: Module) -> list[tuple[int, ...]]:
    """Return the sets of devices of a module, the empty one included, one of all that nothing tells apart."""
    if module.kind == "device":
        return [(), module.devices]
    if module.kind == "irregular":
        if len(module.devices) > MOST_IRREGULAR:
            return [(), module.devices]
        sizes = range(len(module.devices) + 1)
        return [subset for size in sizes for subset in combinations(module.devices, size)]
    return [tuple(chain.from_iterable(chosen)) for chosen in product(*map(_of_class, module.classes))]


def _of_class(parts: tuple[Module, ...]) -> list[tuple[int, ...]]:
    """Return the sets of devices of equal parts: for each part one of its own sets, in no order."""
    own = [subsets_of(part) for part in parts]
    choices = combinations_with_replacement(range(len(own[0])), len(parts))
    return [tuple(chain.from_iterable(own[part][choice] for part, choice in enumerate(chosen))) for chosen in choices]


def restricted(inventory: Inventory, devices: Sequence[int]) -> Inventory:
    """Return the part of an inventory with these devices, given by index."""
    return part_of(inventory, [inventory.devices[index].id for index in devices])


def _divisions(total: int, most: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the tuples of this sum, none of whose numbers is more than ``most``."""
    if not most:
        if not total:
            yield ()
        return
    for first in range(max(0, total - sum(most[1:])), min(total, most[0]) + 1):
        for rest in _divisions(total - first, most[1:]):
            yield (first, *rest)


def _limited(items: Any, most: int, host: str, what: str) -> Any:
    if len(items) > most:
        _refuse(host, most, what)
    return items


def _refuse(host: str, most: int, what: str) -> None:
    raise InputError(
        f"--replicas: host {host} has too many {what}, expected at most {most}: list fewer unlike devices, or those "
        "that are to run together as a host of their own"
    )
