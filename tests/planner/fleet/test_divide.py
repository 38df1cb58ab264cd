"""The search over templates on speeds made up: the best division by exhaustion, with as few templates solved."""

import random
from collections.abc import Mapping
from itertools import product

import pytest

from planner.errors import InfeasibleError, NotProvenError
from planner.fleet.divide import Search, Template, Unproven, require
from planner.fleet.parts import Part
from planner.solver.division import HostClass, Load
from planner.solver.minimise import Settings

PARTS = (
    *(Part(form=(n,), devices=tuple(range(n)), hosts=(0,)) for n in (1, 2, 3)),
    Part(form=("both",), devices=tuple(range(6)), hosts=(2,)),
)
"""One, two and three of a host's three devices, and two whole hosts."""
CLASSES = (HostClass(hosts=2, patterns=((0, 0, 0), (0, 1), (2,))),)
BATCHES = (1, 2)
TEMPLATES = tuple(Template(part=part, batch=batch) for part in range(len(PARTS)) for batch in BATCHES)


def made_up(seed: int) -> dict[Template, int | None]:
    """Return a speed for each template: no larger with more sequences; some do not fit."""
    rng = random.Random(seed)
    speeds: dict[Template, int | None] = {}
    for part in range(len(PARTS)):
        speed: int | None = rng.randint(10, 100) * (part + 1)
        for batch in BATCHES:
            speed = None if speed is None or rng.random() < 0.15 else rng.randint(max(1, speed // 2), speed)
            speeds[Template(part=part, batch=batch)] = speed
    return speeds


def exhausted(speeds: Mapping[Template, int | None], load: Load, least: int) -> int | None:
    """Return the most speed of all divisions of two hosts of three devices."""
    best: int | None = None
    hosts = [[], [0], [0, 0], [0, 0, 0], [1], [0, 1], [2]]
    replicas = [[*one, *two] for one, two in product(hosts, repeat=2)] + [[3]]
    for parts in replicas:
        if not parts or (load.replicas is not None and len(parts) != load.replicas):
            continue
        for batches in product(BATCHES, repeat=len(parts)):
            own = [(speeds[Template(part=p, batch=b)], b) for p, b in zip(parts, batches, strict=True)]
            known = sorted(((s, b) for s, b in own if s is not None and s >= least), reverse=True)
            if len(known) < len(own):
                continue
            places = sum(b for _, b in known)
            clients = places if load.clients is None else load.clients
            if not len(known) <= clients <= places:
                continue
            total, left = sum(s for s, _ in known), clients - len(known)
            for speed, batch in known:
                total += speed * min(left, batch - 1)
                left -= min(left, batch - 1)
            best = total if best is None else max(best, total)
    return best


def search_of(speeds: Mapping[Template, int | None], seed: int, least: int, unproven: frozenset[Template]) -> Search:
    rng = random.Random(seed)
    upper = {template: int((speed or 50) * rng.uniform(1, 1.6)) for template, speed in speeds.items()}

    def solve(template: Template) -> int | Unproven | None:
        return Unproven(speed=upper[template]) if template in unproven else speeds[template]

    def is_slower(template: Template, speed: int) -> bool:
        return False

    return Search(classes=CLASSES, parts=PARTS, least_speed=least, solve=solve, is_slower=is_slower, speeds=dict(upper))


@pytest.mark.parametrize("seed", range(40))
def test_the_best_division_is_found(seed: int) -> None:
    rng = random.Random(seed)
    speeds = made_up(seed)
    load = Load(clients=rng.choice((None, 2, 4, 7)), replicas=rng.choice((None, None, 2, 3)))
    least = rng.choice((0, 0, 60))
    found = search_of(speeds, seed, least, frozenset()).best(load, Settings())
    expected = exhausted(speeds, load, least)
    assert (found.answer.speed if found else None) == expected
    if found is not None:
        assert found.bound == expected


@pytest.mark.parametrize("seed", range(20))
def test_what_is_not_proven_is_bounded_and_left_out(seed: int) -> None:
    speeds, rng = made_up(seed), random.Random(seed)
    unproven = frozenset(rng.sample(TEMPLATES, 2))
    search = search_of(speeds, seed, 0, unproven)
    load = Load(clients=None, replicas=None)
    found = search.best(load, Settings())
    without = {template: None if template in unproven else speed for template, speed in speeds.items()}
    assert (found.answer.speed if found else None) == exhausted(without, load, 0)
    if found is None:
        return
    every = exhausted(speeds, load, 0)
    assert every is not None
    assert found.bound >= every
    if found.bound > found.answer.speed:
        with pytest.raises(NotProvenError, match=r"templates were not proven .*; accept one with --gap"):
            require(found, search, load, Settings(), 0)
    assert require(found, search, load, Settings(), 999_999) is found


@pytest.mark.parametrize("seed", [7, 8, 19, 45, 47, 67])
def test_what_is_not_proven_is_excluded_where_it_is_not_faster_than_would_help(seed: int) -> None:
    speeds, rng = made_up(seed), random.Random(seed)
    unproven = frozenset(rng.sample(TEMPLATES, 2))
    load = Load(clients=rng.choice((None, 4)), replicas=None)
    alone = search_of(speeds, seed, 0, unproven).best(load, Settings())
    search = search_of(speeds, seed, 0, unproven)
    search.is_slower = lambda template, speed: (speeds[template] or 0) <= speed
    found, every = search.best(load, Settings()), exhausted(speeds, load, 0)
    assert alone is not None
    assert found is not None
    assert every is not None
    assert alone.bound > alone.answer.speed == found.answer.speed == every
    assert found.bound == every


def test_no_template_at_all_is_infeasible() -> None:
    search = search_of(dict.fromkeys(TEMPLATES), 0, 0, frozenset())
    load = Load(clients=None, replicas=None)
    with pytest.raises(InfeasibleError, match="no replica fits on any of the parts"):
        require(search.best(load, Settings()), search, load, Settings(), 0)
