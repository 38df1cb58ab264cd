"""Steps that are captured as CUDA graphs, and what that takes: facts of the plan and not of a run.

Each GPU captures its own part of the steps that repeat: all of its stage, of the tables and of the drafter that lie
between two messages that its host waits for (``runtime.decode.graphs``). Those are the messages over gloo and through
shared memory, as to a CPU: others, over NCCL, are captured too. The graphs of a device share one pool of memory, which
is theirs for good: its temporaries are those of the largest step, beside those of prefill.

Where GPUs divide the dims of a head, torch attends block by block to as many rows of a cache as are filled, in hundreds
of launches a layer. Such a plan captures nothing, on none of its GPUs, as over NCCL all have to do the same; it has no
pool.
"""

from plans.places import places
from plans.schema import DraftPlacement, Plan, Stage
from plans.step import tree_for

POOL = "scratch.graphs"
"""Name of the pool in the memory table."""
LIBRARIES_BYTES = 2 * (32 << 20)
"""Most memory of the pool in which cuBLAS and cuBLASLt work, as torch gives it to them on compute capability 9.0."""
LOOSE_BYTES = (20 << 20) + 2 * (2 << 20)
"""Memory of the pool that may be unused: of a segment of 20 MiB for tensors above 1 MiB, of one of 2 MiB for smaller
ones, and of the last one, which is rounded up to 2 MiB (torch's allocator)."""
RESERVED_BYTES = LIBRARIES_BYTES + LOOSE_BYTES
"""Bytes of the pool beyond its line of the memory table: libraries and fragmentation are in a device's reserve."""


def most_shapes(plan: Plan) -> int:
    """Return how many shapes of steps there are at most.

    One for each number of places with the tree that comes with it, drafted or plain, greedy or with a sequence that
    samples (``runtime.decode.graphs``).
    """
    options = plan.options
    counts = range(1, options.batch + 1)
    plain = {places(plan, count) for count in counts}
    drafted = {(places(plan, count), tree_for(options, count)) for count in counts} if plan.draft is not None else set()
    return 2 * (len(plain) + len(drafted))


def captures(plan: Plan) -> bool:
    """Return True for a plan with a GPU whose ranks may capture their steps."""
    return bool(_gpus(plan)) and not divides_heads(plan)


def _gpus(plan: Plan) -> set[str]:
    return {device.id for device in plan.devices if device.kind == "cuda"}


def divides_heads(plan: Plan) -> bool:
    """Return True where GPUs divide ``head_dim`` of a stage, or of the drafter; ``memory`` of a plan is not asked."""
    drafter = () if plan.draft_placement is None else (plan.draft_placement,)
    placements: tuple[Stage | DraftPlacement, ...] = (*plan.stages, *drafter)
    gpus = {device.id for device in plan.inventory.devices if device.kind == "cuda"}
    return any(placement.kv_axis == "head_dim" and gpus & set(placement.devices) for placement in placements)


def waits_between(plan: Plan) -> bool:
    """Return True where hosts wait for messages within a step, so that it is several graphs on a GPU."""
    return bool(plan.transports & {"gloo", "shm"})


def goes_ahead(plan: Plan) -> bool:
    """Return True where the host may launch a step before it has looked at the one before: no host works within it."""
    return captures(plan) and all(device.kind == "cuda" for device in plan.devices) and not waits_between(plan)


def steps_line(plan: Plan) -> str | None:
    """Return in words how a plan's GPUs get the work of a step; None where it has none."""
    if not _gpus(plan):
        return None
    if not captures(plan):
        return "run and not captured: GPUs divide head_dim"
    divided = ", divided where a message passes through the host" if waits_between(plan) else ""
    return f"in CUDA graphs, {most_shapes(plan)} shapes at most{divided}"
