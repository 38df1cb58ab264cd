"""Reference implementation of EAGLE decoding, slow and readable: plain Python over the outputs of transformers.

It has no cache and no tree masks: a node is the list of tokens that leads to it, and the drafter runs over the whole
sequence of each node, all nodes of a level at once. It shares no code with the runtime.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Tree:
    """A tree's total_token, depth and top_k, as EAGLE names them; a static tree has paths of child ranks instead."""

    total_token: int = 0
    depth: int = 0
    top_k: int = 0
    paths: tuple[tuple[int, ...], ...] = ()

    @property
    def most_accepted(self) -> int:
        return max(map(len, self.paths), default=min(self.depth + 1, self.total_token - 1))


@dataclass(frozen=True)
class Drafted:
    """A drafted node: the tokens from the root's child to it, the (feature, token) pairs up to it, its score."""

    path: tuple[int, ...]
    pairs: list[tuple[Tensor, int]]
    score: float


class Drafter(Protocol):
    """What growing a tree needs of a head."""

    def targets(self, base: LlamaForCausalLM, sequence: Tensor) -> Tensor: ...

    def enter(self, target: Tensor) -> Tensor: ...

    def run(self, sequences: list[list[tuple[Tensor, int]]]) -> Tensor: ...

    def children(self, output: Tensor, count: int) -> list[tuple[int, float]]: ...


