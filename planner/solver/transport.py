"""The transport problem: whole items from sources to sinks at the least cost, solved exactly."""

from collections.abc import Sequence

from ortools.graph.python import min_cost_flow


def transport(supplies: Sequence[int], demands: Sequence[int], unit_costs: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the items sent from every source to every sink, such that Σ items · cost is least.

    ``supplies`` and ``demands`` have the same sum; ``unit_costs``: by source, then by sink. Each sink may get from
    each source, so a solution always exists.
    """
    assert sum(supplies) == sum(demands), (supplies, demands)
    flow = min_cost_flow.SimpleMinCostFlow()
    sources, sinks = range(len(supplies)), range(len(demands))
    arcs = {
        (a, b): flow.add_arc_with_capacity_and_unit_cost(a, len(supplies) + b, supplies[a], unit_costs[a][b])
        for a in sources
        for b in sinks
    }
    for a in sources:
        flow.set_node_supply(a, supplies[a])
    for b in sinks:
        flow.set_node_supply(len(supplies) + b, -demands[b])
    status = flow.solve()
    assert status == flow.OPTIMAL, status
    return [[flow.flow(arcs[a, b]) for b in sinks] for a in sources]
