"""Steps that are captured as CUDA graphs, and what that takes: facts of the plan and not of a run.

Each GPU captures its own part of the steps that repeat: all of its stage, of the tables and of the drafter that lie
between two messages that its host waits for (``runtime.decode.graphs``). Those are the messages over gloo and through
shared memory, as to a CPU: others, over NCCL, are captured too. The graphs of a device share one pool of memory, which
is theirs for good: its temporaries are those of the largest step, beside those of prefill.
"""

from plans.places import places
from plans.schema import Plan
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
    """Return how many shapes of steps are captured at most when the plan is opened.

    One for each number of places with the tree that comes with it, drafted or plain, greedy or with a sequence that
    samples (``runtime.decode.graphs``).
    """
    options = plan.options
    counts = range(1, options.batch + 1)
    plain = {places(plan, count) for count in counts}
    drafted = {(places(plan, count), tree_for(options, count)) for count in counts} if plan.draft is not None else set()
    return 2 * (len(plain) + len(drafted))


def captures(plan: Plan) -> bool:
    """Return True for a plan with a GPU: it captures its steps."""
    return any(device.kind == "cuda" for device in plan.devices)


def waits_between(plan: Plan) -> bool:
    """Return True where hosts wait for messages within a step, so that it is several graphs on a GPU."""
    return bool(plan.transports & {"gloo", "shm"})


def steps_line(plan: Plan) -> str | None:
    """Return in words how a plan's GPUs get the work of a step; None where it has none."""
    if not captures(plan):
        return None
    divided = ", divided where a message passes through the host" if waits_between(plan) else ""
    return f"in CUDA graphs, {most_shapes(plan)} shapes at most{divided}"
