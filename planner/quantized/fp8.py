"""FP8 (e4m3) weights: in blocks or with a scale per matrix, by the config's own method or ModelOpt's; or per row, by
FBGEMM's.
"""

from dataclasses import dataclass

from planner.quantized.layouts import PlainRows
from planner.quantized.records import SCALE_HEADERS, Expected, ScaleDType, Stored
from planner.quantized.settings import NOT_READ, Names, Settings, block_of
from plans.format import quote
from plans.quantized import groups
from plans.schema import WeightFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Recipe:
    """The layers of a checkpoint of FP8: all but those that are named."""

    block: tuple[int, int] | None
    """Rows and columns that share a scale; None: a whole matrix does, or each row has one of its own."""
    skipped: Names
    by_rows: bool = False

    def stored(self, module: str, out: int, columns: int, scale_dtype: ScaleDType) -> Stored | None:
        """Return how a layer is stored; None where it has plain weights."""
        if module == "lm_head" or self.skipped.have(module):
            return None
        rows, group = self.block or (1, None)
        form = WeightFormat(code="float8_e4m3fn", group=group, zeros=False, scale=scale_dtype)
        names = (f"{module}.weight_scale", f"{module}.weight_scale_inv")
        blocks = -(-out // rows), groups(form, columns)
        shapes: tuple[tuple[int, ...], ...] = ((), (1,)) if self.block is None else (blocks,)
        if self.by_rows:
            shapes = ((out, 1), (out,))
        tensors = {
            "codes": Expected(name=f"{module}.weight", dtypes=frozenset({"F8_E4M3"}), shapes=((out, columns),)),
            "scales": Expected(name=names[1], dtypes=SCALE_HEADERS, shapes=shapes)
            if self.block is not None
            else Expected(name=names[0], other=names[1], dtypes=SCALE_HEADERS, shapes=shapes),
        }
        activations = {
            name: Expected(name=f"{module}.{name}", dtypes=SCALE_HEADERS, shapes=((), (1,)))
            for name in ("input_scale", "activation_scale")
        }
        return Stored(
            module=module, out=out, columns=columns, form=form, layout=PlainRows(block_rows=rows), tensors=tensors,
            ignored=activations,
        )  # fmt: skip


def read_fp8(settings: Settings) -> Fp8Recipe:
    """Read the settings of the method ``fp8``; raise ConfigError."""
    settings.one_of("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
    settings.one_of("activation_scheme", ("dynamic", "static"), "dynamic")
    settings.one_of("scale_fmt", ("float",), "float")
    settings.one_of("expert_dtype", ("fp8",), "fp8")
    block = settings.get("weight_block_size")
    skipped = settings.names("modules_to_not_convert") + settings.names("ignored_layers")
    if settings.get("modules_to_convert"):
        raise settings.fail("modules_to_convert", "found names, expected none: other modules are not read here")
    settings.finish("quant_method", "dequantize", "kv_cache_scheme")  # a dtype of the KV cache is the plan's
    return Fp8Recipe(
        block=None if block is None else block_of(settings, block, "weight_block_size"), skipped=Names.read(*skipped)
    )


def read_fbgemm(settings: Settings) -> Fp8Recipe:
    """Read the settings of the method ``fbgemm_fp8``, a scale per row; raise ConfigError."""
    skipped = settings.names("modules_to_not_convert")
    settings.finish("quant_method", "activation_scale_ub")
    return Fp8Recipe(block=None, skipped=Names.read(*skipped), by_rows=True)


def read_modelopt(settings: Settings) -> Fp8Recipe | None:
    """Read ModelOpt's settings, of ``config.json`` or of the key ``quantization`` of ``hf_quant_config.json``.

    None: the algorithm is a null, and weights are plain, perhaps beside scales of a KV cache, which nothing needs.
    """
    algorithm = settings.get("quant_algo")
    if algorithm not in ("FP8", None):
        raise settings.fail("quant_algo", f"found {quote(algorithm)}, expected FP8: {NOT_READ}")
    skipped = settings.names("ignore") + settings.names("exclude_modules")
    settings.finish(
        "quant_method", "producer", "config_groups", "kv_cache_scheme", "kv_cache_quant_algo", "quantized_layers"
    )
    return None if algorithm is None else Fp8Recipe(block=None, skipped=Names.read(*skipped))
