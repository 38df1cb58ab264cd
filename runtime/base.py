"""One device's part of the base model: its share of one stage, with everything that stage owns."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plans.buffers import forward_rows, layer_class, tree_rows
from plans.schema import Plan, Stage
from runtime.blocks import Binder, Head, Layer, Slots
from runtime.comm import Comm, Group
from runtime.kvcache import KvCache
from runtime.layers import Norm, Rows, hide, rotary_at, rotary_table
from runtime.memory import DTYPES, Memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """What the last stage knows of a forward's rows: the normed hidden state and the captured features."""

    normed: Tensor
    """[W, H]"""
    features: Tensor
    """[a, W, H]: eagle3: inputs of the a aux layers; eagle: the normed state, a = 1."""


class BaseStage:
    """A stage's layers on one of its devices, with the hop into it and the one out of it."""

    def __init__(self, plan: Plan, number: int, slots: Slots, memory: Memory, comm: Comm) -> None:
        group = comm.stages[number]
        assert group is not None
        stage, options = plan.stages[number], plan.options
        self._dtype = DTYPES[options.dtype]
        self._hop_in = comm.hops[number] if number else None
        self._hop_out = comm.hops[number + 1] if number + 1 < len(plan.stages) and group.leads else None
        binder = Binder(slots=slots, dtype=DTYPES[options.dtype], group=group, hidden=plan.model.hidden_size)
        self._layers = _layers(plan, stage, binder, group)
        eagle3 = plan.draft is not None and plan.draft.kind == "eagle3"
        aux = plan.draft.aux_layers if plan.draft is not None and eagle3 else ()
        self._captures = {layer - stage.first_layer: 1 + slot for slot, layer in enumerate(aux)}
        self._last = number == len(plan.stages) - 1
        self._embed = binder.embed("embed", plan.embed.rows) if number == 0 else None
        self._norm: Norm | None = binder.norm("norm", plan.model.norm_eps) if self._last else None
        self._head: Head | None = binder.head("head", plan.head.rows) if self._last else None
        self.cache = KvCache([memory.buffer(name) for name in memory.names("kv")], tree_rows(options))
        carry = memory.buffer("carry")
        self._planes, _, self._hidden = carry.shape
        self._carry = carry.flatten()
        self._bias = memory.buffer("bias")
        self._rotary = memory.buffer("rotary")
        inv_freq = slots.tensor("rope.inv_freq", (self._rotary.shape[2] // 2,), torch.float32)
        self._rotary.copy_(rotary_table(inv_freq, self._rotary.shape[1], self._dtype))
        self._number = torch.arange(forward_rows(options), device=carry.device)

    def prefill(self, tokens: Tensor, last: int) -> Forward | None:
        """Run a chunk of the prompt, tokens [C] of which 0 … ``last`` count, behind what is committed; commit it."""
        width, cache = tokens.shape[0], self.cache
        start, window = cache.tree_rows, cache.window(width)
        positions = self._number[:width] + cache.length
        bias = self._bias[:width, start:window]
        hide(bias, cache.columns[: window - start] <= positions.unsqueeze(1))
        output = self._forward(
            tokens,
            Rows(
                rotary=rotary_at(self._rotary, positions),
                bias=bias,
                seen=slice(start, window),
                written=cache.append(width, last),
            ),
        )
        cache.commit(last + 1)
        return output

    def verify(self, tokens: Tensor, mask: Tensor) -> Forward | None:
        """Run a tree, tokens [N] whose ancestors are ``mask`` [N, N], behind what is committed; commits nothing."""
        cache = self.cache
        place, window = cache.tree(tokens.shape[0]), cache.window(0)
        bias = self._bias[: tokens.shape[0], place.start : window]
        hide(bias[:, tokens.shape[0] :], cache.columns[place.stop : window] < place.stop + cache.length)
        hide(bias[:, : tokens.shape[0]], mask)
        return self._forward(
            tokens,
            Rows(
                rotary=rotary_at(self._rotary, mask.sum(1) + (cache.length - 1)),
                bias=bias,
                seen=slice(place.start, window),
                written=place,
            ),
        )

    def best(self, normed: Tensor) -> Tensor:
        """``normed`` [W, H] of the last stage -> the base's choice after each row [W]."""
        assert self._head is not None
        return self._head.best(normed)

    def _forward(self, tokens: Tensor, rows: Rows) -> Forward | None:
        """Hop in, layers, hop out; the output on the devices of the last stage, None elsewhere."""
        shape = (self._planes, tokens.shape[0], self._hidden)
        carry = self._carry[: math.prod(shape)].view(shape)
        if self._embed is not None:
            hidden = self._embed(tokens, self._dtype)
        else:
            assert self._hop_in is not None
            self._hop_in.broadcast(carry, self._hop_in.ranks[0])
            hidden = carry[0]
        for number, (layer, cache) in enumerate(zip(self._layers, self.cache.layers, strict=True)):
            if number in self._captures:
                carry[self._captures[number]].copy_(hidden)
            hidden = layer(hidden, cache, rows)
        if self._hop_out is not None:
            carry[0].copy_(hidden)
            self._hop_out.broadcast(carry, self._hop_out.ranks[0])
        if self._norm is None:
            return None
        normed = self._norm(hidden)
        return Forward(normed=normed, features=carry[1:] if self._planes > 1 else normed.unsqueeze(0))


def _layers(plan: Plan, stage: Stage, binder: Binder, group: Group) -> list[Layer]:
    layers: list[Layer] = []
    for run in stage.runs:
        for _ in range(run.num_layers):
            number = stage.first_layer + len(layers)
            kind, prefix, eps = layer_class(plan.model, number), f"layers.{number}", plan.model.norm_eps
            layers.append(
                Layer(
                    attention_norm=binder.norm(f"{prefix}.attention_norm", eps),
                    attention=binder.attention(
                        prefix, plan.model.hidden_size, kind.attention, run.kv_heads[group.index], eps
                    ),
                    mlp_norm=binder.norm(f"{prefix}.mlp_norm", eps),
                    mlp=binder.mlp(prefix, kind.mlp, run.mlp_units[group.index]),
                )
            )
    return layers
