"""Random Problems, small enough to try every answer."""

import random
from itertools import combinations

from planner.problem import Column, Group, Problem, Tail, TailGroup
from tests.planner.brute_force import splits


def tiny_problem(seed: int) -> Problem:
    """2 to 4 devices on 1 or 2 hosts, 2 to 4 layers of 1 to 3 units, few rows, with and without a tail."""
    rng = random.Random(seed)
    count = rng.choice((2, 2, 3, 3, 4))
    border = rng.randint(1, count - 1) if rng.random() < 0.5 else count
    hosts = tuple(h for h in (tuple(range(border)), tuple(range(border, count))) if h)
    layers, units = rng.randint(2, 4 if count < 4 else 3), rng.randint(1, 3 if count < 4 else 2)
    first_rows, last_rows = rng.randint(1, 3), rng.randint(1, 3)
    coarse = rng.randint(2, 3)
    groups = _groups(rng, hosts, coarse)
    tail = _tail(rng, groups, count, first_rows, last_rows, coarse) if rng.random() < 0.6 else None
    unit_bytes, first_row_bytes, last_row_bytes = rng.randint(3, 12), rng.randint(1, 9), rng.randint(1, 9)
    # About what all of it takes, a stage on each device.
    need = layers * (units * unit_bytes + 10 * coarse) + first_rows * first_row_bytes + last_rows * last_row_bytes
    need += 10 * count + (40 + 10 * coarse if tail else 0)
    room = rng.choice((0.6, 0.9, 1.1, 1.4, 2.0)) * need / count
    return Problem(
        devices=tuple(f"d{d}" for d in range(count)),
        capacity_bytes=tuple(round(room * rng.uniform(0.5, 1.5)) for _ in range(count)),
        hosts=hosts,
        layers=layers,
        units=units,
        unit_bytes=unit_bytes,
        unit_ps=_rates(rng, count, 9000),
        first_rows=first_rows,
        first_row_bytes=first_row_bytes,
        last_rows=last_rows,
        last_row_bytes=last_row_bytes,
        row_ps=_rates(rng, count, 5000),
        quantum_ns=rng.choice((1, 1, 4)),
        groups=groups,
        tail=tail,
        fixed_ns=rng.randint(0, 9),
        message_ns=tuple(rng.randint(0, 9) if len(host) > 1 else 0 for host in hosts),
        network_message_ns=rng.randint(0, 9) if len(hosts) > 1 else 0,
    )


def _rates(rng: random.Random, count: int, most: int) -> tuple[int, ...]:
    slowest = rng.randint(1, most)
    return tuple(rng.randint(1, slowest) for _ in range(count))


def _groups(rng: random.Random, hosts: tuple[tuple[int, ...], ...], coarse: int) -> tuple[Group, ...]:
    found = []
    for host, devices in enumerate(hosts):
        for size in range(1, min(coarse, len(devices)) + 1):
            for members in combinations(devices, size):
                if size == 1 or rng.random() < 0.8:
                    found.append(_group(rng, host, members, coarse))
    return tuple(found)


def _group(rng: random.Random, host: int, members: tuple[int, ...], coarse: int) -> Group:
    return Group(
        devices=members,
        host=host,
        columns=_columns(rng, len(members), coarse),
        hop_ns=rng.randint(0, 20),
        network_hop_ns=rng.randint(0, 40),
        stage_bytes=_bytes(rng, members),
        first_ns=rng.randint(0, 9),
        last_ns=rng.randint(0, 9),
        last_bytes=_bytes(rng, members),
    )


def _columns(rng: random.Random, members: int, coarse: int) -> tuple[Column, ...]:
    slowness = rng.randint(1, 20)
    collective = rng.randint(0, 10) * (members - 1)
    shares = [share for share in splits(coarse, members) if min(share) > 0]
    return tuple(
        Column(
            shares=share,
            ns=max(share) * slowness + collective + rng.randint(0, 3),
            bytes=tuple(8 * n + rng.randint(0, 4) for n in share),
        )
        for share in shares
    )


def _bytes(rng: random.Random, members: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(rng.randint(0, 6) for _ in members)


def _tail(
    rng: random.Random, groups: tuple[Group, ...], count: int, first_rows: int, last_rows: int, coarse: int
) -> Tail:
    indices = [i for i in range(len(groups)) if rng.random() < 0.7] or [0]
    shares_first, shares_last = rng.random() < 0.5, rng.random() < 0.5
    return Tail(
        groups=tuple(
            TailGroup(
                group=index,
                columns=_columns(rng, len(groups[index].devices), coarse),
                receive_ns=rng.randint(0, 20),
                receive_inside_ns=rng.randint(0, 20),
            )
            for index in indices
        ),
        units=rng.randint(1, 2),
        unit_bytes=rng.randint(1, 9),
        unit_ps=_rates(rng, count, 9000),
        first_rows=first_rows,
        first_row_bytes=rng.randint(1, 9),
        shares_first=shares_first,
        last_rows=last_rows if shares_last else rng.randint(1, 3),
        last_row_bytes=rng.randint(1, 9),
        shares_last=shares_last,
        row_ps=_rates(rng, count, 9000),
        network_ns=rng.randint(0, 20),
    )
