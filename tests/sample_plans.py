"""Small consistent plans made by hand, for the tests of plans/ and of the reports."""

import dataclasses
import re
from typing import Any

from plans.buffers import device_terms
from plans.codec import decode, encode
from plans.schema import (
    Device,
    DeviceMemory,
    Draft,
    DraftPlacement,
    Host,
    Inputs,
    Inventory,
    Link,
    Model,
    Options,
    Pair,
    Plan,
    Proof,
    Run,
    Stage,
    Transport,
    Tree,
    VocabSplit,
)
from tests.plan_factory import MIB, make_device, make_draft, make_model

LOCAL = Link(link_class="shared-memory", latency_ns=1_000_000, bandwidth_bytes_per_s=1_000_000_000)
NETWORK = Link(link_class="ethernet", latency_ns=20_000, bandwidth_bytes_per_s=3_125_000_000)


def device(name: str, host: str, memory_bytes: int) -> Device:
    return dataclasses.replace(make_device(name, memory_bytes=memory_bytes, host=host), flops_per_s=50_000_000_000)


def model_of(*, layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, unit: int, vocab: int) -> Model:
    plain = make_model(
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate_size=intermediate,
        unit=unit,
        vocab_size=vocab,
    )
    return dataclasses.replace(plain, norm_eps=1e-05, bos_token_id=0, eos_token_ids=(1,))


def draft_of(base: Model, vocab: int) -> Draft:
    """Make an EAGLE head with the attention of its base."""
    return dataclasses.replace(make_draft(base, draft_vocab_size=vocab), attention=base.layers[0].attention)


MODEL = model_of(layers=8, hidden=256, heads=8, kv_heads=4, intermediate=768, unit=16, vocab=1024)
DRAFT = draft_of(MODEL, 512)
INVENTORY = Inventory(
    hosts=(
        Host(name="left", link=LOCAL, pairs=(Pair(a="cpu0", b="cpu1", link=LOCAL),), transport="auto"),
        Host(name="right", link=LOCAL, pairs=(), transport="auto"),
    ),
    network=NETWORK,
    devices=(
        device("cpu0", "left", 24 * MIB),
        device("cpu1", "left", 12 * MIB),
        device("cpu2", "right", 32 * MIB),
        device("cpu3", "right", 6 * MIB),
    ),
)
OPTIONS = Options(
    batch=1,
    context=512,
    dtype="float32",
    kv_dtype="float32",
    prefill_chunk=64,
    stall_timeout_s=8,
    strategy="latency",
    kv_axis=None,
    custom=None,
    gap_ppm=0,
    within_ppm=None,
    simplify_ppm=0,
    max_devices=None,
    tree=Tree(kind="dynamic", total_token=60, depth=7, top_k=10, paths=None),
)
STAGES = (
    Stage(
        first_layer=0,
        devices=("cpu0", "cpu1"),
        transport="shm",
        hop_transport="local",
        kv_axis="heads",
        kv_subgroups=(1, 1),
        runs=(
            Run(num_layers=3, kv_heads=(3, 1), mlp_units=(32, 16)),
            Run(num_layers=2, kv_heads=(2, 2), mlp_units=(33, 15)),
        ),
        predicted_ns=14_200_000,
    ),
    Stage(
        first_layer=5,
        devices=("cpu2",),
        transport="local",
        hop_transport="gloo",
        kv_axis="heads",
        kv_subgroups=(1,),
        runs=(Run(num_layers=3, kv_heads=(4,), mlp_units=(48,)),),
        predicted_ns=2_300_000,
    ),
)


def split(devices: tuple[str, ...], transport: Transport, rows: tuple[int, ...], predicted_ns: int) -> VocabSplit:
    """Make the split of a table on the devices of the adjacent stage."""
    return VocabSplit(devices=devices, transport=transport, hop_transport="local", rows=rows, predicted_ns=predicted_ns)


