"""GPTQ (GPTQModel, AutoGPTQ, exports of AutoRound) and AWQ (AutoAWQ): integers of 4 or 8 bits, transposed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from planner.quantized.layouts import Awq, Gptq
from planner.quantized.records import SCALE_HEADERS, Expected, ScaleDType, Stored
from planner.quantized.settings import NOT_READ, Names, Pattern, Settings
from plans.format import quote
from plans.quantized import groups
from plans.schema import WeightFormat

WORDS = frozenset({"I32"})
_IN_LAYER = re.compile(r"(?:^|\.)layers\.\d+\.(.+)")
HARMLESS = (
    # How the codes were found, and what other programs do with them.
    *("quant_method", "meta", "model_name_or_path", "model_file_base_name", "true_sequential", "mse"),
    *("damp_percent", "damp_auto_increment", "quantizer", "tokenizer", "dataset", "is_marlin_format", "use_cuda_fp16"),
    *("use_exllama", "exllama_config", "max_input_length", "cache_block_outputs", "batch_size", "model_seqlen"),
    *("module_name_preceding_first_block", "pad_token_id", "hyb_act", "method", "pack_impl"),
    *("hf_device_map", "disable_exllama", "backend", "autoround_version", "packing_format", "data_type"),
    *("lr", "minmax_lr", "iters", "nsamples", "seqlen", "low_gpu_mem_usage", "gradient_accumulate_steps"),
    *("act_bits", "act_group_size", "act_dynamic", "act_sym", "enable_quanted_input", "enable_minmax_tuning"),
    *("scale_dtype", "provider", "act_group_aware", "amp", "enable_norm_bias_tuning", "act_data_type"),
    *("enable_alg_ext", "momentum", "not_use_best_mse"),
)
HEAD = "lm_head"
"""The linear layer outside the decoder's layers."""
DECODERS = ("model.layers", "model.language_model.layers", "language_model.model.layers")
"""Names of the decoder's layers in models, and in those of text and images."""


def require_decoder(settings: Settings) -> None:
    """Raise ConfigError where blocks are named whose layers alone are quantized, and the decoder's are none of them;
    or where GPTQModel adds an adapter to the layers (EoRA).
    """
    if settings.get("adapter"):
        raise settings.fail(
            "adapter",
            f"found {quote(settings.get('adapter'))}, expected null: a LoRA beside codes is not computed here",
        )
    for key in ("block_name_to_quantize", "to_quant_block_names"):
        value = settings.get(key, DECODERS[0])
        blocks = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(blocks, list) or not any(name in blocks for name in DECODERS):
            raise settings.fail(
                key, f"found {quote(value)}, expected {' or '.join(DECODERS)}: others are not read here"
            )


def group_of(settings: Settings) -> int | None:
    """Read ``group_size``, which has no default: -1 is one group of all columns."""
    size = settings.get("group_size")
    if size == -1:
        return None
    if type(size) is not int or not 1 <= size <= 1 << 16:
        raise settings.fail("group_size", f"found {quote(size)}, expected a positive integer, or -1")
    return size


