"""KV caches of a device: which layers share one, its shape and its bytes.

Letters as in ``plans.buffers``.
"""

import math
from dataclasses import dataclass

from plans.dtypes import KV_DTYPE_BYTES, cached_width
from plans.kv import KvShare
from plans.schema import Attention, Draft, Model, Options, Stage
from plans.step import (
    ROW_ALIGN,
    cache_positions,
    draft_tree_rows,
    layer_class,
    round_up,
    tree_rows,
)

CacheShape = tuple[int, int, int, int, int]
"""Layers, B, T, 2k, D."""


def kv_bytes(options: Options, attention: Attention, share: KvShare) -> int:
    """Return the bytes of KV of one base layer for a share; linear in its KV heads."""
    return _cache_bytes(options, attention, share, tree_rows(options))


def draft_kv_bytes(options: Options, draft: Draft, share: KvShare) -> int:
    """Return the bytes of KV of all layers of the drafter for a share; linear in its KV heads."""
    return draft.num_layers * _cache_bytes(options, draft.attention, share, draft_tree_rows(draft, options))


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedLayers:
    """Layers of one run that have one window: their KV is one buffer."""

    layers: tuple[int, ...]
    """Their global indices, ascending."""
    attention: Attention
    """Of the first; the others' differs in no size."""
    kv_heads: tuple[int, ...]
    """KV heads of the run, per device of the stage."""

    @property
    def name(self) -> str:
        """Name of the buffer."""
        return f"kv.{self.layers[0]}"


def caches_of(model: Model, stage: Stage) -> tuple[CachedLayers, ...]:
    """Return the KV buffers of a stage, in the order of their first layers."""
    first, caches = stage.first_layer, []
    for run in stage.runs:
        of_window: dict[int | None, list[int]] = {}
        for layer in range(first, first + run.num_layers):
            of_window.setdefault(layer_class(model, layer).attention.window, []).append(layer)
        for layers in of_window.values():
            attention = layer_class(model, layers[0]).attention
            caches.append(CachedLayers(layers=tuple(layers), attention=attention, kv_heads=run.kv_heads))
        first += run.num_layers
    return tuple(caches)


def cache_shape(options: Options, attention: Attention, share: KvShare, num_layers: int, tree: int) -> CacheShape:
    """Return layers, B, T, 2k (keys, then values), D; one of B, T, D is divided over a subgroup, by ``heads`` none.

    Of T those of the sequence are divided, not the ``tree`` rows before them.
    """
    sequences, dims, parts = options.batch, attention.head_dim, share.parts
    positions = cache_positions(options, attention.window)
    if share.axis == "batch":
        sequences = -(-sequences // parts)
    elif share.axis == "context":
        positions = -(-positions // parts)
    elif share.axis == "head_dim":
        assert dims % (2 * parts) == 0, "a part of a head is whole rotary pairs"
        dims //= parts
    return (num_layers, sequences, round_up(tree + positions, ROW_ALIGN), 2 * share.heads, dims)


def stored_shape(options: Options, attention: Attention, share: KvShare, num_layers: int, tree: int) -> CacheShape:
    """Return the shape of a cache as it is stored: in codes with a scale behind those of each head."""
    layers, sequences, rows, both, dims = cache_shape(options, attention, share, num_layers, tree)
    return (layers, sequences, rows, both, cached_width(options.kv_dtype, dims))


def _cache_bytes(options: Options, attention: Attention, share: KvShare, tree: int) -> int:
    return math.prod(stored_shape(options, attention, share, 1, tree)) * KV_DTYPE_BYTES[options.kv_dtype]
