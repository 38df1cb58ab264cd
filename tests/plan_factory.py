"""Small valid plans and checkpoints for tests, made without the solver from given dimensions, groups and shares."""

import dataclasses
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from planner.costs import memory
from plans import slot_bytes
from plans.check import group_transport, hop_transport, require
from plans.check_inputs import natural_key
from plans.schema import (
    Attention,
    Device,
    DeviceMemory,
    Draft,
    DraftPlacement,
    DType,
    Host,
    Inputs,
    Inventory,
    KvAxis,
    KvDType,
    LayerClass,
    Link,
    Mlp,
    Model,
    Options,
    Plan,
    Proof,
    Run,
    ScheduledTree,
    Stage,
    Transport,
    Tree,
    VocabSplit,
)
from plans.step import layer_class

MIB = 1 << 20
LINK = Link(link_class="pcie", latency_ns=10_000, bandwidth_bytes_per_s=10_000_000_000)
KIND: Literal["cuda", "cpu"] = "cpu"
"""Kind of the devices made here; ``pytest --cuda`` sets it."""

TREE = Tree(kind="dynamic", total_token=12, depth=3, top_k=4, paths=None)
INPUTS = Inputs(
    base_config_sha256="0" * 64, base_tensors_sha256="1" * 64, draft_config_sha256=None, draft_tensors_sha256=None
)
DRAFT_INPUTS = dataclasses.replace(INPUTS, draft_config_sha256="2" * 64, draft_tensors_sha256="3" * 64)


