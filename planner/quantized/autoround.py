"""AutoRound's own layout: the tensors of GPTQ, symmetric; exceptions by names of layers are in ``extra_config``."""

from collections.abc import Mapping
from dataclasses import dataclass

from planner.quantized.gptq import HARMLESS, HEAD, Integers, group_of
from planner.quantized.records import ScaleDType, Stored
from planner.quantized.settings import Settings
from plans.format import quote

PLAIN_BITS = 16
"""Bits of a layer that has plain weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoRoundRecipe:
    """The layers of a checkpoint of AutoRound."""

    integers: Integers
    exceptions: Mapping[str, Integers | None]
    """By name of the layer; None: it has plain weights."""

    def stored(self, module: str, out: int, columns: int, scale_dtype: ScaleDType) -> Stored | None:
        """Return how a layer is stored; None where it has plain weights."""
        own = self.exceptions.get(module, None if module == HEAD else self.integers)
        return None if own is None else own.stored(module, out, columns, scale_dtype)


def read(settings: Settings) -> AutoRoundRecipe:
    """Read the settings of AutoRound; raise ConfigError."""
    settings.one_of("packing_format", ("auto_round:auto_gptq",), "auto_round:auto_gptq", "packed otherwise")
    settings.one_of("block_name_to_quantize", ("model.layers",), "model.layers", "other layers are not read here")
    integers = _integers(settings, 4, None)
    extra = settings.get("extra_config", {})
    if not isinstance(extra, dict):
        raise settings.fail("extra_config", f"found {quote(extra)}, expected an object")
    exceptions = {
        str(name): _exception(Settings(changes, f"{settings.where}.extra_config[{quote(name)}]"), integers)
        for name, changes in extra.items()
    }
    settings.finish(
        *(name for name in HARMLESS if name != "packing_format"), "model_free", "super_bits", "super_group_size"
    )
    return AutoRoundRecipe(integers=integers, exceptions=exceptions)


def _integers(settings: Settings, bits: int, default: Integers | None) -> Integers:
    bits = settings.one_of("bits", (4, 8), bits)
    settings.one_of("data_type", ("int",), "int")
    settings.one_of("sym", (True,), True, "zero points of this layout are not read here")
    group = default.group if default is not None and settings.get("group_size") is None else group_of(settings)
    return Integers(bits=bits, group=group, stored_zero=1, sorts=False, middle=True)


def _exception(settings: Settings, integers: Integers) -> Integers | None:
    """Read what is said of one layer; None: it has plain weights."""
    own = None
    if settings.get("bits") == PLAIN_BITS:
        settings.one_of("data_type", ("int", "float", "fp"), "float")
    else:
        own = _integers(settings, integers.bits, integers)
    settings.finish(*HARMLESS, "group_size", "sym", "super_bits", "super_group_size")
    return own
