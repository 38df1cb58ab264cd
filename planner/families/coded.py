"""Replace the weights of a reading by the codes, scales and zero points of a checkpoint whose layers are quantized.

The layers of a model get the formats that images have. Devices cut o and down along their columns: o between KV heads,
down between MLP units. So a unit is a whole number of groups, and groups of o that are larger than what a KV head reads
are cut, their scales repeated.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from planner.checkpoints.header import TensorInfo
from planner.errors import ConfigError
from planner.families.records import BaseReading, Columns, Roles, Source
from planner.families.spellings import OWN, Spelling
from planner.families.tensors import FLOATS
from planner.families.windows import classes_of
from planner.quantized import AutoRoundRecipe, Expected, Mxfp4Recipe, Proof, Recipe, ScaleDType, Stored, check
from planner.quantized.layouts import Gptq
from plans.quantized import BLOCK, column_unit, head_unit, layer_formats
from plans.schema import Attention, GateUpFormats, Mlp, Model, QkvFormats, WeightFormat
from plans.step import layer_class

_LINEAR = re.compile(r"layers\.(\d+)\.(?:experts\.\d+\.|shared\.)?(q|k|v|o|gate|up|down)\.weight")
_SCALES: Mapping[str, ScaleDType] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_BESIDE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys("qkv", ("q", "k", "v")), "o": ("o",), **dict.fromkeys(("gate", "up"), ("gate", "up")),
    "down": ("down",),
}  # fmt: skip
"""Linear layers with the input of each, itself among them."""

CODED_NOTE = (
    "quantized weights are planned with their bytes; predicted times on GPUs are those of other engines' kernels, "
    "which widen them in registers: the runtime's own have not been run on a GPU yet"
)


def coded_notes(model: Model) -> tuple[str, ...]:
    """Return what a person should know of a model with quantized layers."""
    notes = {
        f"groups of {column_unit(form)} columns and the {columns} columns of o that read a KV head end together after "
        f"{unit} KV heads: devices divide attention in multiples of {unit} KV heads of {attention.num_kv_heads}"
        for attention in (layers.attention for layers in model.layers)
        if (form := attention.o_format) is not None and (unit := head_unit(attention)) > 1
        for columns in (attention.num_heads // attention.num_kv_heads * attention.head_dim,)
    }
    return (CODED_NOTE, *sorted(notes))


Forms = dict[tuple[int, str], WeightFormat | None]
"""Format of each layer's q, k, v, o, gate, up and down."""


def with_codes(
    reading: BaseReading,
    recipe: Recipe,
    where: str,
    tensors: Mapping[str, TensorInfo] | None,
    scales: ScaleDType,
    planned: Model | None,
    spellings: Sequence[Spelling] = (OWN,),
    others: tuple[str, ...] = (),
) -> BaseReading:
    """Return a reading whose quantized layers have codes; raise ConfigError.

    Dtypes of scales are those of ``tensors``; where there are none those of ``planned``, as a plan has the model, or
    else ``scales``. ``spellings``: ways in which the recipe may name layers, the first of them that of ``tensors``.
    ``others``: beginnings of names of parts of the model that are not read.
    """
    headers = {spellings[0].derived(name): info for name, info in (tensors or {}).items()}
    known = {} if planned is None else _planned_scales(reading.roles, planned)
    layers = _Layers(
        recipe=recipe,
        where=where,
        tensors=headers,
        scales=scales,
        planned=known,
        spellings=spellings,
        named=frozenset(source.name for source in reading.roles.values()),
    )
    if isinstance(recipe, AutoRoundRecipe):
        names = {*(tensors or ()), *(spelling.of(name) for spelling in spellings for name in layers.named)}
        recipe.require_layers({name.rpartition(".")[0] for name in names}, others)
    head = None if reading.model.tied_head else layers.stored(reading.roles["head.weight"])
    roles, model = replaced(reading.roles, reading.model, layers.stored, head, where)
    if all(source.stored is None for source in roles.values()):
        raise ConfigError(
            f"{where}: found settings of a quantizer that name no linear layer of the model, expected at least one: "
            "remove them if all weights are plain"
        )
    return dataclasses.replace(reading, roles=roles, model=model)


def _planned_scales(roles: Roles, planned: Model) -> Mapping[str, ScaleDType]:
    """Return the dtype of scales that a plan has of each layer, by the name of the tensor of its weight."""
    scales: dict[str, ScaleDType] = {}
    for role, source in roles.items():
        form, linear = planned.head_format if role == "head.weight" else None, _LINEAR.fullmatch(role)
        if linear is not None and int(linear[1]) < planned.num_layers:
            form = layer_formats(layer_class(planned, int(linear[1])))[linear[2]]
        if form is not None and form.scale != "float8_e8m0":
            scales[source.name] = form.scale
    return scales