def even(total: int, members: int) -> tuple[int, ...]:
    """Divide ``total`` into nearly equal shares, larger ones first."""
    return tuple(total // members + (member < total % members) for member in range(members))


def make_model(
    *,
    num_layers: int = 4,
    hidden_size: int = 32,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 8,
    intermediate_size: int = 64,
    unit: int = 8,
    vocab_size: int = 50,
    tied_head: bool = False,
    attention_bias: bool = False,
    mlp_bias: bool = False,
) -> Model:
    """Make a base model of equal layers."""
    attention = Attention(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        qk_norm=False,
    )
    mlp = Mlp(
        kind="gated",
        intermediate_size=intermediate_size,
        unit=unit,
        activation="silu",
        bias=mlp_bias,
        num_experts=1,
        experts_per_token=1,
        norm_topk_prob=False,
    )
    return Model(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        norm_eps=1e-6,
        tied_head=tied_head,
        layers=(LayerClass(num_layers=num_layers, attention=attention, mlp=mlp),),
        bos_token_id=None,
        eos_token_ids=(),
    )


def make_draft(
    model: Model,
    *,
    kind: str = "eagle3",
    draft_vocab_size: int = 30,
    num_layers: int = 1,
    num_kv_heads: int | None = None,
) -> Draft:
    """Make an EAGLE head with the widths of ``model``, by default with as many KV heads as query heads."""
    own = kind == "eagle3"
    layers = model.layers[0]
    attention = dataclasses.replace(
        layers.attention, num_kv_heads=num_kv_heads or layers.attention.num_heads, qkv_bias=False, o_bias=False
    )
    depth = model.num_layers
    return Draft(
        kind="eagle3" if own else "eagle",
        hidden_size=model.hidden_size,
        target_hidden_size=model.hidden_size,
        num_layers=num_layers,
        attention=attention,
        mlp=dataclasses.replace(layers.mlp, bias=False),
        norm_eps=1e-6,
        fc_bias=not own,
        draft_vocab_size=draft_vocab_size if own else model.vocab_size,
        maps_vocabulary=own and draft_vocab_size != model.vocab_size,
        own_embedding=False,
        aux_layers=(2, depth // 2, depth - 3) if own else (),
    )


def make_device(device_id: str, *, memory_bytes: int = 64 * MIB, host: str = "box0") -> Device:
    """Make a CPU device, or with ``--cuda`` a part of the first GPU."""
    return Device(
        id=device_id,
        host=host,
        type="cpu" if KIND == "cpu" else "gpu",
        kind=KIND,
        ordinal=0,
        uuid=None,
        reported_name="",
        memory_bytes=memory_bytes,
        reserve_bytes=MIB,
        bandwidth_bytes_per_s=10_000_000_000,
        flops_per_s=100_000_000_000,
        overhead_ns=50_000,
        compute_capability=None,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Devices of a stage, and its runs of layers with their shares."""

    devices: tuple[str, ...]
    runs: tuple[Run, ...]
    axis: KvAxis = "heads"
    subgroups: tuple[int, ...] = ()
    """Sizes of the KV subgroups; empty: one device each."""


def group(model: Model, devices: Sequence[str], num_layers: int) -> Group:
    """Make a stage of nearly equal shares."""
    layers = model.layers[0]
    run = Run(
        num_layers=num_layers,
        kv_heads=even(layers.attention.num_kv_heads, len(devices)),
        mlp_units=even(layers.mlp.intermediate_size // layers.mlp.unit, len(devices)),
    )
    return Group(devices=tuple(devices), runs=(run,))


def whole_group(model: Model, devices: Sequence[str], axis: KvAxis = "heads") -> Group:
    """Make a stage of all layers, run by run of equal MLPs, in nearly equal shares; by another axis than ``heads`` the
    devices are one subgroup.
    """
    classes = [layer_class(model, layer) for layer in range(model.num_layers)]
    runs, members = [], len(devices)
    for mlp, layers in groupby(classes, lambda layers: layers.mlp):
        kv_heads = classes[0].attention.num_kv_heads
        runs.append(
            Run(
                num_layers=len(list(layers)),
                kv_heads=even(kv_heads, members) if axis == "heads" else (kv_heads,) * members,
                mlp_units=even(mlp.units, members),
            )
        )
    subgroups = () if axis == "heads" or members == 1 else (members,)
    return Group(devices=tuple(devices), runs=tuple(runs), axis=axis, subgroups=subgroups)


def make_plan(
    model: Model,
    groups: Sequence[Group],
    *,
    draft: Draft | None = None,
    placement: DraftPlacement | None = None,
    embed_rows: tuple[int, ...] | None = None,
    head_rows: tuple[int, ...] | None = None,
    inputs: Inputs | None = None,
    embed: Sequence[str] | None = None,
    head: Sequence[str] | None = None,
    dtype: DType = "float32",
    kv_dtype: KvDType | None = None,
    batch: int = 1,
    context: int = 64,
    prefill_chunk: int = 16,
    stall_timeout_s: int = 8,
    tree: Tree = TREE,
    schedule: tuple[ScheduledTree, ...] | None = None,
    devices: Sequence[Device] | None = None,
    complete: bool = True,
) -> Plan:
    """Make a plan with these stages and shares.

    ``complete``: with transports and memory, and sound; otherwise it may be anything.

    By default the embedding is on the first stage's devices and the lm_head on the last stage's, rows split evenly, and
    the drafter, if any, is on the lm_head's first device. ``devices``: the inventory, by default CPUs of 64 MiB.
    """
    embed, head = tuple(embed or groups[0].devices), tuple(head or groups[-1].devices)
    names = {*embed, *head, *(device for members in groups for device in members.devices)}
    if draft is not None and placement is None:
        placement = split_draft(model, draft, head[:1])
    if draft is not None and placement is not None:
        names |= set(placement.devices)
        placement = dataclasses.replace(
            placement,
            embed_rows=None if placement.devices == embed and not draft.own_embedding else placement.embed_rows,
            head_rows=None if placement.devices == head and not draft.own_head else placement.head_rows,
        )
    listed = list(devices or [make_device(name) for name in names])
    listed.sort(key=lambda device: (device.host, natural_key(device.id)))
    plan = Plan(
        schema="4.5",
        inputs=inputs or (INPUTS if draft is None else DRAFT_INPUTS),
        options=Options(
            batch=batch,
            context=context,
            dtype=dtype,
            kv_dtype=kv_dtype or dtype,
            prefill_chunk=prefill_chunk,
            stall_timeout_s=stall_timeout_s,
            strategy="latency",
            kv_axis=None,
            custom=None,
            gap_ppm=0,
            within_ppm=None,
            simplify_ppm=0,
            max_devices=None,
            tree=tree if draft is not None else None,
            schedule=schedule,
        ),
        inventory=_inventory(tuple(listed)),
        model=model,
        draft=draft,
        stages=_stages(groups),
        embed=_split(embed, embed_rows or even(model.vocab_size, len(embed))),
        head=_split(head, head_rows or even(model.vocab_size, len(head))),
        draft_placement=placement,
        message_transport="local",
        memory=tuple(_no_memory(device.id) for device in listed if device.id in names),
        proof=Proof(
            status="OPTIMAL",
            objective_ns=1_000_000,
            least_ns=1_000_000,
            bound_ns=1_000_000,
            simplicity=None,
            min_free_bytes=0,
        ),
    )
    if complete:
        plan = _with_memory(with_transports(plan))
        require(plan, "make_plan")
    return plan


def split_draft(model: Model, draft: Draft, devices: tuple[str, ...]) -> DraftPlacement:
    """Place the drafter in nearly equal shares; ``make_plan`` drops the tables that it shares with the base."""
    count = len(devices)
    return DraftPlacement(
        devices=devices,
        transport="local",
        feature_transport="local",
        kv_axis=None,
        kv_subgroups=None,
        kv_heads=even(draft.attention.num_kv_heads, count),
        mlp_units=even(draft.mlp.intermediate_size // draft.mlp.unit, count),
        embed_rows=even(model.vocab_size, count),
        head_rows=even(draft.draft_vocab_size, count),
        predicted_ns=1000,
    )


def shared_draft(
    model: Model,
    draft: Draft,
    devices: tuple[str, ...],
    axis: KvAxis,
    subgroups: tuple[int, ...],
    kv_heads: tuple[int, ...],
) -> DraftPlacement:
    """Place the drafter with ``kv_heads`` per KV subgroup, the rest in nearly equal shares."""
    alone = max(subgroups) == 1
    return dataclasses.replace(
        split_draft(model, draft, devices),
        kv_axis=None if alone else axis,
        kv_subgroups=None if alone else subgroups,
        kv_heads=tuple(heads for heads, size in zip(kv_heads, subgroups, strict=True) for _ in range(size)),
    )


def _split(devices: tuple[str, ...], rows: tuple[int, ...]) -> VocabSplit:
    return VocabSplit(devices=devices, transport="local", hop_transport="local", rows=rows, predicted_ns=1000)


def _stages(groups: Sequence[Group]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    for members in groups:
        stages.append(
            Stage(
                first_layer=sum(stage.num_layers for stage in stages),
                devices=members.devices,
                transport="local",
                hop_transport="local",
                kv_axis=members.axis,
                kv_subgroups=members.subgroups or (1,) * len(members.devices),
                runs=members.runs,
                predicted_ns=1000,
            )
        )
    return tuple(stages)


def _inventory(devices: tuple[Device, ...]) -> Inventory:
    hosts = sorted({device.host for device in devices})
    return Inventory(
        hosts=tuple(Host(name=name, link=LINK, pairs=(), transport="auto") for name in hosts),
        network=LINK if len(hosts) > 1 else None,
        devices=devices,
    )


def _no_memory(device: str) -> DeviceMemory:
    return DeviceMemory(
        device=device,
        weights_bytes=0,
        draft_weights_bytes=0,
        kv_bytes=0,
        draft_kv_bytes=0,
        buffers_bytes=0,
        comm_bytes=0,
    )


def with_transports(plan: Plan) -> Plan:
    """Set the transport of each group as its inventory requires."""

    def of(*members: str) -> Transport:
        return group_transport(plan.inventory, members)

    befores = [plan.embed.devices, *(stage.devices for stage in plan.stages)]
    stages = tuple(
        dataclasses.replace(
            stage,
            transport=of(*stage.devices),
            hop_transport=hop_transport(plan.inventory, before, stage.devices),
        )
        for stage, before in zip(plan.stages, befores, strict=False)
    )
    embed = dataclasses.replace(plan.embed, transport=of(*plan.embed.devices))
    hop = hop_transport(plan.inventory, befores[-1], plan.head.devices)
    head = dataclasses.replace(plan.head, transport=of(*plan.head.devices), hop_transport=hop)
    placement = plan.draft_placement
    if placement is not None:
        features = hop_transport(plan.inventory, head.devices, placement.devices)
        placement = dataclasses.replace(placement, transport=of(*placement.devices), feature_transport=features)
    message = of(*(device.id for device in plan.devices))
    return dataclasses.replace(
        plan, stages=stages, embed=embed, head=head, draft_placement=placement, message_transport=message
    )


def _with_memory(plan: Plan) -> Plan:
    """Set the memory of each device to the bytes that the planner counts."""
    lines = tuple(
        memory.device_memory(plan, device.id, *slot_bytes.weights_bytes(plan, device.id)) for device in plan.devices
    )
    free = min(device.capacity_bytes - line.planned_bytes for device, line in zip(plan.devices, lines, strict=True))
    assert free >= 0, "the plan does not fit its devices: give larger ones"
    return dataclasses.replace(plan, memory=lines, proof=dataclasses.replace(plan.proof, min_free_bytes=free))


# ---- checkpoints in the official formats ----


def write_base(
    directory: Path,
    *,
    num_layers: int = 4,
    hidden_size: int = 32,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 8,
    intermediate_size: int = 64,
    vocab_size: int = 50,
    tied: bool = False,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Write a Llama checkpoint of random weights; return its tensors."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    q, kv, wide = num_heads * head_dim, num_kv_heads * head_dim, intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab_size, hidden_size),
        "model.norm.weight": (hidden_size,),
    }
    if not tied:
        shapes["lm_head.weight"] = (vocab_size, hidden_size)
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}."
        matrices = _matrices(hidden_size, hidden_size, q, kv, wide)
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in matrices.items()}
        shapes[f"{prefix}input_layernorm.weight"] = (hidden_size,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden_size,)
        for name, shape in matrices.items():
            if attention_bias if name.startswith("self_attn") else mlp_bias:
                shapes[f"{prefix}{name}.bias"] = shape[:1]
    return _write(directory, config, _random(shapes, dtype, seed), shards)


def write_draft(
    directory: Path,
    *,
    kind: str = "eagle3",
    num_layers: int = 1,
    hidden_size: int = 32,
    num_heads: int = 4,
    num_kv_heads: int | None = None,
    head_dim: int = 8,
    intermediate_size: int = 64,
    vocab_size: int = 50,
    draft_vocab_size: int = 30,
    own_embedding: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
) -> dict[str, torch.Tensor]:
    """Write an EAGLE head of random weights, by default with a KV head per query head; return its tensors."""
    kv_heads = num_kv_heads or num_heads
    config: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    q, kv, eagle3 = num_heads * head_dim, kv_heads * head_dim, kind == "eagle3"
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (hidden_size, (3 if eagle3 else 2) * hidden_size)}
    shapes |= {"embed_tokens.weight": (vocab_size, hidden_size)} if own_embedding else {}
    for layer in range(num_layers):
        prefix = "midlayer." if eagle3 else f"layers.{layer}."
        matrices = _matrices(hidden_size, 2 * hidden_size if eagle3 else hidden_size, q, kv, intermediate_size)
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in matrices.items()}
        norms = ["post_attention_layernorm"]
        norms += ["hidden_norm", "input_layernorm"] if eagle3 else ["input_layernorm"] if layer else []
        shapes |= {f"{prefix}{name}.weight": (hidden_size,) for name in norms}
    if eagle3:
        config["draft_vocab_size"] = draft_vocab_size
        shapes |= {"norm.weight": (hidden_size,), "lm_head.weight": (draft_vocab_size, hidden_size)}
    else:
        shapes["fc.bias"] = (hidden_size,)
    tensors = _random(shapes, dtype, seed)
    if eagle3 and draft_vocab_size != vocab_size:
        kept = (
            torch.randperm(vocab_size, generator=torch.Generator().manual_seed(seed))[:draft_vocab_size].sort().values
        )
        tensors["d2t"] = kept - torch.arange(draft_vocab_size)
        tensors["t2d"] = torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, kept, True)
    return _write(directory, config, tensors, 1)


def _matrices(hidden: int, width: int, q: int, kv: int, intermediate: int) -> dict[str, tuple[int, int]]:
    return {
        "self_attn.q_proj": (q, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }


def _random(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        values = torch.randn(shape, generator=generator) * 0.2
        tensors[name] = (values + (1.0 if name.endswith("norm.weight") else 0.0)).to(dtype)
    return tensors


def _write(
    directory: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], shards: int
) -> dict[str, torch.Tensor]:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return tensors
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        mine = names[shard::shards]
        save_file({name: tensors[name] for name in mine}, directory / file)
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors
