"""Measure the demonstration EAGLE heads: a plain dynamic-tree EAGLE loop and the acceptance lengths that it reaches.

Readable rather than fast, and independent of the runtime: the base recomputes the whole sequence at every step, so the
code is also a second opinion on the algorithm.

Shapes: B batch, T tokens, H hidden, D head dim, N tree nodes. A pair is (feature at position i, token i + 1).
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from eagle_heads import Attend, Head, load_base, load_head

# Dynamic tree


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TreeShape:
    """EAGLE's three parameters; `total_token` counts the root, and `depth` + 1 levels are drafted."""

    total_token: int = 60
    depth: int = 7
    top_k: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A drafted token; `parent` indexes the list of nodes that holds it, None meaning the root."""

    token: int
    parent: int | None
    score: float
    depth: int


class Memory:
    """The drafter's keys and values: committed pairs first, then the rows of the tree that is drafted."""

    def __init__(self) -> None:
        self.keys = self.values = torch.empty(0)

    def __len__(self) -> int:
        return self.keys.shape[2] if self.keys.ndim == 4 else 0

    def attend(self, visible: Tensor) -> Attend:
        """Return an attention that appends its keys and values; new row t sees row s where visible[t, s]."""

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.keys = torch.cat((self.keys, k), dim=2) if len(self) else k
            self.values = torch.cat((self.values, v), dim=2) if self.values.ndim == 4 else v
            return F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=visible, enable_gqa=True)

        return run

    def truncate(self, length: int) -> None:
        """Drop the rows from `length` on."""
        self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]


class Drafter:
    """An EAGLE head with its KV cache: commit pairs, then draft trees from the last of them."""

    def __init__(self, head: Head, base: LlamaForCausalLM, shape: TreeShape) -> None:
        self.head, self.base, self.shape = head, base, shape
        self.memory = Memory()
        self.feature = torch.empty(0)  # [H], the head's output at the last committed pair

    def commit(self, features: Tensor, tokens: list[int]) -> None:
        """Run the head over new pairs: target features [T, H] with the token after each."""
        seen, new = len(self.memory), len(tokens)
        visible = torch.ones(new, seen + new, dtype=torch.bool).tril(seen)
        positions = torch.arange(seen, seen + new)
        self.feature = self._run(features, tokens, positions, visible)[-1]

    def _run(self, features: Tensor, tokens: list[int], positions: Tensor, visible: Tensor) -> Tensor:
        embedding = self.base.model.embed_tokens(torch.tensor([tokens]))
        out: Tensor = self.head(embedding, features[None], positions, self.memory.attend(visible))[0]
        return out

    def _children(self, feature: Tensor, parent: int | None, score: float, depth: int) -> list[Node]:
        log_p, ranks = self.head.logits(feature, self.base).log_softmax(-1).topk(self.shape.top_k)
        ids = self.head.token_ids()[ranks].tolist()
        return [
            Node(token=t, parent=parent, score=score + p, depth=depth) for t, p in zip(ids, log_p.tolist(), strict=True)
        ]

    def draft(self) -> list[Node]:
        """Return the best total_token - 1 nodes of the candidate pool, parents before children."""
        committed = len(self.memory)
        pool = self._children(self.feature, None, 0.0, 1)
        beam = list(range(len(pool)))
        features: dict[int | None, Tensor] = {None: self.feature}
        rows: dict[int, int] = {}
        for level in range(self.shape.depth):
            start = len(self.memory)
            visible = torch.zeros(len(beam), start + len(beam), dtype=torch.bool)
            visible[:, :committed] = True
            for i, index in enumerate(beam):
                rows[index] = start + i
                ancestor: int | None = index
                while ancestor is not None:
                    visible[i, rows[ancestor]] = True
                    ancestor = pool[ancestor].parent
            parents = torch.stack([features[pool[i].parent] for i in beam])
            positions = torch.full((len(beam),), committed + level)
            out = self._run(parents, [pool[i].token for i in beam], positions, visible)
            features.update(zip(beam, out, strict=True))
            first = len(pool)
            for index in beam:
                pool += self._children(features[index], index, pool[index].score, level + 2)
            beam = best(pool, range(first, len(pool)), self.shape.top_k)
        self.memory.truncate(committed)
        chosen = sorted(best(pool, range(len(pool)), self.shape.total_token - 1))
        number = {index: i for i, index in enumerate(chosen)}
        parents_of = [pool[i].parent for i in chosen]
        return [
            dataclasses.replace(pool[i], parent=None if p is None else number[p])
            for i, p in zip(chosen, parents_of, strict=True)
        ]


def best(pool: list[Node], among: range, count: int) -> list[int]:
    """Return the `count` best-scored indices; ties go to the shallower, then the earlier, so to parents first."""
    return sorted(among, key=lambda i: (-pool[i].score, pool[i].depth, i))[:count]


# Verification


