"""The base model on one device: its share of the embedding, of one stage, of the lm_head, or of several of them.

    embedding          stage 0                 stage s                       lm_head
    ─────────          ───────                 ───────                       ───────
    rows, summed
      ── hidden ─────► layers
                         ── hidden, features ► layers
                                                 ── hidden, features ──────► final norm, best tokens

Each arrow, a hop, is one broadcast from a group's leader to the next group, and none where both groups have the same
devices. A leader that is in the next group too goes on with the buffer that it sent.

Shapes: B sequences, N nodes of the tree of each, C rows of a prefill chunk, W = B * N or C rows of a forward, H hidden
size, a captured features. The carry [1 + a, W, H] is the hidden state and the captured features on their way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plans.caches import CachedLayers, caches_of
from plans.kv import kv_shares
from plans.layer_buffers import bias_name
from plans.rotary import table_of
from plans.schema import Model, Plan, Stage
from plans.slot_records import LayerSlots, SlotSpec
from plans.slots import lm_head_slots, stage_slots, vocabulary_rows
from plans.step import layer_class, tree_rows
from runtime.comm.groups import Comm, Group
from runtime.image.buffers import Memory
from runtime.image.dtypes import DTYPES
from runtime.model import ops
from runtime.model.blocks import Binder, Layer, LmHead, Slots
from runtime.model.layers import Attend, Output, Rows, query_factors, rotary_at, rotary_tables
from runtime.model.split_kv import attend_of, cache_of, own_frequencies, own_sequences, reads_bias, shared
from runtime.model.views import View
from runtime.model.whole_layers import WholeLayers, are_whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """Output of a forward on a device of the lm_head."""

    normed: Tensor
    """[W, H]: the hidden state after the final norm, which the lm_head reads."""
    features: Tensor
    """[a, W, H]: eagle3: hidden states at the a aux layers; eagle: the normed state, a = 1."""
    lm_head: LmHead
    """This device's rows of the lm_head."""


class Base:
    """The parts of the base model on one device, run in the order of the model; a part of other devices is None."""

    def __init__(self, plan: Plan, slots: Slots, memory: Memory, comm: Comm) -> None:
        hop_in, hop_out = comm.hops[0], comm.hops[-1]
        self._embedding = None if comm.embed is None else BaseEmbedding(plan, slots, memory, comm.embed, hop_in)
        self._stage = next(
            (
                BaseStage(plan, number, slots, memory, comm, group)
                for number, group in enumerate(comm.stages)
                if group is not None
            ),
            None,
        )
        self._lm_head = None if comm.head is None else BaseLmHead(plan, slots, memory, comm.head, hop_out)
        self._progress = comm.progress

    def prefill(self, sequence: int, tokens: Tensor, last: int) -> Forward | None:
        """Run and commit a chunk of a prompt, tokens [C], behind what is committed of a sequence.

        Rows 0 … ``last`` count, the others are padding. Returns the output on devices of the lm_head, None elsewhere.
        """
        width = tokens.shape[0]
        hidden = self._embedded(tokens)
        if self._embedding is not None and hidden is not None:
            self._embedding.send(hidden)
        carry = None
        if self._stage is not None:
            carry = self._stage.prefill(sequence, hidden, width, last)
            self._stage.send(carry)
        return None if self._lm_head is None else self._lm_head(carry, width)

    def verify(self, tokens: Tensor, mask: Tensor, first: int) -> Forward | None:
        """Run trees, tokens [B, N], behind what is committed of sequences ``first`` and those after it.

        ``mask`` [B, N, N]: each node's ancestors and itself. Commits nothing. Returns as ``prefill`` does, W = B * N
        rows.
        """
        hidden = self._embedded(tokens.flatten())
        self._progress.lap("embed")
        if self._embedding is not None and hidden is not None:
            self._embedding.send(hidden)
        carry = None
        if self._stage is not None:
            carry = self._stage.verify(hidden, mask, first)
            self._progress.lap(self._stage.name)
            self._stage.send(carry)
        return None if self._lm_head is None else self._lm_head(carry, tokens.numel())

    def _embedded(self, tokens: Tensor) -> Tensor | None:
        return None if self._embedding is None else self._embedding(tokens)

    def keep(self, path: Tensor, accepted: Tensor, nodes: int, first: int) -> None:
        """Commit the root and the accepted nodes of each tree of ``nodes`` nodes; see ``KvCache.keep``.

        ``path`` [B, A]: node numbers, root first. ``accepted`` [B]: accepted nodes behind the root, -1 where nothing is
        kept. ``first`` as in ``verify``.
        """
        if self._stage is not None:
            self._stage.keep(path, accepted, nodes, first)

    def know(self, rows: list[int], first: int) -> None:
        """Note on the host how many rows were committed to each of the sequences from ``first`` on."""
        if self._stage is not None:
            self._stage.know(rows, first)

    def restart(self, sequence: int, source: int, length: int) -> None:
        """Let a sequence begin anew with the first ``length`` committed positions of ``source``; it may be itself."""
        if self._stage is not None:
            self._stage.restart(sequence, source, length)

    def exchange(self, a: int, b: int) -> None:
        """Exchange what the caches of two sequences hold."""
        if self._stage is not None:
            self._stage.exchange(a, b)


