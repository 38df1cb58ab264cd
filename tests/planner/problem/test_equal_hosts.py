"""Which hosts are kept of equal ones."""

from typing import Any

import pytest

from planner.problem.equal_hosts import with_few_hosts
from tests.planner.instances import cpu, host, inventory_of

NETWORK = {"class": "ethernet"}


def names(data: Any, most: int, *named: str) -> list[str]:
    kept = with_few_hosts(inventory_of(data), most, set(named))
    assert {device.host for device in kept.devices} == {host.name for host in kept.hosts}
    return [host.name for host in kept.hosts]


def machine(*hosts: dict[str, Any]) -> Any:
    return {"hosts": list(hosts), "network": NETWORK}


EQUAL = machine(*(host(f"h{i}", cpu(f"a{i}", 9), cpu(f"b{i}", 7)) for i in range(5)))


def test_the_first_of_equal_hosts_are_kept() -> None:
    assert names(EQUAL, 2) == ["h0", "h1"]
    assert names(EQUAL, 9) == [f"h{i}" for i in range(5)]


def test_hosts_that_something_names_are_kept_besides() -> None:
    assert names(EQUAL, 1, "h3") == ["h0", "h3"]


def test_the_order_of_devices_does_not_tell_hosts_apart() -> None:
    turned = machine(host("h0", cpu("a0", 9), cpu("b0", 7)), host("h1", cpu("a1", 7), cpu("b1", 9)))
    assert names(turned, 1) == ["h0"]


@pytest.mark.parametrize(
    "other",
    [
        host("h1", cpu("a1", 9)),
        host("h1", cpu("a1", 9), cpu("b1", 7, 11)),
        host("h1", cpu("a1", 9), cpu("b1", 7), links={"class": "shm", "latency": "9 us"}),
        host(
            "h1",
            cpu("a1", 9),
            cpu("b1", 7),
            links={"class": "shm", "pairs": [{"between": ["a1", "b1"], "class": "shm", "latency": "9 us"}]},
        ),
    ],
)
def test_hosts_of_other_devices_or_links_are_kept(other: dict[str, Any]) -> None:
    assert names(machine(host("h0", cpu("a0", 9), cpu("b0", 7)), other), 1) == ["h0", "h1"]
