"""The stall time-out: long enough for a slow device, refused if unreasonable."""

from typing import Any

import pytest

from planner.build import build, replan
from planner.costs.stall import LEAST_S, MARGIN, longest_silence
from planner.errors import InputError
from planner.plan_directory import write
from planner.request import Request, Wanted
from planner.solver.minimise import Settings
from plans.schema import Plan
from tests.planner.instances import cpu, demo, gpu, host, listed

LAYERS, HIDDEN, INTERMEDIATE, KEYS = 8, 192, 512, 4 * 24
CONTEXT, CHUNK = 256, 64


def planned(device: dict[str, Any], **wanted: Any) -> Plan:
    """Plan the embedded model without EAGLE head on one device."""
    base, _ = demo(None)
    request_options = Wanted(context=CONTEXT, dtype="float32", **wanted)
    inventory = listed({"hosts": [host("box", device)]})
    return build(Request(base=base, draft=None, inventory=inventory, wanted=request_options), Settings()).plan


def layer_ns(rows: int, flops_per_s: int) -> int:
    """Return the time of a layer in ns: two operations per row and weight or cached value, at half of the FLOP rate.

    The KV cache has ``CONTEXT + CHUNK`` positions.
    """
    weights = HIDDEN * (2 * HIDDEN + 2 * KEYS + 3 * INTERMEDIATE)
    return 2 * (2 * rows * weights + 4 * rows * (CONTEXT + CHUNK) * HIDDEN) * 10**9 // flops_per_s


def test_the_timeout_grows_with_the_longest_piece_of_work() -> None:
    """Progress is reported per layer on a CPU, and per prefill chunk of all layers on a GPU."""
    slow = planned(cpu("c", 64) | {"flops": "20 MFLOP/s"})
    assert longest_silence(slow) == ("c", pytest.approx(layer_ns(CHUNK, 20_000_000), rel=1e-3))
    assert slow.options.stall_timeout_s == -(-MARGIN * longest_silence(slow)[1] // 10**9) > LEAST_S
    whole = planned(gpu("g", 65536, flops="20 MFLOP/s"))
    assert longest_silence(whole) == ("g", pytest.approx(LAYERS * layer_ns(CHUNK, 20_000_000), rel=1e-3))
    assert planned(cpu("c", 64)).options.stall_timeout_s == LEAST_S


def test_a_requested_timeout_is_kept_or_refused(tmp_path: Any) -> None:
    slow = cpu("c", 64) | {"flops": "20 MFLOP/s"}
    assert planned(slow, stall_timeout_s=9).options.stall_timeout_s == 9
    with pytest.raises(InputError, match=r"--stall-timeout: found 2, device c is predicted to compute 6\.\d s in one"):
        planned(slow, stall_timeout_s=2)
    plan = planned(slow, stall_timeout_s=2, prefill_chunk=8)
    assert plan.options.stall_timeout_s == 2
    write(tmp_path / "p", plan, demo(None)[0], None)
    assert replan(tmp_path / "p", plan, Settings()) == plan


def test_a_device_that_would_need_more_than_an_hour_is_refused() -> None:
    slow = cpu("c", 64) | {"flops": "0.1 MFLOP/s"}
    with pytest.raises(InputError, match=r"device c is predicted to compute \d{4}\.\d s in one piece, .* for 3600 s"):
        planned(slow, prefill_chunk=CONTEXT)
    assert planned(slow, prefill_chunk=CHUNK).options.stall_timeout_s == 3600, (
        "the limit, which is less than three times the predicted time"
    )
