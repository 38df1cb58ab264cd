"""Read which layers attend over a sliding window, and how many positions it has.

A window of w positions is a row's own and the w - 1 before it, as in transformers.
"""

import dataclasses
from collections.abc import Sequence
from itertools import groupby

from planner.families.config import Keys
from plans.format import quote
from plans.schema import Attention, LayerClass, Mlp, Model
from plans.step import layer_class

SLIDING, FULL = "sliding_attention", "full_attention"

Windows = tuple[int | None, ...]
"""Window of each layer; None: it attends to all positions."""


def read_window(keys: Keys, absent: int | None = None) -> int | None:
    """Read ``sliding_window``: null is none, and ``absent`` what an absent key means."""
    if not keys.has("sliding_window"):
        keys.get("sliding_window")
        return None if keys.spells("sliding_window") else absent
    return keys.integer("sliding_window")


def read_layer_types(keys: Keys, default: Sequence[str]) -> tuple[str, ...]:
    """Read ``layer_types``, one for each layer: sliding_attention or full_attention; absent: ``default``."""
    types = keys.get("layer_types", list(default))
    if not isinstance(types, list) or any(kind not in (SLIDING, FULL) for kind in types):
        raise keys.fail("layer_types", f"found {quote(types)}, expected {SLIDING} or {FULL} for every layer")
    if len(types) != len(default):
        raise keys.fail("layer_types", f"found {len(types)} of them, expected {len(default)}: one for each layer")
    return tuple(types)


def typed_windows(keys: Keys, window: int | None, default: Sequence[str]) -> Windows:
    """Return the window of each layer by ``layer_types``, which may be absent."""
    types = read_layer_types(keys, default)
    if window is None and SLIDING in types:
        raise keys.fail("layer_types", f"found {SLIDING} without a window, expected {FULL} in every layer")
    return tuple(window if kind == SLIDING else None for kind in types)


def switched_windows(keys: Keys, layers: int, *, by_layer: bool = True) -> Windows:
    """Return the window of each layer of a config with ``use_sliding_window``, which is false when absent.

    ``by_layer``: in a family whose windows begin at layer ``max_window_layers`` or are as in ``layer_types``; otherwise
    they are in every layer.
    """
    window, first = read_window(keys, 4096), keys.get("max_window_layers", 28)
    if type(first) is not int or first < 0:
        raise keys.fail("max_window_layers", f"found {quote(first)}, expected a number of layers")
    window = window if keys.boolean("use_sliding_window", False) else None
    if not by_layer:
        return (window,) * layers
    return typed_windows(keys, window, [FULL if window is None or i < first else SLIDING for i in range(layers)])


def classes_of(layers: Sequence[tuple[Attention, Mlp]]) -> tuple[tuple[LayerClass, ...], tuple[int, ...] | None]:
    """Return the classes of these layers, and their pattern: None of a model without windows, each run a class."""
    if all(attention.window is None for attention, _ in layers):
        runs = ((layer, len(list(run))) for layer, run in groupby(layers))
        return tuple(_class(layer, count) for layer, count in runs), None
    kinds = list(dict.fromkeys(layers))
    numbers = [kinds.index(layer) for layer in layers]
    classes = tuple(_class(layer, numbers.count(number)) for number, layer in enumerate(kinds))
    return classes, None if numbers == sorted(numbers) else _period(tuple(numbers))


def _class(layer: tuple[Attention, Mlp], count: int) -> LayerClass:
    return LayerClass(num_layers=count, attention=layer[0], mlp=layer[1])


def within(model: Model, context: int) -> Model:
    """Return a model of so many positions: a window that shows all of them is none, and so is a factor that is 1."""
    if model.query_scaling is not None and model.query_scaling.positions >= context:
        model = dataclasses.replace(model, query_scaling=None)
    layers = [layer_class(model, number) for number in range(model.num_layers)]
    if all(kind.attention.window is None or kind.attention.window < context for kind in model.layers):
        return model
    seen = [(_within(kind.attention, context), kind.mlp) for kind in layers]
    classes, pattern = classes_of(seen)
    return dataclasses.replace(model, layers=classes, pattern=pattern)


def _within(attention: Attention, context: int) -> Attention:
    window = attention.window
    return attention if window is None or window < context else dataclasses.replace(attention, window=None)


def _period(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shortest beginning that repeats as the whole does."""
    lengths = range(1, len(numbers) + 1)
    return next(numbers[:n] for n in lengths if all(number == numbers[i % n] for i, number in enumerate(numbers)))