class BaseEmbedding:
    """Rows of the embedding table, with the hop out of them."""

    def __init__(self, plan: Plan, slots: Slots, memory: Memory, group: Group, hop_out: Group | None) -> None:
        self._dtype = DTYPES[plan.options.dtype]
        binder = Binder(slots=slots, group=group, hidden=plan.model.hidden_size)
        own, _ = vocabulary_rows(plan, plan.embed.devices[group.index])
        self._rows = binder.embed(own, plan.embed.rows, _multiplier(plan.model, self._dtype))
        self._hop_out = _sending(hop_out)
        self._sent = None if self._hop_out is None else memory.buffer("embed.hidden")

    def __call__(self, tokens: Tensor) -> Tensor:
        """Look up ``tokens`` [W] -> [W, H]."""
        hidden = self._rows(tokens, self._dtype)  # scratch: bounded by `embed.scratch.rows` in plans/buffers.py
        return hidden if self._sent is None else self._sent[: tokens.shape[0]].copy_(hidden)

    def send(self, hidden: Tensor) -> None:
        """Send what was looked up to the first stage, where this is the leader."""
        if self._hop_out is not None:
            self._hop_out.broadcast(hidden, self._hop_out.ranks[0])


class BaseStage:
    """A stage's layers on one of its devices, with the hops into and out of them."""

    def __init__(self, plan: Plan, number: int, slots: Slots, memory: Memory, comm: Comm, group: Group) -> None:
        stage, options = plan.stages[number], plan.options
        self.name = f"stages[{number}]"
        self._dtype = DTYPES[options.dtype]
        self._hop_in, self._hop_out = _receiving(comm.hops[number]), _sending(comm.hops[number + 1])
        binder = Binder(slots=slots, group=group, hidden=plan.model.hidden_size)
        own = stage_slots(plan.model, stage, group.index, options.dtype)
        # runs differ in their number of KV heads alone
        self._share = share = kv_shares(stage, stage.runs[0].kv_heads)[group.index]
        attended = attend_of(share, comm.subgroup, memory, "")
        self._layers = _layers(plan, stage, binder, own.layers, attended)
        self._following = [*(layer.attention_norm for layer in self._layers[1:]), None]
        """By layer: the norm with which the next one begins."""
        eagle3 = plan.draft is not None and plan.draft.kind == "eagle3"
        aux = plan.draft.aux_layers if plan.draft is not None and eagle3 else ()
        self._captures = {layer - stage.first_layer: 1 + plane for plane, layer in enumerate(aux)}
        """Plane of the carry that keeps the input of a layer, by the number of the layer in this stage."""
        if number < len(plan.stages) - 1:  # the output of its last layer is the next stage's to keep
            self._captures.pop(stage.num_layers, None)
        ends = sorted({*self._captures, stage.num_layers} - {0})
        self._ends = [next(end for end in ends if end > number) for number in range(stage.num_layers)]
        """The layer before which the residual is captured next, or the end of the stage, by the number of a layer."""
        self._first, self._progress = number == 0, comm.progress
        self._sequences, self._chunk = own_sequences(options.batch, share), options.prefill_chunk
        self._divided = len(self._sequences) < options.batch
        self._bind_caches(plan, stage, memory)
        caches = [cache for _, cache in self._caches]
        scaling = plan.model.query_scaling
        whole = len(self.views) == 1 and not self._divided and scaling is None and are_whole(self._layers, caches)
        self._whole = WholeLayers(self._layers, caches) if whole else None
        self._carry = Carry(memory.buffer("carry"))
        tables = [own_frequencies(binder.tensor(slot), share) for slot in own.ropes]
        self._rotary = rotary_tables(tables, memory.buffer("rotary"), self._dtype)
        self._query_factors = None if scaling is None else memory.buffer("queries")
        if scaling is not None and self._query_factors is not None:
            self._query_factors.copy_(query_factors(scaling, len(self._query_factors)))
        self._no_rows = [view.none(self._rotary) for view in self.views]

    def _bind_caches(self, plan: Plan, stage: Stage, memory: Memory) -> None:
        """Make a view for each window of the stage's layers, and note that of each layer, with its cache."""
        of_window: dict[int | None, list[CachedLayers]] = {}
        for cached in caches_of(plan.model, stage):
            of_window.setdefault(cached.attention.window, []).append(cached)
        caches: dict[int, tuple[int, Tensor]] = {}
        self.views: list[View] = []
        for window, listed in of_window.items():
            runs = [memory.buffer(cached.name) for cached in listed]
            tree, batch = tree_rows(plan.options), plan.options.batch
            cache = cache_of(runs, tree, batch, self._share, wraps=window is not None)
            layers = [layer for cached in listed for layer in cached.layers]
            for layer, own in zip(layers, cache.layers, strict=True):
                caches[layer] = len(self.views), own
            bias = memory.buffer(bias_name(window)) if reads_bias(self._share, cache.layers[0]) else None
            self.views.append(View(cache, bias, window, self._share, plan.options, divided=self._divided))
        self._caches = [caches[layer] for layer in sorted(caches)]
        """By layer: the number of its view, and its KV cache [B, T, 2k, D]."""

    def prefill(self, sequence: int, hidden: Tensor | None, width: int, last: int) -> Tensor:
        """Run and commit a padded chunk of ``width`` rows, of which 0 … ``last`` count, behind what is committed.

        ``hidden`` [width, H]: the embedding's, where this device has it. Returns the carry.
        """
        if sequence not in self._sequences:
            return self._forward(hidden, width, self._no_rows)
        number = self._sequences.index(sequence)
        own = slice(number, number + 1)
        positions = self.views[0].cache.positions(width, own)  # [1, width]
        rotary, factors = self._at(positions.flatten())
        rows = [view.chunk(rotary, factors, positions, last, own) for view in self.views]
        output = self._forward(hidden, width, rows)
        for view in self.views:
            view.cache.commit_one(number, last + 1)
        return output

    def verify(self, hidden: Tensor | None, mask: Tensor, first: int) -> Tensor:
        """Run trees behind what is committed; commit nothing. Arguments as in ``Base.verify``.

        ``hidden`` [B * N, H]: the embedding's, where this device has it. Returns the carry.
        """
        batch, nodes, _ = mask.shape
        here, own = shared(range(first, first + batch), self._sequences)
        if here.stop == here.start:
            return self._forward(hidden, batch * nodes, self._no_rows)
        mask, lengths = mask[here], self.views[0].cache.lengths[own]
        packed = None if ops.is_cpu(mask) else ops.packed(mask, lengths)
        rotary, factors = self._at((mask.sum(2) + (lengths - 1)).flatten() if packed is None else packed[1])
        rows = [view.trees(rotary, factors, mask, here, own, packed) for view in self.views]
        return self._forward(hidden, batch * nodes, rows)

    def keep(self, path: Tensor, accepted: Tensor, nodes: int, first: int) -> None:
        """Commit what was accepted; arguments as in ``Base.keep``."""
        here, own = shared(range(first, first + len(path)), self._sequences)
        if here.stop > here.start:
            for view in self.views:
                view.cache.keep(path[here], accepted[here].unsqueeze(1), nodes, own)

    def know(self, rows: list[int], first: int) -> None:
        """Note what was committed; arguments as in ``Base.know``."""
        here, own = shared(range(first, first + len(rows)), self._sequences)
        for view in self.views:
            view.cache.know(rows[here], own)

    def restart(self, sequence: int, source: int, length: int) -> None:
        """Let a sequence begin anew; arguments as in ``Base.restart``."""
        if sequence in self._sequences:
            for view in self.views:
                view.cache.restart(self._sequences.index(sequence), self._sequences.index(source), length)

    def exchange(self, a: int, b: int) -> None:
        """Exchange two sequences; the copies of a chunk of rows are bounded by `scratch.attention`."""
        for view in self.views:
            view.cache.exchange(a, b, self._chunk)

    def _at(self, positions: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return the rotary tables and the factors of queries, as ``Rows`` has them, at positions [W]."""
        factors = self._query_factors
        if not ops.is_cpu(positions):
            return self._rotary, factors
        if factors is not None:
            factors = factors.index_select(0, positions.clamp(max=len(factors) - 1)).view(-1, 1, 1)
        return rotary_at(self._rotary, positions), factors

    def _forward(self, hidden: Tensor | None, width: int, rows: Sequence[Rows]) -> Tensor:
        """Receive the carry, run the layers; return the carry. ``rows``: for each view."""
        carry = self._carry.view(width)
        if self._hop_in is not None:
            # there are no features before the first layer
            self._hop_in.broadcast(carry[0] if self._first else carry, self._hop_in.ranks[0])
            hidden = carry[0]
        assert hidden is not None, "what a device is not sent it has computed"
        if self._whole is not None:
            hidden = self._whole.begin(hidden, rows[0])
        number, normed = 0, None
        while number < len(self._layers):
            if number in self._captures:
                carry[self._captures[number]].copy_(hidden)
            if self._whole is not None:  # the residual stays where it is
                number = self._whole.run_more(number, self._ends[number])
            else:
                view, cache = self._caches[number]
                following = self._following[number]
                hidden, normed = self._layers[number].followed(hidden, normed, cache, rows[view], following)
                number += 1
            self._progress.tick()
        if len(self._layers) in self._captures:
            carry[self._captures[len(self._layers)]].copy_(hidden)
        carry[0].copy_(hidden)
        return carry

    def send(self, carry: Tensor) -> None:
        """Send the carry to the next stage or the lm_head, where this is the leader."""
        if self._hop_out is not None:
            self._hop_out.broadcast(carry, self._hop_out.ranks[0])


class BaseLmHead:
    """The final norm and rows of the lm_head, with the hop into them."""

    def __init__(self, plan: Plan, slots: Slots, memory: Memory, group: Group, hop_in: Group | None) -> None:
        binder = Binder(slots=slots, group=group, hidden=plan.model.hidden_size)
        own, model = lm_head_slots(plan, plan.head.devices[group.index]), plan.model
        self._norm = binder.norm(own.norm, model.norm_eps, bool(model.norm_offset))
        self._lm_head = binder.lm_head(own.rows, plan.head.rows, model.logits_divisor, model.logit_softcap)
        self._hop_in = _receiving(hop_in)
        self._received = None if self._hop_in is None else Carry(memory.buffer("head.carry"))

    def __call__(self, carry: Tensor | None, width: int) -> Forward:
        """Norm the last hidden state; ``carry`` [1 + a, width, H] of the last stage, where this device is in it."""
        if self._hop_in is not None and self._received is not None:
            carry = self._received.view(width)
            self._hop_in.broadcast(carry, self._hop_in.ranks[0])
        assert carry is not None, "what a device is not sent it has computed"
        normed = self._norm(carry[0])  # scratch: bounded by `scratch.normed` in plans/buffers.py
        features = carry[1:] if carry.shape[0] > 1 else normed.unsqueeze(0)
        return Forward(normed=normed, features=features, lm_head=self._lm_head)


class Carry:
    """Buffer of the hidden state and the captured features of a forward."""

    def __init__(self, buffer: Tensor) -> None:
        """``buffer`` [1 + a, R, H], R most rows of a forward."""
        self._planes, _, self._hidden = buffer.shape
        self._buffer = buffer.flatten()

    def view(self, width: int) -> Tensor:
        """Return [1 + a, width, H], contiguous."""
        shape = (self._planes, width, self._hidden)
        return self._buffer[: math.prod(shape)].view(shape)


def _sending(hop: Group | None) -> Group | None:
    """Return a hop on the rank that sends, None on others."""
    return hop if hop is not None and hop.sends else None


def _receiving(hop: Group | None) -> Group | None:
    """Return a hop on a rank that receives, None on others."""
    return hop if hop is not None and hop.receives else None


def _multiplier(model: Model, dtype: torch.dtype) -> float | None:
    """Return the factor of embeddings, as it multiplies values of a dtype."""
    factor = model.embedding_multiplier
    return torch.tensor(factor, dtype=dtype).item() if factor and model.embedding_multiplier_rounded else factor


def _output(model: Model, binder: Binder, norm: SlotSpec | None) -> Output | None:
    """Return what becomes of the output of an attention or MLP; None: it is added to the residual as it is."""
    if norm is None and model.residual_multiplier is None:
        return None
    bound = binder.optional_norm(norm, model.norm_eps, bool(model.norm_offset))
    return Output(norm=bound, multiplier=model.residual_multiplier)


def _layers(plan: Plan, stage: Stage, binder: Binder, slots: Sequence[LayerSlots], attended: Attend) -> list[Layer]:
    """Bind the layers of a stage to this member's share of them."""
    layers: list[Layer] = []
    member, eps, offset = binder.group.index, plan.model.norm_eps, bool(plan.model.norm_offset)
    for run in stage.runs:
        share = kv_shares(stage, run.kv_heads)[member]
        for _ in range(run.num_layers):
            number = stage.first_layer + len(layers)
            layer, own = layer_class(plan.model, number), slots[len(layers)]
            attention_norm = own.norms[0] if own.norms else None
            layers.append(
                Layer(
                    attention_norm=binder.optional_norm(attention_norm, eps, offset),
                    attention=binder.attention(
                        own.attention, layer.attention, share, eps, attended, table_of(plan.model, number), offset
                    ),
                    mlp_norm=binder.optional_norm(own.mlp.norm, eps, offset),
                    mlp=binder.mlp(own.mlp, layer.mlp),
                    attention_output=_output(plan.model, binder, own.attention_output_norm),
                    mlp_output=_output(plan.model, binder, own.mlp_output_norm),
                )
            )
    return layers