def replaced(
    roles_of_weights: Roles, model: Model, stored_of: Callable[[Source], Stored | None], head: Stored | None, where: str
) -> tuple[Roles, Model]:
    """Return roles and model with the layers for whose weights ``stored_of`` returns codes; raise ConfigError.

    ``head``: codes of the lm_head, of a tied model of the embedding too; None: it is plain.
    """
    of_roles, forms, first_named = dict[str, Stored | None](), Forms(), dict[tuple[int, str], str]()
    for role, source in roles_of_weights.items():
        linear = _LINEAR.fullmatch(role)
        if linear is None:
            continue
        layer, kind = int(linear[1]), linear[2]
        stored = stored_of(source)
        stored = of_roles[role] = None if stored is None else _cut(stored, model, layer, kind)
        form = None if stored is None else stored.image_form
        name = source.name.removesuffix(".weight")
        other = first_named.setdefault((layer, kind), name)
        if forms.setdefault((layer, kind), form) != form:
            raise ConfigError(f"{where}: {name}: another format than {other} has, expected the same for both")
    roles, first_sorted = Roles(), dict[str, Stored]()
    for role, source in roles_of_weights.items():
        stored, linear = of_roles.get(role), _LINEAR.fullmatch(role)
        if stored is None or linear is None:
            roles[role] = source
            continue
        if stored.sorts:
            together = _BESIDE[linear[2]]
            alike = len({forms[int(linear[1]), kind] for kind in together}) == 1
            first = first_sorted.setdefault(
                role.removesuffix(f"{linear[2]}.weight") + (together[0] if alike else linear[2]), stored
            )
            stored = dataclasses.replace(stored, alike=first.tensors["order"])
        roles |= _parts(role, source, stored)
    _sort_rows(roles)
    model = _with_formats(model, forms, first_named, where)
    if head is None:
        return roles, model
    for role in ("embed.weight", "head.weight") if model.tied_head else ("head.weight",):
        roles |= _parts(role, roles_of_weights[role], head)
    return roles, dataclasses.replace(model, head_format=head.image_form)


def _sort_rows(roles: Roles) -> None:
    """Give rows of gate and up the order of down's columns, where these are sorted."""
    for role, down in list(roles.items()):
        if not role.endswith("down.weight") or down.stored is None or not down.stored.sorts:
            continue
        prefix = role.removesuffix("down.weight")
        for name in (f"{matrix}.{part}" for matrix in ("gate", "up") for part in ("weight", "scales", "zeros", "bias")):
            source = roles.get(prefix + name)
            if source is not None:
                roles[prefix + name] = dataclasses.replace(source, sorted_as=down.stored)


def _parts(role: str, source: Source, stored: Stored) -> Roles:
    """Return the roles of codes, scales and zero points in place of that of a weight."""
    table = Roles()
    for part in stored.parts:
        kind = "weight" if part == "codes" else part
        table[role.removesuffix("weight") + kind] = Source(
            name=f"{stored.module}:{part}",
            shape=stored.shape(part),
            first=source.first if source.columns is None and part != "order" else 0,
            stored=stored,
            part=part,
        )
    return table


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layers:
    """The linear layers of a checkpoint, as its recipe says that they are stored."""

    recipe: Recipe
    where: str
    tensors: Mapping[str, TensorInfo]
    scales: ScaleDType
    planned: Mapping[str, ScaleDType]
    """Dtype of scales by the name of the tensor of the weight, as a plan has it."""
    spellings: Sequence[Spelling]
    """Ways in which the recipe may name layers."""
    named: frozenset[str]
    """Names of the tensors that the config implies."""
    known: dict[str, Stored | None] = field(default_factory=dict)
    """By the name of the tensor of the weight, several roles of which may be packed in one."""

    def stored(self, source: Source) -> Stored | None:
        """Return how the weight of a role is stored, None where it is plain; raise ConfigError."""
        if source.columns is not None:
            return self._of_expert(source, source.columns)
        if source.name not in self.known:
            stored = self._by_recipe(source)
            self.known[source.name] = None if stored is None else check(stored, self.where)
        return self.known[source.name]

    def _by_recipe(self, source: Source) -> Stored | None:
        """Return what the recipe says of a weight, with the dtype of scales that the headers have."""
        if len(source.shape) == 3 and self._read(source.name, *source.shape[1:], self.scales) is not None:
            raise self._packed_experts(source.name)
        if not source.name.endswith(".weight") or len(source.shape) != 2:
            return None
        module, (out, columns) = source.name.removesuffix(".weight"), source.shape
        stored = self._read(module, out, columns, self.planned.get(source.name, self.scales))
        info = None if stored is None else self.tensors.get(stored.tensors["scales"].name)
        if info is not None and info.dtype in _SCALES:
            stored = self._read(module, out, columns, _SCALES[info.dtype])
        return None if stored is None else dataclasses.replace(stored, proofs=self._proofs(stored))

    def _proofs(self, stored: Stored) -> Mapping[Proof, Expected]:
        """Return tensors that the headers have beside those of a layer, and that must be as the config says."""
        proofs = dict(stored.proofs)
        for kind in ("neighbours", "shape"):
            tensor = stored.ignored.get(kind)
            if tensor is not None and tensor.name in self.tensors:
                proofs[kind] = tensor
        bias = f"{stored.module}.bias"
        if isinstance(stored.layout, Gptq) and bias in self.tensors and bias not in self.named:
            proofs["no_bias"] = Expected(name=bias, dtypes=FLOATS, shapes=((stored.out,),))
        return proofs

    def _read(self, module: str, out: int, columns: int, scales: ScaleDType) -> Stored | None:
        """Return what the recipe says of a layer, by any of its names.

        Where it says by one that the layer is plain, and by another that it has codes, the headers tell; without them
        it is plain, as a list of exceptions has one of the names.
        """
        found = [self.recipe.stored(spelling.of(module), out, columns, scales) for spelling in self.spellings]
        coded = next(
            (
                (stored if spelling == OWN else stored.renamed(spelling.derived)).as_named(self.tensors)
                for stored, spelling in zip(found, self.spellings, strict=True)
                if stored is not None
            ),
            None,
        )
        if coded is None or None not in found:
            return coded
        codes = coded.tensors["codes"]
        info = self.tensors.get(codes.name)
        return coded if info is not None and info.dtype in codes.dtypes else None

    def _packed_experts(self, name: str) -> ConfigError:
        return ConfigError(f"{self.where}: {name}: packed experts, expected mxfp4: not read in another format")

    def _of_expert(self, source: Source, columns: Columns) -> Stored | None:
        """Return how a matrix of an expert is stored of which one tensor has those of all."""
        if not isinstance(self.recipe, Mxfp4Recipe):
            raise self._packed_experts(source.name)
        count, width, rows = source.shape
        if width % BLOCK:
            raise ConfigError(f"{self.where}: {source.name}: found {width} columns, expected a multiple of {BLOCK}")
        expert = source.first // width
        return self.recipe.expert(source.name, (count, width, rows), expert, columns.first, columns.step)


