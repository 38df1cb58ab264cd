"""Plans placements offline: reads a checkpoint and an inventory, solves, writes the plan and compiles its images.

The Python interface; arguments are the options of the commands, results are typed and frozen:

    import planner

    result = planner.plan("Llama-3.1-8B-Instruct", inventory="inventory.yaml", draft="EAGLE3-LLaMA3.1-8B", context=8192)
    directory = result.write("plans/llama8b")
    planner.compile(directory, model="Llama-3.1-8B-Instruct", draft="EAGLE3-LLaMA3.1-8B")

    plan = planner.read("plans/llama8b")            # plans.schema.Plan
    planner.diff("plans/before", plan).moved_bytes  # bytes of weights that are new to each device
    assert planner.check("plans/llama8b").clean     # solved again from its own inputs, without weights

    fleet = planner.plan_fleet("Llama-3.1-8B-Instruct", inventory="inventory.yaml", clients=64)
    fleet.write("plans/fleet")                      # fleet.fleet.replicas, fleet.plans by template

Errors are in :mod:`planner.errors` and, for what is read from a plan, :mod:`plans.schema`. To import this package is
cheap: each name is imported when it is first used, the solver only to plan and to check. Nothing here runs a
model: that is :mod:`runtime`, which reads what is written here and shares :mod:`plans` with it.
"""

from typing import TYPE_CHECKING, Any

from plans.exports import imported

if TYPE_CHECKING:
    from planner.api.checking import CheckResult, check
    from planner.api.comparing import PlanDiff, diff, read
    from planner.api.compiling import compile  # noqa: A004 (planner.compile is its name)
    from planner.api.detecting import detect, machine_identity
    from planner.api.digesting import inputs_digest
    from planner.api.fleets import FleetCheck, FleetDiff, FleetResult, check_fleet, diff_fleets, plan_fleet, read_fleet
    from planner.api.planning import PlanResult, plan
    from planner.images.compile import CompileReport
    from plans.fleet_diff import LoadedFleet
    from plans.schema import Plan, Tree

__all__ = [
    "CheckResult",
    "CompileReport",
    "FleetCheck",
    "FleetDiff",
    "FleetResult",
    "LoadedFleet",
    "Plan",
    "PlanDiff",
    "PlanResult",
    "Tree",
    "check",
    "check_fleet",
    "compile",
    "detect",
    "diff",
    "diff_fleets",
    "inputs_digest",
    "machine_identity",
    "plan",
    "plan_fleet",
    "read",
    "read_fleet",
]

_MODULES = {
    "CheckResult": "planner.api.checking",
    "CompileReport": "planner.images.compile",
    "FleetCheck": "planner.api.fleets",
    "FleetDiff": "planner.api.fleets",
    "FleetResult": "planner.api.fleets",
    "LoadedFleet": "plans.fleet_diff",
    "Plan": "plans.schema",
    "PlanDiff": "planner.api.comparing",
    "PlanResult": "planner.api.planning",
    "Tree": "plans.schema",
    "check": "planner.api.checking",
    "check_fleet": "planner.api.fleets",
    "compile": "planner.api.compiling",
    "detect": "planner.api.detecting",
    "diff": "planner.api.comparing",
    "diff_fleets": "planner.api.fleets",
    "inputs_digest": "planner.api.digesting",
    "machine_identity": "planner.api.detecting",
    "plan": "planner.api.planning",
    "plan_fleet": "planner.api.fleets",
    "read": "planner.api.comparing",
    "read_fleet": "planner.api.fleets",
}
"""Module of each exported name."""


def __getattr__(name: str) -> Any:
    """Return an exported name, importing its module; raise AttributeError for any other name."""
    return imported(__name__, _MODULES, name)


def __dir__() -> list[str]:
    """Return the exported names."""
    return sorted(__all__)