class ReferenceHead:
    """An EAGLE head computed from its checkpoint."""

    def __init__(self, directory: Path, base: LlamaForCausalLM) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.tensors = load_file(directory / "model.safetensors")
        self.eagle3 = "norm.weight" in self.tensors
        self.prefix = "midlayer." if self.eagle3 else "layers.0."
        self.embedding = base.model.embed_tokens.weight
        self.lm_head = self.tensors["lm_head.weight"] if self.eagle3 else base.lm_head.weight

    def targets(self, base: LlamaForCausalLM, sequence: Tensor) -> Tensor:
        """Return the features of the base, of every position."""
        states = base.model(sequence, output_hidden_states=True).hidden_states
        count = base.config.num_hidden_layers
        if self.eagle3:
            return torch.cat([states[layer][0] for layer in (2, count // 2, count - 3)], 1)
        return states[-1][0]

    def enter(self, target: Tensor) -> Tensor:
        """Return a feature of the base as an input of the drafter."""
        return self.tensors["fc.weight"] @ target if self.eagle3 else target

    def run(self, sequences: list[list[tuple[Tensor, int]]]) -> Tensor:
        """Return the outputs [n, H] at the last (feature, token) pair of n sequences of one length, from position 0."""
        features = torch.stack([torch.stack([feature for feature, _ in pairs]) for pairs in sequences])
        embedded = self.embedding[torch.tensor([[token for _, token in pairs] for pairs in sequences])]
        if self.eagle3:
            x = torch.cat(
                [self.norm("midlayer.input_layernorm", embedded), self.norm("midlayer.hidden_norm", features)], 2
            )
            hidden = features
        else:
            x = torch.cat([embedded, features], 2) @ self.tensors["fc.weight"].T + self.tensors["fc.bias"]
            hidden = x
        hidden = hidden + self.attention(x)
        normed = self.norm(f"{self.prefix}post_attention_layernorm", hidden)
        gate, up = (normed @ self.tensors[f"{self.prefix}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        return (hidden + (functional.silu(gate) * up) @ self.tensors[f"{self.prefix}mlp.down_proj.weight"].T)[:, -1]

    def attention(self, x: Tensor) -> Tensor:
        (count, length, _), shared = x.shape, self.config["num_attention_heads"] // self.config["num_key_value_heads"]
        q, k, v = (
            (x @ self.tensors[f"{self.prefix}self_attn.{name}_proj.weight"].T)
            .view(count, length, -1, self.config["head_dim"])
            .transpose(1, 2)
            for name in "qkv"
        )
        q, k, v = self.rotate(q), self.rotate(k).repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(count, length, -1)
        return attended @ self.tensors[f"{self.prefix}self_attn.o_proj.weight"].T

    def rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        frequencies = self.config["rope_theta"] ** -(torch.arange(half) / half)
        angles = torch.arange(x.shape[2])[:, None] * frequencies
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return (
            x
            / (x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt()
            * self.tensors[f"{name}.weight"]
        )

    def children(self, output: Tensor, count: int) -> list[tuple[int, float]]:
        """Return the ``count`` most probable tokens, as ids of the base, with their log-probabilities."""
        read = self.norm("norm", output) if self.eagle3 else output
        top = (self.lm_head @ read).log_softmax(0).topk(count)
        offsets = self.tensors.get("d2t", torch.zeros(self.lm_head.shape[0], dtype=torch.int64))
        return [(int(i + offsets[i]), float(p)) for i, p in zip(top.indices, top.values, strict=True)]


def draft_static(
    drafter: Drafter, accepted: list[tuple[Tensor, int]], paths: tuple[tuple[int, ...], ...]
) -> list[tuple[int, ...]]:
    """Return the tokens along each path of ranks, in the order of the paths."""
    nodes = {(): Drafted((), accepted, 0.0)}
    for level in range(1, max(map(len, paths)) + 1):
        level_paths = [path for path in paths if len(path) == level]
        above = sorted({path[:-1] for path in level_paths})
        outputs = dict(zip(above, drafter.run([nodes[path].pairs for path in above]), strict=True))
        for path in level_paths:
            parent, rank, output = nodes[path[:-1]], path[-1], outputs[path[:-1]]
            token, score = drafter.children(output, rank + 1)[rank]
            nodes[path] = Drafted((*parent.path, token), [*parent.pairs, (output, token)], parent.score + score)
    return [nodes[path].path for path in paths]


def draft(drafter: Drafter, accepted: list[tuple[Tensor, int]], tree: Tree) -> list[tuple[int, ...]]:
    """Return the paths of the drafted nodes, parents first, in the order in which they were drafted."""
    beam = [Drafted((), accepted, 0.0)]
    pool = []
    for _ in range(tree.depth + 1):
        level = []
        for node, output in zip(beam, drafter.run([node.pairs for node in beam]), strict=True):
            level += [
                Drafted((*node.path, token), [*node.pairs, (output, token)], node.score + score)
                for token, score in drafter.children(output, tree.top_k)
            ]
        pool += level
        beam = sorted(level, key=lambda node: -node.score)[: tree.top_k]
    best = sorted(range(len(pool)), key=lambda number: (-pool[number].score, number))[: tree.total_token - 1]
    return [pool[number].path for number in sorted(best)]


def grow(drafter: Drafter, accepted: list[tuple[Tensor, int]], tree: Tree) -> list[tuple[int, ...]]:
    """Return the paths of the drafted nodes of a tree of either kind."""
    return draft_static(drafter, accepted, tree.paths) if tree.paths else draft(drafter, accepted, tree)


def decode(
    base: LlamaForCausalLM,
    drafter: Drafter,
    prompt: list[int],
    greedy: list[int],
    tree: Tree,
    grown: Callable[[list[tuple[Tensor, int]]], list[tuple[int, ...]]] | None = None,
) -> tuple[list[list[tuple[int, ...]]], list[int]]:
    """Return the drafted trees and accepted lengths of decoding ``prompt``, whose greedy continuation is ``greedy``.

    ``grown``: how a tree is drafted from the accepted pairs, where not as EAGLE does. Decoding stops where the rest of
    ``greedy`` may be too short to verify a tree.
    """
    sequence = torch.tensor([prompt + greedy])
    targets = drafter.targets(base, sequence)
    trees, lengths, done = [], [], 0
    while done + tree.most_accepted + 2 <= len(greedy):
        known = len(prompt) + done
        pairs = [(drafter.enter(targets[i]), int(sequence[0, i + 1])) for i in range(known)]
        paths = grow(drafter, pairs, tree) if grown is None else grown(pairs)
        length = 0
        while tuple(greedy[done + 1 : done + 2 + length]) in paths:
            length += 1
        trees.append(paths)
        lengths.append(length)
        done += length + 1
    return trees, lengths
