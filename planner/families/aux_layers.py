"""Resolve which boundaries of the base an EAGLE-3 head was trained on; who wrote the ids decides what they mean.

Boundary k is the hidden state that enters layer k of L, before its norm; L is what leaves the last layer, before the
final norm. Writers and readers of ``eagle_aux_hidden_state_layer_ids`` differ:

| ids | mean |
|---|---|
| at the top of the config (speculators, vLLM) | boundaries |
| in ``eagle_config``, the first 2 or more, or one of them L | boundaries |
| in ``eagle_config``, the first 1 and the last below L - 1 (SpecForge, TorchSpec) | outputs: boundary k + 1 |
| the same for gpt-oss, or from ModelOpt | either: ModelOpt writes outputs, from dumps of vLLM boundaries |
| none, from SafeAILab/EAGLE, SpecForge, AngelSlim, speculators | boundaries 2, L // 2, L - 3 |
| none, from others | unknown: the default is wrong for some published heads |

What is ambiguous or unknown is refused with the option that decides, ``--aux-layers``. A bare config without ids is
planned with the default, since it does not tell who wrote it; its head is refused when it is compiled.
"""

from dataclasses import dataclass
from typing import Any

from planner.families.config import Keys
from plans.check_model import MOST_AUX_LAYERS
from plans.format import quote
from plans.schema import AuxSource, Model

AUX_LAYERS = "eagle_aux_hidden_state_layer_ids"
_INNER = f"eagle_config: {AUX_LAYERS}"


@dataclass(frozen=True, kw_only=True, slots=True)
class AuxLayers:
    """Boundaries of the base, and where they are from, as ``plans.schema.Draft`` records them."""

    layers: tuple[int, ...]
    source: AuxSource | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Writer:
    """Facts about the program that wrote a head."""

    modelopt: bool
    """Its ``eagle_config`` has keys that ModelOpt alone writes."""
    default: bool
    """True: a producer that trains on the default boundaries and names none, or a bare config that does not tell."""


def resolve(keys: Keys, outer: Any, inner: Any, base: Model, writer: Writer, planned: AuxLayers | None) -> AuxLayers:
    """Return the boundaries; raise ConfigError where they are ambiguous, unknown or none of the base's.

    ``outer``, ``inner``: ids at the top and in ``eagle_config``. ``planned``: those of an option, or of a plan.
    """
    if planned is not None and planned.source == "option":
        return AuxLayers(layers=_checked(keys, "--aux-layers", list(planned.layers), 0, base), source="option")
    outer, inner = (None if ids == [] else ids for ids in (outer, inner))
    if outer is not None and inner is not None:
        both = f"found here and in eagle_config, expected one of the two: {_asked(outer)} decides"
        raise keys.fail(AUX_LAYERS, both)
    if outer is not None:
        return AuxLayers(layers=_checked(keys, AUX_LAYERS, outer, 0, base), source="inputs")
    if inner is not None:
        return _of_eagle_config(keys, inner, base, writer)
    if planned is None and not writer.default:
        raise keys.fail(
            AUX_LAYERS,
            "missing, and nothing tells on which layers of the base the head was trained: the default is wrong for "
            "some heads of this layout, which then accept almost nothing: give --aux-layers inputs=... or outputs=..., "
            f"as its authors say, for the default {_asked(_default(keys, base))}",
        )
    return AuxLayers(layers=_default(keys, base), source=None)


def _of_eagle_config(keys: Keys, ids: Any, base: Model, writer: Writer) -> AuxLayers:
    layers, last = _checked(keys, _INNER, ids, 0, base), base.num_layers
    if layers[0] >= 2 or layers[-1] == last:
        return AuxLayers(layers=layers, source="inputs")
    if layers[0] == 1 and layers[-1] < last - 1 and not writer.modelopt and base.family != "gpt_oss":
        return AuxLayers(layers=tuple(k + 1 for k in layers), source="outputs")
    raise keys.fail(
        _INNER,
        f"found {quote(ids)}, which may name layers by their outputs (SpecForge, ModelOpt as a rule), the inputs of "
        f"layers {', '.join(str(k + 1) for k in layers)}, or by their inputs (ModelOpt from dumps of vLLM): give "
        f"{_asked(layers, 'outputs')} or {_asked(layers)}; the right one accepts more",
    )


def _asked(layers: Any, side: str = "inputs") -> str:
    text = ",".join(map(str, layers)) if isinstance(layers, list | tuple) and len(str(layers)) < 100 else "..."
    return f"--aux-layers {side}={text}"


def _default(keys: Keys, base: Model) -> tuple[int, ...]:
    count = base.num_layers
    if count < 7:
        raise keys.fail(
            AUX_LAYERS,
            f"missing, and layers 2, L // 2 and L - 3 of a base model with L = {count} layers are not three "
            "different ones in order: expected at least 7 layers, or layers named by --aux-layers",
        )
    return 2, count // 2, count - 3


def _checked(keys: Keys, name: str, ids: Any, least: int, base: Model) -> tuple[int, ...]:
    """Return ids as boundaries; raise ConfigError unless they are some of the base's, different, in order."""
    most = base.num_layers
    numbers = isinstance(ids, list) and 1 <= len(ids) <= MOST_AUX_LAYERS and all(type(i) is int for i in ids)
    if not numbers or ids != sorted(set(ids)) or ids[0] < least or ids[-1] > most:
        expected = f"1 to {MOST_AUX_LAYERS} different layers from {least} to {most}, in order"
        raise keys.fail(name, f"found {quote(ids)}, expected {expected}")
    return tuple(ids)


def parse_aux_layers(text: str) -> tuple[int, ...] | None:
    """Parse ``inputs=2,18,33``, or ``outputs=1,17,32`` of the same meaning, to boundaries; None for another text."""
    side, equals, numbers = text.partition("=")
    items = numbers.split(",")
    if side not in ("inputs", "outputs") or not equals or not all(i.isascii() and i.isdigit() for i in items):
        return None
    if len(items) > MOST_AUX_LAYERS or any(len(i) > 6 for i in items):
        return None
    layers = [int(i) + (side == "outputs") for i in items]
    return tuple(layers) if layers == sorted(set(layers)) else None
