"""Plans placements offline: reads a checkpoint and an inventory, solves, writes the plan and compiles its images.

The Python interface; arguments are the options of the commands, results are typed and frozen:

    import planner

    result = planner.plan("Llama-3.1-8B-Instruct", inventory="inventory.yaml", draft="EAGLE3-LLaMA3.1-8B", context=8192)
    directory = result.write("plans/llama8b")
    planner.compile(directory, model="Llama-3.1-8B-Instruct", draft="EAGLE3-LLaMA3.1-8B")

    plan = planner.read("plans/llama8b")            # plans.schema.Plan
    planner.diff("plans/before", plan).moved_bytes  # bytes of weights that are new to each device
    assert planner.check("plans/llama8b").clean     # solved again from its own inputs, without weights

Errors are in :mod:`planner.errors` and, for what is read from a plan, :mod:`plans.schema`. To import this package is
cheap: each name is imported when it is first used, the solver only by ``plan`` and ``check``. Nothing here runs a
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
    from planner.api.planning import PlanResult, plan
    from planner.images.compile import CompileReport
    from plans.schema import Plan, Tree

__all__ = [
    "CheckResult",
    "CompileReport",
    "Plan",
    "PlanDiff",
    "PlanResult",
    "Tree",
    "check",
    "compile",
    "detect",
    "diff",
    "inputs_digest",
    "machine_identity",
    "plan",
    "read",
]

_MODULES = {
    "CheckResult": "planner.api.checking",
    "CompileReport": "planner.images.compile",
    "Plan": "plans.schema",
    "PlanDiff": "planner.api.comparing",
    "PlanResult": "planner.api.planning",
    "Tree": "plans.schema",
    "check": "planner.api.checking",
    "compile": "planner.api.compiling",
    "detect": "planner.api.detecting",
    "diff": "planner.api.comparing",
    "inputs_digest": "planner.api.digesting",
    "machine_identity": "planner.api.detecting",
    "plan": "planner.api.planning",
    "read": "planner.api.comparing",
}
"""Module of each exported name."""


def __getattr__(name: str) -> Any:
    """Return an exported name, importing its module; raise AttributeError for any other name."""
    return imported(__name__, _MODULES, name)


def __dir__() -> list[str]:
    """Return the exported names."""
    return sorted(__all__)
