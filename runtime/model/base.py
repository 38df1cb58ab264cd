"""One device's part of the base model: its share of the embedding, of one stage, of the head, or of several of them.

    embedding          stage 0                 stage s                       head
    ─────────          ───────                 ───────                       ────
    rows, summed
      ── hidden ─────► layers
                         ── hidden, features ► layers
                                                 ── hidden, features ──────► final norm, best tokens

Each arrow is one broadcast from a group's leader to the next group, and none where both are the same devices; a leader
that is in the next group too goes on with what it sent.

Shapes: B sequences, N nodes of the tree of each, C rows of a prefill chunk, W = B * N or C rows of a forward, H hidden
size, a captured features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plans.kv import kv_shares
from plans.schema import Plan, Stage
from plans.step import layer_class, tree_rows
from runtime.comm.groups import Comm
from runtime.image.buffers import DTYPES, Memory
from runtime.model.blocks import Binder, Layer, Slots
from runtime.model.draw import Draw
from runtime.model.layers import Attend, Rows, hide, rotary_at, rotary_table
from runtime.model.split_kv import attend_of, cache_of, own_frequencies


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
        self._progress, self._stage_name = comm.progress, f"stages[{stage}]"

    def prefill(self, sequence: int, tokens: Tensor, last: int) -> Forward | None:
        """Run a chunk of a prompt, tokens [C] of which 0 … ``last`` count, behind what is committed; commit it.

        The output on the devices of the head, None elsewhere.
        """
        width = tokens.shape[0]
        hidden = None if self._embedding is None else self._embedding(tokens)
        carry = None if self._stage is None else self._stage.prefill(sequence, hidden, width, last)
        return None if self._head is None else self._head(carry, width)

    def verify(self, tokens: Tensor, mask: Tensor) -> Forward | None:
        """Run trees, tokens [B, N] whose ancestors are ``mask`` [B, N, N], behind what is committed; commits nothing.

        The output on the devices of the head, None elsewhere.
        """
        hidden = None if self._embedding is None else self._embedding(tokens.flatten())
        self._progress.lap("embed")
        carry = None if self._stage is None else self._stage.verify(hidden, mask)
        self._progress.lap(self._stage_name)
        return None if self._head is None else self._head(carry, tokens.numel())

    def keep(self, path: Tensor, accepted: Tensor, nodes: int, kept: list[int]) -> None:
        """Commit of each tree the root and the accepted nodes: ``path`` [B, A] are their numbers, root first.

        ``accepted`` [B]: how many behind the root, -1 where nothing is kept; ``kept``: one more, on the host.
        """
        if self._stage is not None:
            self._stage.keep(path, accepted, nodes, kept)

    def truncate(self, lengths: list[int]) -> None:
        """Forget of each sequence what is committed behind so many positions."""
        if self._stage is not None:
            self._stage.truncate(lengths)

    def best(self, normed: Tensor) -> Tensor:
        """``normed`` [W, H] of the head's devices -> the base's choice after each row [W]."""
        assert self._head is not None
        return self._head.best(normed)

    def draw(self, normed: Tensor, chance: Draw) -> Tensor:
        """The same, drawn."""
        assert self._head is not None
        return self._head.draw(normed, chance)


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
        # runs differ in the number of heads alone
        self._share = share = kv_shares(stage, stage.runs[0].kv_heads)[group.index]
        head_dim = plan.model.layers[0].attention.head_dim
        attended = attend_of(share, head_dim, comm.subgroup, memory, "")
        self._layers = _layers(plan, stage, binder, attended)
        eagle3 = plan.draft is not None and plan.draft.kind == "eagle3"
        aux = plan.draft.aux_layers if plan.draft is not None and eagle3 else ()
        self._captures = {layer - stage.first_layer: 1 + slot for slot, layer in enumerate(aux)}
        self._first, self._progress = number == 0, comm.progress
        kept = [memory.buffer(name) for name in memory.names("kv")]
        self.cache = cache_of(kept, tree_rows(options), options.batch, share)
        self._sequences = self.cache.sequences
        self._divided = len(self._sequences) < options.batch
        self._carry = Carry(memory.buffer("carry"))
        self._bias = memory.buffer("bias")
        self._rotary = memory.buffer("rotary")
        every = slots.tensor("rope.inv_freq", (head_dim // 2,), torch.float32)
        self._rotary.copy_(rotary_table(own_frequencies(every, share), self._rotary.shape[1], self._dtype))
        self._nothing = Rows(
            rotary=self._rotary[:, :0].unsqueeze(2),
            bias=self._bias[:0].view(0, 1, 0, self._bias.shape[1]),
            sequences=slice(0, 0),
            seen=slice(0, 0),
            tree=0,
            written=slice(0, 0),
            here=slice(0, 0),
        )

    def prefill(self, sequence: int, hidden: Tensor | None, width: int, last: int) -> Tensor:
        """A padded chunk of ``width`` rows, 0 … ``last`` of which count, behind what is committed; commits it.

        ``hidden`` [width, H]: of the embedding, where this device has it. The carry [1 + a, width, H].
        """
        if sequence not in self._sequences:
            return self._forward(hidden, width, self._nothing)
        cache, number = self.cache, self._sequences.index(sequence)
        own = slice(number, number + 1)
        start, window = cache.tree_rows, cache.window(width)
        positions = cache.positions(width, own)
        bias = self._bias[:width, start:window]
        hide(bias, cache.columns[: window - start] <= positions.view(width, 1))
        output = self._forward(
            hidden,
            width,
            Rows(
                rotary=rotary_at(self._rotary, positions.flatten()),
                bias=bias[None, None],
                sequences=own,
                seen=slice(start, window),
                tree=0,
                written=cache.append(width, torch.full((1, 1), last, device=bias.device), own),
                here=slice(0, width) if self._divided else None,
            ),
        )
        cache.commit([last + 1 if other == number else 0 for other in range(len(self._sequences))])
        return output

    def verify(self, hidden: Tensor | None, mask: Tensor) -> Tensor:
        """Trees whose ancestors are ``mask`` [B, N, N], behind what is committed; commits nothing.

        ``hidden`` [B * N, H]: of the embedding, where this device has it. The carry [1 + a, B * N, H].
        """
        cache, (batch, nodes, _) = self.cache, mask.shape
        first, count = self._sequences.start, len(self._sequences)
        mask = mask[first : first + count]
        place, window = cache.tree(nodes), cache.window(0)
        bias = self._bias[: count * nodes].view(count, nodes, -1)[:, :, place.start : window]
        hide(bias[:, :, nodes:], cache.columns[: window - place.stop] < cache.lengths.unsqueeze(2))
        if self._share.axis == "context" and self._share.part:
            bias[:, :, :nodes].fill_(float("-inf"))  # the tree is on every member, and counts once
        else:
            hide(bias[:, :, :nodes], mask)
        return self._forward(
            hidden,
            batch * nodes,
            Rows(
                rotary=rotary_at(self._rotary, (mask.sum(2) + (cache.lengths - 1)).flatten()),
                bias=bias.unsqueeze(1),
                sequences=slice(0, count),
                seen=slice(place.start, window),
                tree=nodes,
                written=place,
                here=slice(first * nodes, (first + count) * nodes) if self._divided else None,
            ),
        )

    def keep(self, path: Tensor, accepted: Tensor, nodes: int, kept: list[int]) -> None:
        """Commit what was accepted: ``path`` [B, A], ``accepted`` [B] or -1, and one more on the host."""
        own = slice(self._sequences.start, self._sequences.stop)
        self.cache.keep(path[own], accepted[own].unsqueeze(1), nodes, kept[own])

    def truncate(self, lengths: list[int]) -> None:
        """Forget of each sequence what is committed behind so many positions."""
        self.cache.truncate(lengths[self._sequences.start : self._sequences.stop])

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
            self._progress.tick()
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
        binder = Binder(
            slots=slots,
            dtype=DTYPES[plan.options.dtype],
            group=comm.head,
            hidden=plan.model.hidden_size,
        )
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

    def draw(self, normed: Tensor, chance: Draw) -> Tensor:
        return self._rows.draw(normed, chance)


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


def _layers(plan: Plan, stage: Stage, binder: Binder, attended: Attend) -> list[Layer]:
    layers: list[Layer] = []
    member, hidden, eps = binder.group.index, plan.model.hidden_size, plan.model.norm_eps
    for run in stage.runs:
        share = kv_shares(stage, run.kv_heads)[member]
        for _ in range(run.num_layers):
            number = stage.first_layer + len(layers)
            kind, prefix = layer_class(plan.model, number), f"layers.{number}"
            layers.append(
                Layer(
                    attention_norm=binder.norm(f"{prefix}.attention_norm", eps),
                    attention=binder.attention(prefix, hidden, kind.attention, share, eps, attended),
                    mlp_norm=binder.norm(f"{prefix}.mlp_norm", eps),
                    mlp=binder.mlp(prefix, kind.mlp, run.mlp_units[member]),
                )
            )
    return layers
