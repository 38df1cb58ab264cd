"""Predicted times beside published ones: the rows of ``measured.yaml``, priced as they were measured.

The placement is the published one (every part tensor-parallel over all devices of the row), not the planner's choice.
Experts are priced as devices read them, those alone that are picked; the engines of the rows do the same.
"""

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from even_shares import even_answer

from instances import Config, base_config, one
from planner.costs.acceptance import expected_ppm
from planner.costs.fixed_work import ENGINE, Kernels
from planner.families import load_base, load_draft
from planner.hardware.inventory import parse_inventory
from planner.problem.device_sets import DeviceSet
from planner.problem.formulate import Formulation
from planner.request import Wanted, resolve
from planner.solver.certify import certify
from planner.speculation.profiles import SHIPPED
from plans.acceptance import PPM, load_profile
from plans.schema import Inventory, Tree
from plans.strict_yaml import load_yaml

FILE = Path(__file__).with_name("measured.yaml")

BOUNDS = {"plain": 0.2, "EAGLE": 0.3, "experts": 0.4}
"""Most by which a prediction may differ from its measurement, by kind of row, relative to the measurement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One published measurement and its source."""

    name: str
    model: str
    devices: str
    context: int
    tokens_per_s: float
    source: str
    quote: str
    link: str | None = None
    head: str | None = None
    tree: Mapping[str, int] | None = None
    acceptance: float = 1.0
    fit: bool = False
    note: str = ""

    @property
    def step_ms(self) -> float:
        """Measured time of a step, in ms."""
        return 1000 * self.acceptance / self.tokens_per_s


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A measurement that is no row, and why."""

    what: str
    source: str
    quote: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedUp:
    """A row with an EAGLE head beside plain decoding of the same engine on the same machine."""

    row: str
    plain: str
    in_profile: bool
    """The shipped acceptance profile was fitted to the acceptance of the row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """A row with its prediction."""

    row: Row
    kind: str
    """Key of BOUNDS."""
    step_ms: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.step_ms / self.row.step_ms

    @property
    def kept(self) -> bool:
        """Return whether the prediction is within the bound of its kind."""
        return abs(self.ratio - 1) <= BOUNDS[self.kind]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The whole file."""

    models: Mapping[str, Config]
    heads: Mapping[str, Config]
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    speed_ups: tuple[SpeedUp, ...]


def measured_table() -> Table:
    """Read ``measured.yaml``."""
    data: dict[str, Any] = load_yaml(FILE.read_bytes(), FILE.name)
    return Table(
        models=data["models"],
        heads=data["heads"],
        rows=tuple(Row(**row) for row in data["rows"]),
        left_out=tuple(LeftOut(**entry) for entry in data["left_out"]),
        speed_ups=tuple(SpeedUp(**entry) for entry in data["speed_ups"]),
    )


@dataclass(frozen=True, kw_only=True)
class _Together(Formulation):
    """A formulation in which every part runs on all devices, with the kernels of the engines that were measured."""

    @cached_property
    def kernels(self) -> Kernels:
        return ENGINE

    @cached_property
    def block_sets(self) -> tuple[DeviceSet, ...]:
        return (DeviceSet(devices=tuple(range(len(self.inventory.devices))), hosts=(0,)),)


def _grouping(inventory: Inventory) -> Inventory:
    """Return an inventory whose devices group rows by expert."""
    devices = tuple(dataclasses.replace(device, compute_capability=90) for device in inventory.devices)
    return dataclasses.replace(inventory, devices=devices)


def speed_up_ratio(entry: SpeedUp, listed: Table) -> float:
    """Return the predicted speed-up, with the acceptance that the shipped profile expects, over the measured one."""
    rows = {row.name: row for row in listed.rows}
    row, plain = rows[entry.row], rows[entry.plain]
    assert row.tree is not None
    assert row.head is not None
    profile = load_profile(SHIPPED / ("eagle3.yaml" if row.head.startswith("eagle3") else "eagle.yaml"), inside=False)
    accepted = expected_ppm(profile, Tree(kind="dynamic", paths=None, **row.tree)) / PPM
    expected = accepted * predicted(plain, listed).step_ms / predicted(row, listed).step_ms
    return expected * plain.tokens_per_s / row.tokens_per_s


def predicted(row: Row, listed: Table) -> Predicted:
    """Price a row."""
    model = base_config(listed.models[row.model])
    with tempfile.TemporaryDirectory(prefix="measured-") as name:
        directory = Path(name)
        (directory / "config.json").write_text(json.dumps(model))
        base, draft = load_base(directory / "config.json"), None
        if row.head is not None:
            head = {"model_type": "llama", "num_hidden_layers": 1} | listed.heads[row.head]
            (directory / "head.json").write_text(json.dumps(base_config(head)))
            draft = load_draft(directory / "head.json", base)
    tree = None if row.tree is None else Tree(kind="dynamic", paths=None, **row.tree)
    options = resolve(Wanted(context=row.context, tree=tree, kv_axis="heads"), "bfloat16", base, draft)
    problem = _Together(
        model=base.model,
        draft=draft.draft if draft else None,
        options=options,
        inventory=_grouping(parse_inventory(one(row.link or "pcie", row.devices), row.name).at("bfloat16")),
    ).problem
    everywhere = problem.groups[0].devices
    answer = even_answer(problem, [problem.layers], everywhere, everywhere)
    step_ns = certify(problem, answer).step_ns
    kind = "experts" if any(layers.mlp.kind == "moe" for layers in base.model.layers) else "EAGLE" if draft else "plain"
    return Predicted(row=row, kind=kind, step_ms=step_ns / 1e6)
