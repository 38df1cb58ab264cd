"""Whether a plan's steps are captured as CUDA graphs, which is a fact of the plan and not of a run.

A captured step has all collectives of the step inside, and the step message is one to all devices: so either all ranks
of a plan capture their steps, or none does.
"""

from plans.kv import kv_division
from plans.places import places
from plans.schema import Plan
from plans.step import tree_for

STAGED = ("gloo", "shm")
"""Transports that take messages of a GPU from the memory of its host, which waits for them."""


def uncaptured(plan: Plan) -> str | None:
    """Return why no step of a plan is captured; None: every rank captures its own part of the steps that repeat."""
    cpu = next((device.id for device in plan.devices if device.kind != "cuda"), None)
    if cpu is not None:
        return f"device {cpu} is a CPU"
    staged = sorted(plan.transports & set(STAGED))
    if staged:
        return f"messages go over {staged[0]}, which the host waits for"
    divisions = [kv_division(stage) for stage in plan.stages]
    divisions += [kv_division(plan.draft_placement)] if plan.draft_placement is not None else []
    if any(division.axis == "head_dim" for division in divisions):
        return "a subgroup divides head_dim, and adds up the scores of as many positions as there are"
    return None


def most_shapes(plan: Plan) -> int:
    """Return how many shapes of steps are captured at most when the plan is opened.

    One for each number of places with the tree that comes with it, drafted or plain, greedy or with a sequence that
    samples (``runtime.decode.graphs``).
    """
    options = plan.options
    counts = range(1, options.batch + 1)
    plain = {places(plan, count) for count in counts}
    drafted = {(places(plan, count), tree_for(options, count)) for count in counts} if plan.draft is not None else set()
    return 2 * (len(plain) + len(drafted))
