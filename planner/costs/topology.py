"""What is connected with what: devices by links, blocks by the traffic of one step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise

import networkx as nx

from planner.costs.roofline import Tier, message_ns
from plans.schema import DTYPE_BYTES, Draft, Inventory, Link, Model, Options


def topology(inventory: Inventory) -> "nx.Graph[str]":
    """Complete graph of device ids; the attribute ``link`` of an edge is what connects the two."""
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(device.id for device in inventory.devices)
    hosts = {host.name: host for host in inventory.hosts}
    special = {frozenset((pair.a, pair.b)): pair.link for host in inventory.hosts for pair in host.pairs}
    for one, other in combinations(inventory.devices, 2):
        if one.host == other.host:
            link = special.get(frozenset((one.id, other.id)), hosts[one.host].link)
        else:
            assert inventory.network is not None
            link = inventory.network
        graph.add_edge(one.id, other.id, link=link)
    return graph


def slowest_link(graph: "nx.Graph[str]", members: Iterable[str], message_bytes: int) -> Link | None:
    """The link among ``members`` that takes longest for a message; None for a single member."""
    links = [graph.edges[pair]["link"] for pair in combinations(sorted(set(members)), 2)]
    return max(links, key=lambda link: (message_ns(link, message_bytes), link.latency_ns), default=None)


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """The links of groups of devices, which are referred to by index in inventory order."""

    inventory: Inventory

    @cached_property
    def _graph(self) -> "nx.Graph[str]":
        return topology(self.inventory)

    @cached_property
    def host_names(self) -> tuple[str, ...]:
        return tuple(host.name for host in self.inventory.hosts)

    @cached_property
    def host_of(self) -> tuple[int, ...]:
        """Of each device, the index of its host."""
        return tuple(self.host_names.index(device.host) for device in self.inventory.devices)

    @cached_property
    def of_host(self) -> tuple[tuple[int, ...], ...]:
        """Of each host, its devices."""
        hosts = range(len(self.host_names))
        return tuple(tuple(d for d, host in enumerate(self.host_of) if host == each) for each in hosts)

    def inner_link(self, members: Sequence[int], message_bytes: int) -> Link | None:
        """The slowest link among members of one host; None for a single member."""
        host = self.inventory.hosts[self.host_of[members[0]]]
        if len(members) > 1 and not host.pairs:
            return host.link
        return slowest_link(self._graph, [self.inventory.devices[d].id for d in members], message_bytes)

    def tiers(self, members: Sequence[int], message_bytes: int) -> tuple[Tier, Tier]:
        """A group: inside hosts, where the largest part and the slowest link count, and between them."""
        parts: dict[int, list[int]] = {}
        for device in members:
            parts.setdefault(self.host_of[device], []).append(device)
        links = [link for part in parts.values() if (link := self.inner_link(part, message_bytes))]
        slowest = max(links, key=lambda link: (message_ns(link, message_bytes), link.latency_ns), default=None)
        inner = Tier(count=max(map(len, parts.values())), link=slowest)
        return inner, Tier(count=len(parts), link=self.inventory.network if len(parts) > 1 else None)


def blocks(model: Model, draft: Draft | None, options: Options) -> "nx.DiGraph[str]":
    """DAG of the blocks of one step in execution order; ``traffic_bytes`` of an edge is what one step sends along it.

    The features that the draft wants travel with the hidden state from the layer that has them to the last one.
    """
    dtype_bytes = DTYPE_BYTES[options.dtype]
    tree = options.tree.total_token if options.tree else 1
    hidden_bytes = options.batch * tree * model.hidden_size * dtype_bytes
    features = len(draft.aux_layers) if draft else 0
    graph: nx.DiGraph[str] = nx.DiGraph()
    names = ["embed", *(f"layer{i}" for i in range(model.num_layers)), "head"]
    for position, (source, target) in enumerate(pairwise(names)):
        traffic = hidden_bytes * (1 + features if position else 1)
        graph.add_edge(source, target, traffic_bytes=traffic)
    if draft and options.tree:
        rows = options.tree.depth + 2
        width = max(1, features) * draft.target_hidden_size
        graph.add_edge("head", "draft", traffic_bytes=options.batch * rows * (width * dtype_bytes + 8))
    return graph
