"""The fabric: links between devices and groups of an inventory."""

from planner.costs.roofline import Tier
from planner.costs.topology import Fabric, links_of, slowest_link
from tests.planner.instances import cpu, host, inventory_of

FAST = {"class": "fast", "latency": "1 us", "bandwidth": "100 GB/s"}
WIDE = {"class": "wide", "latency": "100 us", "bandwidth": "1000 GB/s"}
WIDEST = {"between": ["a1", "a2"]} | WIDE
INVENTORY = inventory_of(
    {
        "hosts": [
            host(
                "left",
                *(cpu(f"a{i}", 8) for i in range(3)),
                links={
                    "class": "loopback",
                    "pairs": [{"between": ["a0", "a1"]} | FAST, {"between": ["a1", "a2"]} | WIDE],
                },
            ),
            host("right", cpu("b0", 8)),
        ],
        "network": {"class": "ethernet"},
    }
)


def test_every_two_devices_have_the_link_between_them() -> None:
    classes = {tuple(sorted(pair)): link.link_class for pair, link in links_of(INVENTORY).items()}
    assert classes == {
        ("a0", "a1"): "fast",
        ("a1", "a2"): "wide",
        ("a0", "a2"): "loopback",
        ("a0", "b0"): "ethernet",
        ("a1", "b0"): "ethernet",
        ("a2", "b0"): "ethernet",
    }


def test_the_slowest_link_of_a_group_depends_on_the_message() -> None:
    links = links_of(INVENTORY)
    assert slowest_link(links, ["a0"], 1) is None
    pair = slowest_link(links, ["a1", "a0"], 1)
    assert pair is not None
    assert pair.link_class == "fast"
    everyone = slowest_link(links, ["a0", "a1", "a2"], 1)
    assert everyone is not None
    assert everyone.link_class == "loopback"
    without = links | {frozenset(("a0", "a2")): links[frozenset(("a0", "a1"))]}
    small, large = (slowest_link(without, ["a0", "a1", "a2"], nbytes) for nbytes in (1, 10**9))
    assert small is not None
    assert large is not None
    assert (small.link_class, large.link_class) == ("wide", "fast")


def test_a_group_is_connected_inside_hosts_and_between_them() -> None:
    fabric = Fabric(inventory=INVENTORY)
    assert fabric.of_host == ((0, 1, 2), (3,))
    assert fabric.host_of == (0, 0, 0, 1)
    inner, outer = fabric.tiers((0, 1, 3), 1)
    assert (inner.count, inner.link and inner.link.link_class) == (2, "fast")
    assert (outer.count, outer.link) == (2, INVENTORY.network)
    assert fabric.tiers((2,), 1) == (Tier(count=1, link=None), Tier(count=1, link=None))
    assert fabric.inner_link((0, 1, 2), 1) == slowest_link(links_of(INVENTORY), ["a0", "a1", "a2"], 1)
    equal = Fabric(inventory=inventory_of({"hosts": [host("box", cpu("c0", 8), cpu("c1", 8))]}))
    assert equal.inner_link((0, 1), 1) == equal.inventory.hosts[0].link
