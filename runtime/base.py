"""One device's part of the base model: its share of the embedding, of one stage, of the head, or of several of them.

    embedding          stage 0                 stage s                       head
    ─────────          ───────                 ───────                       ────
    rows, summed
      ── hidden ─────► layers
                         ── hidden, features ► layers
                                                 ── hidden, features ──────► final norm, best tokens

Each arrow is one broadcast from a group's leader to the next group, and none where both are the same devices; a leader
that is in the next group too goes on with what it sent.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plans.buffers import forward_rows, layer_class, tree_rows
from plans.schema import Plan, Stage
from runtime.blocks import Binder, Layer, Slots
from runtime.comm import Comm, Group
from runtime.kvcache import KvCache
from runtime.layers import Rows, hide, rotary_at, rotary_table
from runtime.memory import DTYPES, Memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """What the head knows of a forward's rows: the normed hidden state and the captured features."""

    normed: Tensor
    """[W, H]"""
    features: Tensor
    """[a, W, H]: eagle3: inputs of the a aux layers; eagle: the normed state, a = 1."""


class Base:
    """What one device has of the base model, run in the order of the model."""

    def __init__(self, plan: Plan, slots: Slots, memory: Memory, comm: Comm) -> None:
        stage = next((s for s, group in enumerate(comm.stages) if group is not None), None)
        self._embedding = None if comm.embed is None else BaseEmbedding(plan, slots, memory, comm)
        self._stage = None if stage is None else BaseStage(plan, stage, slots, memory, comm)
        self._head = None if comm.head is None else BaseHead(plan, slots, memory, comm)

    @property
    def cache(self) -> KvCache | None:
        """The KV cache of its layers."""
        return None if self._stage is None else self._stage.cache

    def prefill(self, tokens: Tensor, last: int) -> Forward | None:
        """Run a chunk of the prompt, tokens [C] of which 0 … ``last`` count, behind what is committed; commit it.

        The output on the devices of the head, None elsewhere.
        """
        width = tokens.shape[0]
        hidden = None if self._embedding is None else self._embedding(tokens)
        carry = None if self._stage is None else self._stage.prefill(hidden, width, last)
        return None if self._head is None else self._head(carry, width)

    def verify(self, tokens: Tensor, mask: Tensor) -> Forward | None:
        """Run a tree, tokens [N] whose ancestors are ``mask`` [N, N], behind what is committed; commits nothing.

        The output on the devices of the head, None elsewhere.
        """
        hidden = None if self._embedding is None else self._embedding(tokens)
        carry = None if self._stage is None else self._stage.verify(hidden, mask)
        return None if self._head is None else self._head(carry, tokens.shape[0])

    def best(self, normed: Tensor) -> Tensor:
        """``normed`` [W, H] of the head's devices -> the base's choice after each row [W]."""
        assert self._head is not None
        return self._head.best(normed)


class BaseEmbedding:
    """Rows of the embedding table, with the hop out of it."""

    def __init__(self, plan: Plan, slots: Slots, memory: Memory, comm: Comm) -> None:
        assert comm.embed is not None
        self._dtype, hop = DTYPES[plan.options.dtype], comm.hops[0]
        binder = Binder(slots=slots, dtype=self._dtype, group=comm.embed, hidden=plan.model.hidden_size)
        self._rows = binder.embed("embed", plan.embed.rows)
        self._hop_out = hop if hop is not None and hop.sends else None
        self._sent = None if self._hop_out is None else memory.buffer("embed.hidden")

    def __call__(self, tokens: Tensor) -> Tensor:
        """``tokens`` [W] -> [W, H], and from the leader to the first stage."""
        hidden = self._rows(tokens, self._dtype)
        if self._hop_out is None or self._sent is None:
            return hidden
        sent = self._sent[: tokens.shape[0]].copy_(hidden)
        self._hop_out.broadcast(sent, self._hop_out.ranks[0])
        return sent


