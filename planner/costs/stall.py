"""How long a device computes without a sign of life, so that one which hangs can be told from one which is slow."""

from collections.abc import Iterator

from planner.costs.shares import Pass, Work, attention_work, router_work, rows_work, unit_work
from plans.buffers import kv_bytes
from plans.dtypes import DTYPE_BYTES
from plans.kv import kv_shares
from plans.schema import Device, Plan, Stage
from plans.step import draft_rows, forward_rows, kv_rows, layer_class, verify_rows

LEAST_S = 6
"""Longer than any layer takes on a GPU, and short enough that a run which hangs has ended within 10 s."""
MARGIN = 3
"""What is predicted is not what is measured: a cold device is slow, and a shared one slower."""


def longest_silence(plan: Plan) -> tuple[str, int]:
    """The device of a plan that computes longest in one piece, and for how many ns as predicted.

    A piece is a layer, a share of the head, or the draft's. A GPU takes on all layers of its stage before it has
    computed the first, so there they are one.
    """
    devices = {device.id: device for device in plan.devices}
    pieces = [(name, work.ns(devices[name])) for name, work in (*_tables(plan), *_draft(plan))]
    for stage in plan.stages:
        for member, name in enumerate(stage.devices):
            pieces.append((name, _layers_ns(plan, stage, member, devices[name])))
    return max(pieces, key=lambda piece: piece[1])


def stall_timeout_s(silence_ns: int) -> int:
    """Seconds without progress after which a run has to be hung."""
    return max(LEAST_S, -(-MARGIN * silence_ns // 10**9))


def _layers_ns(plan: Plan, stage: Stage, member: int, device: Device) -> int:
    """One layer of a device's share of a stage, the longest; on a GPU all of them. In the forward of the most rows."""
    hidden, width, rows = plan.model.hidden_size, DTYPE_BYTES[plan.options.dtype], forward_rows(plan.options)
    # a prefill's rows are of one sequence, which a member may have for itself
    given = Pass(rows=rows, batch=1, kv_rows=kv_rows(plan.options), inputs=hidden, hidden=hidden, width=width)
    layer, found = stage.first_layer, []
    for run in stage.runs:
        share = kv_shares(stage, run.kv_heads)[member]
        for _ in range(run.num_layers):
            kind = layer_class(plan.model, layer)
            attention = attention_work(kind.attention, given, share, kv_bytes(plan.options, kind.attention, share))
            unit, router = unit_work(kind.mlp, hidden, width, rows), router_work(kind.mlp, hidden, width, rows)
            units = run.mlp_units[member]
            found.append(
                Work(
                    traffic_bytes=attention.traffic_bytes + router.traffic_bytes + units * unit.traffic_bytes,
                    flops=attention.flops + router.flops + units * unit.flops,
                ).ns(device)
            )
            layer += 1
    return max(found) if device.kind == "cpu" else sum(found)


def _tables(plan: Plan) -> Iterator[tuple[str, Work]]:
    width = DTYPE_BYTES[plan.options.dtype]
    for name, rows in zip(plan.head.devices, plan.head.rows, strict=True):
        yield name, rows_work(plan.model.hidden_size, width, rows, verify_rows(plan.options))


def _draft(plan: Plan) -> Iterator[tuple[str, Work]]:
    """All of a device's share of the head, for the most rows."""
    rows, width = draft_rows(plan.options), DTYPE_BYTES[plan.options.dtype]
    for line in plan.memory:
        if nbytes := line.draft_weights_bytes:
            yield line.device, Work(traffic_bytes=nbytes, flops=2 * rows * nbytes // width)
