"""Small real inputs for planning: the configs of the demo and of tinier models without weights, and inventories."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from planner import build, request
from planner.demo_model import DEMO
from planner.families import BaseInput, DraftInput, inputs_of, load_base, load_draft
from planner.formulations import Formulations
from planner.hardware.inventory import parse_inventory
from planner.hardware.records import HardwareInventory
from planner.problem.formulate import Formulation
from planner.solver.minimise import Settings
from plans.schema import DType, Inventory, Options, Plan

ROOT = Path(__file__).parents[2]
Head = Literal["eagle3", "eagle1"] | None


def cpu(name: str, mib: int, bandwidth: int = 10) -> dict[str, Any]:
    """Return a CPU device with the reserve of the catalogue."""
    return {"id": name, "type": "cpu", "memory": f"{mib} MiB", "bandwidth": f"{bandwidth} GB/s"}


def host(name: str, *devices: dict[str, Any], links: Any = None) -> dict[str, Any]:
    return {"name": name, "links": links or {"class": "shm"}, "devices": list(devices)}


def gpu(name: str, kib: int, **figures: str) -> dict[str, Any]:
    """Return an accelerator that the catalogue does not list."""
    rates = {"bandwidth": "500 GB/s", "flops": "50 TFLOP/s", "reserve": "0 B"}
    return {"id": name, "type": "tiny-gpu", "memory": f"{kib} KiB"} | rates | figures


TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
"""Config of a model that solves in a tenth of a second and takes 3 MiB with its EAGLE head."""
TINY_HEAD = TINY | {"num_hidden_layers": 1}
"""Config of the EAGLE head of that model, with one layer."""


def saved(directory: Path, config: dict[str, Any]) -> Path:
    """Write a bare config into a new directory; return the file."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory / "config.json"


EQUAL: dict[str, Any] = {"hosts": [host("box", *(cpu(f"cpu{i}", 11) for i in range(4)))]}
"""Four devices that differ in nothing but their names."""

UNLIKE: dict[str, Any] = {
    "hosts": [
        host("left", cpu("a0", 9), cpu("a1", 7, 8), links={"class": "shm", "latency": "50 us"}),
        host("right", cpu("b0", 8, 6), cpu("b1", 12)),
    ],
    "network": {"class": "ethernet"},
}


def root_inventory() -> Any:
    """Return the inventory of the demo."""
    return yaml.safe_load((ROOT / "inventory.yaml").read_text())


def demo(head: Head) -> tuple[BaseInput, DraftInput | None]:
    """Return the embedded model and one of its EAGLE heads, as bare configs."""
    base = load_base(DEMO / "base" / "config.json")
    return base, load_draft(DEMO / head / "config.json", base) if head else None


def options_of(base: BaseInput, draft: DraftInput | None, context: int | None, dtype: DType) -> Options:
    return request.resolve(request.Wanted(context=context), dtype, base, draft)


def listed(data: Any) -> HardwareInventory:
    return parse_inventory(data, "inventory.yaml")


def inventory_of(data: Any, dtype: DType = "float32") -> Inventory:
    return listed(data).at(dtype)


def formulation(data: Any, head: Head, *, context: int | None = 256, dtype: DType = "float32") -> Formulation:
    base, draft = demo(head)
    return Formulation(
        model=base.model,
        draft=draft.draft if draft else None,
        options=options_of(base, draft, context, dtype),
        inventory=inventory_of(data, dtype),
    )


def planned(data: Any, head: Head, context: int = 256) -> build.Built:
    """Plan the demo on an inventory in float32, once for all tests."""
    return _planned(json.dumps(data), head, context)


@cache
def _planned(data: str, head: Head, context: int) -> build.Built:
    base, draft = demo(head)
    options = options_of(base, draft, context, "float32")
    return plan_of(base, draft, inventory_of(json.loads(data)), options)


def plan_of(
    base: BaseInput,
    draft: DraftInput | None,
    inventory: Inventory,
    options: Options,
    previous: Plan | None = None,
) -> build.Built:
    """Plan with these options, which need not be those of a request."""
    formulation = Formulations().of(base, draft, inventory, options)
    return build.plan(formulation, inputs_of(base, draft), Settings(workers=1), previous)


def shuffled(data: Any, seed: int) -> Any:
    """Return an inventory with hosts, devices and keys listed in another order."""
    rng = random.Random(seed)

    def shuffle(value: Any) -> Any:
        if isinstance(value, dict):
            return dict(rng.sample([(key, shuffle(item)) for key, item in value.items()], len(value)))
        return rng.sample([shuffle(item) for item in value], len(value)) if isinstance(value, list) else value

    return shuffle(data)
