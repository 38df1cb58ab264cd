"""Placements of vLLM and accelerate for the same model and devices, priced by our cost and memory model.

Equal shares follow vLLM: tensor-parallel sizes divide the query heads, and KV heads are repeated if there are fewer of
them; pipeline stages have equally many layers, with the remainder on the stages before the last; ranks follow the order
of the inventory, stage by stage; the embedding is on the first stage, the lm_head on the last. Every pair of sizes is
tried on all devices and on those of every subset of types. Neither side reserves memory for a drafter, and only the
terms of our plans are counted: no fragmentation, no copies while loading.

The balanced map is computed by accelerate itself, with the capacities that we plan with. Weights that it leaves on the
CPU are copied over PCIe for every token to the GPU that runs the last layers and are computed there, at no further
cost; their KV cache is not counted against any device.
"""

import dataclasses
import itertools
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import modeling
from even_shares import even_answer
from transformers import AutoConfig, AutoModelForCausalLM

from instances import Rivalry
from planner.errors import NotProvenError
from planner.families import load_base
from planner.hardware.catalog import catalog
from planner.hardware.inventory import parse_inventory
from planner.integers import ceil_div
from planner.problem import device_map
from planner.problem.device_sets import DeviceSet
from planner.problem.formulate import Formulation
from planner.problem.machine import Machine, listed_machine
from planner.request import Wanted, resolve
from planner.solver.certify import certify
from planner.solver.minimise import Settings
from planner.solver.problem import Answer, Group, Problem
from planner.solver.solve import Solved, solve
from plans.kv import KvDivision
from plans.schema import Inventory, Model

ROOMY_BYTES = 1 << 62
"""Capacity of a device in a problem that only computes loads."""

LIMIT = 20.0
"""Limit of a proof, in the solver's deterministic time."""

GAP_PPM = 200
"""Gap that is accepted if the proof exceeds the limit; the table shows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A pipeline stage of a placement."""

    devices: DeviceSet
    layers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Priced:
    """Step time and missing bytes of a placement under our cost model."""

    name: str
    step_ns: int
    short_bytes: int
    """Sum of the bytes missing on its devices; 0 if it fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapped:
    """The balanced map of accelerate."""

    priced: Priced
    spilled_bytes: int
    """Bytes of weights on the CPU."""
    spilled_from: str | None
    """First module on the CPU; None if all are on GPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Placements of one instance: ours, equal shares, and accelerate's."""

    rivalry: Rivalry
    ours: Solved | None
    """None if it is proven that nothing fits."""
    stages: str
    """Our stages, in words."""
    equal: Priced
    mapped: Mapped


def _any_age(inventory: Inventory) -> Inventory:
    """Return an inventory in which GPUs of every age run the model: placements are compared, not kernels."""
    devices = tuple(dataclasses.replace(device, compute_capability=None) for device in inventory.devices)
    return dataclasses.replace(inventory, devices=devices)


def formulation_of(rivalry: Rivalry) -> Formulation:
    """Formulate an instance for our planner."""
    with tempfile.TemporaryDirectory(prefix="rivals-") as directory:
        file = Path(directory) / "config.json"
        file.write_text(json.dumps(rivalry.model))
        base = load_base(file)
    wanted = Wanted(context=rivalry.context, dtype=rivalry.dtype, simplify_ppm=0)
    return Formulation(
        model=base.model,
        draft=None,
        options=resolve(wanted, rivalry.dtype, base, None),
        inventory=_any_age(parse_inventory(rivalry.inventory, rivalry.name).at(rivalry.dtype)),
    )


def compare(rivalry: Rivalry, limit: float = LIMIT) -> Comparison:
    """Solve an instance, within GAP_PPM if the proof exceeds the limit, and price the rivals' placements."""
    formulation = formulation_of(rivalry)
    try:
        ours = solve(formulation.problem, Settings(limit=limit))
    except NotProvenError:
        ours = solve(formulation.problem, Settings(gap_ppm=GAP_PPM))
    return Comparison(
        rivalry=rivalry,
        ours=ours,
        stages="" if ours is None else _in_words(formulation, ours.answer),
        equal=best_equal_share(formulation),
        mapped=mapped(formulation, rivalry.model),
    )


def _in_words(formulation: Formulation, answer: Answer) -> str:
    """Return the layers and devices of each stage as text."""
    devices = formulation.machine.inventory.devices
    stages = []
    for stage in answer.stages:
        types = [devices[d].type for d in formulation.problem.groups[stage.group].devices]
        counted = " + ".join(f"{types.count(name)} x {name}" for name in dict.fromkeys(types))
        stages.append(f"{stage.num_layers} on {counted}")
    return ", ".join(stages)


