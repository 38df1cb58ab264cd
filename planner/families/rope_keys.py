"""Read the keys of the rotary embedding, in either spelling: ``rope_theta`` + ``rope_scaling``, and ``rope_parameters``
of transformers 5, which may have an object for each type of layer.

Keys and defaults are those of transformers' ``modeling_rope_utils``. A type that is not computed is refused by name.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.families.config import Keys
from planner.families.rope import DynamicScaling, LinearScaling, Llama3Scaling, LongScaling, Rope, Scaling, YarnScaling
from plans.format import quote

MOST_THETA = 1e12
LEAST_FACTOR, MOST_FACTOR = 1e-6, 1e6
"""Range of the factors of scaled rotary embeddings, in which frequencies stay within float32."""
TYPES = "default, linear, dynamic, yarn, longrope, llama3"


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeDefaults:
    """Values that a family assumes for absent keys, and which of them it reads."""

    theta: float = 10000.0
    max_positions: int
    """``max_position_embeddings`` of the config."""
    partial: float | None = None
    """``partial_rotary_factor`` of a config without it; None: the family rotates all channels."""
    original: int | None = None
    """``original_max_position_embeddings`` of a config without it; None: ``max_positions``."""
    longrope_names: tuple[str, ...] = ()
    """Other names of the type longrope."""
    interleaved: bool = False


def read_rope(
    keys: Keys,
    head_dim: int,
    defaults: RopeDefaults,
    *,
    absent: Mapping[str, Any] | None = None,
    other: frozenset[str] = frozenset(),
) -> Rope:
    """Read the rotary embedding that all layers have; raise ConfigError.

    ``absent``: the object of a config without one; None: an empty one. ``other``: keys in it that the family reads.
    """
    new = keys.has("rope_parameters")
    if new and keys.has("rope_scaling"):
        raise keys.fail("rope_parameters", "found beside rope_scaling, expected one of the two spellings")
    name = "rope_parameters" if new else "rope_scaling"
    keys.get("rope_scaling")
    return _read(keys, _object(keys, name, absent), head_dim, defaults, other)


def read_rope_of(keys: Keys, layer_type: str, head_dim: int, defaults: RopeDefaults) -> Rope:
    """Read the rotary embedding of one type of layer, from its object inside ``rope_parameters``; raise ConfigError."""
    types = _object(keys, "rope_parameters")
    if not types.has(layer_type):
        raise types.fail(layer_type, "missing, expected an object: the config has one for each type of layer")
    return _read(keys, _object(types, layer_type), head_dim, defaults)


def _object(keys: Keys, name: str, absent: Mapping[str, Any] | None = None) -> Keys:
    value = keys.get(name, dict(absent or {}))
    if not isinstance(value, dict):
        raise keys.fail(name, f"found {quote(value)}, expected an object")
    return Keys(value, f"{keys.where}: {name}")


def _read(keys: Keys, fields: Keys, head_dim: int, defaults: RopeDefaults, other: frozenset[str] = frozenset()) -> Rope:
    inner = fields.number("rope_theta", defaults.theta, least=1, most=MOST_THETA)
    theta = keys.number("rope_theta", inner, least=1, most=MOST_THETA)
    if fields.has("rope_theta") and theta != inner:
        raise keys.fail("rope_theta", f"found {theta}, expected {inner} as in {fields.where.rpartition(': ')[2]}")
    dim = head_dim if defaults.partial is None else _channels(keys, fields, head_dim, defaults.partial)
    rope = Rope(theta=theta, dim=dim, scaling=None, passed=head_dim - dim, interleaved=defaults.interleaved)
    scaling = _read_scaling(keys, fields, rope, defaults)
    fields.finish(other)
    return dataclasses.replace(rope, scaling=scaling)


def _channels(keys: Keys, fields: Keys, head_dim: int, default: float) -> int:
    """Return how many channels of a head are rotated."""
    name = "partial_rotary_factor"
    outer = keys.number(name, default, least=0, most=1)
    dim = int(head_dim * fields.number(name, outer, least=0, most=1))
    if dim < 2 or dim % 2:
        problem = f"gives {dim} rotated channels of {head_dim}, expected an even number of at least 2"
        raise (fields if fields.has(name) else keys).fail(name, problem)
    return dim


def _factor(fields: Keys, name: str) -> float:
    return fields.number(name, least=LEAST_FACTOR, most=MOST_FACTOR)


def _optional(fields: Keys, name: str) -> float | None:
    return None if fields.get(name) is None else _factor(fields, name)


def _read_scaling(keys: Keys, fields: Keys, rope: Rope, defaults: RopeDefaults) -> Scaling | None:
    rope_type = fields.get("rope_type", fields.get("type", "default"))
    fields.expect("type", rope_type, "rope_type and type must agree")
    if rope_type in defaults.longrope_names:
        rope_type = "longrope"
    if rope_type == "default":
        return None
    if rope_type == "linear":
        return LinearScaling(factor=_factor(fields, "factor"))
    if rope_type == "dynamic":
        if rope.dim <= 2:
            raise fields.fail("rope_type", f"found dynamic with {rope.dim} rotated channels, expected at least 4")
        factor = fields.number("factor", least=1, most=MOST_FACTOR)
        return DynamicScaling(factor=factor, max_position_embeddings=defaults.max_positions)
    if rope_type == "yarn":
        return _yarn(keys, fields, rope, defaults)
    if rope_type == "longrope":
        return _longrope(keys, fields, rope, defaults)
    if rope_type == "llama3":
        return _llama3(fields)
    raise fields.fail("rope_type", f"found {quote(rope_type)}, expected one of {TYPES}")


def _llama3(fields: Keys) -> Llama3Scaling:
    scaling = Llama3Scaling(
        factor=_factor(fields, "factor"),
        low_freq_factor=_factor(fields, "low_freq_factor"),
        high_freq_factor=_factor(fields, "high_freq_factor"),
        original_max_position_embeddings=fields.integer("original_max_position_embeddings"),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise fields.fail("high_freq_factor", f"found {scaling.high_freq_factor}, expected more than low_freq_factor")
    return scaling


def _original(keys: Keys, fields: Keys, defaults: RopeDefaults) -> int:
    """Return the length before scaling; one beside the object, or the family's, goes before one inside it, so that they
    must agree.
    """
    name = "original_max_position_embeddings"
    outer = keys.integer(name, defaults.original or defaults.max_positions)
    inner = fields.integer(name, outer)
    if (keys.has(name) or defaults.original is not None) and inner != outer:
        raise fields.fail(name, f"found {inner}, expected {outer} as beside it")
    return inner


def _yarn(keys: Keys, fields: Keys, rope: Rope, defaults: RopeDefaults) -> YarnScaling:
    if rope.theta <= 1:
        raise fields.fail("rope_theta", f"found {rope.theta}, expected more than 1: YaRN divides by its logarithm")
    original = _original(keys, fields, defaults)
    factor = _optional(fields, "factor") or defaults.max_positions / original
    stated = _optional(fields, "attention_factor")
    mscale, all_dim = (fields.number(name, 0.0, least=0, most=MOST_FACTOR) for name in ("mscale", "mscale_all_dim"))
    by_both = bool(mscale and all_dim)
    inferred = _mscale(factor, mscale) / _mscale(factor, all_dim) if by_both else _mscale(factor, 1.0)
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=fields.number("beta_fast", 32.0, least=LEAST_FACTOR, most=MOST_FACTOR),
        beta_slow=fields.number("beta_slow", 1.0, least=LEAST_FACTOR, most=MOST_FACTOR),
        truncate=fields.boolean("truncate", True),
        attention_factor=inferred if stated is None else stated,
    )


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(keys: Keys, fields: Keys, rope: Rope, defaults: RopeDefaults) -> LongScaling:
    original = _original(keys, fields, defaults)
    factor = _optional(fields, "factor") or defaults.max_positions / original
    stated = _optional(fields, "attention_factor")
    if stated is None and original < 2:
        raise fields.fail("original_max_position_embeddings", f"found {original}, expected at least 2: a logarithm")
    inferred = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return LongScaling(
        short_factor=_factors(fields, "short_factor", rope.dim // 2),
        long_factor=_factors(fields, "long_factor", rope.dim // 2),
        original_max_position_embeddings=original,
        attention_factor=inferred if stated is None else stated,
    )


def _factors(fields: Keys, name: str, count: int) -> tuple[float, ...]:
    """Return a list of factors, one for each rotated pair."""
    values = fields.get(name)
    expected = f"expected a list of {count} numbers from {LEAST_FACTOR:g} to {MOST_FACTOR:g}, one for each rotary pair"
    if not isinstance(values, list) or len(values) != count:
        found = f"a list of {len(values)}" if isinstance(values, list) else quote(values)
        raise fields.fail(name, f"found {found}, {expected}")
    for value in values:
        if type(value) not in (int, float) or not LEAST_FACTOR <= value <= MOST_FACTOR:
            raise fields.fail(name, f"found {quote(value)}, {expected}")
    return tuple(map(float, values))
