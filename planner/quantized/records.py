"""A linear layer of a checkpoint that is stored quantized: its format, layout and tensors; and which layers are."""

import dataclasses
import math
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar, get_args

from planner.errors import ConfigError
from planner.quantized.layouts import Awq, Gptq, Layout
from plans.dtypes import HEADER_NAMES
from plans.quantized import BLOCK, SCALE_NAMES, code_bytes, groups, held_columns, is_half, share_format
from plans.ranges import Ranges, length
from plans.schema import WeightFormat

Part = Literal["codes", "scales", "zeros", "order"]
Proof = Literal["no_bias", "neighbours", "shape"]
"""A tensor beside a layer: a bias that the config has not, as AutoGPTQ writes it, of zeros; the group of each column,
which follow one another; rows and columns of the layer."""
Key = TypeVar("Key")
ScaleDType = Literal["bfloat16", "float16", "float32"]
SCALE_HEADERS = frozenset(HEADER_NAMES[dtype] for dtype in get_args(ScaleDType))
"""Names of those dtypes in a safetensors header."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """A tensor that a stored layer has in its checkpoint."""

    name: str
    dtypes: frozenset[str]
    """Names in a safetensors header, any of them."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes, any of them."""
    other: str | None = None
    """Name that it may have instead."""

    @property
    def digested(self) -> str:
        """The name for digests, the same whichever it has."""
        return min(self.name, self.other or self.name)

    def as_named(self, names: Container[str]) -> "Expected":
        """Return the tensor with the one of its two names that is in ``names``; with its first of both or none."""
        if self.other is None or self.name in names or self.other not in names:
            return self
        return dataclasses.replace(self, name=self.other, other=self.name)

    def renamed(self, rename: Callable[[str], str]) -> "Expected":
        """Return the tensor by other names."""
        return dataclasses.replace(
            self, name=rename(self.name), other=None if self.other is None else rename(self.other)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A linear layer [out, in] that is stored quantized."""

    module: str
    """Name of the layer: that of its tensors without the last part."""
    out: int
    columns: int
    """in, of the checkpoint"""
    form: WeightFormat
    """As the checkpoint has it."""
    layout: Layout
    tensors: Mapping[str, Expected]
    """Tensors that the layer has, by their role in the layout."""
    ignored: Mapping[str, Expected]
    """Tensors that it may have and nothing needs: scales of activations, the shape."""
    sorts: bool = False
    """Columns of a group need not be neighbours in the checkpoint: images have them sorted by groups. With ``ordered``
    of ``form`` the input is brought into their order; without it rows of gate and up have that order."""
    alike: Expected | None = None
    """With ``sorts``: groups of the columns of a layer that has the same input, and must have the same order."""
    share: Ranges | None = None
    """With ``ordered``: columns that the image of a device has; None: all."""
    proofs: Mapping[Proof, Expected] = field(default_factory=dict)
    """Tensors of which images have nothing, read to know that they are as the config says."""
    repeats: int = 1
    """Groups of an image for each group of the checkpoint: where devices cut within one, both have its scale."""

    @property
    def image_form(self) -> WeightFormat:
        """The format in images."""
        if self.form.ordered:
            return share_format(self.form, self.inputs, self.columns)
        if self.form.group is None or self.repeats == 1:
            return self.form
        return dataclasses.replace(self.form, group=self.form.group // self.repeats)

    @property
    def read(self) -> tuple[Expected, ...]:
        """Tensors from which images are made."""
        alike = () if self.alike is None else (self.alike,)
        return (*self.tensors.values(), *alike, *self.proofs.values())

    def as_named(self, names: Container[str]) -> "Stored":
        """Return the layer with tensors by the names that a checkpoint has, of those that they may have."""
        if all(tensor.other is None for tensor in self.tensors.values()):
            return self
        return dataclasses.replace(self, tensors={part: one.as_named(names) for part, one in self.tensors.items()})

    def renamed(self, rename: Callable[[str], str]) -> "Stored":
        """Return the layer by other names."""

        def others(tensors: Mapping[Key, Expected]) -> dict[Key, Expected]:
            return {key: tensor.renamed(rename) for key, tensor in tensors.items()}

        return dataclasses.replace(
            self,
            module=rename(self.module),
            tensors=others(self.tensors),
            ignored=others(self.ignored),
            alike=None if self.alike is None else self.alike.renamed(rename),
            proofs=others(self.proofs),
        )

    @property
    def inputs(self) -> int:
        """Columns of the input of a device, of those of the checkpoint."""
        return self.columns if self.share is None else length(self.share)

    @property
    def held_columns(self) -> int:
        """Columns of the image of a device: ``inputs``, and those that fill up groups."""
        return held_columns(self.form, self.inputs, self.columns)

    @property
    def groups(self) -> int:
        """Scales of a row in the checkpoint."""
        return groups(self.form, self.columns)

    def shape(self, part: Part) -> tuple[int, ...]:
        """Return the shape of a part in an image that has all rows and columns."""
        if part == "order":
            return (self.held_columns,)
        count = code_bytes if part == "codes" else groups
        return self.out, count(self.image_form, self.held_columns)

    def dtype(self, part: Part) -> str:
        """Return the name of a part's dtype in the header of an image."""
        return {"scales": SCALE_NAMES[self.form.scale], "order": "I32"}.get(part, "U8")

    def cut_at(self, columns: int) -> "Stored":
        """Return the layer with groups that end at multiples of ``columns``, where these are multiples of a block.

        Otherwise it is as it is, and devices divide it where both end.
        """
        group, common = self.form.group or 1, math.gcd(self.form.group or 1, columns)
        if self.form.ordered or common == group or common % BLOCK:
            return self
        return dataclasses.replace(self, repeats=group // common)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return the parts of the layer."""
        zeros: tuple[Part, ...] = ("zeros",) if self.form.zeros else ()
        order: tuple[Part, ...] = ("order",) if self.form.ordered else ()
        return "codes", "scales", *zeros, *order

    def folded(self) -> "Stored":
        """Return the layer without an order of its input: what computes that has the order of its columns."""
        return dataclasses.replace(self, form=dataclasses.replace(self.form, ordered=None))


def kv_scales(module: str) -> Iterator[str]:
    """Yield the names of scales and zero points of a KV cache of 8 bits beside a layer."""
    block = module.rpartition(".")[0]
    yield from (f"{block}.kv_scale", f"{module}.output_scale")
    for name in ("k", "v"):
        yield from (f"{module}.{name}_scale", f"{module}.{name}_zero_point", f"{block}.{name}_zero_point")
    yield from (f"{block}.{name}_scale" for name in ("q", "k", "v", "prob"))


def check(stored: Stored, where: str) -> Stored:
    """Return a layer whose sizes its format and its packing allow; raise ConfigError with both numbers."""
    form, name = stored.form, f"{where}: {stored.module}"
    if is_half(form) and stored.columns % BLOCK:
        raise ConfigError(f"{name}: found {stored.columns} columns, expected a multiple of {BLOCK} at 4 bits")
    if form.group is not None and form.code in ("int4", "int8") and stored.columns % form.group:
        raise ConfigError(f"{name}: found {stored.columns} columns, expected a multiple of group_size {form.group}")
    if form.group is not None and form.group % BLOCK:
        raise ConfigError(f"{name}: found group_size {form.group}, expected a multiple of {BLOCK}")
    if isinstance(stored.layout, Awq | Gptq):
        _require_words(stored, 32 // stored.layout.bits, name)
    return stored


def _require_words(stored: Stored, codes: int, name: str) -> None:
    """Raise ConfigError where rows, whose zero points are in words of so many, or columns are no whole words."""
    for size, axis in ((stored.out, "rows"), (stored.columns, "columns")):
        if size % codes:
            raise ConfigError(f"{name}: found {size} {axis}, expected a multiple of {codes}, whole words of 32 bits")


class Recipe(Protocol):
    """Which linear layers of a checkpoint are stored quantized, and how: what its config says."""

    def stored(self, module: str, out: int, columns: int, scale_dtype: ScaleDType) -> Stored | None:
        """Return how a layer [out, columns] is stored, None where it has plain weights; raise ConfigError.

        ``scale_dtype``: that of its scales, which a config does not say.
        """
        ...
