"""Random machines, and other writings of a machine: other names, another order, links written another way."""

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

Listed = dict[str, Any]
"""An inventory as plain data."""

SLOW: Listed = {"class": "cable", "latency": "20 us", "bandwidth": "10 GB/s"}
FAST: Listed = {"class": "bridge", "latency": "2 us", "bandwidth": "60 GB/s"}
BOARD: Listed = {"class": "board", "latency": "5 us", "bandwidth": "30 GB/s"}
NETWORK: Listed = {"class": "ethernet", "latency": "40 us", "bandwidth": "4 GB/s"}
LINKS = (SLOW, FAST, BOARD)


def device(name: str, kib: int, bandwidth: int = 500) -> Listed:
    """Return an accelerator without a reserve."""
    rates = {"bandwidth": f"{bandwidth} MB/s", "flops": "1 TFLOP/s", "reserve": "0 B", "overhead": "1 us"}
    return {"id": name, "type": "tiny-gpu", "memory": f"{kib} KiB"} | rates


def random_machine(rng: random.Random, most_hosts: int, most_devices: int, kib: int) -> Listed:
    """Return one to so many hosts of one to so many devices, of two or three looks, often with equal hosts."""
    looks = [(kib * rng.choice((1, 1, 2)), rng.choice((400, 500, 800))) for _ in range(rng.choice((1, 2, 2, 3)))]
    kinds = [_host_kind(rng, rng.randint(1, most_devices), looks) for _ in range(rng.randint(1, most_hosts))]
    chosen = [rng.choice(kinds) for _ in range(rng.randint(1, most_hosts))]
    hosts = []
    for number, (devices, links) in enumerate(chosen):
        names = [f"d{number}-{place}" for place in range(len(devices))]
        listed = [device(name, *look) for name, look in zip(names, devices, strict=True)]
        pairs = [{"between": [names[a], names[b]]} | link for (a, b), link in links.items()]
        hosts.append({"name": f"h{number}", "links": SLOW | {"pairs": pairs}, "devices": listed})
    return {"hosts": hosts} | ({"network": NETWORK} if len(hosts) > 1 else {})


def _host_kind(
    rng: random.Random, count: int, looks: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], dict[tuple[int, int], Listed]]:
    """Return the looks of a host's devices, and the links of all pairs: alike, in bridges, a ring, boards, random."""
    devices = [rng.choice(looks) for _ in range(count)]
    pairs = list(combinations(range(count), 2))
    shape = rng.choice(("alike", "bridges", "ring", "boards", "random", "one"))
    links = dict.fromkeys(pairs, SLOW)
    if shape == "alike":
        links = dict.fromkeys(pairs, rng.choice(LINKS))
    elif shape == "bridges":
        links |= {(a, a + 1): FAST for a in range(0, count - 1, 2)}
    elif shape == "ring":
        links |= {pair: FAST for pair in pairs if (pair[1] - pair[0]) % count in (1, count - 1)}
    elif shape == "boards":
        half = count // 2
        links |= {pair: BOARD for pair in pairs if (pair[0] < half) == (pair[1] < half)}
    elif shape == "random":
        links = {pair: rng.choice(LINKS) for pair in pairs}
    elif pairs:
        links[rng.choice(pairs)] = FAST
    return devices, links


def rewritten(rng: random.Random, machine: Listed) -> tuple[Listed, dict[str, str]]:
    """Return a machine under other names, in another order, with links written another way; and the new ids."""
    ids = [entry["id"] for host in machine["hosts"] for entry in host["devices"]]
    renamed = dict(zip(ids, rng.sample([f"g{number}" for number in range(3 * len(ids))], len(ids)), strict=True))
    names = rng.sample([f"box{number}" for number in range(3 * len(machine["hosts"]))], len(machine["hosts"]))
    hosts = [_rewritten_host(rng, host, name, renamed) for host, name in zip(machine["hosts"], names, strict=True)]
    return machine | {"hosts": rng.sample(hosts, len(hosts))}, renamed


def _rewritten_host(rng: random.Random, host: Listed, name: str, renamed: Mapping[str, str]) -> Listed:
    links = links_of(host)
    usual = rng.choice([*links.values(), SLOW, BOARD])
    pairs = [
        {"between": rng.sample([renamed[a] for a in pair], 2)} | link
        for pair, link in links.items()
        if link != usual or rng.random() < 0.3
    ]
    devices = [entry | {"id": renamed[entry["id"]]} for entry in host["devices"]]
    return {
        "name": name,
        "links": usual | {"pairs": rng.sample(pairs, len(pairs))},
        "devices": rng.sample(devices, len(devices)),
    }


def links_of(host: Listed) -> dict[tuple[str, str], Listed]:
    """Return the link of every pair of devices of a host."""
    ids = [entry["id"] for entry in host["devices"]]
    usual = {key: host["links"][key] for key in SLOW}
    links = dict.fromkeys(combinations(ids, 2), usual)
    for pair in host["links"].get("pairs", []):
        a, b = sorted(pair["between"], key=ids.index)
        links[a, b] = {key: pair[key] for key in SLOW}
    return links