@dataclass(frozen=True, kw_only=True)
class _Placed(Formulation):
    """A formulation restricted to the stages and blocks of one placement, in the order of execution."""

    parts: tuple[Part, ...]
    embed: DeviceSet
    head: DeviceSet

    @cached_property
    def machine(self) -> Machine:
        """The inventory as listed: placements of others follow its order."""
        return listed_machine(self.inventory)

    @cached_property
    def stage_sets(self) -> tuple[DeviceSet, ...]:
        return tuple(part.devices for part in self.parts)

    @cached_property
    def block_sets(self) -> tuple[DeviceSet, ...]:
        return tuple(dict.fromkeys((self.embed, self.head)))

    @cached_property
    def groups(self) -> tuple[tuple[Group, KvDivision], ...]:
        """Keep splits of whole KV heads only: ``repeat_heads`` adds heads to the model if a rival repeats them."""
        return tuple((group, division) for group, division in super().groups if max(division.subgroups) == 1)


def price(
    formulation: Formulation, parts: Sequence[Part], embed: DeviceSet, head: DeviceSet, name: str
) -> tuple[Problem, Priced]:
    """Price a placement in equal shares with ``certify``; return its problem too. It need not fit."""
    options = dataclasses.replace(formulation.options, kv_axis="heads", strategy="latency", custom=None)
    placed = _Placed(
        model=formulation.model,
        draft=None,
        options=options,
        inventory=formulation.inventory,
        parts=tuple(parts),
        embed=embed,
        head=head,
    )
    problem = placed.problem
    assert len(problem.groups) == len(parts)
    answer = even_answer(problem, [part.layers for part in parts], embed.devices, head.devices)
    roomy = dataclasses.replace(problem, capacity_bytes=(ROOMY_BYTES,) * len(problem.devices))
    certificate = certify(roomy, answer)
    loads = zip(certificate.load_bytes, problem.capacity_bytes, strict=True)
    short = sum(max(0, load - capacity) for load, capacity in loads)
    return problem, Priced(name=name, step_ns=certificate.step_ns, short_bytes=short)


# ---- equal shares ----


def equal_layers(layers: int, stages: int) -> tuple[int, ...]:
    """Divide layers as vLLM's ``get_pp_indices``: the stages before the last one take the remainder."""
    fewest, rest = divmod(layers, stages)
    counts = [fewest] * stages
    for position in range(2, rest + 2):
        counts[-position] += 1
    return tuple(counts)


def allowed_sizes(model: Model, most: int) -> list[int]:
    """Return the tensor-parallel sizes: divisors of query heads and MLP, and divisors or multiples of the KV heads."""
    return [size for size in range(1, most + 1) if all(_divides(size, model, i) for i in range(len(model.layers)))]


def _divides(size: int, model: Model, layer_class: int) -> bool:
    layers = model.layers[layer_class]
    heads, kv_heads = layers.attention.num_heads, layers.attention.num_kv_heads
    repeated = kv_heads % size == 0 or size % kv_heads == 0
    return heads % size == 0 and repeated and layers.mlp.intermediate_size % size == 0


def repeat_heads(model: Model, size: int) -> Model:
    """Return the model with at least ``size`` KV heads, as vLLM repeats them; unchanged if it has as many."""

    def repeated(kv_heads: int) -> int:
        return max(kv_heads, size)

    layers = tuple(
        dataclasses.replace(
            layer, attention=dataclasses.replace(layer.attention, num_kv_heads=repeated(layer.attention.num_kv_heads))
        )
        for layer in model.layers
    )
    return dataclasses.replace(model, layers=layers)