def two_stage_plan() -> Plan:
    """Make a plan of an unequal pair, then one device with the drafter; the inventory's fourth device is unused."""
    plan = Plan(
        schema="4.5",
        inputs=Inputs(
            base_config_sha256="1" * 64,
            base_tensors_sha256="2" * 64,
            draft_config_sha256="3" * 64,
            draft_tensors_sha256="4" * 64,
        ),
        options=OPTIONS,
        inventory=INVENTORY,
        model=MODEL,
        draft=DRAFT,
        stages=STAGES,
        embed=split(("cpu0", "cpu1"), "shm", (1000, 24), 60_000),
        head=split(("cpu2",), "local", (1024,), 170_000),
        draft_placement=DraftPlacement(
            devices=("cpu2",),
            transport="local",
            feature_transport="local",
            kv_axis=None,
            kv_subgroups=None,
            kv_heads=(4,),
            mlp_units=(48,),
            embed_rows=(1024,),
            head_rows=(512,),
            predicted_ns=3_100_000,
        ),
        message_transport="gloo",
        memory=tuple(_empty_memory(name) for name in ("cpu0", "cpu1", "cpu2")),
        proof=Proof(
            status="OPTIMAL",
            objective_ns=19_830_000,
            least_ns=19_830_000,
            bound_ns=19_830_000,
            simplicity=None,
            min_free_bytes=0,
        ),
    )
    return with_memory(plan, {"cpu0": 9 * MIB, "cpu1": 3 * MIB, "cpu2": 7 * MIB}, {"cpu2": 6 * MIB})


def one_device_plan() -> Plan:
    """Make a plan of that model without drafter on the largest device."""
    plan = two_stage_plan()
    stage = Stage(
        first_layer=0,
        devices=("cpu2",),
        transport="local",
        hop_transport="local",
        kv_axis="heads",
        kv_subgroups=(1,),
        runs=(Run(num_layers=8, kv_heads=(4,), mlp_units=(48,)),),
        predicted_ns=6_000_000,
    )
    plain = dataclasses.replace(
        plan,
        inputs=dataclasses.replace(plan.inputs, draft_config_sha256=None, draft_tensors_sha256=None),
        options=dataclasses.replace(plan.options, tree=None),
        draft=None,
        stages=(stage,),
        embed=split(("cpu2",), "local", (1024,), 60_000),
        head=split(("cpu2",), "local", (1024,), 170_000),
        draft_placement=None,
        message_transport="local",
        memory=(_empty_memory("cpu2"),),
        proof=Proof(
            status="OPTIMAL",
            objective_ns=6_230_000,
            least_ns=6_230_000,
            bound_ns=6_230_000,
            simplicity=None,
            min_free_bytes=0,
        ),
    )
    return with_memory(plain, {"cpu2": 18 * MIB}, {})


def nvlink_plan() -> Plan:
    """Make a plan of realistic size: four equal GPUs in one tensor-parallel stage, EAGLE-3 head on two of them."""
    link = Link(link_class="nvlink", latency_ns=9_000, bandwidth_bytes_per_s=250_000_000_000)
    names = tuple(f"gpu{i}" for i in range(4))
    gpu = device("gpu0", "box0", 80 << 30)
    gpus = tuple(
        dataclasses.replace(
            gpu,
            id=name,
            kind="cuda",
            ordinal=i,
            type="a100-80g",
            reserve_bytes=2 << 30,
            bandwidth_bytes_per_s=2_039_000_000_000,
            flops_per_s=312_000_000_000_000,
        )
        for i, name in enumerate(names)
    )
    large = model_of(layers=80, hidden=8192, heads=64, kv_heads=8, intermediate=28672, unit=128, vocab=128256)
    inventory = Inventory(hosts=(Host(name="box0", link=link, pairs=(), transport="auto"),), network=None, devices=gpus)
    run = Run(num_layers=80, kv_heads=(2,) * 4, mlp_units=(56,) * 4)
    stage = dataclasses.replace(
        STAGES[0], devices=names, transport="nccl", kv_subgroups=(1,) * 4, runs=(run,), predicted_ns=25_900_000
    )
    base = two_stage_plan()
    assert base.draft_placement is not None
    plan = dataclasses.replace(
        base,
        options=dataclasses.replace(OPTIONS, context=8192, dtype="bfloat16", kv_dtype="bfloat16", prefill_chunk=512),
        inventory=inventory,
        model=large,
        draft=draft_of(large, 32000),
        stages=(stage,),
        embed=split(names, "nccl", (32064,) * 4, 30_000),
        head=split(names, "nccl", (32064,) * 4, 400_000),
        draft_placement=dataclasses.replace(
            base.draft_placement,
            devices=names[:2],
            transport="nccl",
            feature_transport="nccl",
            kv_heads=(4, 4),
            mlp_units=(112, 112),
            embed_rows=(64128, 64128),
            head_rows=(16000, 16000),
            predicted_ns=5_300_000,
        ),
        message_transport="nccl",
        memory=tuple(_empty_memory(name) for name in names),
        proof=Proof(
            status="OPTIMAL",
            objective_ns=31_630_000,
            least_ns=31_630_000,
            bound_ns=31_630_000,
            simplicity=None,
            min_free_bytes=0,
        ),
    )
    draft_weights = dict.fromkeys(names[:2], 2900000000)
    return with_memory(plan, dict.fromkeys(names, 35300000000), draft_weights)


