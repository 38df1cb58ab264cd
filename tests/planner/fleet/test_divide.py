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
BATCHES = (1, 3)
TEMPLATES = tuple(Template(part=part, batch=batch) for part in range(len(PARTS)) for batch in BATCHES)

Speeds = Mapping[Template, tuple[int, ...] | None]
"""By running sequences: of one place, and of three with two or three running."""


def made_up(seed: int) -> dict[Template, tuple[int, ...] | None]:
    """Return the speeds of each template: no larger with more sequences; some do not fit."""
    rng = random.Random(seed)
    speeds: dict[Template, tuple[int, ...] | None] = {}
    for part in range(len(PARTS)):
        speed, fits = rng.randint(10, 100) * (part + 1), True
        for batch in BATCHES:
            known = []
            for _ in range(1 if batch == 1 else 2):
                speed = rng.randint(max(1, speed // 2), speed)
                known.append(speed)
            fits = fits and rng.random() > 0.15
            speeds[Template(part=part, batch=batch)] = tuple(known) if fits else None
    return speeds


def fewest_of(load: Load) -> dict[int, int]:
    return {1: 1, 3: 3 if load.clients is None else 2}


def exhausted(speeds: Speeds, load: Load, least: int) -> int | None:
    """Return the most speed of all divisions of two hosts of three devices."""
    best: int | None = None
    hosts = [[], [0], [0, 0], [0, 0, 0], [1], [0, 1], [2]]
    replicas = [[*one, *two] for one, two in product(hosts, repeat=2)] + [[3]]
    numbers = BATCHES if load.clients is None else (1, 2, 3)
    for parts in replicas:
        if not parts or (load.replicas is not None and len(parts) != load.replicas):
            continue
        for running in product(numbers, repeat=len(parts)):
            if load.clients not in (None, sum(running)):
                continue
            own = [speed_of(speeds, part, number) for part, number in zip(parts, running, strict=True)]
            if all(speed is not None and speed >= least for speed in own):
                total = sum(number * (speed or 0) for number, speed in zip(running, own, strict=True))
                best = total if best is None else max(best, total)
    return best


def speed_of(speeds: Speeds, part: int, running: int) -> int | None:
    """Return the speed of so many sequences on a part, with the least of the batches that is enough."""
    known = speeds[Template(part=part, batch=1 if running == 1 else 3)]
    return None if known is None else known[max(0, running - 2)]


def search_of(speeds: Speeds, seed: int, least: int, unproven: frozenset[Template], load: Load) -> Search:
    rng, fewest = random.Random(seed), fewest_of(load)
    upper = {template: int((known or (50,))[0] * rng.uniform(1, 1.6)) for template, known in speeds.items()}

    def solve(template: Template) -> tuple[int, ...] | Unproven | None:
        known = speeds[template]
        if template in unproven:
            return Unproven(speed=upper[template])
        return None if known is None else known[fewest[template.batch] - template.batch - 1 :]

    def is_slower(template: Template, speed: int) -> bool:
        return False

    return Search(
        classes=CLASSES, parts=PARTS, least_speed=least, fewest=fewest, solve=solve, is_slower=is_slower,
        speeds=dict(upper),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_the_best_division_is_found(seed: int) -> None:
    rng = random.Random(seed)
    speeds = made_up(seed)
    load = Load(clients=rng.choice((None, 2, 4, 7)), replicas=rng.choice((None, None, 2, 3)))
    least = rng.choice((0, 0, 60))
    found = search_of(speeds, seed, least, frozenset(), load).best(load, Settings())
    expected = exhausted(speeds, load, least)
    assert (found.answer.speed if found else None) == expected
    if found is not None:
        assert found.bound == expected


@pytest.mark.parametrize("seed", range(20))
def test_what_is_not_proven_is_bounded_and_left_out(seed: int) -> None:
    speeds, rng = made_up(seed), random.Random(seed)
    unproven = frozenset(rng.sample(TEMPLATES, 2))
    load = Load(clients=None, replicas=None)
    search = search_of(speeds, seed, 0, unproven, load)
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


@pytest.mark.parametrize("seed", [1, 13, 19, 22, 31, 33])
def test_what_is_not_proven_is_excluded_where_it_is_not_faster_than_would_help(seed: int) -> None:
    speeds, rng = made_up(seed), random.Random(seed)
    unproven = frozenset(rng.sample(TEMPLATES, 2))
    load = Load(clients=rng.choice((None, 4)), replicas=None)
    alone = search_of(speeds, seed, 0, unproven, load).best(load, Settings())
    search = search_of(speeds, seed, 0, unproven, load)
    search.is_slower = lambda template, speed: (speeds[template] or (0,))[0] <= speed
    found, every = search.best(load, Settings()), exhausted(speeds, load, 0)
    assert alone is not None
    assert found is not None
    assert every is not None
    assert alone.bound > alone.answer.speed == found.answer.speed == every
    assert found.bound == every


@pytest.mark.parametrize("start", range(0, 120, 30))
def test_whatever_is_asked_before_it_is_solved_the_best_division_is_the_same(start: int) -> None:
    """Also with templates a twentieth as fast, of which a division takes less than others must lose."""
    closed = 0
    for seed in range(start, start + 30):
        rng, speeds = random.Random(seed), made_up(seed)
        for part in range(len(PARTS)):
            if rng.random() < 0.3:
                for template in (Template(part=part, batch=batch) for batch in BATCHES):
                    known = speeds[template]
                    speeds[template] = known and tuple(max(1, speed // 20) for speed in known)
        load = Load(clients=rng.choice((None, 2, 4, 7)), replicas=rng.choice((None, None, 2, 3)))
        unproven = frozenset(rng.sample(TEMPLATES, rng.choice((1, 2, 4))))
        search = search_of(speeds, seed, 0, unproven, load)

        def is_slower(template: Template, speed: int, known: Speeds = speeds) -> bool:
            assert speed >= 0
            return (known[template] or (0,))[0] <= speed

        search.is_slower = is_slower
        found, every = search.best(load, Settings()), exhausted(speeds, load, 0)
        without = {template: None if template in unproven else speed for template, speed in speeds.items()}
        assert (found.answer.speed if found else None) == exhausted(without, load, 0), f"seed {seed}"
        if found is not None:
            assert found.bound >= (every or 0), f"seed {seed}"
            closed += found.bound == found.answer.speed
    assert closed > 10


def test_no_template_at_all_is_infeasible() -> None:
    search = search_of(dict.fromkeys(TEMPLATES), 0, 0, frozenset(), Load(clients=None, replicas=None))
    load = Load(clients=None, replicas=None)
    with pytest.raises(InfeasibleError, match="no replica fits on any of the parts"):
        require(search.best(load, Settings()), search, load, Settings(), 0)
