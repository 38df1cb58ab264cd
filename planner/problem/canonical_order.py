"""Canonical order of devices with irregular links: one that depends on their looks and links alone.

Devices get colours: by look, then again and again by the links to the devices of each colour (colour refinement). Where
two devices still share a colour, all devices of one colour are singled out in turn and the colours refined further,
until no two are alike; of all orders that this gives, the one with the least looks and links is taken. Two orders that
are equally good differ by an automorphism, and of devices that known automorphisms exchange only one is tried.
[McKay and Piperno, "Practical graph isomorphism, II", J. Symbolic Computation 60 (2014)]
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

Colours = dict[int, int]
"""Number of the colour of every device."""


def canonical_order(
    devices: Sequence[int], looks: Mapping[int, Any], between: Callable[[int, int], Any]
) -> tuple[int, ...]:
    """Return the devices in canonical order; ``looks`` and links are anything that is comparable."""
    order = _Order(devices=tuple(devices), looks=looks, between=between)
    return order.best(_numbered({device: looks[device] for device in devices}), ()).devices


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ordered:
    devices: tuple[int, ...]
    certificate: tuple[Any, ...]
    """Looks and links in this order."""


@dataclass(frozen=True, kw_only=True)
class _Order:
    devices: tuple[int, ...]
    looks: Mapping[int, Any]
    between: Callable[[int, int], Any]

    def best(self, colours: Colours, known: Sequence[tuple[Any, ...]]) -> _Ordered:
        """Return the order with the least certificate of those that the colours leave open.

        Or the first one that has a ``known`` certificate: then an automorphism takes these colours to others from which
        that is the least.
        """
        colours = self._refined(colours)
        cell = _first_cell(colours)
        if not cell:
            return self._ordered(tuple(sorted(self.devices, key=colours.__getitem__)))
        orbits = _Orbits(self.devices)
        tried: list[int] = []
        least: _Ordered | None = None
        for device in cell:
            if any(orbits.root(device) == orbits.root(other) for other in tried):
                continue
            tried.append(device)
            singled = _numbered({other: (colour, other != device) for other, colour in colours.items()})
            ordered = self.best(singled, known if least is None else (*known, least.certificate))
            if ordered.certificate in known:
                return ordered
            if least is None or ordered.certificate < least.certificate:
                least = ordered
            elif ordered.certificate == least.certificate:
                orbits.join(least.devices, ordered.devices)
        assert least is not None, "a colour has a device"
        return least

    def _refined(self, colours: Colours) -> Colours:
        """Return the coarsest colours, finer than these, whose devices all see equally many of each over each link."""
        while True:
            seen = {
                device: (
                    colours[device],
                    sorted((self.between(device, other), colours[other]) for other in self.devices if other != device),
                )
                for device in self.devices
            }
            finer = _numbered(seen)
            if len(set(finer.values())) == len(set(colours.values())):
                return finer
            colours = finer

    def _ordered(self, devices: tuple[int, ...]) -> _Ordered:
        looks = [self.looks[device] for device in devices]
        return _Ordered(
            devices=devices, certificate=(looks, [self.between(one, other) for one, other in combinations(devices, 2)])
        )


class _Orbits:
    """Sets of devices that the automorphisms found so far exchange, as a forest."""

    def __init__(self, devices: Sequence[int]) -> None:
        self._parent = {device: device for device in devices}

    def root(self, device: int) -> int:
        while self._parent[device] != device:
            device = self._parent[device]
        return device

    def join(self, one: Sequence[int], other: Sequence[int]) -> None:
        """Note the automorphism that takes one order of the devices to the other."""
        for a, b in zip(one, other, strict=True):
            self._parent[self.root(a)] = self.root(b)


def _numbered(keys: Mapping[int, Any]) -> Colours:
    """Return consecutive numbers of the keys of devices, in the order of the keys."""
    distinct: list[Any] = []
    for key in sorted(keys.values()):
        if not distinct or distinct[-1] != key:
            distinct.append(key)
    return {device: distinct.index(key) for device, key in keys.items()}


def _first_cell(colours: Colours) -> list[int]:
    """Return the devices of the first of the smallest colours with several devices; none where all are told apart."""
    cells: dict[int, list[int]] = {}
    for device, colour in colours.items():
        cells.setdefault(colour, []).append(device)
    several = [(len(cell), colour) for colour, cell in cells.items() if len(cell) > 1]
    return cells[min(several)[1]] if several else []
