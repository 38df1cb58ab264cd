"""Checks of formats of quantized weights: kernels and images can have them, and devices cut between their groups."""

from collections.abc import Iterator
from dataclasses import fields, replace

from plans.quantized import BLOCK, ROUNDED, column_unit, is_half, rounded_table
from plans.schema import LayerClass, Model, RoundedWeights, WeightFormat
from plans.violations import Violation, bad


def check_formats(path: str, layers: LayerClass, hidden: int) -> Iterator[Violation]:
    """Check the formats of a class of layers; ``hidden``: hidden size of the model."""
    attention, mlp = layers.attention, layers.mlp
    wide = attention.num_heads * attention.head_dim
    of_unit = (mlp.unit, mlp.shared_unit) if mlp.unit > 0 and mlp.units > 0 else ()
    forms: list[tuple[str, WeightFormat | None, int, tuple[int, ...]]] = [
        ("attention.qkv_format", attention.qkv_format, hidden, ()),
        ("attention.o_format", attention.o_format, wide, ()),
        ("mlp.gate_up_format", mlp.gate_up_format, hidden, ()),
        ("mlp.down_format", mlp.down_format, mlp.intermediate_size, of_unit),
    ]
    for one, part, of_one, split in (
        ("attention.qkv_format", attention, attention.qkv_format, attention.qkv_formats),
        ("mlp.gate_up_format", mlp, mlp.gate_up_format, mlp.gate_up_formats),
    ):
        if split is not None:
            own = {field.name: part.formats[field.name] for field in fields(split)}
            forms += [(f"{one}s.{name}", form, hidden, ()) for name, form in own.items()]
            if of_one is not None:
                yield bad(f"{path}.{one}", of_one, f"nothing beside {one}s, which has those of each")
            if len(set(own.values())) == 1:
                yield bad(f"{path}.{one}s", ", ".join(own), f"formats that differ: one of all is {one}")
    if mlp.gate_up_formats is not None and mlp.kind == "moe":
        yield bad(f"{path}.mlp.gate_up_formats", "gate, up", "nothing of experts")
    for name, form, columns, cuts in forms:
        if form is not None:
            yield from _check_format(f"{path}.{name}", form, columns, cuts)


def check_rounded(path: str, layers: LayerClass, weights: RoundedWeights) -> Iterator[Violation]:
    """Check that all formats of a class of layers are that to which ``weights`` are rounded.

    Groups of o may be parts of its groups, where devices cut within these.
    """
    asked = ROUNDED[weights]
    for name, form in (
        ("attention.qkv_format", layers.attention.qkv_format),
        ("attention.o_format", layers.attention.o_format),
        ("mlp.gate_up_format", layers.mlp.gate_up_format),
        ("mlp.down_format", layers.mlp.down_format),
    ):
        if form is not None and name == "attention.o_format" and asked.group and form.group:
            form = replace(form, group=asked.group if asked.group % form.group == 0 else form.group)
        if form != asked:
            yield bad(f"{path}.{name}", form, f"{asked}, as options.weights, {weights}, says")


def check_table_format(model: Model, weights: RoundedWeights | None) -> Iterator[Violation]:
    """Check the format of the lm_head, of a tied model of the embedding too, whose rows are looked up."""
    form, path = model.head_format, "model.head_format"
    if form is None:
        return
    yield from _check_format(path, form, model.hidden_size, ())
    if weights is not None and form != rounded_table(weights):
        yield bad(path, form, f"{rounded_table(weights) or 'nothing'}, as options.weights, {weights}, says")
    elif model.tied_head and form != ROUNDED["int8"]:
        yield bad(path, form, f"{ROUNDED['int8']}, or nothing, of an embedding")


def _check_format(path: str, form: WeightFormat, columns: int, cuts: tuple[int, ...]) -> Iterator[Violation]:
    if form.group is not None and (form.group < BLOCK or form.group % BLOCK):
        yield bad(f"{path}.group", form.group, f"a positive multiple of {BLOCK}, or nothing")
        return
    if form.ordered is False:
        yield bad(f"{path}.ordered", "false", "true, or nothing")
        return
    if form.ordered and (form.group is None or not form.code.startswith("int")):
        yield bad(f"{path}.ordered", form.ordered, "nothing without groups of int4 or int8")
    if form.zeros and not form.code.startswith("int"):
        yield bad(f"{path}.zeros", form.zeros, f"false of {form.code}")
    if (form.code == "float4_e2m1") != (form.scale == "float8_e8m0"):
        yield bad(f"{path}.scale", form.scale, "float8_e8m0 of float4_e2m1 alone")
    if is_half(form) and columns % BLOCK:
        yield bad(path, form.code, f"8 bits: {columns} columns are no multiple of {BLOCK}")
    if form.ordered and cuts:
        yield bad(f"{path}.ordered", form.ordered, "nothing of down: gate and up have their rows in its order")
    if any(cut % column_unit(form) for cut in cuts):
        yield bad(path, form.group, f"groups that end with the channels of a unit, {cuts[0]}")
