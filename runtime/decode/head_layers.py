"""The layers of an EAGLE head: from the embedding of a token and a feature to the next feature.

Both kinds of EAGLE head predict the feature that follows a (feature, token) pair; an lm_head turns it into logits. They
differ in the input of their layers, and in the norm before the lm_head.

Shapes: W rows, H hidden size of the drafter, F width of a target feature.
"""

import torch
from torch import Tensor

from plans.kv import KvShare
from plans.schema import Draft
from plans.slot_records import DraftSlots
from runtime.model import ops
from runtime.model.blocks import Binder, Eagle3Layer, Layer
from runtime.model.layers import Attend, Linear, Norm, Rows
from runtime.model.whole_layers import WholeLayers, are_whole


class EagleHead:
    """Layers of an EAGLE-1 or -2 head: x = fc(embedding, feature), then layers; no norm before the lm_head."""

    def __init__(self, fc: Linear, layers: list[Layer]) -> None:
        self._fc, self._layers = fc, layers
        self._whole: WholeLayers | None = None

    def run_whole(self, caches: list[Tensor]) -> None:
        """Run the layers as kernels of their own from now on, where they are such; ``caches``: of every call."""
        self._whole = WholeLayers(self._layers, caches) if are_whole(self._layers, caches) else None

    def feature(self, target: Tensor) -> Tensor:
        """Return the target feature [W, H] as the layers take it: unchanged."""
        return target

    def joined(self, tokens: Tensor, table: Tensor, feature: Tensor, parents: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return on a GPU the arguments of ``behind``: embeddings of tokens beside features, or rows ``parents`` of
        these.
        """
        return ops.join(tokens, table, feature, parents, None, keep=False)

    def __call__(self, embedded: Tensor, feature: Tensor, caches: list[Tensor], rows: Rows) -> Tensor:
        """Return the output of the layers [W, H]."""
        return self.behind(torch.cat([embedded, feature], 1), feature, caches, rows)

    def behind(self, joined: Tensor, _: Tensor, caches: list[Tensor], rows: Rows) -> Tensor:
        """Return the output of the layers [W, H], of embeddings and features [W, 2H]."""
        hidden = self._fc(joined)
        if self._whole is not None:
            hidden = self._whole.begin(hidden, rows)
        for number, (layer, cache) in enumerate(zip(self._layers, caches, strict=True)):
            hidden = layer(hidden, cache, rows) if self._whole is None else self._whole.run(number)
        return hidden

    def read(self, hidden: Tensor) -> Tensor:
        """Return the input of the lm_head [W, H]."""
        return hidden


class Eagle3Head:
    """Layers of an EAGLE-3 head: target features go through fc, its own output does not; a norm before the lm_head."""

    def __init__(self, draft: Draft, fc: Linear | None, fc_norms: list[Norm], first: Eagle3Layer, others: list[Layer],
                 norm: Norm) -> None:  # fmt: skip
        """``fc_norms``: none, one of the whole feature, or one of each aux layer's hidden state."""
        self._fc, self._fc_norms, self._first, self._others, self._norm = fc, fc_norms, first, others, norm
        self._feeds_normed, self._scale = bool(draft.norm_output), draft.logit_scale
        self._whole: WholeLayers | None = None

    def run_whole(self, caches: list[Tensor]) -> None:
        """Run the layer as a kernel of its own from now on, where it is such; ``caches``: of every call."""
        layers: list[Layer | Eagle3Layer] = [self._first, *self._others]
        self._whole = WholeLayers(layers, caches) if are_whole(layers, caches) else None

    def feature(self, target: Tensor) -> Tensor:
        """Return the target feature [W, F] as the layers take it: fc(target) [W, H], normed before, or as it is."""
        if len(self._fc_norms) == 1:
            target = self._fc_norms[0](target)
        elif self._fc_norms:
            parts = target.chunk(len(self._fc_norms), 1)
            target = torch.cat([norm(x.contiguous()) for norm, x in zip(self._fc_norms, parts, strict=True)], 1)
        return target if self._fc is None else self._fc(target)

    def joined(self, tokens: Tensor, table: Tensor, feature: Tensor, parents: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return on a GPU the arguments of ``behind``, of embeddings of tokens, and features or rows ``parents``."""
        return self._first.joined(tokens, table, feature, parents)

    def __call__(self, embedded: Tensor, feature: Tensor, caches: list[Tensor], rows: Rows) -> Tensor:
        """Return what is fed back as the next feature [W, H]: the output of the layers, or that behind its norm."""
        return self.behind(*self._first.entered(embedded, feature), caches, rows)

    def behind(self, joined: Tensor, residual: Tensor, caches: list[Tensor], rows: Rows) -> Tensor:
        """Return the same, of both inputs behind their norms [W, 2H], and the residual [W, H]."""
        if self._whole is not None:
            self._whole.begin(residual, rows, joined)
            hidden = self._whole.run(0)
        else:
            hidden = self._first(joined, residual, caches[0], rows)
            for layer, cache in zip(self._others, caches[1:], strict=True):
                hidden = layer(hidden, cache, rows)
        return self._norm(hidden) if self._feeds_normed else hidden

    def read(self, hidden: Tensor) -> Tensor:
        """Return the input of the lm_head [W, H]."""
        normed = hidden if self._feeds_normed else self._norm(hidden)
        return normed if self._scale is None else normed * self._scale


def bind_head(
    draft: Draft, binder: Binder, slots: DraftSlots, share: KvShare, attended: Attend
) -> EagleHead | Eagle3Head:
    """Bind the layers of a head to its slots on this device."""
    eps, fc = draft.norm_eps, None if slots.fc is None else binder.linear(slots.fc, slots.fc_bias)
    first: Eagle3Layer | None = None
    layers: list[Layer] = []
    for own in slots.layers:
        attention = binder.attention(own.attention, draft.attention, share, eps, attended)
        norms = [binder.norm(norm, eps) for norm in own.norms]
        assert own.mlp.norm is not None
        mlp_norm, mlp = binder.norm(own.mlp.norm, eps), binder.mlp(own.mlp, draft.mlp)
        if len(norms) == 2:
            first = Eagle3Layer(
                norm_before_residual=bool(draft.norm_before_residual),
                input_norm=norms[0],
                hidden_norm=norms[1],
                attention=attention,
                mlp_norm=mlp_norm,
                mlp=mlp,
            )
        else:
            norm = norms[0] if norms else None
            layers.append(Layer(attention_norm=norm, attention=attention, mlp_norm=mlp_norm, mlp=mlp))
    if slots.norm is None or first is None:
        assert fc is not None, "an EAGLE-1 head has fc"
        return EagleHead(fc, layers)
    return Eagle3Head(draft, fc, _fc_norms(draft, binder, slots), first, layers, binder.norm(slots.norm, eps))


def _fc_norms(draft: Draft, binder: Binder, slots: DraftSlots) -> list[Norm]:
    """Return the norms before ``fc``, of which the slot has one behind the other."""
    if slots.fc_norm is None:
        return []
    count = len(draft.aux_layers) if draft.fc_norm == "each" else 1
    return [Norm(weight=weight, eps=draft.norm_eps) for weight in binder.tensor(slots.fc_norm).chunk(count)]
