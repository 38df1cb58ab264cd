"""Plans of GPUs, and the temporaries that are planned for their ranks."""

import dataclasses
from pathlib import Path

from plans.buffer import Buffer
from plans.buffers import device_buffers
from plans.graphs import POOL, captures
from plans.schema import Device, Plan
from tests.plan_factory import make_device, make_model
from tests.runtime.meta_steps import Result

PLANS = Path(__file__).parents[3] / "plans"
MODELS = {
    "GQA": make_model(num_layers=2, num_heads=32, num_kv_heads=8, head_dim=128, hidden_size=256),
    "MHA": make_model(num_layers=2, num_heads=16, num_kv_heads=16, head_dim=64, hidden_size=256),
    "one KV head of 256": make_model(num_layers=2, num_heads=8, num_kv_heads=1, head_dim=256, hidden_size=256),
}


def gpu(device_id: str) -> Device:
    return dataclasses.replace(make_device(device_id, memory_bytes=1 << 37), type="gpu", kind="cuda")


def scratch(plan: Plan, rank: int) -> int:
    return sum(buffer.nbytes for buffer in temporaries(plan, rank) if buffer.name != POOL)


def temporaries(plan: Plan, rank: int) -> list[Buffer]:
    return [buffer for buffer in device_buffers(plan, plan.devices[rank].id) if buffer.scratch]


def assert_planned(plan: Plan, rank: int, run: Result) -> None:
    """Assert that temporaries are within the plan, and those of a step within the pool of captured steps."""
    assert 0 < run.peak <= scratch(plan, rank)
    pools = [buffer.nbytes for buffer in temporaries(plan, rank) if buffer.name == POOL]
    assert len(pools) == captures(plan)
    assert all(0 < run.step_peak <= pool for pool in pools)


def faults(run: Result) -> list[str]:
    """Return the operations that mix devices or make the host wait."""
    return [*(fault for trace in run.traces for fault in (*trace.mixed, *trace.waits))]
