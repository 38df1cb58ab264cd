"""Whether a plan's steps are captured as CUDA graphs, and what that takes: facts of the plan and not of a run.

A captured step has all collectives of the step inside, and the step message is one to all devices: so either all ranks
of a plan capture their steps, or none does. The graphs of a rank share one pool of memory, which is theirs for good:
its temporaries are those of the largest step, beside those of prefill.
"""

from plans.kv import kv_division
from plans.places import places
from plans.schema import Inventory, Plan
from plans.step import tree_for
from plans.usable import unusable_devices

POOL = "scratch.graphs"
"""Name of the pool in the memory table."""
LIBRARIES_BYTES = 2 * (32 << 20)
"""Most memory of the pool in which cuBLAS and cuBLASLt work, as torch gives it to them on compute capability 9.0."""
LOOSE_BYTES = (20 << 20) + 2 * (2 << 20)
"""Memory of the pool that may be unused: of a segment of 20 MiB for tensors above 1 MiB, of one of 2 MiB for smaller
ones, and of the last one, which is rounded up to 2 MiB (torch's allocator)."""
RESERVED_BYTES = LIBRARIES_BYTES + LOOSE_BYTES
"""Bytes of the pool beyond its line of the memory table: libraries and fragmentation are in a device's reserve."""


def uncaptured_on(inventory: Inventory) -> str | None:
    """Return why the steps of plans for an inventory are not captured; None: they are.

    They are where all its devices that may have a part, in use or not, exchange messages over NCCL: so memory and time
    of captured steps are known before any device is chosen.
    """
    unusable = unusable_devices(inventory)
    devices = [device for device in inventory.devices if device.id not in unusable]
    if any(device.kind != "cuda" for device in devices):
        return "a device is a CPU"
    if len(devices) > 1 and any(host.transport != "auto" for host in inventory.hosts):
        return "messages go over gloo, which waits for the host"
    if len({(device.host, device.ordinal) for device in devices}) < len(devices):
        return "several devices are one GPU, and exchange messages over gloo"
    return None


def uncaptured(plan: Plan) -> str | None:
    """Return why no step of a plan is captured; None: every rank captures its own part of the steps that repeat."""
    reason = uncaptured_on(plan.inventory)
    if reason is not None:
        return reason
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


def steps_line(plan: Plan) -> str | None:
    """Return in words how a plan's GPUs get the work of a step; None where it has none."""
    if all(device.kind == "cpu" for device in plan.devices):
        return None
    reason = uncaptured(plan)
    return f"in CUDA graphs, {most_shapes(plan)} at most" if reason is None else f"launched one by one: {reason}"
