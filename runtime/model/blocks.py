"""The closed vocabulary of blocks, each bound to slots of an image.

    embed          rows of the embedding table, summed over the group
    base layer     norm, attention, norm, MLP or experts; outputs too may have norms, or a factor
    eagle3 layer   attends over (embedding, hidden), each with its norm; the first, further ones are like a base layer
    eagle layer    like a base layer, the first without the norm before attention
    lm_head        rows of the lm_head, the best of which are gathered over the group

A new model family needs no change here unless it brings a new kind of block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

import plans.schema as schema
from plans.kv import KvShare, query_heads
from plans.slot_records import AttentionSlots, MatrixSlots, MlpSlots, SlotSpec, TableRows
from plans.step import BEST_WORDS, CandidateLayout
from runtime.comm.groups import Group
from runtime.image.dtypes import HEADER_DTYPES
from runtime.model import ops
from runtime.model.draw import Draw, best_of_group, draw
from runtime.model.experts import Clamp, Experts
from runtime.model.layers import ADDED, WHOLE, Attend, Attention, GatedMlp, Linear, Norm, Output, Rows
from runtime.model.router import Router
from runtime.model.scores import Scores
from runtime.model.weights import Beside, Coded, look_up, product


class Slots(Protocol):
    """The part of an image that blocks use."""

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the slot as a view of the image."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Binder:
    """Binds the blocks of one device to its image, slot by slot of ``plans.slots``, and to the device's group."""

    slots: Slots
    group: Group
    hidden: int
    """H."""

    def tensor(self, slot: SlotSpec) -> Tensor:
        """Return a slot as a view of the image; raise ImageForeign where the image has it in another shape or dtype."""
        return self.slots.tensor(slot.name, slot.shape, HEADER_DTYPES[slot.dtype])

    def norm(self, slot: SlotSpec, eps: float, offset: bool = False) -> Norm:
        """Return an RMS norm."""
        return Norm(weight=self.tensor(slot), eps=eps, offset=offset)

    def optional_norm(self, slot: SlotSpec | None, eps: float, offset: bool = False) -> Norm | None:
        """Return an RMS norm, or None where there is none."""
        return None if slot is None else self.norm(slot, eps, offset)

    def linear(self, weight: SlotSpec | MatrixSlots, bias: SlotSpec | None) -> Linear:
        """Return a linear layer, [out, in] in the image."""
        matrix = self.matrix(weight) if isinstance(weight, MatrixSlots) else self.tensor(weight)
        return Linear(weight=_transposed(matrix), bias=self._optional(bias))

    def stacked(self, weights: tuple[MatrixSlots, ...], bias: SlotSpec | None) -> Linear:
        """Return a linear layer whose outputs are those of matrices of formats of their own, or of the only one."""
        if len(weights) == 1:
            return self.linear(weights[0], bias)
        parts = tuple(_transposed(self.matrix(weight)) for weight in weights)
        return Linear(weight=Beside(parts=parts), bias=self._optional(bias))

    def matrix(self, slots: MatrixSlots) -> Tensor | Coded:
        """Return a matrix, or one of each expert, as it is in the image."""
        if slots.form is None:
            return self.tensor(slots.weight)
        assert slots.scales is not None
        codes = self.tensor(slots.weight)
        return Coded(
            form=slots.form,
            codes=codes,
            scales=self.tensor(slots.scales),
            zeros=self._optional(slots.zeros),
            inputs=slots.inputs,
            order=self._optional(slots.order),
            counters=None if ops.is_cpu(codes) or codes.dim() == 3 else ops.counters(codes.device),
        )

    def _optional(self, slot: SlotSpec | None) -> Tensor | None:
        return None if slot is None else self.tensor(slot)

    def attention(
        self,
        slots: AttentionSlots,
        attention: schema.Attention,
        share: KvShare,
        eps: float,
        attended: Attend = WHOLE,
        table: int = 0,
        offset: bool = False,
    ) -> Attention:
        """Return a share of attention; ``table``: number of the rotary table.

        ``eps``, ``offset``: of the norms of q and k, where it has them.
        """
        together = (attention.num_heads, attention.num_kv_heads) if attention.qk_norm_whole else None
        return Attention(
            qkv=self.stacked(slots.qkv, slots.qkv_bias),
            o=self.linear(slots.o, slots.o_bias),
            query_heads=query_heads(attention, share),
            kv_heads=share.heads,
            head_dim=attention.head_dim // (share.parts if share.axis == "head_dim" else 1),
            group=self.group,
            attend=attended,
            q_norm=self.optional_norm(slots.q_norm, eps, offset),
            k_norm=self.optional_norm(slots.k_norm, eps, offset),
            scores=self.scores(slots.sinks, attention),
            normed_heads=together,
            table=table,
        )

    def scores(self, sinks: SlotSpec | None, attention: schema.Attention) -> Scores:
        """Return the parameters of a layer's softmax."""
        own = self._optional(sinks)
        scale, cap, factors = attention.scale or attention.head_dim**-0.5, attention.softcap, None
        if attention.scale is not None or cap is not None:
            factors = torch.tensor([scale, cap or 0.0], dtype=torch.float32)
        return Scores(scale=scale, softcap=cap, sinks=own, factors=factors)

    def mlp(self, slots: MlpSlots, mlp: schema.Mlp) -> GatedMlp | Experts:
        """Return a share of an MLP, or of every expert."""
        if slots.router is not None:
            return Experts(
                router=self._router(slots.router, slots, mlp),
                gate_up=self.matrix(slots.gate_up[0]) if slots.gate_up else None,
                gate_up_bias=self._optional(slots.gate_up_bias),
                down=None if slots.down is None else self.matrix(slots.down),
                down_bias=self._optional(slots.down_bias),
                clamp=None
                if mlp.swiglu_limit is None
                else Clamp(limit=mlp.swiglu_limit, alpha=mlp.swiglu_alpha or 1.0),
                group=self.group,
                shared=self._shared(slots, mlp),
                shared_gate=None if slots.shared_gate is None else self.linear(slots.shared_gate, None),
            )
        if not slots.gate_up or slots.down is None:
            alone = self._optional(slots.down_bias)
            return GatedMlp(gate_up=None, down=None, group=self.group, down_bias=alone)
        return GatedMlp(
            gate_up=self.stacked(slots.gate_up, slots.gate_up_bias),
            down=self.linear(slots.down, slots.down_bias),
            group=self.group,
            down_bias=None,
            activation=mlp.activation,
        )

    def _router(self, weight: SlotSpec, slots: MlpSlots, mlp: schema.Mlp) -> Router:
        """Return the router, which is whole on each device."""
        own = mlp.router
        return Router(
            product=self.linear(weight, slots.router_bias),
            picked=mlp.experts_per_token,
            normed=mlp.norm_topk_prob,
            sigmoid=own is not None and own.scores == "sigmoid",
            correction=self._optional(slots.correction),
            groups=1 if own is None else own.groups,
            picked_groups=1 if own is None else own.picked_groups,
            scale=1.0 if own is None else own.scale,
        )

    def _shared(self, slots: MlpSlots, mlp: schema.Mlp) -> GatedMlp | None:
        """Return this device's channels of the shared expert; None where it has none."""
        if slots.shared_gate_up is None or slots.shared_down is None:
            return None
        return GatedMlp(
            gate_up=self.linear(slots.shared_gate_up, None),
            down=self.linear(slots.shared_down, None),
            group=self.group,
            down_bias=None,
            activation=mlp.activation,
        )

    def table(self, own: TableRows | None) -> Tensor | Coded | None:
        """Return rows of a vocabulary table as views of the image."""
        if own is None:
            return None
        whole = self.matrix(own.matrix)
        return whole.rows(own.start, own.stop) if isinstance(whole, Coded) else whole[own.start : own.stop]

    def embed(self, own: TableRows | None, rows: Sequence[int], multiplier: float | None = None) -> "Embed":
        """Return a share of the embedding; ``rows``: of every member of the group; ``multiplier``: of the result."""
        first, count = _range(rows, self.group.index)
        return Embed(
            table=self.table(own),
            first=first,
            rows=count,
            whole=count == sum(rows),
            hidden=self.hidden,
            group=self.group,
            multiplier=multiplier,
        )

    def lm_head(
        self,
        own: TableRows | None,
        rows: Sequence[int],
        divisor: float | None = None,
        softcap: float | None = None,
    ) -> "LmHead":
        """Return a share of the lm_head; ``rows``: of every member of the group; others as in ``LmHead``."""
        first, count = _range(rows, self.group.index)
        table = self.table(own)
        weight = table.t() if isinstance(table, Tensor) else table
        return LmHead(weight=weight, first=first, rows=count, group=self.group, divisor=divisor, softcap=softcap)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer of the base, or of an EAGLE-1 or -2 head (whose first has no norm before attention)."""

    attention_norm: Norm | None
    attention: Attention
    mlp_norm: Norm | None
    mlp: GatedMlp | Experts
    attention_output: Output | None = None
    mlp_output: Output | None = None
    """Norms and factors of outputs before they are added to the residual; None: none, a sum has the residual."""

    def __call__(self, hidden: Tensor, cache: Tensor, rows: Rows) -> Tensor:
        """Return the output of the layer [W, H]; ``hidden`` may be overwritten."""
        return self.followed(hidden, None, cache, rows, None)[0]

    def followed(
        self, hidden: Tensor, normed: Tensor | None, cache: Tensor, rows: Rows, following: Norm | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output of the layer [W, H], and the norm ``following`` of it where a kernel computes both.

        ``normed``: the input behind the norm before attention, where the layer before has computed it.
        """
        if normed is None:
            normed = self.attention_norm(hidden) if self.attention_norm else hidden
        output, normed_next = _output(self.attention_output, self.attention.o.bias, self.attention.group, hidden), None
        if output is None:
            hidden = self.attention(normed, hidden, cache, rows)
        else:
            hidden, normed_next = output(self.attention(normed, None, cache, rows), hidden, self.mlp_norm)
        if normed_next is None:
            normed_next = self.mlp_norm(hidden) if self.mlp_norm else hidden
        bias = self.mlp.down.bias if isinstance(self.mlp, GatedMlp) and self.mlp.down is not None else None
        output = _output(self.mlp_output, bias, self.mlp.group, hidden)
        if output is None:
            return self.mlp(normed_next, hidden), None
        return output(self.mlp(normed_next, None), hidden, following)


