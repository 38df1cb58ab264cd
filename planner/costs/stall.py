"""Derives the stall time-out of a run from the longest predicted compute interval between two progress reports."""

from collections.abc import Iterator

from planner.costs.topology import machines_of, together
from planner.costs.work import Pass, Work, attention_work, router_work, rows_work, unit_work
from planner.integers import ceil_div
from plans.caches import kv_bytes
from plans.dtypes import DTYPE_BYTES
from plans.kv import kv_shares
from plans.schema import Device, Plan, Stage
from plans.step import draft_rows, forward_rows, kv_rows, layer_class, verify_rows

LEAST_S = 6
"""Least time-out: longer than any layer takes on a GPU, short enough that a hung run ends within 10 s."""
MARGIN = 3
"""Time-out over predicted interval: a cold device is slower than predicted, and a shared one slower still."""


def longest_silence(plan: Plan) -> tuple[str, int]:
    """Return the device with the longest predicted interval without a progress report, and the interval in ns.

    An interval is one layer, the lm_head's share, or the drafter's. The layers of a GPU's stage are one interval, as
    all are queued before the first has been computed.
    """
    counts = machines_of(plan.devices, plan.inventory.network)
    devices = {device.id: together(device, count) for device, count in zip(plan.devices, counts, strict=True)}
    pieces = [(name, work.ns(devices[name])) for name, work in (*_tables(plan), *_draft(plan))]
    for stage in plan.stages:
        for member, name in enumerate(stage.devices):
            pieces.append((name, _layers_ns(plan, stage, member, devices[name])))
    return max(pieces, key=lambda piece: piece[1])


def stall_timeout_s(silence_ns: int) -> int:
    """Return the stall time-out for this longest interval, in s."""
    return max(LEAST_S, ceil_div(MARGIN * silence_ns, 10**9))


def _layers_ns(plan: Plan, stage: Stage, member: int, device: Device) -> int:
    """Return the time of the longest layer of a device's share of a stage, on a GPU of all layers, at the most rows."""
    hidden, width, rows = plan.model.hidden_size, DTYPE_BYTES[plan.options.dtype], forward_rows(plan.options)
    layer, intervals = stage.first_layer, []
    for run in stage.runs:
        share = kv_shares(stage, run.kv_heads)[member]
        for _ in range(run.num_layers):
            kind = layer_class(plan.model, layer)
            keys = kv_rows(plan.options, kind.attention.window)
            # a prefill's rows are of one sequence, which a member may have for itself
            sizes = Pass(rows=rows, batch=1, kv_rows=keys, inputs=hidden, hidden=hidden, width=width)
            attention = attention_work(kind.attention, sizes, share, kv_bytes(plan.options, kind.attention, share))
            unit = unit_work(kind.mlp, hidden, width, rows)
            router = router_work(kind.mlp, hidden, width, rows)
            units = run.mlp_units[member]
            intervals.append(
                Work(
                    traffic_bytes=attention.traffic_bytes + router.traffic_bytes + units * unit.traffic_bytes,
                    flops=attention.flops + router.flops + units * unit.flops,
                    scores=attention.scores,
                    head_dim=attention.head_dim,
                ).ns(device)
            )
            layer += 1
    return max(intervals) if device.kind == "cpu" else sum(intervals)


def _tables(plan: Plan) -> Iterator[tuple[str, Work]]:
    width = DTYPE_BYTES[plan.options.dtype]
    for name, rows in zip(plan.head.devices, plan.head.rows, strict=True):
        yield name, rows_work(plan.model.head_format, plan.model.hidden_size, width, rows, verify_rows(plan.options))


def _draft(plan: Plan) -> Iterator[tuple[str, Work]]:
    """Yield the work of each device's share of the drafter, at the most rows."""
    if plan.draft is None:
        return
    rows, width = draft_rows(plan.draft, plan.options), DTYPE_BYTES[plan.options.dtype]
    for line in plan.memory:
        if nbytes := line.draft_weights_bytes:
            yield line.device, Work(traffic_bytes=nbytes, flops=2 * rows * nbytes // width)
