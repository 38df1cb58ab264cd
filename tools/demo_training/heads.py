"""The EAGLE heads: self-fed training on the hidden states of the base over its own greedy text."""

import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from demo_training.corpus import VOCAB_SIZE, windows
from demo_training.stages import MAX_POSITIONS, Budget, Log, Trainer
from eagle_heads import Eagle1Head, Eagle3Head, Head, HeadShape
from measure_demo import generate_greedily

DRAFT_VOCAB_SIZE = 1024
HEAD_TOKENS = 320
HEAD_PROMPTS = (16, 32, 64, 96)
SELF_FED_ROWS = 128
GENERATED_TOGETHER = 128
HEAD_ROWS = 5
SOFT_SHARE = 0.1
STEP_DECAY = 0.9
HEAD_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLMEagle"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": MAX_POSITIONS,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "bias": False,
    "qkv_bias": False,
    "torch_dtype": "bfloat16",
}


class Unrolled:
    """Attention of EAGLE-3's training-time test.

    Row i of step j is the pair (own output of step j - 1 or target feature i, token i + 1 + j). It sees the step-0 rows
    up to i, which are committed pairs, and row i of steps 1..j, which are its own ancestors:

        step 0 rows   0 1 .. i | step 1: i | step 2: i | .. | step j: i

    Step 0 has all rows, later steps only `rows` [R] of them, since many rows of a text are alike.
    """

    def __init__(self, rows: Tensor, length: int) -> None:
        self.steps: list[tuple[Tensor, Tensor]] = []
        self.future = torch.arange(length) > rows[:, None]  # [R, T]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with [B, heads, T, D], later [B, heads, R, D]; every call is the next step."""
        self.steps.append((k, v))
        (k0, v0), own = self.steps[0], self.steps[1:]
        if not own:
            return F.scaled_dot_product_attention(q, k0, v0, is_causal=True)
        length = k0.shape[2]
        q = q * q.shape[-1] ** -0.5
        scores = [(q @ k0.mT).masked_fill(self.future, float("-inf"))]
        scores += [(q * kj).sum(-1, keepdim=True) for kj, _ in own]
        weights = torch.cat(scores, dim=-1).softmax(-1)
        out = weights[..., :length] @ v0
        for j, (_, vj) in enumerate(own):
            out = out + weights[..., length + j, None] * vj
        result: Tensor = out
        return result


def target_choices(head: Head, final: Tensor, base: LlamaForCausalLM) -> tuple[Tensor, Tensor]:
    """Return a drafter's targets from the base's final states [B, T, H]: weights [B, T, draft ids], valid rows.

    They are mostly the base's first choice, as greedy decoding needs, and to SOFT_SHARE its distribution. A row whose
    first choice lies outside the draft vocabulary does not count.
    """
    logits = base.lm_head(final)
    known = logits[..., head.token_ids()]
    first = F.one_hot(known.argmax(-1), known.shape[-1])
    return torch.lerp(first.float(), known.softmax(-1), SOFT_SHARE), known.amax(-1) == logits.amax(-1)


def head_loss(
    head: Head, ids: Tensor, states: tuple[Tensor, ...], base: LlamaForCausalLM, unroll: int, rows: Tensor
) -> Tensor:
    """Return the loss over `unroll` self-fed steps, later ones of `rows` [R] alone, on ids [B, T + unroll].

    `states`: the base's hidden states of these ids. EAGLE-1 adds its smooth-L1 regression of the base's feature.
    """
    length = ids.shape[1] - unroll
    feature = head.target_feature(states)[:, :length]
    embedding = base.model.embed_tokens(ids)
    target, covered = target_choices(head, states[-1], base)
    attention, loss, fed = Unrolled(rows, length), torch.zeros(()), torch.arange(length)
    for j in range(unroll):
        feature = head(embedding[:, fed + 1], feature, fed, attention.attend)
        log_p = head.logits(feature, base).log_softmax(-1)
        missed = -(target[:, fed + 1] * log_p).sum(-1) * covered[:, fed + 1]
        loss = loss + STEP_DECAY**j * missed.sum() / covered[:, fed + 1].sum()
        if isinstance(head, Eagle1Head):
            loss = loss + STEP_DECAY**j * F.smooth_l1_loss(feature, states[-1][:, fed + 1])
        if j == 0:
            feature, fed = feature[:, rows], rows
        fed = fed + 1
    return loss / sum(STEP_DECAY**j for j in range(unroll))


