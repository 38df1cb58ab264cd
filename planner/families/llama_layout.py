"""Derive layers and tensors in the layout of Llama, which all families share.

Families differ by biases, norms of q and k, and experts. Each reads its keys into one attention and one MLP per layer;
from these ``base_reading`` derives the classes of equal layers and the names and shapes of the tensors.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from planner.families.config import Keys, read_norm_eps, read_tokens
from planner.families.records import BaseReading, Columns, Roles, Source
from planner.families.rope import Rope, rotaries
from planner.families.rope_keys import RopeDefaults, read_rope
from planner.families.windows import Windows, classes_of
from plans.schema import Attention, Mlp, Model


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """Values that transformers assumes when a key is absent."""

    max_positions: int
    bos_token_id: int | None
    eos_token_id: int | tuple[int, ...] | None
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    partial_rotary: float | None = None
    """``partial_rotary_factor``; None: all channels of a head are rotated, and a part of them is refused."""
    original_positions: int | None = None
    """``original_max_position_embeddings``; None: ``max_position_embeddings``."""
    longrope_names: tuple[str, ...] = ()
    """Rotary types that mean longrope in configs of the family."""
    tied: bool = False
    """``tie_word_embeddings``."""
    interleaved: bool = False
    """Neighbouring channels are rotary pairs; not a key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Names in a checkpoint where they differ from Llama's, and matrices that are packed in one tensor."""

    norms: Literal["after", "around"] | None = None
    """As in ``Model``."""
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    attention_output_norm: str = "post_attention_layernorm"
    mlp_output_norm: str = "post_feedforward_layernorm"
    packs_qkv: bool = False
    """``self_attn.qkv_proj`` has the rows of q, k and v."""
    packs_gate_up: bool = False
    """``mlp.gate_up_proj`` has the rows of gate and up."""


LLAMA = Layout()


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertNames:
    """Names of the router and of the experts' matrices in a checkpoint."""

    block: str
    """``model.layers.i.<block>.<router>`` is the router, ``<block>.experts.e`` an expert."""
    gate: str
    up: str
    down: str
    shared: str = "shared_expert"
    """The expert that every token takes."""
    router: str = "gate"
    correction: str = "gate.e_score_correction_bias"
    """Tensor of the bias by which experts are picked, and before E its dimensions of 1."""
    correction_shape: tuple[int, ...] = ()
    packed: Literal["rows", "interleaved"] | None = None
    """``<block>.experts.<gate>`` has gates and ups of all experts, ``<down>`` their other matrices; ``up`` is not used.

    ``rows``: [E, 2I, H], gates first, and [E, H, I]. ``interleaved``: transposed, [E, H, 2I], a gate and an up in turn,
    and [E, I, H]. None: each matrix is a tensor.
    """


