"""The EAGLE head: from accepted features to the next tree.

    extend   run the head over accepted (feature, token) pairs; their KV stays
    grow     level by level: beam -> head -> candidates -> next beam; their KV lies in the cache's tree rows,
             level j at j * top_k, and is overwritten by the next tree

Both heads predict the feature that follows a (feature, token) pair and read tokens off it; they differ in how the pair
enters and in which lm_head reads (``kind``). Shapes: W rows, H hidden size of the head, F width of a target feature,
k top_k.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from plans.buffers import accept_rows, draft_rows, draft_tree_rows, feature_width, feature_words
from plans.schema import Draft, Plan, Tree
from runtime.blocks import Binder, Eagle3Layer, Embed, Layer, Slots
from runtime.comm import Comm
from runtime.kvcache import KvCache
from runtime.layers import Linear, Norm, Rows, hide, rotary_at, rotary_table
from runtime.memory import DTYPES, Memory
from runtime.tree import Candidates, best, join, select


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureMessage:
    """What the verifier tells the head, over one buffer: views of it for W rows."""

    wire: Tensor
    """uint8, all of it."""
    accepted: Tensor
    """[1]: rows 0 … accepted count."""
    tokens: Tensor
    """[W]: the token behind each row; at row ``accepted`` the one that was just decided."""
    path: Tensor
    """[A]: nodes of the last tree to keep."""
    features: Tensor
    """[W, F]"""


def feature_message(plan: Plan, buffer: Tensor, rows: int) -> FeatureMessage:
    """Views of a feature buffer for a message of so many rows."""
    assert plan.draft is not None
    kept, width, dtype = accept_rows(plan.options), feature_width(plan.model, plan.draft), DTYPES[plan.options.dtype]
    start = 8 * feature_words(plan.options, rows)
    wire = buffer[: start + rows * width * dtype.itemsize]
    words = wire[:start].view(torch.int64)
    return FeatureMessage(
        wire=wire,
        accepted=words[:1],
        tokens=words[1 : 1 + rows],
        path=words[1 + rows : 1 + rows + kept],
        features=wire[start:].view(dtype).view(rows, width),
    )


class EagleHead:
    """The input and the layers of an eagle head: x = fc(embedding, feature), then layers; read without a norm."""

    def __init__(self, fc: Linear, layers: list[Layer]) -> None:
        self._fc, self._layers = fc, layers

    def feature(self, target: Tensor) -> Tensor:
        """The target feature as it enters: as it is."""
        return target

    def __call__(self, embedded: Tensor, feature: Tensor, caches: list[Tensor], rows: Rows) -> Tensor:
        hidden = self._fc(torch.cat([embedded, feature], 1))
        for layer, cache in zip(self._layers, caches, strict=True):
            hidden = layer(hidden, cache, rows)
        return hidden

    def read(self, hidden: Tensor) -> Tensor:
        return hidden


class Eagle3Head:
    """An eagle3 head: target features enter through fc, its own output as it is; read through a norm."""

    def __init__(self, fc: Linear, layers: list[Eagle3Layer], norm: Norm) -> None:
        self._fc, self._layers, self._norm = fc, layers, norm

    def feature(self, target: Tensor) -> Tensor:
        """[W, 3T] -> [W, H]."""
        return self._fc(target)

    def __call__(self, embedded: Tensor, feature: Tensor, caches: list[Tensor], rows: Rows) -> Tensor:
        for layer, cache in zip(self._layers, caches, strict=True):
            feature = layer(embedded, feature, cache, rows)
        return feature

    def read(self, hidden: Tensor) -> Tensor:
        return self._norm(hidden)


class Drafter:
    """One device's share of the head, and the tree it grows."""

    def __init__(self, plan: Plan, slots: Slots, memory: Memory, comm: Comm) -> None:
        draft, place, options = plan.draft, plan.draft_placement, plan.options
        assert draft is not None
        assert place is not None
        assert options.tree is not None
        assert comm.draft is not None
        self.group = comm.draft
        self._tree: Tree = options.tree
        self._kept = accept_rows(options)
        self._dtype = DTYPES[options.dtype]
        binder = Binder(slots=slots, dtype=DTYPES[options.dtype], group=comm.draft, hidden=draft.hidden_size)
        self._head = _head(plan, draft, binder, place.kv_heads[comm.draft.index], place.mlp_units[comm.draft.index])
        own_embed, own_head = place.embed_rows is not None, place.head_rows is not None
        self._embed: Embed = binder.embed("draft.embed" if own_embed else "embed", place.embed_rows or plan.embed.rows)
        self._lm_head = binder.head("draft.head" if own_head else "head", place.head_rows or plan.head.rows)
        d2t = slots.tensor("draft.d2t", (draft.draft_vocab_size,), torch.int64) if draft.maps_vocabulary else None
        self._targets = None if d2t is None else d2t + torch.arange(draft.draft_vocab_size, device=d2t.device)
        self.cache = KvCache([memory.buffer("draft.kv")], draft_tree_rows(options))
        self._bias, self._beam_bias = memory.buffer("draft.bias"), memory.buffer("draft.beam")
        self._rotary = memory.buffer("draft.rotary")
        inv_freq = slots.tensor("draft.rope.inv_freq", (self._rotary.shape[2] // 2,), torch.float32)
        self._rotary.copy_(rotary_table(inv_freq, self._rotary.shape[1], self._dtype))
        self._number = torch.arange(draft_rows(options), device=self._bias.device)
        k = self._tree.top_k
        self._own = torch.full((k, k), float("-inf"), dtype=self._dtype, device=self._bias.device).fill_diagonal_(0.0)
        self._root_parents = torch.full((k,), -1, dtype=torch.int64, device=self._bias.device)

    def extend(self, message: FeatureMessage) -> Tensor:
        """Run the accepted pairs; their KV follows what is committed, but nothing is committed.

        The output at the last pair [1, H], the root's feature.
        """
        cache, width = self.cache, message.tokens.shape[0]
        start, window = cache.tree_rows, cache.window(width)
        positions = self._number[:width] + cache.length
        bias = self._bias[:width, start:window]
        hide(bias, cache.columns[: window - start] <= positions.unsqueeze(1))
        rows = Rows(
            rotary=rotary_at(self._rotary, positions),
            bias=bias,
            seen=slice(start, window),
            written=cache.append(width, message.accepted),
        )
        embedded = self._embed(message.tokens, self._dtype)
        hidden = self._head(embedded, self._head.feature(message.features), cache.layers, rows)
        return hidden.index_select(0, message.accepted)

    def grow(self, feature: Tensor, message: FeatureMessage) -> tuple[Tensor, Tensor]:
        """Grow the dynamic tree from the output of ``extend``: its tokens and parents [N]."""
        k, depth = self._tree.top_k, self._tree.depth
        tokens, scores = self._candidates(feature)  # [1, k]
        beam = Candidates(tokens=tokens[0], scores=scores[0], parents=self._root_parents)
        pool, found, hidden = [beam], self._number[:k], feature.expand(k, -1)
        end = message.accepted + (self.cache.length + 1)
        window = self._start_beam(end)
        for level in range(depth):
            hidden = self._feed(beam.tokens, hidden, level, end + level, window)  # [k, H]
            tokens, scores = self._candidates(hidden)  # [k, k]
            children = Candidates(
                tokens=tokens.flatten(),
                scores=(scores + beam.scores.unsqueeze(1)).flatten(),
                parents=found.repeat_interleave(k),
            )
            pool.append(children)
            if level + 1 < depth:
                chosen = best(children.scores, k)
                above = chosen // k
                beam = Candidates(
                    tokens=children.tokens[chosen], scores=children.scores[chosen], parents=children.parents[chosen]
                )
                found = chosen + (k + level * k * k)
                hidden = hidden.index_select(0, above)
                self._inherit(above, level)
        root = message.tokens.index_select(0, message.accepted)
        return select(join(pool), root, self._tree.total_token)

    def _candidates(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The k best tokens (ids of the base) after each row, and their log-probabilities [W, k]."""
        tokens, scores = self._lm_head.top(self._head.read(hidden), self._tree.top_k)
        return (tokens if self._targets is None else self._targets[tokens]), scores

    def _feed(self, tokens: Tensor, feature: Tensor, level: int, position: Tensor, window: int) -> Tensor:
        """One pass of the beam, its KV at the rows of its level."""
        k = self._tree.top_k
        rows = Rows(
            rotary=rotary_at(self._rotary, position.expand(k)),
            bias=self._beam_bias[:, :window],
            seen=slice(0, window),
            written=slice(level * k, (level + 1) * k),
        )
        return self._head(self._embed(tokens, self._dtype), feature, self.cache.layers, rows)

    def _start_beam(self, end: Tensor) -> int:
        """The first beam sees the sequence up to ``end``, and each node itself."""
        k, cache = self._tree.top_k, self.cache
        window = cache.window(self._kept)
        hide(self._beam_bias[:, cache.tree_rows : window], cache.columns[: window - cache.tree_rows] < end)
        self._beam_bias[:, : cache.tree_rows].fill_(float("-inf"))
        self._beam_bias[:, :k].copy_(self._own)
        return window

    def _inherit(self, above: Tensor, level: int) -> None:
        """The next beam sees what its parents saw, and each node itself."""
        k, seen = self._tree.top_k, (level + 1) * self._tree.top_k
        self._beam_bias[:, :seen].copy_(self._beam_bias[:, :seen].index_select(0, above))
        self._beam_bias[:, seen : seen + k].copy_(self._own)


def _head(plan: Plan, draft: Draft, binder: Binder, kv_heads: int, mlp_units: int) -> EagleHead | Eagle3Head:
    """Bind the head's own blocks."""
    hidden, eps = draft.hidden_size, draft.norm_eps
    eagle3 = draft.kind == "eagle3"
    fc = binder.linear("draft.fc", hidden, feature_width(plan.model, draft) if eagle3 else 2 * hidden, draft.fc_bias)
    layers: list[Layer] = []
    eagle3_layers: list[Eagle3Layer] = []
    for number in range(draft.num_layers):
        prefix = f"draft.layers.{number}"
        attention = binder.attention(prefix, (1 + eagle3) * hidden, draft.attention, kv_heads, eps)
        mlp_norm, mlp = binder.norm(f"{prefix}.mlp_norm", eps), binder.mlp(prefix, draft.mlp, mlp_units)
        if eagle3:
            eagle3_layers.append(
                Eagle3Layer(
                    input_norm=binder.norm(f"{prefix}.input_norm", eps),
                    hidden_norm=binder.norm(f"{prefix}.hidden_norm", eps),
                    attention=attention,
                    mlp_norm=mlp_norm,
                    mlp=mlp,
                )
            )
        else:
            norm = binder.norm(f"{prefix}.attention_norm", eps) if number else None
            layers.append(Layer(attention_norm=norm, attention=attention, mlp_norm=mlp_norm, mlp=mlp))
    return Eagle3Head(fc, eagle3_layers, binder.norm("draft.norm", eps)) if eagle3 else EagleHead(fc, layers)
