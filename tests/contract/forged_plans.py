"""Plans and images as a stranger might forge them, and what the product makes of each; run in a process of its own.

    python -m tests.contract.forged_plans FIRST COUNT DIRECTORY

A case is a number, from which everything follows. Sizes are drawn from the boundaries of the kernels' loops, with
layers of several classes, any placement over one to four devices, trees and dtypes; half of the plans are then changed
in some fields. Numbers that follow from others (memory, transports, digests) are computed again where that is possible,
so that a plan passes as many checks as it can, and images are made to fit it, of random bytes among them NaN and
infinity. All ranks run as threads of this process, on kernels that check each access (``touched.checked_run`` and
``checked_run_layer``). One line is printed before and after each case, so that a case that ends the process is known.
"""

import dataclasses
import random
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import numpy as np
import torch
from blake3 import blake3

from planner.costs import memory
from plans import codec, share_slots, slot_bytes, slots
from plans.artifact import Image, Images, Source, Sources, abi_of, align, dump_images, filler_name, image_metadata
from plans.check import check, load
from plans.dtypes import HEADER_NAMES
from plans.ranges import length
from plans.safetensors_header import TensorEntry, encode_header
from plans.schema import (
    Attention,
    Draft,
    GateUpFormats,
    KvAxis,
    KvDType,
    LayerClass,
    Mlp,
    Model,
    Plan,
    PlanError,
    QkvFormats,
    QueryScaling,
    Rotary,
    Router,
    Run,
    Strategy,
    Transport,
    Tree,
    WeightFormat,
)
from plans.slot_records import SlotSpec
from plans.step import layer_class
from plans.strict_yaml import dump_yaml
from runtime.errors import RuntimeRefusal
from runtime.image.verify import check_images
from runtime.model import ops
from runtime.processes.machine import check_machine
from runtime.processes.rank import Rank
from runtime.request import Piece, Request, make_request
from tests.contract.ranks import with_engines
from tests.plan_factory import Group, make_device, make_plan, shared_draft, with_transports
from tests.runtime.model.kernels.touched import checked_run, checked_run_layer

MOST_MEMORY = 24 << 20
"""Memory of each device: plans of more bytes are refused, and others run in a moment."""
LONGEST_S = 60
MOST_ADDRESS_SPACE = 24 << 30
NEW_TOKENS = 12

DIMS = (2, 4, 6, 8, 10, 14, 16, 18, 24, 30, 32, 34, 62, 64, 66)
WIDTHS = (1, 2, 3, 7, 8, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65)
CONTEXTS = (2, 3, 4, 5, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 129)
BOUNDARIES = (
    0,
    1,
    2,
    3,
    64,
    255,
    256,
    1023,
    1024,
    1025,
    4096,
    65536,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    1 << 40,
    1 << 62,
)


WORDS = (
    get_args(KvDType),
    get_args(KvAxis),
    get_args(Transport),
    ("gated", "moe"),
    ("eagle", "eagle3"),
    ("static", "dynamic"),
    ("cpu", "cuda"),
    ("OPTIMAL", "FEASIBLE"),
    get_args(Strategy),
)
"""Words of a plan that may stand in each other's place."""


# ---- plans ----


def shares(rng: random.Random, total: int, count: int, least: int = 0) -> tuple[int, ...]:
    """Divide ``total`` at random into ``count`` shares of at least ``least``, where that is possible."""
    cuts = sorted(rng.randint(0, max(0, total - least * count)) for _ in range(count - 1))
    return tuple(b - a + least for a, b in zip([0, *cuts], [*cuts, max(0, total - least * count)], strict=True))


def some_attention(rng: random.Random) -> Attention:
    kv_heads = rng.choice((1, 1, 2, 3, 4))
    return Attention(
        num_heads=kv_heads * rng.choice((1, 1, 2, 3, 4, 8)),
        num_kv_heads=kv_heads,
        head_dim=rng.choice(DIMS),
        qkv_bias=rng.random() < 0.2,
        o_bias=rng.random() < 0.2,
        qk_norm=rng.random() < 0.2,
    )