def target_forward(base: LlamaForCausalLM, tokens: list[int], nodes: list[Node]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the base's greedy choices [T + N] and hidden states over committed tokens, root last, and nodes."""
    length, total = len(tokens), len(tokens) + len(nodes)
    visible = torch.ones(total, total, dtype=torch.bool).tril()
    visible[length:, length:] = torch.eye(len(nodes), dtype=torch.bool)
    for i, node in enumerate(nodes):
        if node.parent is not None:
            visible[length + i, length:] |= visible[length + node.parent, length:]
    positions = list(range(length)) + [length - 1 + node.depth for node in nodes]
    output = base(
        input_ids=torch.tensor([tokens + [node.token for node in nodes]]),
        position_ids=torch.tensor([positions]),
        attention_mask=torch.zeros(total, total).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None],
        output_hidden_states=True,
        use_cache=False,
    )
    return output.logits[0].argmax(-1), output.hidden_states


def accept(nodes: list[Node], choice_at_root: int, choices: list[int]) -> tuple[list[int], int]:
    """Walk from the root to the child equal to the base's choice as far as it goes: (accepted nodes, bonus token)."""
    path: list[int] = []
    tip, choice = None, choice_at_root
    while True:
        child = next((i for i, n in enumerate(nodes) if n.parent == tip and n.token == choice), None)
        if child is None:
            return path, choice
        path.append(child)
        tip, choice = child, choices[child]


@torch.no_grad()
def speculate(
    base: LlamaForCausalLM, head: Head, prompt: list[int], new_tokens: int, shape: TreeShape
) -> tuple[list[int], list[int]]:
    """Decode speculatively and greedily: (new tokens, acceptance length of each step, which is accepted + 1)."""
    drafter = Drafter(head, base, shape)
    choices, hidden = target_forward(base, prompt, [])
    tokens = [*prompt, int(choices[-1])]
    drafter.commit(head.target_feature(hidden)[0], tokens[1:])
    lengths = []
    while len(tokens) < len(prompt) + new_tokens:
        nodes = drafter.draft()
        root = len(tokens) - 1
        choices, hidden = target_forward(base, tokens, nodes)
        path, bonus = accept(nodes, int(choices[root]), choices[root + 1 :].tolist())
        rows = torch.tensor([root] + [root + 1 + i for i in path])
        committed = [nodes[i].token for i in path] + [bonus]
        drafter.commit(head.target_feature(hidden)[0, rows], committed)
        tokens += committed
        lengths.append(len(committed))
    return tokens[len(prompt) : len(prompt) + new_tokens], lengths


# Measurement


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread: matrices are so small that a second one costs more in waiting than it computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
@torch.no_grad()
def generate_greedily(base: LlamaForCausalLM, prompts: Tensor, new_tokens: int) -> Tensor:
    """Decode [B, T] prompts greedily with a KV cache, without stopping: [B, T + new_tokens]."""
    ids, cache, pending = prompts, None, prompts
    for _ in range(new_tokens):
        output = base(input_ids=pending, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, pending = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat((ids, pending), dim=1)
    return ids


def distinct_share(tokens: list[int], n: int = 8) -> float:
    """Return the number of distinct n-grams over that of all n-grams."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One EAGLE head over all prompts; `acceptance_length` is tokens committed per verification, over all steps."""

    acceptance_length: float
    per_prompt: list[float]
    equal_to_greedy: int


def measure_head(
    base: LlamaForCausalLM, head: Head, prompts: list[list[int]], greedy: list[list[int]], shape: TreeShape
) -> Measurement:
    """Decode each prompt speculatively and compare with the greedy tokens."""
    per_prompt, all_lengths, equal = [], [], 0
    for prompt, expected in zip(prompts, greedy, strict=True):
        produced, lengths = speculate(base, head, prompt, len(expected), shape)
        equal += produced == expected
        all_lengths += lengths
        per_prompt.append(statistics.mean(lengths))
    return Measurement(acceptance_length=statistics.mean(all_lengths), per_prompt=per_prompt, equal_to_greedy=equal)


@one_thread()
def measure(demo: Path, prompts: list[list[int]], new_tokens: int, shape: TreeShape) -> dict[str, Any]:
    """Return all figures of the model card: acceptance of both heads and the variety of the greedy text."""
    base = load_base(demo / "base")
    rows = generate_greedily(base, torch.tensor(prompts), new_tokens).tolist()
    greedy = [row[len(prompts[0]) :] for row in rows]
    result: dict[str, Any] = {
        "prompts": len(prompts),
        "new_tokens": new_tokens,
        "distinct_8gram_median": statistics.median(map(distinct_share, greedy)),
    }
    for name in ("eagle3", "eagle1"):
        result[name] = dataclasses.asdict(measure_head(base, load_head(demo / name), prompts, greedy, shape))
    return result


def main() -> None:
    """Measure a demo directory over the prompts that training set aside."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("planner/demo"))
    parser.add_argument("--prompts", type=Path, required=True, help="JSON list of token id lists, all of one length")
    parser.add_argument("--new-tokens", type=int, default=200)
    args = parser.parse_args()
    prompts = json.loads(args.prompts.read_text())
    print(json.dumps(measure(args.demo, prompts, args.new_tokens, TreeShape()), indent=2))


if __name__ == "__main__":
    main()