def spread_plan() -> Plan:
    """Make a plan on two hosts: embedding on a CPU, one stage over both hosts, divided KV heads."""
    base = nvlink_plan()
    gpus, link = base.inventory.devices, base.inventory.hosts[0].link
    cpu = dataclasses.replace(device("cpu0", "box0", 64 << 30), reserve_bytes=4 << 30, type="host")
    names = ("gpu0", "gpu1", "gpu2")
    stages = (
        dataclasses.replace(
            base.stages[0],
            devices=names,
            hop_transport="gloo",
            kv_axis="context",
            kv_subgroups=(1, 2),
            runs=(Run(num_layers=60, kv_heads=(4, 4, 4), mlp_units=(80, 72, 72)),),
        ),
        dataclasses.replace(
            base.stages[0],
            first_layer=60,
            devices=("gpu3",),
            transport="local",
            hop_transport="nccl",
            kv_subgroups=(1,),
            runs=(Run(num_layers=20, kv_heads=(8,), mlp_units=(224,)),),
            predicted_ns=9_000_000,
        ),
    )
    assert base.draft_placement is not None
    pair = ("gpu2", "gpu3")
    plan = dataclasses.replace(
        base,
        options=dataclasses.replace(base.options, batch=4, kv_dtype="float8_e4m3fn", context=32768),
        inventory=Inventory(
            hosts=(
                Host(name="box0", link=link, pairs=(), transport="auto"),
                Host(name="box1", link=link, pairs=(), transport="auto"),
            ),
            network=NETWORK,
            devices=(cpu, gpus[0], gpus[1], *(dataclasses.replace(gpu, host="box1") for gpu in gpus[2:])),
        ),
        stages=stages,
        embed=split(("cpu0",), "local", (128256,), 90_000),
        head=dataclasses.replace(split(pair, "nccl", (64128, 64128), 600_000), hop_transport="nccl"),
        draft_placement=dataclasses.replace(
            base.draft_placement,
            devices=pair,
            transport="nccl",
            feature_transport="local",
            kv_axis="batch",
            kv_subgroups=(2,),
            kv_heads=(8, 8),
        ),
        message_transport="gloo",
        memory=tuple(_empty_memory(name) for name in ("cpu0", "gpu0", "gpu1", "gpu2", "gpu3")),
        proof=dataclasses.replace(base.proof, objective_ns=41_000_000, least_ns=41_000_000, bound_ns=41_000_000),
    )
    weights = dict.fromkeys(names, 34_000_000_000) | {"cpu0": 2_101_346_304, "gpu3": 35_000_000_000}
    return with_memory(plan, weights, dict.fromkeys(pair, 2_900_000_000))


def with_memory(plan: Plan, weights: dict[str, int], draft_weights: dict[str, int]) -> Plan:
    """Set the memory of each device to its buffers and these weights, and the least free bytes."""
    memory = []
    for entry in plan.memory:
        terms = {f"{term}_bytes": value for term, value in device_terms(plan, entry.device).items()}
        line: dict[str, Any] = terms | {
            "weights_bytes": weights.get(entry.device, 0),
            "draft_weights_bytes": draft_weights.get(entry.device, 0),
        }
        memory.append(DeviceMemory(device=entry.device, **line))
    room = {item.id: item.capacity_bytes for item in plan.inventory.devices}
    free = min(room[entry.device] - entry.planned_bytes for entry in memory)
    proof = dataclasses.replace(plan.proof, min_free_bytes=free)
    return dataclasses.replace(plan, memory=tuple(memory), proof=proof)


def _empty_memory(name: str) -> DeviceMemory:
    terms = ("weights", "draft_weights", "kv", "draft_kv", "buffers", "comm")
    return DeviceMemory(device=name, **{f"{term}_bytes": 0 for term in terms})


def edited(plan: Plan, path: str, value: Any) -> Plan:
    """Return the plan with ``value`` at a path such as ``stages[0].runs[1].kv_heads``; None removes the field."""
    data = encode(plan)
    *steps, last = (int(step) if step.isdecimal() else step for step in re.findall(r"\w+", path))
    parent = data
    for step in steps:
        parent = parent[step]
    if value is None:
        del parent[last]
    else:
        parent[last] = value
    return decode(Plan, data, "plan.yaml")
