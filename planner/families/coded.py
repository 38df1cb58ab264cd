"""Replace the weights of a reading by the codes, scales and zero points of a checkpoint whose layers are quantized.

The layers of a model get the formats that images have. Devices cut o and down along their columns: o between KV heads,
down between MLP units. So a unit is a whole number of groups, and groups of o that are larger than what a KV head reads
are cut, their scales repeated.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from planner.checkpoints.header import TensorInfo
from planner.errors import ConfigError
from planner.families.records import BaseReading, Columns, Roles, Source
from planner.families.windows import classes_of
from planner.quantized import Mxfp4Recipe, Recipe, ScaleDType, Stored, check
from plans.quantized import BLOCK, column_unit
from plans.schema import Attention, Mlp, Model, WeightFormat
from plans.step import layer_class

_LINEAR = re.compile(r"layers\.(\d+)\.(?:experts\.\d+\.|shared\.)?(q|k|v|o|gate|up|down)\.weight")
_SCALES: Mapping[str, ScaleDType] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_BLOCKS = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "gate": "gate_up", "up": "gate_up", "down": "down"}

Forms = dict[tuple[int, str], tuple[str, WeightFormat | None]]
"""Format of each layer's qkv, o, gate_up and down, with the name of the layer that it is read from."""


def with_codes(
    reading: BaseReading, recipe: Recipe, where: str, tensors: Mapping[str, TensorInfo] | None, scales: ScaleDType
) -> BaseReading:
    """Return a reading whose quantized layers have codes; raise ConfigError.

    ``scales``: dtype of scales where there are no ``tensors`` to tell it.
    """
    roles, forms, seen = Roles(), Forms(), dict[str, Stored | None]()
    for role, source in reading.roles.items():
        found = _LINEAR.fullmatch(role)
        module = source.name.removesuffix(".weight")
        if found is not None and source.columns is not None:
            of_expert = _packed(source, source.columns, recipe, where)
            module = of_expert.module
            seen[module] = of_expert
        elif module not in seen:
            seen[module] = _stored(source, module, recipe, where, tensors, scales, checked=found is not None)
        stored = seen[module]
        if role == "head.weight" and stored is not None and not reading.model.tied_head:
            raise ConfigError(f"{where}: {module}: quantized, expected plain weights: such an lm_head is not read here")
        if found is None or stored is None:
            roles[role] = source
        if found is None:
            continue
        layer, block = int(found[1]), _BLOCKS[found[2]]
        if stored is not None:
            stored = _cut(stored, reading, layer, block, where)
            for part in stored.parts:
                kind = "weight" if part == "codes" else part
                coded = dataclasses.replace(source, name=f"{module}:{part}", shape=stored.shape(part), stored=stored)
                if source.columns is not None:
                    coded = dataclasses.replace(coded, first=0, columns=None)
                roles[role.removesuffix("weight") + kind] = dataclasses.replace(coded, part=part)
        form = None if stored is None else stored.image_form
        other, before = forms.setdefault((layer, block), (module, form))
        if before != form:
            raise ConfigError(f"{where}: {module}: stored otherwise than {other}, expected the same for both")
    return dataclasses.replace(reading, roles=roles, model=_with_formats(reading, forms, where))


def _packed(source: Source, columns: Columns, recipe: Recipe, where: str) -> Stored:
    """Return how a matrix of an expert is stored of which one tensor has those of all."""
    if not isinstance(recipe, Mxfp4Recipe):
        raise ConfigError(f"{where}: {source.name}: packed experts, expected mxfp4: not read in another format")
    count, width, rows = source.shape
    expert = source.first // width
    if width % BLOCK:
        raise ConfigError(f"{where}: {source.name}: found {width} columns, expected a multiple of {BLOCK}")
    first, step = columns.first, columns.step
    return recipe.expert(source.name, (count, width, rows), expert, first, step)


def _stored(
    source: Source,
    module: str,
    recipe: Recipe,
    where: str,
    tensors: Mapping[str, TensorInfo] | None,
    scales: ScaleDType,
    *,
    checked: bool,
) -> Stored | None:
    if not source.name.endswith(".weight") or len(source.shape) != 2:
        return None
    out, columns = source.shape
    stored = recipe.stored(module, out, columns, scales)
    if stored is None:
        return None
    info = (tensors or {}).get(stored.tensors["scales"].name)
    if info is not None and info.dtype in _SCALES:
        stored = recipe.stored(module, out, columns, _SCALES[info.dtype])
        assert stored is not None
    return check(stored, where) if checked else stored


def _cut(stored: Stored, reading: BaseReading, layer: int, block: str, where: str) -> Stored:
    """Return a layer with the groups that devices may cut it by."""
    kind = layer_class(reading.model, layer)
    if block == "o":
        attention = kind.attention
        return stored.cut_at(attention.num_heads // attention.num_kv_heads * attention.head_dim, where)
    return stored.cut_at(stored.columns, where) if block == "down" else stored


def _with_formats(reading: BaseReading, forms: Forms, where: str) -> Model:
    model = reading.model
    layers = [layer_class(model, number) for number in range(model.num_layers)]
    changed = [
        (_attention(kind.attention, forms, number), _mlp(kind.mlp, forms, number, where))
        for number, kind in enumerate(layers)
    ]
    classes, pattern = classes_of(changed)
    return dataclasses.replace(model, layers=classes, pattern=pattern)


def _attention(attention: Attention, forms: Forms, layer: int) -> Attention:
    return dataclasses.replace(attention, qkv_format=forms[layer, "qkv"][1], o_format=forms[layer, "o"][1])


def _mlp(mlp: Mlp, forms: Forms, layer: int, where: str) -> Mlp:
    """Return an MLP with formats, whose units are whole groups of down."""
    gate_up, (name, down) = forms[layer, "gate_up"][1], forms[layer, "down"]
    mlp = dataclasses.replace(mlp, gate_up_format=gate_up, down_format=down)
    if down is None:
        return mlp
    group, unit = column_unit(down), math.lcm(mlp.unit, column_unit(down))
    for size, of_unit in ((mlp.intermediate_size, unit), (mlp.shared_size or 0, group)):
        if size % of_unit:
            raise ConfigError(f"{where}: {name}: found {size} columns, expected a multiple of {of_unit}, whole groups")
    units = mlp.intermediate_size // unit
    if mlp.shared_size is not None:  # as many units of both
        units = math.gcd(units, mlp.shared_size // group)
    return dataclasses.replace(mlp, unit=mlp.intermediate_size // units)
