"""The base: a small Llama, trained on the corpus, then against the loops of its own greedy text."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from demo_training.corpus import PROMPT_TOKENS, VOCAB_SIZE, batches, windows
from demo_training.stages import MAX_POSITIONS, Budget, Log, Trainer
from measure_demo import distinct_share, generate_greedily

NEW_TOKENS = 200


def base_config(end: int) -> LlamaConfig:
    """Return the demo's Llama: eight layers give EAGLE-3 three distinct feature layers, four KV heads let TP 4 fit."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=24,
        max_position_embeddings=MAX_POSITIONS,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )


def language_loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Return the mean next-token cross entropy of [sequences, tokens + 1] ids, in nats per token."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: Tensor, budget: Budget, count: int = 12) -> float:
    """Return the mean loss over the first `count` batches of the held-out stream, in a fixed order."""
    held_out = batches(stream, budget, random.Random(0))
    return sum(language_loss(model, next(held_out)).item() for _ in range(count)) / count


def new_base(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """Return an untrained base in which every layer begins as the identity."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    nn.init.zeros_(model.lm_head.weight)
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def train_base(
    model: LlamaForCausalLM, streams: tuple[Tensor, Tensor], budget: Budget, log: Log, name: str
) -> dict[str, Tensor]:
    """Train on (training, held-out) streams: at a constant rate as `base`, then at a falling one as `cooldown`."""
    train, held_out = streams
    constant = name == "base"
    steps = budget.base_steps if constant else budget.cooldown_steps
    trainer = Trainer(model, steps, adam_lr=0.004, last=1.0 if constant else 0.1)
    source = batches(train, budget, random.Random(budget.seed if constant else budget.seed + 4))
    loss_of = torch.compile(language_loss)
    for step in range(steps):
        loss = loss_of(model, next(source))
        trainer.step(loss)
        log.step(name, step, loss)
    log.line(f"{name} held-out {held_out_loss(model, held_out, budget):.3f}")
    state: dict[str, Tensor] = model.state_dict()
    return state


def repeated_positions(rows: Tensor, prompt_tokens: int, n: int = 6) -> Tensor:
    """Mark tokens after the prompt that complete an n-gram which the same row already holds: bool [B, T]."""
    marks = torch.zeros_like(rows, dtype=torch.bool)
    for b, row in enumerate(rows.tolist()):
        seen: set[tuple[int, ...]] = set()
        for end in range(n, len(row) + 1):
            gram = tuple(row[end - n : end])
            marks[b, end - 1] = end > prompt_tokens and gram in seen
            seen.add(gram)
    return marks


def unlikelihood_loss(model: LlamaForCausalLM, rows: Tensor, marks: Tensor) -> Tensor:
    """Return -log(1 - p) of the marked tokens (Welleck et al. 2019), over all tokens of [B, T]."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    p = logits.softmax(-1).gather(-1, rows[:, 1:, None])[..., 0]
    return -(torch.log1p(-p.clamp(max=1 - 1e-4)) * marks[:, 1:]).sum() / marks.numel()


def train_against_loops(model: LlamaForCausalLM, train: Tensor, budget: Budget, log: Log) -> dict[str, Tensor]:
    """Train a short last stage: the usual loss plus unlikelihood of n-grams that greedy continuations repeat."""
    source = batches(train, budget, random.Random(budget.seed + 1))
    rng = random.Random(budget.seed + 2)
    trainer = Trainer(model, budget.unlikelihood_steps, adam_lr=0.004, first=0.5)
    rows: list[Tensor] = []
    for step in range(budget.unlikelihood_steps):
        if not rows:
            generated = generate_greedily(model, windows(train, 48, PROMPT_TOKENS, rng), NEW_TOKENS)
            share = sum(map(distinct_share, generated[:, PROMPT_TOKENS:].tolist())) / len(generated)
            log.line(f"unlikelihood step {step} distinct 8-grams {share:.2f}")
            rows = list(generated.split(8))
        chosen = rows.pop()
        marks = repeated_positions(chosen, PROMPT_TOKENS)
        loss = language_loss(model, next(source)[: budget.batch_sequences // 2])
        trainer.step(loss + 4.0 * unlikelihood_loss(model, chosen, marks))
        log.step("unlikelihood", step, loss)
    state: dict[str, Tensor] = model.state_dict()
    return state