def head_config(name: str) -> dict[str, Any]:
    """Return the official config keys of one EAGLE head."""
    config = HEAD_CONFIG | {"bias": name == "eagle1"}
    if name == "eagle3":
        config |= {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": DRAFT_VOCAB_SIZE}
    return config


def new_head(name: str, base: LlamaForCausalLM, frequency: Tensor) -> Head:
    """Return an untrained EAGLE head; EAGLE-3's lm_head and norm begin as the base's, cut to the most frequent ids."""
    shape = HeadShape.read(head_config(name))
    if name == "eagle1":
        return Eagle1Head(shape)
    head = Eagle3Head(shape)
    chosen = frequency.topk(DRAFT_VOCAB_SIZE).indices.sort().values
    head.d2t.copy_(chosen - torch.arange(DRAFT_VOCAB_SIZE))
    head.t2d[chosen] = True
    head.lm_head.weight.data.copy_(base.lm_head.weight[chosen])
    head.norm.weight.data.copy_(base.model.norm.weight)
    return head


def head_batches(generated: Tensor, width: int, rng: random.Random) -> Iterator[Tensor]:
    """Yield endless shuffled epochs of [rows, width] batches of the base's own greedy text."""
    while True:
        order = list(range(len(generated)))
        rng.shuffle(order)
        for i in range(0, len(order) - HEAD_ROWS + 1, HEAD_ROWS):
            yield generated[order[i : i + HEAD_ROWS], :width]


def generated_rows(base: LlamaForCausalLM, train: Tensor, budget: Budget) -> Tensor:
    """Return the base's greedy continuations of training windows of several lengths, windows included."""
    rng = random.Random(budget.seed + 3)
    width = HEAD_TOKENS + max(budget.eagle3_unroll, budget.eagle1_unroll)
    chunks = []
    for number in range(budget.generated_rows // GENERATED_TOGETHER):
        prompts = windows(train, GENERATED_TOGETHER, HEAD_PROMPTS[number % len(HEAD_PROMPTS)], rng)
        chunks.append(generate_greedily(base, prompts, width - prompts.shape[1]))
    return torch.cat(chunks)


def train_head(
    name: str, base: LlamaForCausalLM, train: Tensor, generated: Tensor, budget: Budget, log: Log
) -> dict[str, Tensor]:
    """Train one EAGLE head on the hidden states of the stored base."""
    eagle3 = name == "eagle3"
    steps = budget.eagle3_steps if eagle3 else budget.eagle1_steps
    unroll = budget.eagle3_unroll if eagle3 else budget.eagle1_unroll
    torch.manual_seed(budget.seed)
    frequency = torch.bincount(generated.flatten(), minlength=VOCAB_SIZE) / generated.numel()
    frequency += torch.bincount(train, minlength=VOCAB_SIZE) / len(train)
    head = new_head(name, base, frequency)
    trainer = Trainer(head, steps, adam_lr=0.002)
    source = head_batches(generated, HEAD_TOKENS + unroll, random.Random(budget.seed))
    for step in range(steps):
        ids = next(source)
        rows = torch.randperm(HEAD_TOKENS)[:SELF_FED_ROWS].sort().values
        with torch.no_grad():
            states = base.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        loss = head_loss(head, ids, states, base, unroll, rows)
        trainer.step(loss)
        log.step(name, step, loss)
    return head.state_dict()
