"""Places of a batch that a step computes: those of running sequences, which are in the first ones.

The runtime exchanges places so that running sequences are in the first ones (``runtime.decode.step``); the planner
prices steps of fewer sequences than the batch by the same numbers.
"""

from plans.kv import kv_division
from plans.schema import Plan


def is_movable(plan: Plan) -> bool:
    """Return True where every device with the KV cache of one sequence has those of all, so that they change places."""
    divisions = [kv_division(stage) for stage in plan.stages]
    divisions += [kv_division(plan.draft_placement)] if plan.draft_placement else []
    return all(division.axis != "batch" for division in divisions)


def is_padded(plan: Plan) -> bool:
    """Return True where a plan has a GPU in use: numbers of rows are few, so that it sees few shapes."""
    return any(device.kind != "cpu" for device in plan.devices)


def places(plan: Plan, sequences: int) -> int:
    """Return how many places a step with so many running sequences computes.

    With a GPU these are powers of two and the batch. Where sequences do not change places it may be all of them.
    """
    batch = plan.options.batch
    if not is_movable(plan):
        return batch
    return padded(sequences, batch) if is_padded(plan) else sequences


def padded(sequences: int, batch: int) -> int:
    """Return the places that are computed for so many running sequences where a GPU is in use."""
    return min(batch, 1 << (sequences - 1).bit_length())