def maybe(rng: random.Random, *values: Any) -> Any:
    """Return one of the values of an optional field, mostly None."""
    return rng.choice(values) if rng.random() < 0.2 else None


def some_mlp(rng: random.Random, *, experts: bool) -> Mlp:
    unit = rng.choice((1, 2, 3, 8, 16))
    moe = experts and rng.random() < 0.3
    count = rng.choice((1, 2, 3, 4, 5)) if moe else 1
    clamped = moe and rng.random() < 0.3
    return Mlp(
        kind="moe" if moe else "gated",
        intermediate_size=unit * rng.choice((1, 2, 3, 4, 7)),
        unit=unit,
        activation="silu",
        bias=rng.random() < 0.2,
        num_experts=count,
        experts_per_token=rng.randint(1, count),
        norm_topk_prob=moe and rng.random() < 0.5,
        router=some_router(rng, count) if moe and rng.random() < 0.4 else None,
        swiglu_limit=rng.choice((1e-3, 7.0)) if clamped else None,
        swiglu_alpha=maybe(rng, 1.702) if clamped else None,
    )


def some_router(rng: random.Random, count: int) -> Router:
    """Return a router of so many experts; some are refused, as their groups do not fit."""
    groups = rng.choice((1, 1, 2, 3))
    return Router(
        scores=rng.choice(("softmax", "sigmoid")),
        bias=rng.random() < 0.3,
        float32=rng.random() < 0.5,
        correction=rng.random() < 0.5,
        groups=groups if count % groups == 0 and count >= 2 * groups else 1,
        picked_groups=1,
        scale=rng.choice((1.0, 2.5)),
    )