def base_reading(
    family: str,
    keys: Keys,
    attention: Attention,
    mlps: Sequence[Mlp],
    defaults: Defaults,
    experts: ExpertNames | None = None,
    harmless: frozenset[str] = frozenset(),
    windows: Windows | None = None,
    ropes: Sequence[Rope] | None = None,
    layout: Layout = LLAMA,
) -> BaseReading:
    """Read the keys that all families share, and judge those that are left; raise ConfigError.

    ``mlps``: one per layer. ``experts``: names of the experts, for a family with MLPs of kind ``moe``. ``harmless``:
    keys that change nothing in this family. ``windows``: of each layer; None: the family has none. ``ropes``: rotary
    embedding of each layer; None: the keys have one for all.
    """
    vocab_size, max_positions = keys.integer("vocab_size"), read_max_positions(keys, defaults)
    if ropes is None:
        rope = read_rope(keys, attention.head_dim, rope_defaults(defaults, max_positions))
        ropes = (rope,) * len(mlps)
    attentions = [replace(attention, window=window) for window in windows or (None,) * len(mlps)]
    classes, pattern = classes_of(list(zip(attentions, mlps, strict=True)))
    model = Model(
        family=family,
        vocab_size=vocab_size,
        hidden_size=keys.integer("hidden_size"),
        norm_eps=read_norm_eps(keys, defaults.norm_eps),
        tied_head=keys.boolean("tie_word_embeddings", defaults.tied),
        layers=classes,
        pattern=pattern,
        bos_token_id=next(iter(read_tokens(keys, "bos_token_id", defaults.bos_token_id, vocab_size)), None),
        eos_token_ids=read_tokens(keys, "eos_token_id", defaults.eos_token_id, vocab_size),
        rotary=rotaries(ropes),
        norms=layout.norms,
    )
    reading = BaseReading(
        model=model,
        ropes=tuple(ropes),
        max_positions=max_positions,
        roles=_roles(model, attention, mlps, experts, layout),
        # Old versions of transformers saved rotary frequencies; here they are computed from the config.
        ignored={
            f"model.layers.{i}.self_attn.rotary_emb.inv_freq": (attention.head_dim // 2,) for i in range(len(mlps))
        },
    )
    keys.finish(harmless)
    layer_types = keys.get("layer_types", [])
    if layer_types and len(layer_types) != len(mlps):
        raise keys.fail("layer_types", f"found {len(layer_types)} of them, expected {len(mlps)}: one for each layer")
    return reading


def read_max_positions(keys: Keys, defaults: Defaults) -> int:
    """Read ``max_position_embeddings``."""
    return keys.integer("max_position_embeddings", defaults.max_positions)


def rope_defaults(defaults: Defaults, max_positions: int) -> RopeDefaults:
    """Return what the rotary embedding of a family assumes for absent keys."""
    return RopeDefaults(
        theta=defaults.rope_theta,
        max_positions=max_positions,
        partial=defaults.partial_rotary,
        original=defaults.original_positions,
        longrope_names=defaults.longrope_names,
        interleaved=defaults.interleaved,
    )


def _roles(
    model: Model, attention: Attention, mlps: Sequence[Mlp], experts: ExpertNames | None, layout: Layout
) -> Roles:
    """Return the tensors that the config implies."""
    hidden, vocab = model.hidden_size, model.vocab_size
    embed = Source(name="model.embed_tokens.weight", shape=(vocab, hidden))
    table: Roles = {"embed.weight": embed}
    for i, mlp in enumerate(mlps):
        layer = _norms(hidden, layout) | attention_roles(attention, hidden, hidden)
        if mlp.kind == "moe":
            assert experts is not None, "a family with experts names them"
            layer |= _moe_roles(mlp, hidden, experts)
        else:
            layer |= mlp_roles(mlp, hidden)
        if layout.packs_qkv:
            layer |= packed(layer, ("q", "k", "v"), "self_attn.qkv_proj")
        if layout.packs_gate_up and mlp.kind == "gated":
            layer |= packed(layer, ("gate", "up"), "mlp.gate_up_proj")
        table |= prefixed(layer, f"layers.{i}", f"model.layers.{i}")
    table["norm.weight"] = Source(name="model.norm.weight", shape=(hidden,))
    table["head.weight"] = embed if model.tied_head else Source(name="lm_head.weight", shape=(vocab, hidden))
    return table


def prefixed(roles: Roles, role: str, name: str) -> Roles:
    """Return the roles of one layer as roles of a model, with prefixes for the roles and for the tensors' names."""
    return {
        f"{role}.{inner}": dataclasses.replace(source, name=f"{name}.{source.name}") for inner, source in roles.items()
    }


def packed(roles: Roles, parts: Sequence[str], name: str) -> Roles:
    """Return the roles of several linear layers whose rows one tensor has, one after the other."""
    table: Roles = {}
    for kind in ("weight", "bias"):
        sources = [(f"{part}.{kind}", roles[f"{part}.{kind}"]) for part in parts if f"{part}.{kind}" in roles]
        rows = sum(source.shape[0] for _, source in sources)
        first = 0
        for role, source in sources:
            table[role] = Source(name=f"{name}.{kind}", shape=(rows, *source.shape[1:]), first=first)
            first += source.shape[0]
    return table


def attention_roles(attention: Attention, hidden: int, width: int) -> Roles:
    """Return the roles of q, k, v and o with their biases and norms, on inputs of ``width``."""
    q, kv = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
    table = {
        **_linear("q", "self_attn.q_proj", q, width, attention.qkv_bias),
        **_linear("k", "self_attn.k_proj", kv, width, attention.qkv_bias),
        **_linear("v", "self_attn.v_proj", kv, width, attention.qkv_bias),
        **_linear("o", "self_attn.o_proj", hidden, q, attention.o_bias),
    }
    if attention.sinks:
        table["sinks"] = Source(name="self_attn.sinks", shape=(attention.num_heads,))
    if attention.qk_norm:
        for role, size in (("q_norm", q), ("k_norm", kv)):
            shape = (size if attention.qk_norm_whole else attention.head_dim,)
            table[f"{role}.weight"] = Source(name=f"self_attn.{role}.weight", shape=shape)
    return table


def mlp_roles(mlp: Mlp, hidden: int) -> Roles:
    """Return the roles of gate, up and down of a gated MLP."""
    inner = mlp.intermediate_size
    return {
        **_linear("gate", "mlp.gate_proj", inner, hidden, mlp.bias),
        **_linear("up", "mlp.up_proj", inner, hidden, mlp.bias),
        **_linear("down", "mlp.down_proj", hidden, inner, mlp.bias),
    }


def _moe_roles(mlp: Mlp, hidden: int, names: ExpertNames) -> Roles:
    """Return the roles of the router, and of gate, up and down of each expert."""
    inner, count, router = mlp.intermediate_size, mlp.num_experts, mlp.router
    table = _linear("router", f"{names.block}.{names.router}", count, hidden, router is not None and router.bias)
    if router is not None and router.correction:
        shape = (*names.correction_shape, count)
        table["router.correction"] = Source(name=f"{names.block}.{names.correction}", shape=shape)
    if names.packed is not None:
        table |= _packed_experts(mlp, hidden, names)
    else:
        for e in range(count):
            expert = f"{names.block}.experts.{e}"
            table |= _linear(f"experts.{e}.gate", f"{expert}.{names.gate}", inner, hidden, mlp.bias)
            table |= _linear(f"experts.{e}.up", f"{expert}.{names.up}", inner, hidden, mlp.bias)
            table |= _linear(f"experts.{e}.down", f"{expert}.{names.down}", hidden, inner, mlp.bias)
    if mlp.shared_size is not None:
        for part in ("gate", "up", "down"):
            shape = (hidden, mlp.shared_size) if part == "down" else (mlp.shared_size, hidden)
            table |= _linear(f"shared.{part}", f"{names.block}.{names.shared}.{part}_proj", *shape, False)
    if mlp.shared_gate:
        table |= _linear("shared_gate", f"{names.block}.{names.shared}_gate", 1, hidden, False)
    return table


def _packed_experts(mlp: Mlp, hidden: int, names: ExpertNames) -> Roles:
    """Return the roles of gate, up and down of each expert, in tensors of all experts."""
    inner, count, table = mlp.intermediate_size, mlp.num_experts, Roles()
    turned = names.packed == "interleaved"
    for part, first, name, rows, width in (
        ("gate", 0, names.gate, 2 * inner, hidden),
        ("up", 1 if turned else inner, names.gate, 2 * inner, hidden),
        ("down", 0, names.down, hidden, inner),
    ):
        tensor, step = f"{names.block}.experts.{name}", 2 if turned and part != "down" else 1
        shape = (count, width, rows) if turned else (count, rows, width)
        for e in range(count):
            columns = Columns(first=first, step=step, width=width) if turned else None
            begin = e * width if turned else e * rows + first
            table[f"experts.{e}.{part}.weight"] = Source(name=tensor, shape=shape, first=begin, columns=columns)
            if mlp.bias:
                of_row = Columns(first=first, step=step, width=1)
                table[f"experts.{e}.{part}.bias"] = Source(
                    name=f"{tensor}_bias", shape=(count, rows), first=e, columns=of_row
                )
    return table


def _norms(hidden: int, layout: Layout) -> Roles:
    names: dict[str, str] = {}
    if layout.norms != "after":
        names |= {"attention_norm": layout.attention_norm, "mlp_norm": layout.mlp_norm}
    if layout.norms is not None:
        names |= {"attention_output_norm": layout.attention_output_norm, "mlp_output_norm": layout.mlp_output_norm}
    return {f"{role}.weight": Source(name=f"{name}.weight", shape=(hidden,)) for role, name in names.items()}


def _linear(role: str, name: str, rows: int, columns: int, bias: bool) -> Roles:
    table = {f"{role}.weight": Source(name=f"{name}.weight", shape=(rows, columns))}
    return table | ({f"{role}.bias": Source(name=f"{name}.bias", shape=(rows,))} if bias else {})