def _cut(stored: Stored, model: Model, layer: int, linear: str) -> Stored:
    """Return a layer with the groups that devices may cut it by."""
    if linear == "o":
        attention = layer_class(model, layer).attention
        return stored.cut_at(attention.num_heads // attention.num_kv_heads * attention.head_dim)
    return stored.folded().cut_at(stored.columns) if linear == "down" else stored


def _with_formats(model: Model, forms: Forms, first_named: Mapping[tuple[int, str], str], where: str) -> Model:
    layers = [layer_class(model, number) for number in range(model.num_layers)]
    changed = [
        (
            _attention(kind.attention, forms, number),
            _mlp(kind.mlp, forms, number, where, first_named),
        )
        for number, kind in enumerate(layers)
    ]
    classes, pattern = classes_of(changed)
    return dataclasses.replace(model, layers=classes, pattern=pattern)


def _attention(attention: Attention, forms: Forms, layer: int) -> Attention:
    q, k, v = (forms[layer, name] for name in "qkv")
    attention = dataclasses.replace(attention, o_format=forms[layer, "o"])
    if q == k == v:
        return dataclasses.replace(attention, qkv_format=q)
    return dataclasses.replace(attention, qkv_formats=QkvFormats(q=q, k=k, v=v))


def _mlp(mlp: Mlp, forms: Forms, layer: int, where: str, names: Mapping[tuple[int, str], str]) -> Mlp:
    """Return an MLP with formats, whose units are whole groups of down; ``names``: first of each kind of layer."""
    gate, up, down = (forms[layer, name] for name in ("gate", "up", "down"))
    mlp = dataclasses.replace(mlp, down_format=down)
    if gate == up:
        mlp = dataclasses.replace(mlp, gate_up_format=gate)
    elif mlp.kind == "moe":
        gate_name, up_name = names[layer, "gate"], names[layer, "up"]
        raise ConfigError(
            f"{where}: {up_name}: another format than {gate_name} has, expected the same for both of an expert: "
            "experts are multiplied by kernels that read both together"
        )
    else:
        mlp = dataclasses.replace(mlp, gate_up_formats=GateUpFormats(gate=gate, up=up))
    where = f"{where}: {names[layer, 'down']}"
    if down is None:
        return mlp
    group, unit = column_unit(down), math.lcm(mlp.unit, column_unit(down))
    for size, of_unit in ((mlp.intermediate_size, unit), (mlp.shared_size or 0, group)):
        if size % of_unit:
            raise ConfigError(f"{where}: found {size} columns, expected a multiple of {of_unit}, whole groups")
    units = mlp.intermediate_size // unit
    if mlp.shared_size is not None:  # as many units of both
        units = math.gcd(units, mlp.shared_size // group)
    return dataclasses.replace(mlp, unit=mlp.intermediate_size // units)
