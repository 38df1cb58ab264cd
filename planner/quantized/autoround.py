"""AutoRound's own layouts: the tensors of GPTQ or of AWQ; ``extra_config`` has exceptions, by names or expressions.

A key with a character that no name has is a regular expression, as AutoRound writes those of its ``layer_config``: it
is searched in a layer's name. A layer's own name goes before expressions, and of these the first that is found.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from planner.errors import ConfigError
from planner.quantized.gptq import HARMLESS, HEAD, AwqIntegers, Integers, group_of, require_decoder
from planner.quantized.records import ScaleDType, Stored
from planner.quantized.settings import Pattern, Settings
from plans.format import quote

PLAIN_BITS = 16
"""Bits of a layer that has plain weights."""
OF_EXPRESSIONS = frozenset(r"*+?^$()[]{}|\\")
"""Characters of regular expressions that are in no layer's name."""
AWQ = "auto_round:auto_awq"
STORED_ZERO = {"auto_round:auto_gptq": 1, "auto_round": 0, "auto_round:gptqmodel": 0, AWQ: 0}
"""Number that is subtracted from each zero point before it is stored, by ``packing_format``."""

Layer = Integers | AwqIntegers
"""Codes of a layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoRoundRecipe:
    """The layers of a checkpoint of AutoRound."""

    integers: Layer
    exceptions: Mapping[str, Layer | None]
    """By name of the layer; None: it has plain weights."""
    rules: tuple[tuple[Pattern, Layer | None], ...]
    """By expression, of layers that have no exception of their own."""
    where: str
    """Path of the exceptions in messages."""

    def stored(self, module: str, out: int, columns: int, scale_dtype: ScaleDType) -> Stored | None:
        """Return how a layer is stored; None where it has plain weights."""
        own = self._of(module)
        return None if own is None else own.stored(module, out, columns, scale_dtype)

    def _of(self, module: str) -> Layer | None:
        if module in self.exceptions:
            return self.exceptions[module]
        for expression, integers in self.rules:
            if expression.has(module):
                if module == HEAD and integers is not None:
                    raise ConfigError(f"{expression.where}, which is found in {HEAD}: expected {HEAD} by its own name")
                return integers
        return None if module == HEAD else self.integers

    def require_layers(self, modules: Set[str], others: tuple[str, ...]) -> None:
        """Raise ConfigError for an exception of a layer that is none of ``modules``, those of the model.

        ``others``: beginnings of names of parts of the model that are not read.
        """
        for name, integers in self.exceptions.items():
            if name not in modules and (name, integers) != (HEAD, None) and not name.startswith(others):
                raise ConfigError(
                    f"{self.where}[{quote(name)}]: the model has no such layer, expected the whole name of a linear "
                    "layer, or a regular expression"
                )


def read(settings: Settings) -> AutoRoundRecipe:
    """Read the settings of AutoRound; raise ConfigError."""
    packing = settings.one_of("packing_format", tuple(STORED_ZERO), "auto_round:auto_gptq", "packed otherwise")
    require_decoder(settings)
    integers = _integers(settings, None, packing)
    extra = settings.get("extra_config", {})
    if not isinstance(extra, dict):
        raise settings.fail("extra_config", f"found {quote(extra)}, expected an object")
    where = f"{settings.where}.extra_config"
    exceptions = {
        str(name): _exception(Settings(changes, f"{where}[{quote(name)}]"), integers, packing)
        for name, changes in extra.items()
        if changes != {}  # says nothing, so that of an expression the next one counts
    }
    rules = tuple(
        (Pattern.read(name, settings, "extra_config", anywhere=True), exceptions.pop(name))
        for name in list(exceptions)
        if not OF_EXPRESSIONS.isdisjoint(name)
    )
    settings.finish(
        *(name for name in HARMLESS if name != "packing_format"), "model_free", "super_bits", "super_group_size"
    )
    return AutoRoundRecipe(integers=integers, exceptions=exceptions, rules=rules, where=where)


def _integers(settings: Settings, default: Layer | None, packing: str) -> Layer:
    """Read sizes, which are those of ``default`` where nothing is said of them; None: they must be there."""
    of_awq = packing == AWQ
    known = default.bits if isinstance(default, Integers) else None if default is None else 4
    bits = settings.one_of("bits", (4,) if of_awq else (4, 8), known)
    settings.one_of("data_type", ("int",), "int")
    symmetric = settings.boolean("sym", default.symmetric if isinstance(default, Integers) else True)
    group = default.group if default is not None and settings.get("group_size") is None else group_of(settings)
    if of_awq:
        return AwqIntegers(group=group)
    return Integers(
        bits=bits, group=group, stored_zero=STORED_ZERO[packing], sorts=False, symmetric=symmetric, indexed=False
    )


def _exception(settings: Settings, integers: Layer, packing: str) -> Layer | None:
    """Read what is said of one layer; None: it has plain weights."""
    own = None
    if settings.get("bits") == PLAIN_BITS:
        settings.one_of("data_type", ("int", "float", "fp"), "float")
    else:
        own = _integers(settings, integers, packing)
    settings.finish(*HARMLESS, "group_size", "sym", "super_bits", "super_group_size")
    return own
