"""compressed-tensors (llm-compressor): groups of layers with a scheme each, by class, name or pattern.

Read as weights alone: what a scheme says of activations changes nothing in what is stored, and activations stay in the
plan's dtype. Formats: pack-quantized, int-quantized, float-quantized, naive-quantized.
"""

from dataclasses import dataclass
from typing import Literal

from planner.quantized.layouts import Layout, PackedRows, PlainRows
from planner.quantized.records import SCALE_HEADERS, Expected, ScaleDType, Stored
from planner.quantized.settings import NOT_READ, Pattern, Settings, block_of
from plans.format import quote
from plans.quantized import groups
from plans.schema import WeightFormat

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
MIXED = "mixed-precision"
"""Format of a checkpoint each group of which says its own."""
DENSE = "dense"
"""Format of plain weights."""
CLASSES = frozenset({"Linear"})
"""Classes of modules by which a group or the ignore list can name layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Names of layers: a class, a name, or a regular expression that matches the beginning of a name."""

    text: str
    expression: Pattern | None

    def has(self, module: str) -> bool:
        """Return True where the target names this linear layer."""
        if self.expression is not None:
            return self.expression.has(module)
        return self.text in CLASSES or self.text == module

    def rank(self, module: str) -> tuple[bool, bool, str]:
        """Return the place among targets that name a layer, of which the least counts, as compressed-tensors has them.

        Whole names come first, then expressions, then classes; of equal kinds the text decides.
        """
        return self.expression is None and self.text != module, "re:" in self.text, self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """Storage of the weights of a group of layers: format, bits, and which of them share a scale."""

    packed: bool
    code: Literal["int4", "int8", "float8_e4m3fn"]
    bits: int
    symmetric: bool
    strategy: str
    group: int | None
    block: tuple[int, int] | None
    sorts: bool
    """Columns of a group need not be neighbours."""

    def stored(self, module: str, out: int, columns: int, scale_dtype: ScaleDType) -> Stored:
        """Return how a layer is stored."""
        group = self.block[1] if self.block else self.group
        form = WeightFormat(
            code=self.code,
            group=group,
            zeros=not self.symmetric,
            scale=scale_dtype,
            ordered=True if self.sorts else None,
        )
        block_rows = self.block[0] if self.block else 1
        own = -(-out // block_rows), groups(form, columns)
        shapes: tuple[tuple[int, ...], ...] = ((), (1,)) if self.strategy == "tensor" else (own,)
        if self.strategy == "channel":
            shapes = (own, (out,))
        integers = frozenset({"I32"})
        words = 32 // self.bits
        tensors = {"scales": Expected(name=f"{module}.weight_scale", dtypes=SCALE_HEADERS, shapes=shapes)}
        if self.packed:
            codes = Expected(
                name=f"{module}.weight_packed", dtypes=integers, shapes=((out, -(-columns * self.bits // 32)),)
            )
            zeros = Expected(name=f"{module}.weight_zero_point", dtypes=integers, shapes=((-(-out // words), own[1]),))
        else:
            kind = "I8" if self.code == "int8" else "F8_E4M3"
            codes = Expected(name=f"{module}.weight", dtypes=frozenset({kind}), shapes=((out, columns),))
            zeros = Expected(name=f"{module}.weight_zero_point", dtypes=frozenset({"I8"}), shapes=shapes)
        if self.sorts:
            tensors["order"] = Expected(name=f"{module}.weight_g_idx", dtypes=integers, shapes=((columns,),))
        tensors |= {"codes": codes} | ({"zeros": zeros} if form.zeros else {})
        layout: Layout = PackedRows(bits=self.bits) if self.packed else PlainRows(block_rows=block_rows)
        return Stored(
            module=module, out=out, columns=columns, form=form, layout=layout, tensors=tensors,
            ignored=_ignored(module), sorts=self.sorts,
        )  # fmt: skip


def _ignored(module: str) -> dict[str, Expected]:
    """Return tensors that a layer may have and that say nothing of its weights."""
    scalar = ((), (1,))
    named = {
        "shape": Expected(name=f"{module}.weight_shape", dtypes=frozenset({"I64", "I32"}), shapes=((2,),)),
    }
    for name in ("input_scale", "output_scale"):
        named[name] = Expected(name=f"{module}.{name}", dtypes=SCALE_HEADERS, shapes=scalar)
    named["input_zero_point"] = Expected(
        name=f"{module}.input_zero_point", dtypes=frozenset({"I8", "F8_E4M3"}), shapes=scalar
    )
    return named


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedTensors:
    """The schemes of a checkpoint, and the layers that have none."""

    schemes: tuple[tuple[tuple[Target, ...], Scheme | None], ...]
    """Of groups of layers; None: their activations alone are quantized."""
    ignore: tuple[Target, ...]

    def stored(self, module: str, out: int, columns: int, scale_dtype: ScaleDType) -> Stored | None:
        """Return how a layer is stored; None where it has plain weights."""
        if any(target.has(module) for target in self.ignore):
            return None
        matched = [
            (target.rank(module), scheme)
            for targets, scheme in self.schemes
            for target in targets
            if target.has(module)
        ]
        best = min((rank for rank, _ in matched), default=None)
        chosen = next((scheme for rank, scheme in reversed(matched) if rank == best), None)
        return None if chosen is None else chosen.stored(module, out, columns, scale_dtype)


def read(settings: Settings) -> CompressedTensors | None:
    """Read the settings of compressed-tensors, None where all weights are plain, as where the KV cache alone has fewer
    bits; raise ConfigError.
    """
    formats = (*FORMATS, MIXED, DENSE)
    form = settings.one_of("format", formats, "pack-quantized", f"compressed otherwise, {NOT_READ}")
    settings.one_of("quantization_status", ("compressed", "frozen"), "compressed", "the weights are not quantized")
    for name in ("transform_config", "sparsity_config", "moe_sparsity_config"):
        value = settings.get(name)
        if name == "sparsity_config" and isinstance(value, dict) and value.get("format", "dense") == "dense":
            continue
        if value:
            raise settings.fail(name, f"found {quote(value)}, expected null: not computed here")
    ignore = _targets(settings, "ignore")
    of_cache = settings.get("kv_cache_scheme")
    schemes = tuple(_scheme(group, form) for _, group in settings.inner("config_groups").items())
    settings.finish("quant_method", "global_compression_ratio", "version")
    if not schemes and of_cache is None:
        raise settings.fail("config_groups", "found no group, expected at least one")
    if all(scheme is None for _, scheme in schemes):
        return None
    return CompressedTensors(schemes=schemes, ignore=ignore)


def _targets(settings: Settings, name: str) -> tuple[Target, ...]:
    return tuple(_target(text, settings, name) for text in settings.names(name))


def _target(text: str, settings: Settings, name: str) -> Target:
    expression = Pattern.read(text.removeprefix("re:"), settings, name) if text.startswith("re:") else None
    return Target(text=text, expression=expression)


def _scheme(group: Settings, of_all: str) -> tuple[tuple[Target, ...], Scheme | None]:
    """Read one group of layers: its targets, and how their weights are stored, None where they are plain."""
    targets = _targets(group, "targets")
    if group.get("weights") is None:
        group.finish("input_activations", "output_activations", "targets", "format")
        return targets, None
    if any(target.text == "Embedding" for target in targets):
        raise group.fail("targets", f"found 'Embedding', expected layers: codes of an embedding are {NOT_READ}")
    form = group.one_of("format", FORMATS, of_all, f"compressed otherwise, {NOT_READ}")
    group.finish("weights", "input_activations", "output_activations", "targets", "format")
    weights = group.inner("weights")
    bits = weights.one_of("num_bits", (4, 8), 8)
    kind = weights.one_of("type", ("int", "float"), "int")
    if kind == "float" and bits == 4:
        raise weights.fail("num_bits", f"found 4 of type float (NVFP4 or MXFP4), expected 8: {NOT_READ}")
    strategies = ("tensor", "channel", "group", "block")
    group_size, block = weights.get("group_size"), weights.get("block_structure")
    implied = "group" if group_size else "block" if block else "tensor"
    strategy = weights.one_of("strategy", strategies, implied)
    order = weights.one_of("actorder", ("static", "weight", "group", "dynamic", True, False), False)
    weights.one_of("dynamic", (False,), False, "weights have fixed scales")
    symmetric = weights.boolean("symmetric", True)
    weights.finish("observer", "observer_kwargs", "scale_dtype", "zp_dtype")
    if form == "pack-quantized" and kind != "int":
        raise weights.fail("type", "found float, expected int in pack-quantized")
    if bits == 4 and form != "pack-quantized":
        raise group.fail("format", f"found {quote(form)} of 4 bits, expected pack-quantized")
    if kind == "float" and not symmetric:
        raise weights.fail("symmetric", "found false, expected true of type float")
    if strategy == "block" and not symmetric:
        raise weights.fail("symmetric", "found false, expected true of blocks")
    sorts = order in ("group", "dynamic", True)
    if sorts and (strategy != "group" or kind != "int"):
        raise weights.fail("actorder", f"found {quote(order)}, expected none without groups of type int")
    if strategy == "group" and (type(group_size) is not int or not 1 <= group_size <= 1 << 16):
        raise weights.fail("group_size", f"found {quote(group_size)}, expected a positive integer")
    return targets, Scheme(
        packed=form == "pack-quantized",
        code="float8_e4m3fn" if kind == "float" else "int4" if bits == 4 else "int8",
        bits=bits,
        symmetric=symmetric,
        strategy=strategy,
        group=group_size if strategy == "group" else None,
        block=block_of(weights, block, "block_structure") if strategy == "block" else None,
        sorts=sorts,
    )