def some_rotary(rng: random.Random, layers: range, head_dim: int) -> tuple[Rotary, ...]:
    """Divide layers over one or two rotary tables."""
    parts = [layers] if rng.random() < 0.5 else [layers[::2], layers[1::2]]
    return tuple(
        Rotary(
            layers=tuple(part),
            channels=rng.choice((0, 2, head_dim // 4 * 2, head_dim)),
            interleaved=rng.random() < 0.3,
            scaled=rng.random() < 0.3,
            by_context=rng.random() < 0.3,
        )
        for part in parts
        if part
    )


def varied(rng: random.Random, model: Model, context: int) -> Model:
    """Return the model with what only some families have: windows, patterns, caps, sinks, norms, factors, tables."""
    attention = model.layers[0].attention
    common = {
        "scale": maybe(rng, 1e-6, 0.3, 4.0),
        "softcap": maybe(rng, 1e-3, 5.0, 1e6),
        "sinks": maybe(rng, True),
        "qk_norm_whole": maybe(rng, True) if attention.qk_norm else None,
    }
    layers = []
    for kind in model.layers:
        window = maybe(rng, *(w for w in (1, 2, 3, context // 2, context - 1) if 1 <= w < context))
        mlp = dataclasses.replace(kind.mlp, activation=rng.choice(("silu", "silu", "gelu_pytorch_tanh")))
        if mlp.kind == "moe" and rng.random() < 0.4:
            mlp = dataclasses.replace(mlp, shared_size=mlp.units * rng.choice((1, 2, 5)), shared_gate=maybe(rng, True))
        attention = dataclasses.replace(kind.attention, window=window, **common)
        layers.append(dataclasses.replace(kind, attention=attention, mlp=mlp))
    count, pattern = model.num_layers, None
    if len(layers) > 1 and rng.random() < 0.4:
        pattern = (*range(len(layers)), *(rng.randrange(len(layers)) for _ in range(rng.randint(0, 2))))
        pattern = pattern[:count]
        counts = [[pattern[i % len(pattern)] for i in range(count)].count(k) for k in range(len(layers))]
        layers = [dataclasses.replace(kind, num_layers=n) for kind, n in zip(layers, counts, strict=True)]
    return dataclasses.replace(
        model,
        layers=tuple(layers),
        pattern=pattern,
        rotary=some_rotary(rng, range(count), attention.head_dim) if rng.random() < 0.3 else None,
        query_scaling=maybe(rng, QueryScaling(beta=0.1, positions=rng.randint(1, max(1, context - 1)))),
        norms=maybe(rng, "after", "around"),
        norm_offset=maybe(rng, True),
        embedding_multiplier=maybe(rng, 1e-6, 12.0, 1e6),
        residual_multiplier=maybe(rng, 1e-6, 0.22, 1e6),
        logits_divisor=maybe(rng, 1e-6, 8.0, 1e6),
        logit_softcap=maybe(rng, 1e-3, 30.0, 1e6),
    )


def other_attention(rng: random.Random, attention: Attention) -> Attention:
    """Return an attention that differs, often in its heads alone with the same number of values in all of them."""
    if rng.random() < 0.6:
        factor = rng.choice((2, 3, 4))
        wide = dataclasses.replace(attention, head_dim=attention.head_dim * factor)
        return wide if rng.random() < 0.5 else dataclasses.replace(attention, num_heads=attention.num_heads * factor)
    return some_attention(rng)


def some_model(rng: random.Random) -> Model:
    attention, classes = some_attention(rng), rng.choice((1, 1, 1, 2, 3))
    unlike = rng.random() < 0.25
    return Model(
        family="llama",
        vocab_size=rng.choice((2, 3, 5, 17, 50, 64, 65, 129)),
        hidden_size=rng.choice(WIDTHS),
        norm_eps=rng.choice((1e-6, 1e-5, 1e-15, 1.0)),
        tied_head=rng.random() < 0.3,
        layers=tuple(
            LayerClass(
                num_layers=rng.choice((1, 1, 2, 3)),
                attention=other_attention(rng, attention) if number and unlike else attention,
                mlp=some_mlp(rng, experts=True),
            )
            for number in range(classes)
        ),
        bos_token_id=None,
        eos_token_ids=(1,) if rng.random() < 0.3 else (),
    )


def some_format(rng: random.Random) -> WeightFormat | None:
    """Return a format, mostly one that a plan can have."""
    if rng.random() < 0.5:
        return None
    code = rng.choice(("int4", "int8", "float8_e4m3fn", "float4_e2m1"))
    halves = ("bfloat16", "float16", "float32")
    scale = "float8_e8m0" if code == "float4_e2m1" else rng.choice(halves)
    group = rng.choice((None, 32, 32, 64, 0, 31, 1 << 40))
    return WeightFormat(
        code=code,
        group=group,
        zeros=code.startswith("int") and rng.random() < 0.5,
        scale=rng.choice((scale, scale, scale, scale, "float8_e8m0")),
        ordered=True if group is not None and code.startswith("int") and rng.random() < 0.4 else None,
    )


def qkv_formats(rng: random.Random) -> dict[str, Any]:
    """Return formats of q, k and v: of all, or of each."""
    if rng.random() < 0.7:
        return {"qkv_format": some_format(rng)}
    return {"qkv_formats": QkvFormats(q=some_format(rng), k=some_format(rng), v=some_format(rng))}


def gate_up_formats(rng: random.Random, mlp: Mlp) -> dict[str, Any]:
    """Return formats of gate and up: of both, or of each, rarely of experts."""
    if rng.random() < (0.95 if mlp.kind == "moe" else 0.7):
        return {"gate_up_format": some_format(rng)}
    return {"gate_up_formats": GateUpFormats(gate=some_format(rng), up=some_format(rng))}


def with_formats(rng: random.Random, model: Model) -> Model:
    """Return a model of which some layers are quantized; sizes are what groups can be made of, or not."""
    attention = dataclasses.replace(model.layers[0].attention, head_dim=rng.choice((32, 64)), qk_norm=False)
    classes = tuple(
        dataclasses.replace(
            layers,
            attention=dataclasses.replace(attention, **qkv_formats(rng), o_format=some_format(rng)),
            mlp=dataclasses.replace(
                layers.mlp,
                unit=64,
                intermediate_size=64 * layers.mlp.units,
                shared_size=None if layers.mlp.shared_size is None else 64 * layers.mlp.units,
                **gate_up_formats(rng, layers.mlp),
                down_format=some_format(rng),
            ),
        )
        for layers in model.layers
    )
    return dataclasses.replace(model, hidden_size=rng.choice((32, 64, 64, 96, 48)), layers=classes)


def some_draft(rng: random.Random, model: Model) -> Draft:
    kind, own = rng.choice(("eagle3", "eagle3", "eagle")), rng.random() < 0.3
    eagle3 = kind == "eagle3" and model.num_layers >= 3
    vocabulary = rng.randint(1, model.vocab_size) if eagle3 else model.vocab_size
    return Draft(
        kind="eagle3" if eagle3 else "eagle",
        hidden_size=rng.choice(WIDTHS) if eagle3 and own else model.hidden_size,
        target_hidden_size=model.hidden_size,
        num_layers=1 if eagle3 else rng.choice((1, 1, 2)),
        attention=dataclasses.replace(some_attention(rng), qk_norm=False),
        mlp=some_mlp(rng, experts=False),
        norm_eps=1e-6,
        fc_bias=rng.random() < 0.5,
        draft_vocab_size=vocabulary,
        maps_vocabulary=vocabulary != model.vocab_size or rng.random() < 0.3,
        own_embedding=own,
        aux_layers=tuple(sorted(rng.sample(range(model.num_layers), rng.choice((0, 3, 3, 3))))) if eagle3 else (),
    )


def with_form(rng: random.Random, draft: Draft, model: Model) -> Draft:
    """Return an EAGLE-3 head with what only some producers' heads have."""
    if draft.kind == "eagle":
        return draft
    count = rng.choice((1, 1, 2))
    base_head = maybe(rng, True) if draft.hidden_size == model.hidden_size else None
    vocabulary = model.vocab_size if base_head else draft.draft_vocab_size
    return dataclasses.replace(
        draft,
        num_layers=count,
        attention=dataclasses.replace(draft.attention, qk_norm=rng.random() < 0.2),
        aux_layers=tuple(sorted(rng.sample(range(model.num_layers + 1), rng.randint(1, min(4, model.num_layers))))),
        aux_layers_from=maybe(rng, "inputs", "outputs", "option"),
        base_head=base_head,
        draft_vocab_size=vocabulary,
        maps_vocabulary=False if base_head else draft.maps_vocabulary,
        norm_before_residual=maybe(rng, True),
        fc_norm=maybe(rng, "joint", "each"),
        norm_output=maybe(rng, True),
        logit_scale=maybe(rng, 1e-6, 0.5, 1e6),
        mask_token_id=maybe(rng, 0, model.vocab_size - 1),
        rotary=some_rotary(rng, range(count), draft.attention.head_dim)[0] if rng.random() < 0.2 else None,
    )


def some_chain(rng: random.Random) -> Tree:
    depth = rng.choice((0, 1, 2, 5))
    return Tree(kind="dynamic", total_token=depth + 2, depth=depth, top_k=1, paths=None)


def some_tree(rng: random.Random, vocabulary: int) -> Tree:
    """Return a tree, mostly with at most as many children of a node as the drafter has tokens."""
    most = vocabulary if rng.random() < 0.95 else 8
    if rng.random() < 0.3:
        paths: set[tuple[int, ...]] = set()
        for _ in range(rng.randint(1, 8)):
            parent = rng.choice([(), *sorted(paths)])
            paths.add((*parent, rng.randint(0, min(3, most - 1))))
        ordered = tuple(sorted(paths, key=lambda path: (len(path), path)))
        return Tree(
            kind="static",
            total_token=1 + len(ordered),
            depth=max(map(len, ordered)) - 1,
            top_k=1 + max(max(path) for path in ordered),
            paths=ordered,
        )
    top_k, depth = min(most, rng.choice((1, 1, 2, 3, 5))), rng.choice((0, 1, 2, 3, 5))
    pool = top_k * (1 + depth * top_k)
    return Tree(kind="dynamic", total_token=1 + rng.randint(1, min(20, pool)), depth=depth, top_k=top_k, paths=None)


def some_group(rng: random.Random, model: Model, devices: tuple[str, ...], layers: range, batch: int) -> Group:
    """Place layers on a group of devices, in runs of one MLP, over subgroups of one axis."""
    axis, subgroups = some_division(rng, len(devices), model.layers[0].attention, batch)
    runs = []
    for _, inside in groupby((layer_class(model, layer) for layer in layers), key=lambda kind: kind.mlp):
        kind, *others = inside
        left = 1 + len(others)
        while left > 0:
            count = rng.randint(1, left)
            left -= count
            heads = shares(rng, kind.attention.num_kv_heads, len(subgroups), 1)
            runs.append(
                Run(
                    num_layers=count,
                    kv_heads=tuple(h for h, size in zip(heads, subgroups, strict=True) for _ in range(size)),
                    mlp_units=shares(rng, kind.mlp.units, len(devices)),
                )
            )
    return Group(devices=devices, runs=tuple(runs), axis=axis, subgroups=subgroups)


def some_division(rng: random.Random, count: int, attention: Attention, batch: int) -> tuple[KvAxis, tuple[int, ...]]:
    """Return an axis and the sizes of subgroups of ``count`` devices; mostly an axis that allows them."""
    subgroups = shares(rng, count, rng.randint(1, min(count, attention.num_kv_heads)), 1)
    if max(subgroups) == 1:
        return "heads", subgroups
    queries, pairs = attention.num_heads // attention.num_kv_heads, attention.head_dim // 2
    allowed: list[KvAxis] = ["context"]
    if not any(queries % size for size in subgroups):
        allowed += ["heads"] * 2
    if not attention.qk_norm and not any(pairs % size for size in subgroups):
        allowed += ["head_dim"] * 2
    if attention.qk_norm_whole and rng.random() < 0.9:
        return "heads", shares(rng, count, count, 1) if count <= attention.num_kv_heads else subgroups
    if max(subgroups) <= batch:
        allowed += ["batch"] * 2
    return rng.choice(allowed if rng.random() < 0.9 else ["heads", "head_dim", "batch"]), subgroups


def derived(rng: random.Random) -> Plan:
    """Return a plan that mostly passes all checks but those of memory."""
    batch, context = rng.choice((1, 1, 2, 3)), rng.choice(CONTEXTS)
    model = some_model(rng)
    model = with_formats(rng, model) if rng.random() < 0.25 else model
    model = varied(rng, model, context) if rng.random() < 0.5 else model
    draft = some_draft(rng, model) if rng.random() < 0.75 else None
    draft = with_form(rng, draft, model) if draft is not None and rng.random() < 0.5 else draft
    vocabulary = model.vocab_size if draft is None else draft.draft_vocab_size
    tree = some_tree(rng, vocabulary) if draft is None or draft.mask_token_id is None else some_chain(rng)
    names = [f"d{number}" for number in range(rng.choice((1, 1, 2, 3, 4)))]
    cuts = sorted(rng.sample(range(1, len(names)), rng.randint(0, min(len(names), model.num_layers) - 1)))
    spans = list(zip([0, *cuts], [*cuts, len(names)], strict=True))
    layers = shares(rng, model.num_layers, len(spans), 1)
    starts = [sum(layers[:number]) for number in range(len(spans))]
    groups = [
        some_group(rng, model, tuple(names[a:b]), range(start, start + count), batch)
        for (a, b), start, count in zip(spans, starts, layers, strict=True)
    ]
    embed, head, drafting = (tuple(rng.sample(names, rng.randint(1, len(names)))) for _ in range(3))
    placement = None
    if draft is not None:
        axis, subgroups = some_division(rng, len(drafting), draft.attention, batch)
        heads = shares(rng, draft.attention.num_kv_heads, len(subgroups), 1)
        placement = dataclasses.replace(
            shared_draft(model, draft, drafting, axis, subgroups, heads),
            mlp_units=shares(rng, draft.mlp.units, len(drafting)),
            embed_rows=shares(rng, model.vocab_size, len(drafting)),
            head_rows=shares(rng, draft.draft_vocab_size, len(drafting)),
        )
    dtype = rng.choice(("float32", "float32", "bfloat16", "float16"))
    return make_plan(
        model,
        groups,
        draft=draft,
        placement=placement,
        embed=embed,
        head=head,
        embed_rows=shares(rng, model.vocab_size, len(embed)),
        head_rows=shares(rng, model.vocab_size, len(head)),
        dtype=dtype,
        kv_dtype=rng.choice((dtype, dtype, "float32", "bfloat16", "float16", "float8_e4m3fn", "int8")),
        batch=batch,
        context=context,
        prefill_chunk=rng.choice((1, context, rng.randint(1, context))),
        tree=tree,
        devices=[dataclasses.replace(make_device(name, memory_bytes=MOST_MEMORY), reserve_bytes=0) for name in names],
        complete=False,
    )


# ---- changes of fields ----


def fields_of(data: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the paths of all data below the top of an encoded plan, lists and records among them."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [*([path] if path else []), *(inner for key, value in pairs for inner in fields_of(value, (*path, key)))]


def changed(rng: random.Random, plan: Plan) -> dict[str, Any]:
    """Return an encoded plan in which up to four fields have another value; often two that are numbers together."""
    data: dict[str, Any] = codec.encode(plan)
    places = ("options", "model", "draft", "stages", "embed", "head", "draft_placement", "inventory")
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        top = rng.choice([place for place in places if place in data])
        *parents, last = rng.choice(fields_of(data[top], (top,)))
        holder: Any = data
        for key in parents:
            holder = holder[key]
        holder[last] = other_value(rng, holder[last], data)
    return data


def other_value(rng: random.Random, value: Any, data: dict[str, Any]) -> Any:
    """Return another value of the kind of ``value``, sometimes one of another kind."""
    if rng.random() < 0.02:
        return rng.choice((None, -1, 1.5, "x", [], {}, True))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        near = (max(0, value - 1), value + 1, value * 2, value // 2, value * 3)
        return rng.choice((*near, *near, *near, *BOUNDARIES))
    if isinstance(value, float):
        return rng.choice((0.0, -1e-6, 1e-300, 1e-15, 1e-3, 1.0, 1.5, 8.0, 1e19, 1e300))
    if isinstance(value, list) and value:
        items = list(value)
        how = rng.choice(("repeat", "drop", "swap", "first"))
        if how == "repeat":
            items.insert(rng.randrange(len(items)), rng.choice(items))
        elif how == "drop":
            del items[rng.randrange(len(items))]
        elif how == "swap":
            rng.shuffle(items)
        else:
            items = items[:1]
        return items
    if isinstance(value, str):
        known = next((words for words in WORDS if value in words), ("d0", "d1", "x"))
        return rng.choice(known)
    return value


def completed(plan: Plan) -> Plan:
    """Return the plan with transports, memory and proof that follow from the rest, where the rest is sound."""
    follows = re.compile(r"memory|proof|.*transport$")
    if not all(follows.match(violation.path) for violation in check(plan)):
        return plan
    plan = with_transports(plan)
    lines = []
    for device in plan.devices:
        lines.append(memory.device_memory(plan, device.id, *slot_bytes.weights_bytes(plan, device.id)))
    free = min(device.capacity_bytes - line.planned_bytes for device, line in zip(plan.devices, lines, strict=True))
    proof = dataclasses.replace(plan.proof, min_free_bytes=max(0, free))
    return dataclasses.replace(plan, memory=tuple(lines), proof=proof)


# ---- images ----


def forge_images(rng: random.Random, plan: Plan, directory: Path) -> None:
    """Write images of random bytes that fit a plan, and their record with all digests."""
    kind = rng.choice(("small", "small", "any", "zero", "nan", "large"))
    wrong_map = rng.random() < 0.08
    images = []
    for device in plan.devices:
        entries: list[TensorEntry] = []
        data, fillers = bytearray(), 0
        for spec in slots.device_slots(plan, device.id):
            if spec.dtype == share_slots.ORDER_DTYPE:
                content = _columns(rng, spec, wrong_map)
            else:
                content = _content(rng, spec.name, spec.dtype, spec.nbytes, kind, plan, wrong_map)
            entries.append(
                TensorEntry(name=spec.name, dtype=spec.dtype, shape=spec.shape, offset=len(data), nbytes=spec.nbytes)
            )
            data += content
            if gap := align(len(data)) - len(data):
                name = filler_name(fillers)
                entries.append(TensorEntry(name=name, dtype="U8", shape=(gap,), offset=len(data), nbytes=gap))
                data += bytes(gap)
                fillers += 1
        raw = encode_header(entries, image_metadata(device.id), 4096) + data
        (directory / f"{device.id}.safetensors").write_bytes(raw)
        digest, abi = blake3(raw).hexdigest(), abi_of(entries, plan.options.dtype)
        images.append(Image(device=device.id, size_bytes=len(raw), blake3=digest, abi=abi))
    source = Source(config_sha256="0" * 64, tensors_sha256="0" * 64, files=())
    sources = Sources(base=source, draft=None if plan.draft is None else source)
    record = Images(plan_sha256=codec.digest(plan), sources=sources, images=tuple(images))
    (directory / "images.yaml").write_text(dump_images(record))


def _columns(rng: random.Random, spec: SlotSpec, wrong: bool) -> bytes:
    """Return an order of columns, some of which are none; ``wrong``: one may lead out of the input."""
    share = spec.pieces[0].share
    columns = spec.shape[-1] if share is None else length(share)
    order = np.random.default_rng(rng.getrandbits(63)).integers(-1, columns, spec.shape, dtype=np.int32)
    if wrong and order.size:
        order.flat[rng.randrange(order.size)] = rng.choice((-2, columns, (1 << 31) - 1, -(1 << 31)))
    return bytes(order.astype("<i4").tobytes())


def _content(rng: random.Random, name: str, dtype: str, nbytes: int, kind: str, plan: Plan, wrong_map: bool) -> bytes:
    """Return the bytes of a slot."""
    numbers = np.random.default_rng(rng.getrandbits(63))
    if name == slots.TOKEN_MAP:
        count = nbytes // 8
        targets = numbers.integers(0, plan.model.vocab_size, count)
        if wrong_map:
            targets[rng.randrange(count)] = rng.choice((-1, plan.model.vocab_size, 1 << 40, -(1 << 40)))
        return bytes((targets - np.arange(count)).astype("<i8").tobytes())
    if kind == "any":
        return numbers.bytes(nbytes)
    if kind == "zero" or not nbytes:
        return bytes(nbytes)
    torch_dtype = {HEADER_NAMES["float32"]: torch.float32, HEADER_NAMES["float16"]: torch.float16}.get(
        dtype, torch.bfloat16
    )
    values = numbers.standard_normal(nbytes // torch_dtype.itemsize)
    values = {"small": values / 4, "large": values * 1e30, "nan": values}[kind]
    tensor = torch.from_numpy(values).to(torch_dtype).contiguous()
    if kind == "nan":
        tensor[rng.randrange(len(tensor)) :: rng.randint(1, 50)] = rng.choice(
            (float("nan"), float("inf"), -float("inf"))
        )
    return bytes(tensor.view(torch.uint8).numpy().tobytes())


# ---- a case ----


def requests_of(rng: random.Random, plan: Plan) -> tuple[Request, ...]:
    """Return requests that are served together; raise RequestError where the plan can serve none."""
    context, batch = plan.options.context, plan.options.batch
    sampled, draft = rng.random() < 0.4, rng.random() < 0.8
    requests = []
    for _ in range(rng.randint(1, min(batch, 3))):
        length = rng.randint(1, min(max(1, context - 1), 40))
        prompt = tuple(rng.randrange(plan.model.vocab_size) for _ in range(length))
        count = rng.choice((1, context - length, context - length, NEW_TOKENS))
        request = make_request(
            plan,
            prompt,
            {
                "max_new_tokens": min(max(1, count), NEW_TOKENS),
                "temperature": rng.choice((0.3, 1.0, 100.0)) if sampled else 0.0,
                "top_k": rng.choice((None, 1, 3, 1000)) if sampled else None,
                "top_p": rng.choice((None, 0.1, 0.9, 1.0)) if sampled else None,
                "seed": rng.getrandbits(60) if sampled else None,
                "draft": draft,
                "ignore_eos": rng.random() < 0.5,
            },
        )
        requests.append(request)
    return tuple(requests)


def forge(rng: random.Random, directory: Path) -> str:
    """Write a plan, and where it passes all checks the images of it; return what kind of plan it is."""
    kind, plan = "derived", completed(derived(rng))
    if rng.random() < 0.5:
        kind, data = "changed", changed(rng, plan)
        try:
            plan = codec.decode(Plan, data, codec.PLAN_FILE)
        except PlanError:
            (directory / codec.PLAN_FILE).write_text(dump_yaml(data))
            return kind
        plan = completed(plan) if rng.random() < 0.9 else plan
    (directory / codec.PLAN_FILE).write_text(codec.dumps(plan))
    if not check(plan):
        forge_images(rng, plan, directory)
    return kind


def outcome(number: int, directory: Path) -> str:
    """Verify and run a forged plan; return what became of it, or raise what should not happen."""
    rng = random.Random(f"forged {number}")
    kind = forge(rng, directory)
    try:
        plan = load(directory)
        check_images(plan, directory, verify=True)
        for device in plan.devices:
            check_machine(plan, device)
        requests = requests_of(rng, plan)
        outputs = with_engines(plan, directory, lambda rank: served(rank, requests))
    except (PlanError, RuntimeRefusal) as error:
        return f"{kind} refused {type(error).__name__}"
    for output in outputs:
        assert output == outputs[0], "ranks disagree"
        for tokens, request in zip(output, requests, strict=True):
            assert 0 < len(tokens) <= request.max_new_tokens
            assert all(0 <= token < plan.model.vocab_size for token in tokens)
    return f"{kind} ran on {len(plan.devices)}"


def served(rank: Rank, requests: tuple[Request, ...]) -> list[list[int]]:
    """Serve requests on a rank; return the tokens of each."""
    tokens: list[list[int]] = [[] for _ in requests]
    for deliveries in rank.serve_batch(requests):
        for job, output in deliveries:
            tokens[job] += output.tokens if isinstance(output, Piece) else ()
    return tokens


def limited(seconds: int, work: Callable[[], str]) -> str:
    """Return the result of ``work``; raise TimeoutError where it takes longer."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        return work()
    finally:
        signal.alarm(0)


def main(arguments: Sequence[str]) -> None:
    """Run cases FIRST … FIRST + COUNT - 1 in a directory."""
    first, count, directory = int(arguments[0]), int(arguments[1]), Path(arguments[2])
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESS_SPACE, MOST_ADDRESS_SPACE))
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        ops.prepare(dtype, codes=True, kv_dtype="int8")  # compiled beside the time of a case
    ops._run, ops._run_layer = checked_run, checked_run_layer
    for number in range(first, first + count):
        own = directory / str(number)
        own.mkdir()
        say(f"{number} begins")
        say(f"{number} {limited(LONGEST_S, partial(outcome, number, own))}")
        shutil.rmtree(own)


def say(line: str) -> None:
    """Write a line to stdout at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
