"""``check``: plans solved again from their own inputs."""

import sys
from pathlib import Path

from planner.api.checking import CheckResult, check
from planner.api.fleets import FleetCheck, check_fleet
from planner.commands.console import put, say
from planner.commands.objectives import objective_lines
from planner.commands.refusals import describe
from planner.errors import PlannerError
from plans.codec import digest
from plans.fleet import is_fleet
from plans.format import format_ns
from plans.schema import PlanError

BYTECODE = "__pycache__"
"""Directory that Python makes among the committed plans, since they lie in a package: ``plans/*/`` names it too."""


def run(*, plans: tuple[Path, ...], workers: int, solver_seed: int, as_json: bool, verbose: int) -> None:
    """Check each plan; exit with 1 if one differs from what its inputs lead to, or with the code of the first error."""
    results, errors = [], []
    for directory in plans:
        if directory.name == BYTECODE and len(plans) > 1:
            continue
        try:
            result = check_either(directory, workers, solver_seed)
        except (PlannerError, PlanError) as error:  # the others are checked all the same
            say(f"error: {error}")
            errors.append(error)
            continue
        if isinstance(result, CheckResult):
            say_details(directory, result, verbose)
        differences = list(result.lines)
        results.append({"plan": str(directory), "clean": result.clean, "differences": differences})
        say(f"{directory}: " + ("clean" if result.clean else f"{len(differences)} differences"))
        for line in differences:
            say(f"  {line}")
    if as_json:
        put(({"error": describe(errors[0])} if errors else {}) | {"plans": results})
    if errors:
        sys.exit(errors[0].exit_code)
    sys.exit(0 if all(result["clean"] for result in results) else 1)


def check_either(directory: Path, workers: int, seed: int) -> CheckResult | FleetCheck:
    """Check a plan, or a fleet with its plans."""
    either = check_fleet if is_fleet(directory) else check
    return either(directory, workers=workers, seed=seed)


def say_details(directory: Path, result: CheckResult, verbose: int) -> None:
    """Write what was compared, with -v, and how it was proven, with -vv."""
    if verbose:
        devices = len(result.plan.inventory.devices)
        say(f"{directory}: sound in itself; solved again on {devices} devices in {result.again.solved.solve_s:.2f} s")
        for name, plan in (("recorded", result.plan), ("solved", result.again.plan)):
            say(f"  {name:<9} {digest(plan)}, step {format_ns(plan.proof.objective_ns)}")
    if verbose > 1:
        say("\n".join(objective_lines(result.again.solved)))