def equal_shares(formulation: Formulation) -> Iterator[Priced]:
    """Yield every placement in equal shares, also those that do not fit."""
    model, inventory = formulation.model, formulation.inventory
    total = model.num_layers
    for chosen in _choices(inventory):
        for size in allowed_sizes(model, len(chosen)):
            repeated = dataclasses.replace(formulation, model=repeat_heads(model, size))
            for stages in range(1, min(total, len(chosen) // size) + 1):
                ranks = [_set(inventory, chosen[i * size : (i + 1) * size]) for i in range(stages)]
                parts = [
                    Part(devices=devices, layers=layers)
                    for devices, layers in zip(ranks, equal_layers(total, stages), strict=True)
                ]
                name = _name(inventory, [d for rank in ranks for d in rank.devices], size, stages)
                yield price(repeated, parts, ranks[0], ranks[-1], name)[1]


def best_equal_share(formulation: Formulation) -> Priced:
    """Return the fastest equal-share placement that fits, or the one that lacks the fewest bytes."""
    return min(equal_shares(formulation), key=lambda priced: (priced.short_bytes, priced.step_ns))


def _choices(inventory: Inventory) -> Iterator[tuple[int, ...]]:
    """Yield the GPUs of every subset of types, all types first, in the order of the inventory."""
    types = list(dict.fromkeys(device.type for device in inventory.devices if device.kind == "cuda"))
    for count in range(len(types), 0, -1):
        for chosen in itertools.combinations(types, count):
            yield tuple(d for d, device in enumerate(inventory.devices) if device.type in chosen)


def _set(inventory: Inventory, devices: Sequence[int]) -> DeviceSet:
    names = [host.name for host in inventory.hosts]
    hosts = dict.fromkeys(names.index(inventory.devices[device].host) for device in devices)
    return DeviceSet(devices=tuple(devices), hosts=tuple(hosts))


def _name(inventory: Inventory, used: Sequence[int], size: int, stages: int) -> str:
    left = len([device for device in inventory.devices if device.kind == "cuda"]) - len(used)
    return f"TP {size} x PP {stages}" + (f", {left} unused" if left else "")


# ---- accelerate ----


def balanced_map(config: dict[str, Any], inventory: Inventory) -> tuple[dict[str, int | str], dict[str, int]]:
    """Return accelerate's balanced map over the GPUs of an inventory, and the bytes of every module."""
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it warns about devices that this machine lacks
    keys = dict(config)
    with torch.device("meta"):
        shaped = AutoConfig.for_model(keys.pop("model_type"), **keys)
        model = AutoModelForCausalLM.from_config(shaped, dtype=torch.bfloat16)
    whole = list(model._no_split_modules or ())
    capacities = [device.capacity_bytes for device in inventory.devices if device.kind == "cuda"]
    limits: dict[int | str, int | str] = {**dict(enumerate(capacities)), "cpu": ROOMY_BYTES}
    balanced = modeling.get_balanced_memory(model, limits, no_split_module_classes=whole)
    device_of = modeling.infer_auto_device_map(model, balanced, no_split_module_classes=whole)
    return dict(device_of), dict(modeling.compute_module_sizes(model))


def largest_host(inventory: Inventory) -> tuple[int, ...]:
    """Return the GPUs of the host with the most GPU memory: a map is for one process, hence one host."""

    def devices(host: str) -> list[int]:
        return [
            index for index, device in enumerate(inventory.devices) if device.host == host and device.kind == "cuda"
        ]

    def capacity(host: str) -> int:
        return sum(inventory.devices[index].capacity_bytes for index in devices(host))

    return tuple(devices(max((host.name for host in inventory.hosts), key=capacity)))


def mapped(formulation: Formulation, config: dict[str, Any]) -> Mapped:
    """Compute and price accelerate's balanced map on the largest host."""
    inventory = formulation.inventory
    usable = largest_host(inventory)
    host = inventory.devices[usable[0]].host
    local = dataclasses.replace(
        inventory,
        hosts=tuple(listed for listed in inventory.hosts if listed.name == host),
        network=None,
        devices=tuple(inventory.devices[d] for d in usable),
    )
    device_of, sizes = balanced_map(config, local)
    spilled = [name for name, place in device_of.items() if place == "cpu"]
    nbytes = sum(sizes[name] for name in spilled)
    last = max(place for place in device_of.values() if isinstance(place, int))
    resident = {name: last if place == "cpu" else place for name, place in device_of.items()}
    if "lm_head" in resident:  # otherwise one line maps the whole model
        resident["model.norm"] = resident[
            "lm_head"
        ]  # our plans keep the final norm with the lm_head; its bytes are negligible
    listed = device_map.read(resident, "accelerate", formulation.model, None, local.devices)
    pins = {pin.module: pin.device for pin in listed}
    index = [device.id for device in local.devices].index
    total = formulation.model.num_layers
    order = [index(pins[f"layers.{i}"]) for i in range(total)]
    parts = [Part(devices=_set(local, (device,)), layers=len(list(run))) for device, run in itertools.groupby(order)]
    embed, head = (_set(local, (index(pins[module]),)) for module in ("embed", "head"))
    on_host = dataclasses.replace(formulation, inventory=local)
    _, priced = price(on_host, parts, embed, head, "balanced")
    if spilled:
        priced = dataclasses.replace(priced, step_ns=priced.step_ns + copy_ns(nbytes), short_bytes=0)
    return Mapped(priced=priced, spilled_bytes=nbytes, spilled_from=spilled[0] if spilled else None)


def copy_ns(nbytes: int) -> int:
    """Return the time of a copy from host to GPU over the catalogue's ``pcie`` link."""
    return ceil_div(nbytes * 10**9, catalog().links["pcie"].bandwidth_bytes_per_s)