@dataclass(frozen=True, kw_only=True, slots=True)
class Integers:
    """Codes of the layers of GPTQ: bits, groups, and the version of zero points."""

    bits: int
    group: int | None
    stored_zero: int
    sorts: bool
    """Columns of a group need not be neighbours."""
    symmetric: bool = False
    """Every zero point is the middle of the codes' range, as programs assume that do not read them."""
    indexed: bool = True
    """A tensor says to which group each column belongs; false: there may be none, and columns of groups follow."""

    def stored(self, module: str, out: int, columns: int, scale_dtype: ScaleDType) -> Stored:
        """Return how a layer is stored."""
        form = WeightFormat(
            code="int4" if self.bits == 4 else "int8",
            group=self.group,
            zeros=True,
            scale=scale_dtype,
            ordered=True if self.sorts and self.group is not None else None,
        )
        count, words = groups(form, columns), 32 // self.bits
        tensors = {
            "codes": Expected(name=f"{module}.qweight", dtypes=WORDS, shapes=((columns // words, out),)),
            "zeros": Expected(name=f"{module}.qzeros", dtypes=WORDS, shapes=((count, out // words),)),
            "scales": Expected(name=f"{module}.scales", dtypes=SCALE_HEADERS, shapes=((count, out),)),
        }
        order = Expected(name=f"{module}.g_idx", dtypes=WORDS, shapes=((columns,),))
        if self.indexed:
            tensors["order"] = order
        return Stored(
            module=module, out=out, columns=columns, form=form,
            layout=Gptq(bits=self.bits, stored_zero=self.stored_zero, symmetric=self.symmetric), tensors=tensors,
            ignored={} if self.indexed else {"neighbours": order},
            sorts=form.ordered is not None,
            proofs={"neighbours": order} if self.indexed and form.ordered is None else {},
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class GptqRecipe:
    """The layers of a checkpoint of GPTQ; ``rules``: exceptions by pattern, None where a layer has plain weights."""

    integers: Integers
    rules: tuple[tuple[Pattern, Integers | None], ...]
    head: bool
    """The lm_head is quantized too."""
    inside: frozenset[str] | None = None
    """Names within a decoder layer of those that are quantized; None: all of them."""

    def stored(self, module: str, out: int, columns: int, scale_dtype: ScaleDType) -> Stored | None:
        """Return how a layer is stored; None where it has plain weights."""
        if module == HEAD and not self.head:
            return None
        layer = _IN_LAYER.search(module)
        if self.inside is not None and layer is not None and layer[1] not in self.inside:
            return None
        for expression, integers in self.rules:
            if expression.has(module):
                return None if integers is None else integers.stored(module, out, columns, scale_dtype)
        return self.integers.stored(module, out, columns, scale_dtype)


def read_gptq(settings: Settings) -> GptqRecipe:
    """Read the settings of GPTQ; raise ConfigError."""
    bits = settings.one_of("bits", (4, 8), None)
    group = group_of(settings)
    settings.one_of("pack_dtype", ("int32",), "int32")
    versions, form = ("gptq", "gptq_v2"), settings.get("format")
    version = settings.one_of("checkpoint_format", versions, settings.one_of("format", versions, "gptq"))
    if form is not None:
        settings.one_of("format", (version,), version, "the same as checkpoint_format")
    sorts = _sorts(settings)
    settings.boolean("sym", True)
    head = settings.boolean("lm_head", False)
    require_decoder(settings)
    inside = _inside(settings)
    stored_zero = 1 if version == "gptq" else 0
    integers = Integers(bits=bits, group=group, stored_zero=stored_zero, sorts=sorts)
    rules = tuple(_rule(settings, text, changes, integers) for text, changes in _mapping(settings, "dynamic").items())
    settings.finish(*HARMLESS)
    return GptqRecipe(integers=integers, rules=rules, head=head, inside=inside)


def _inside(settings: Settings) -> frozenset[str] | None:
    """Read the names within a decoder layer of those that are quantized, of Optimum in lists of lists; None: all."""
    name = "modules_in_block_to_quantize"
    value = settings.get(name)
    if not value:
        return None
    lists = value if isinstance(value, list) else [value]
    names = [part for item in lists for part in (item if isinstance(item, list) else [item])]
    if not isinstance(value, list) or not all(isinstance(part, str) for part in names):
        raise settings.fail(name, f"found {quote(value)}, expected lists of names")
    return frozenset(map(str, names))


def _sorts(settings: Settings) -> bool:
    """Return whether columns of a group need not be neighbours: they are sorted before groups are made of them."""
    by_activation, static = settings.boolean("desc_act", False), settings.boolean("static_groups", False)
    return by_activation and not static


def _mapping(settings: Settings, name: str) -> Mapping[str, object]:
    value = settings.get(name, {})
    if not isinstance(value, dict):
        raise settings.fail(name, f"found {quote(value)}, expected an object")
    return value


def _rule(settings: Settings, text: str, changes: object, integers: Integers) -> tuple[Pattern, Integers | None]:
    """Read an exception of GPTQModel: ``-:pattern`` has plain weights, ``+:pattern`` or ``pattern`` other bits."""
    skipped, expression = text.startswith("-:"), Pattern.read(re.sub(r"^[+-]:", "", text), settings, "dynamic")
    if skipped:
        return expression, None
    own = Settings(changes, f"{settings.where}.dynamic[{quote(text)}]")
    bits = own.one_of("bits", (4, 8), integers.bits)
    group = integers.group if own.get("group_size") is None else group_of(own)
    sorts = integers.sorts
    if own.get("desc_act") is not None:
        sorts = _sorts(own)
    own.finish("sym", "static_groups", "mse", "damp_percent")
    return expression, Integers(bits=bits, group=group, stored_zero=integers.stored_zero, sorts=sorts)


@dataclass(frozen=True, kw_only=True, slots=True)
class AwqIntegers:
    """Codes of the layers of AWQ, of 4 bits."""

    group: int | None

    def stored(self, module: str, out: int, columns: int, scale_dtype: ScaleDType) -> Stored:
        """Return how a layer is stored."""
        form = WeightFormat(code="int4", group=self.group, zeros=True, scale=scale_dtype)
        count = groups(form, columns)
        tensors = {
            "codes": Expected(name=f"{module}.qweight", dtypes=WORDS, shapes=((columns, out // 8),)),
            "zeros": Expected(name=f"{module}.qzeros", dtypes=WORDS, shapes=((count, out // 8),)),
            "scales": Expected(name=f"{module}.scales", dtypes=SCALE_HEADERS, shapes=((count, out),)),
        }
        return Stored(module=module, out=out, columns=columns, form=form, layout=Awq(), tensors=tensors, ignored={})


@dataclass(frozen=True, kw_only=True, slots=True)
class AwqRecipe:
    """The layers of a checkpoint of AWQ."""

    integers: AwqIntegers
    skipped: Names

    def stored(self, module: str, out: int, columns: int, scale_dtype: ScaleDType) -> Stored | None:
        """Return how a layer is stored; None where it has plain weights."""
        if module == HEAD or self.skipped.have(module):
            return None
        return self.integers.stored(module, out, columns, scale_dtype)


def read_awq(settings: Settings) -> AwqRecipe:
    """Read the settings of AWQ; raise ConfigError."""
    settings.one_of("bits", (4,), None)
    version = settings.get("version", settings.get("format", "gemm"))
    if not isinstance(version, str) or version.lower() != "gemm":
        raise settings.fail("version", f"found {quote(version)}, expected gemm: packed otherwise, {NOT_READ}")
    settings.one_of("lm_head", (False,), False, "a quantized lm_head is not read here")
    settings.one_of("zero_point", (True,), True, "codes without zero points are not read here")
    skipped = settings.names("modules_to_not_convert")
    group = group_of(settings)
    require_decoder(settings)
    settings.finish(
        *HARMLESS, "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "format", "sym", "desc_act", "pack_dtype",
        "checkpoint_format",
    )  # fmt: skip
    return AwqRecipe(integers=AwqIntegers(group=group), skipped=Names.read(*skipped))
