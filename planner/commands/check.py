"""``check``: plans solved again from their own inputs."""

import sys
from dataclasses import replace
from pathlib import Path

from planner.build import rebuild
from planner.commands.console import put, say
from planner.commands.objectives import objective_lines
from planner.commands.refusals import describe
from planner.errors import PlannerError
from planner.solver.minimise import Settings
from plans import codec
from plans import diff as plan_diff
from plans.check import load
from plans.format import format_ns
from plans.schema import PlanError


def run(*, plans: tuple[Path, ...], workers: int, solver_seed: int, as_json: bool, verbose: int) -> None:
    """Check each plan; exit with 1 if one differs from what its inputs lead to, or with the code of the first error."""
    settings = Settings(workers=workers, seed=solver_seed)
    results, errors = [], []
    for directory in plans:
        try:
            differences = differences_of(directory, settings, verbose)
        except (PlannerError, PlanError) as error:  # the others are checked all the same
            say(f"error: {error}")
            errors.append(error)
            continue
        results.append({"plan": str(directory), "clean": not differences, "differences": differences})
        say(f"{directory}: " + ("clean" if not differences else f"{len(differences)} differences"))
        for line in differences:
            say(f"  {line}")
    if as_json:
        put(({"error": describe(errors[0])} if errors else {}) | {"plans": results})
    if errors:
        sys.exit(errors[0].exit_code)
    sys.exit(0 if all(result["clean"] for result in results) else 1)


def differences_of(directory: Path, settings: Settings, verbose: int) -> list[str]:
    """Return the differences between a plan and the one that its own inputs lead to."""
    frozen = load(directory)
    again = rebuild(directory, frozen, replace(settings, gap_ppm=frozen.options.gap_ppm))
    if verbose:
        devices = len(frozen.inventory.devices)
        say(f"{directory}: sound in itself; solved again on {devices} devices in {again.solved.solve_s:.2f} s")
        say(f"  its digest  {codec.digest(frozen)}, step {format_ns(frozen.proof.objective_ns)}")
        say(f"  the solved  {codec.digest(again.plan)}, step {format_ns(again.plan.proof.objective_ns)}")
    if verbose > 1:
        say("\n".join(objective_lines(again.solved)))
    differences = [str(difference) for difference in plan_diff.diff(frozen, again.plan)]
    if not differences and (directory / "plan.yaml").read_bytes() != codec.dumps(frozen).encode():
        return ["plan.yaml: not in canonical form"]
    return differences