class BaseStage:
    """A stage's layers on one of its devices, with the hop into it and the one out of it."""

    def __init__(self, plan: Plan, number: int, slots: Slots, memory: Memory, comm: Comm) -> None:
        group, hop_in, hop_out = comm.stages[number], comm.hops[number], comm.hops[number + 1]
        assert group is not None
        assert hop_in is not None
        stage, options = plan.stages[number], plan.options
        self._dtype = DTYPES[options.dtype]
        self._hop_in = hop_in if hop_in.receives else None
        self._hop_out = hop_out if hop_out is not None and hop_out.sends else None
        binder = Binder(slots=slots, dtype=self._dtype, group=group, hidden=plan.model.hidden_size)
        self._layers = _layers(plan, stage, binder, group)
        eagle3 = plan.draft is not None and plan.draft.kind == "eagle3"
        aux = plan.draft.aux_layers if plan.draft is not None and eagle3 else ()
        self._captures = {layer - stage.first_layer: 1 + slot for slot, layer in enumerate(aux)}
        self._first = number == 0
        self.cache = KvCache([memory.buffer(name) for name in memory.names("kv")], tree_rows(options))
        self._carry = Carry(memory.buffer("carry"))
        self._bias = memory.buffer("bias")
        self._rotary = memory.buffer("rotary")
        inv_freq = slots.tensor("rope.inv_freq", (self._rotary.shape[2] // 2,), torch.float32)
        self._rotary.copy_(rotary_table(inv_freq, self._rotary.shape[1], self._dtype))
        self._number = torch.arange(forward_rows(options), device=self._bias.device)

    def prefill(self, hidden: Tensor | None, width: int, last: int) -> Tensor:
        """A padded chunk of ``width`` rows, 0 … ``last`` of which count, behind what is committed; commits it.

        ``hidden`` [width, H]: of the embedding, where this device has it. The carry [1 + a, width, H].
        """
        cache = self.cache
        start, window = cache.tree_rows, cache.window(width)
        positions = self._number[:width] + cache.length
        bias = self._bias[:width, start:window]
        hide(bias, cache.columns[: window - start] <= positions.unsqueeze(1))
        output = self._forward(
            hidden,
            width,
            Rows(
                rotary=rotary_at(self._rotary, positions),
                bias=bias,
                seen=slice(start, window),
                written=cache.append(width, last),
            ),
        )
        cache.commit(last + 1)
        return output

    def verify(self, hidden: Tensor | None, mask: Tensor) -> Tensor:
        """A tree whose ancestors are ``mask`` [N, N], behind what is committed; commits nothing.

        ``hidden`` [N, H]: of the embedding, where this device has it. The carry [1 + a, N, H].
        """
        cache, nodes = self.cache, mask.shape[0]
        place, window = cache.tree(nodes), cache.window(0)
        bias = self._bias[:nodes, place.start : window]
        hide(bias[:, nodes:], cache.columns[place.stop : window] < place.stop + cache.length)
        hide(bias[:, :nodes], mask)
        return self._forward(
            hidden,
            nodes,
            Rows(
                rotary=rotary_at(self._rotary, mask.sum(1) + (cache.length - 1)),
                bias=bias,
                seen=slice(place.start, window),
                written=place,
            ),
        )

    def _forward(self, hidden: Tensor | None, width: int, rows: Rows) -> Tensor:
        """Hop in, layers, hop out."""
        carry = self._carry.view(width)
        if self._hop_in is not None:
            # the embedding has no features to bring
            self._hop_in.broadcast(carry[0] if self._first else carry, self._hop_in.ranks[0])
            hidden = carry[0]
        assert hidden is not None, "a device has what it is not sent"
        for number, (layer, cache) in enumerate(zip(self._layers, self.cache.layers, strict=True)):
            if number in self._captures:
                carry[self._captures[number]].copy_(hidden)
            hidden = layer(hidden, cache, rows)
        carry[0].copy_(hidden)
        if self._hop_out is not None:
            self._hop_out.broadcast(carry, self._hop_out.ranks[0])
        return carry


class BaseHead:
    """The final norm and rows of the lm_head, with the hop into it."""

    def __init__(self, plan: Plan, slots: Slots, memory: Memory, comm: Comm) -> None:
        hop = comm.hops[-1]
        assert comm.head is not None
        assert hop is not None
        binder = Binder(slots=slots, dtype=DTYPES[plan.options.dtype], group=comm.head, hidden=plan.model.hidden_size)
        self._norm = binder.norm("norm", plan.model.norm_eps)
        self._rows = binder.head("head", plan.head.rows)
        self._hop_in = hop if hop.receives else None
        self._received = Carry(memory.buffer("head.carry")) if hop.receives else None

    def __call__(self, carry: Tensor | None, width: int) -> Forward:
        """``carry`` [1 + a, width, H] of the last stage, where this device is in it."""
        if self._hop_in is not None and self._received is not None:
            carry = self._received.view(width)
            self._hop_in.broadcast(carry, self._hop_in.ranks[0])
        assert carry is not None, "a device has what it is not sent"
        normed = self._norm(carry[0])
        return Forward(normed=normed, features=carry[1:] if carry.shape[0] > 1 else normed.unsqueeze(0))

    def best(self, normed: Tensor) -> Tensor:
        return self._rows.best(normed)


class Carry:
    """The hidden state and the captured features of a forward, as they go from group to group."""

    def __init__(self, buffer: Tensor) -> None:
        """``buffer`` [1 + a, R, H]."""
        self._planes, _, self._hidden = buffer.shape
        self._buffer = buffer.flatten()

    def view(self, width: int) -> Tensor:
        """[1 + a, width, H], contiguous."""
        shape = (self._planes, width, self._hidden)
        return self._buffer[: math.prod(shape)].view(shape)


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