def _output(output: Output | None, bias: Tensor | None, group: Group, hidden: Tensor) -> Output | None:
    """Return what becomes of an output; None: its product adds it to the residual.

    On a GPU a product adds rows or a bias, not both: with a bias, one kernel adds the result and norms the sum.
    """
    alone = bias is not None and group.handle is None and not ops.is_cpu(hidden)
    return ADDED if output is None and alone else output


@dataclass(frozen=True, kw_only=True, slots=True)
class Eagle3Layer:
    """The first layer of an EAGLE-3 head, which attends over an embedding beside a hidden state."""

    norm_before_residual: bool
    """The residual is the hidden state behind its norm."""
    input_norm: Norm
    hidden_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: GatedMlp | Experts

    def __call__(self, joined: Tensor, residual: Tensor, cache: Tensor, rows: Rows) -> Tensor:
        """Return the output of the layer [W, H]; arguments as ``entered`` returns them."""
        hidden = self.attention(joined, residual, cache, rows)
        return self.mlp(self.mlp_norm(hidden), hidden)

    def joined(self, tokens: Tensor, table: Tensor, hidden: Tensor, parents: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return on a GPU what ``entered`` does, of rows of an embedding table, and of ``parents`` of ``hidden``."""
        norms = self.input_norm.parameters, self.hidden_norm.parameters
        joined, kept = ops.join(tokens, table, hidden, parents, norms, keep=not self.norm_before_residual)
        return joined, joined.chunk(2, 1)[1] if self.norm_before_residual else kept

    def entered(self, embedded: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the attention [W, 2H], both states with their norms, and the residual [W, H]."""
        if ops.is_cpu(hidden):
            normed = self.hidden_norm(hidden)
            joined = torch.cat([self.input_norm(embedded), normed], 1)
        else:
            joined = hidden.new_empty(hidden.shape[0], 2 * hidden.shape[1])
            first, normed = joined.chunk(2, 1)
            self.input_norm.into(first, embedded)
            self.hidden_norm.into(normed, hidden)
        return joined, normed if self.norm_before_residual else hidden


@dataclass(frozen=True, kw_only=True, slots=True)
class Embed:
    """Rows ``first`` … of the embedding table; the group's sum has the row of every token."""

    table: Tensor | Coded | None
    first: int
    rows: int
    whole: bool
    hidden: int
    group: Group
    multiplier: float | None = None

    @property
    def plain(self) -> Tensor | None:
        """The table, where the rows of tokens are all that there is to do on a GPU."""
        table = self.table
        alone = isinstance(table, Tensor) and self.whole and self.group.handle is None and self.multiplier is None
        return table if isinstance(table, Tensor) and alone and not ops.is_cpu(table) else None

    def __call__(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """``tokens`` [W] -> [W, H]."""
        if self.table is None:
            out = torch.zeros(tokens.shape[0], self.hidden, dtype=dtype, device=tokens.device)
        elif self.whole:
            out = look_up(tokens, self.table, dtype)
        else:
            local = tokens - self.first
            inside = (local >= 0) & (local < self.rows)
            out = look_up(torch.where(inside, local, 0), self.table, dtype)
            out = out.masked_fill_(inside.logical_not().unsqueeze(1), 0.0)
        self.group.all_reduce(out)
        return out if self.multiplier is None else out.mul_(self.multiplier)


@dataclass(frozen=True, kw_only=True, slots=True)
class LmHead:
    """Rows ``first`` … of the lm_head. What is gathered is fixed in width: never whole logits.

    Messages are float64, which holds a float32 value and a token id exactly.
    """

    weight: Tensor | Coded | None
    first: int
    rows: int
    group: Group
    divisor: float | None = None
    """Divisor of logits; None: 1."""
    softcap: float | None = None
    """c of c * tanh(logit / c); None: logits are not capped."""

    def best(self, normed: Tensor) -> Tensor:
        """``normed`` [W, H] -> the token of the highest logit of each row [W]; of equal ones the first."""
        if self.weight is None:
            mine = normed.new_zeros((normed.shape[0], BEST_WORDS), dtype=torch.float64)
            mine[:, 0] = float("-inf")
        elif ops.is_cpu(normed):
            logits, alone = self._logits(normed, self.weight), self.group.handle is None
            mine = torch.empty((normed.shape[0], 0 if alone else BEST_WORDS), dtype=torch.float64)
            tokens = ops.highest(logits, None if alone else mine, self.first)
            if alone:
                return tokens
        else:
            values, tokens = self._logits(normed, self.weight).max(1)
            if self.group.handle is None:
                return tokens
            mine = ops.on_gpu("divided_draws").words(values, tokens, self.first)
        return best_of_group(mine, self.group)

    def draw(self, normed: Tensor, chance: Draw) -> Tensor:
        """``normed`` [W, H] -> a token drawn after each row [W]."""
        on_cpu, target = ops.is_cpu(normed), chance.target
        if self.weight is None:
            logits = torch.empty((normed.shape[0], 0), dtype=torch.float32, device=normed.device)
        else:
            logits = self._logits(normed, self.weight)
        if on_cpu or self.group.handle is not None:
            return draw(logits.float() if on_cpu else logits, self.first, self.group, chance)
        tokens: Tensor = ops.on_gpu("sampling").draw(
            logits, chance.depths, temperatures=target.temperature, top_ks=target.top_k, top_ps=target.top_p,
            keys=target.key, positions=target.position, greedy=target.greedy,
        )  # fmt: skip
        return tokens

    def blocks(self, normed: Tensor, count: int) -> Any:
        """``normed`` [W, H] -> the ``count`` best of blocks of logits, ``triton_kernels.top.Blocks``, from which a tree
        grows; None: on a CPU, where devices divide the vocabulary, and where blocks have too many.
        """
        if self.weight is None or self.group.handle is not None or ops.is_cpu(normed):
            return None
        if not ops.on_gpu("trees").takes_blocks(self.rows, count):
            return None
        return ops.on_gpu("top").of_blocks(self._logits(normed, self.weight), count)

    def top(self, normed: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """``normed`` [W, H] -> tokens and their log-probabilities [W, count], best first.

        Each member brings its ``count`` best, its maximum m and the sum s of exp(logit - m) over its rows; with the
        maximum M over members, log p = (logit - M) - log(sum of s * exp(m - M)), exactly the log-softmax of the whole.
        """
        if self.weight is not None and self.group.handle is None:
            return ops.top(self._logits(normed, self.weight), count)
        layout = CandidateLayout(top_k=count)
        gathered = self.group.all_gather(self._local(normed, layout))  # [members, W, words]
        if not ops.is_cpu(normed):
            best: tuple[Tensor, Tensor] = ops.on_gpu("top").of_all(gathered, count)
            return best
        return ops.merged(gathered, count, normed.dtype)

    def _logits(self, normed: Tensor, weight: Tensor | Coded) -> Tensor:
        """Return the logits of this member's rows [W, v]."""
        logits = product(normed, weight)
        if self.divisor is not None:
            logits.div_(self.divisor)
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def _local(self, normed: Tensor, layout: CandidateLayout) -> Tensor:
        """Return this member's candidates [W, words]; where it has fewer rows than ``top_k``, the rest scores -inf."""
        if self.weight is not None and not ops.is_cpu(normed):
            own: Tensor = ops.on_gpu("top").words(self._logits(normed, self.weight), layout.top_k, self.first)
            return own
        if self.weight is not None:
            return ops.candidates(self._logits(normed, self.weight), layout.top_k, self.first)
        mine = torch.zeros((normed.shape[0], layout.words), dtype=torch.float64, device=normed.device)
        mine[:, layout.values] = mine[:, layout.highest] = float("-inf")
        return mine


def _transposed(matrix: Tensor | Coded) -> Tensor | Coded:
    """Return a matrix of an image as [in, out]."""
    return matrix.t() if isinstance(matrix, Tensor) else matrix


def _range(rows: Sequence[int], index: int) -> tuple[int, int]:
    return sum(rows[:index]), rows[index]
