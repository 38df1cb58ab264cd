"""Train the demonstration model on the CPU: a small Python-writing Llama and two EAGLE heads for it.

The corpus is the standard library of the interpreter that runs this file. Each stage is budgeted in steps, so that the
seed decides the result, and kept under `--work`, so that an interrupted run resumes at the stage it was in:

    tokenizer -> base -> cooldown -> unlikelihood -> generated text -> eagle3, eagle1 -> measured model card

Run it from the root of the repository as `python tools/train_demo.py`.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import random
import sysconfig
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from head_training.optimizers import Muon
from measure_demo import (
    Eagle1Head,
    Eagle3Head,
    Head,
    HeadShape,
    TreeShape,
    distinct_share,
    generate_greedily,
    load_base,
    measure,
)

END_OF_TEXT = "<|endoftext|>"
EXCLUDED_PARTS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}
HELD_OUT_PER_MILLE = 60
VOCAB_SIZE = 2048
DRAFT_VOCAB_SIZE = 1024
PROMPT_TOKENS = 96
MAX_POSITIONS = 512
NEW_TOKENS = 200
HEAD_TOKENS = 320
HEAD_PROMPTS = (16, 32, 64, 96)
SELF_FED_ROWS = 128
GENERATED_TOGETHER = 128
HEAD_ROWS = 5
SOFT_SHARE = 0.1
STEP_DECAY = 0.9
MUON_LR = 0.02
WARM_UP_STEPS = 25
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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Training budget: optimizer steps of each stage, and the seed of every random choice."""

    seed: int
    base_steps: int
    cooldown_steps: int
    unlikelihood_steps: int
    generated_rows: int
    eagle3_steps: int
    eagle1_steps: int
    eagle3_unroll: int = 5
    eagle1_unroll: int = 2
    sequence_tokens: int = MAX_POSITIONS
    batch_sequences: int = 8


class Log:
    """Losses and wall times, on the terminal and in `train.log`; losses are smoothed over about twenty steps."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.started = time.monotonic()
        self.smooth: dict[str, float] = {}

    def line(self, text: str) -> None:
        """Write one line, prefixed with the seconds since this process began."""
        text = f"{time.monotonic() - self.started:7.0f} s  {text}"
        print(text, flush=True)
        with (self.work / "train.log").open("a") as file:
            file.write(text + "\n")

    def step(self, stage: str, step: int, loss: Tensor) -> None:
        """Report every twentieth step."""
        value = loss.item()
        assert math.isfinite(value), f"{stage} diverged at step {step}"
        self.smooth[stage] = 0.95 * self.smooth.get(stage, value) + 0.05 * value
        if step % 20 == 19:
            self.line(f"{stage} step {step + 1} loss {self.smooth[stage]:.3f}")


# Corpus


def library_files() -> tuple[list[Path], list[Path]]:
    """Return the standard library's sources as (training, held out), divided by a hash of the relative name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    training: list[Path] = []
    held_out: list[Path] = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if EXCLUDED_PARTS.isdisjoint(name.parts):
            digest = hashlib.sha256(name.as_posix().encode()).digest()
            per_mille = int.from_bytes(digest[:4], "big") * 1000 >> 32
            (held_out if per_mille < HELD_OUT_PER_MILLE else training).append(path)
    return training, held_out


def read_sources(paths: list[Path]) -> list[str]:
    """Return the texts of the files that are not empty."""
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
    return [text for text in texts if text.strip()]


def train_tokenizer(texts: list[str], out: Path) -> PreTrainedTokenizerFast:
    """Train and save a byte-level BPE with one special token, which begins and ends every file."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, model_max_length=MAX_POSITIONS
    )
    tokenizer.save_pretrained(out)
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Return one stream of token ids, END_OF_TEXT before each text and after the last."""
    end = tokenizer.eos_token_id
    stream: list[int] = [end]
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts):
        stream += encoding.ids
        stream.append(end)
    return torch.tensor(stream)


def batches(stream: Tensor, budget: Budget, rng: random.Random) -> Iterator[Tensor]:
    """Yield endless shuffled epochs of [sequences, tokens + 1] windows; each epoch has another offset."""
    width = budget.sequence_tokens
    while True:
        starts = list(range(rng.randrange(width), len(stream) - width - 1, width))
        rng.shuffle(starts)
        for i in range(0, len(starts) - budget.batch_sequences + 1, budget.batch_sequences):
            chosen = starts[i : i + budget.batch_sequences]
            yield torch.stack([stream[s : s + width + 1] for s in chosen])


def windows(stream: Tensor, count: int, width: int, rng: random.Random) -> Tensor:
    """Return `count` windows of the stream at random offsets: [count, width]."""
    starts = [rng.randrange(len(stream) - width) for _ in range(count)]
    return torch.stack([stream[s : s + width] for s in starts])


def held_out_prompts(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Return a prompt of each held-out file that is long enough, from a third of its length on."""
    encodings = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts)]
    starts = [(ids, len(ids) // 3) for ids in encodings]
    return [ids[s : s + PROMPT_TOKENS] for ids, s in starts if len(ids) >= s + PROMPT_TOKENS]


# Optimisation


class Trainer:
    """The optimizers of a module; after a warm-up their rates go linearly from `first` to `last` times the peak."""

    def __init__(self, module: nn.Module, steps: int, adam_lr: float, first: float = 1.0, last: float = 0.0) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, p in module.named_parameters():
            hidden = p.ndim == 2 and "embed" not in name and "lm_head" not in name
            (matrices if hidden else others).append(p)
        self.optimizers = [
            Muon(matrices, lr=MUON_LR),
            torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.params = matrices + others

        def factor(step: int) -> float:
            warm_up = min(WARM_UP_STEPS, max(1, steps // 4))
            return min((step + 1) / warm_up, 1.0) * (first + (last - first) * step / steps)

        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in self.optimizers]

    def step(self, loss: Tensor) -> None:
        """Compute gradients, clip them, update, advance the schedule."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, 1.0)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()


# Base model


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


# Unlikelihood


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


# Heads


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


# Stages


CARD = """\
# Demonstration model

A Llama with {base_parameters:,} parameters that writes Python-like text, with an EAGLE-3 head ({eagle3_parameters:,}
parameters) and an EAGLE-1 head ({eagle1_parameters:,}). With it, planning, loading and speculative decoding can be
tried, tested and measured without a download. It does not write useful programs.

- `base`: `LlamaForCausalLM` of 8 layers, hidden 192, intermediate 512, 8 heads of 24, 4 KV heads, untied embeddings;
  byte-level BPE of 2048, 512 positions.
- `eagle3`: EAGLE-3 head in the official layout, draft vocabulary 1024, embeddings taken from the base.
- `eagle1`: EAGLE-1 (and -2) head in the official layout, `fc` with bias, one layer, embeddings and `lm_head` taken from
  the base.

All weights are bfloat16 safetensors; {total_bytes:,} bytes in all, tokenizer included.

## Corpus and licence

The standard library of CPython {python}, without its tests, `encodings` and `pydoc_data`:
{corpus}.
A hash of a file's name decides whether it is held out. The corpus is under the PSF-2.0 licence; the weights are under
Apache-2.0, as this project is.

## Training

`tools/train_demo.py`, seed {seed}, on the CPU, budgeted in steps; Muon for the hidden matrices and AdamW for the rest.
Losses are those of training batches, smoothed over about twenty steps.

| stage | budget | wall time | loss at its end |
|---|---|---|---|
| base, constant rate | {base_steps} steps of 8 x 512 tokens | {base[seconds]} s | {base[loss]:.3f} nats per token |
| cool-down to a tenth | {cooldown_steps} such steps | {cooldown[seconds]} s | {cooldown[loss]:.3f} nats per token |
| unlikelihood | {unlikelihood_steps} steps | {unlikelihood[seconds]} s | {unlikelihood[loss]:.3f} nats per token |
| greedy text for the heads | {generated_rows} continuations | {generated[seconds]} s | |
| EAGLE-3 head | {eagle3_steps} steps of {head_step} x {eagle3_unroll} | {eagle3[seconds]} s | {eagle3[loss]:.3f} |
| EAGLE-1 head | {eagle1_steps} steps of {head_step} x {eagle1_unroll} | {eagle1[seconds]} s | {eagle1[loss]:.3f} |

The wall times were measured on a machine that did other work too. The unlikelihood stage is needed because a base this
small repeats itself under greedy decoding. In addition to the usual loss, it lowers the probability of tokens that
complete a 6-gram which the base's greedy continuation of a training prompt already contains. The EAGLE heads learn from
the stored (bfloat16) base, computed in float32, on its greedy continuations of corpus windows of 16 to 96 tokens: nine
tenths of the loss are on the base's first choice, the rest on the base's distribution. "x n" means n self-fed steps,
each weighted with nine tenths of the one before.

## Measured

{prompts} prompts of {prompt_tokens} tokens, each from another held-out file; {new_tokens} new tokens, greedy, float32;
dynamic tree with total_token 60, depth 7, top_k 10 (`tools/measure_demo.py`).

| figure | value |
|---|---|
| loss of the stored base on held-out files | {held_out_loss:.3f} nats per token |
| distinct 8-grams of the greedy text, median over prompts | {distinct:.1%} |
| EAGLE-3 acceptance length (tokens committed per verification) | {eagle3_tau:.2f} |
| EAGLE-1 acceptance length, same tree | {eagle1_tau:.2f} |
| prompts where speculation equals plain greedy decoding, EAGLE-3 and EAGLE-1 | {eagle3_equal}, {eagle1_equal} |

With so little training, the base reproduces the form of the library's source but not its meaning.

## Sample

A held-out prompt of {prompt_tokens} tokens, followed by {new_tokens} greedy tokens:

```python
{sample}
```

## Reproduce

```
python tools/train_demo.py
```

writes this directory. The seed fixes every random choice. Another interpreter version has another corpus, and another
processor or PyTorch version rounds differently, so the figures will be close to these but not equal.
"""


def store(tensors: dict[str, Tensor], path: Path) -> None:
    """Save floating-point tensors in bfloat16, others as they are."""
    stored = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in tensors.items()}
    save_file({k: v.contiguous() for k, v in stored.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)


class Stages:
    """Results of finished stages under `work`, with the seconds and the last loss of each in `record.json`."""

    def __init__(self, work: Path, log: Log) -> None:
        self.work, self.log = work, log
        self.path = work / "record.json"
        self.record: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def run(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of a stage, from an earlier run or made now and kept."""
        path = self.work / f"{name}.safetensors"
        if not path.exists():
            started = time.monotonic()
            save_file({k: v.contiguous() for k, v in make().items()}, path)
            seconds = round(time.monotonic() - started)
            self.record[name] = {"seconds": seconds, "loss": self.log.smooth.get(name)}
            self.path.write_text(json.dumps(self.record, indent=2))
            self.log.line(f"stage {name} took {seconds} s")
        return load_file(path)


def model_card(
    out: Path, corpus: str, sample: str, stages: dict[str, Any], measured: dict[str, Any], budget: Budget
) -> str:
    """Return the README of the demo directory; every figure in it was measured by this run."""
    directories = ("base", "eagle3", "eagle1")
    tensors = {name: load_file(out / name / "model.safetensors") for name in directories}
    parameters = {
        f"{name}_parameters": sum(t.numel() for t in held.values() if t.is_floating_point())
        for name, held in tensors.items()
    }
    total = sum(path.stat().st_size for name in directories for path in (out / name).iterdir())
    return CARD.format(
        **parameters,
        **stages,
        **dataclasses.asdict(budget),
        head_step=f"{HEAD_ROWS * HEAD_TOKENS} pairs, {HEAD_ROWS * SELF_FED_ROWS} of them",
        total_bytes=total,
        python=platform.python_version(),
        corpus=corpus,
        prompts=measured["prompts"],
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=measured["new_tokens"],
        held_out_loss=measured["held_out_loss"],
        distinct=measured["distinct_8gram_median"],
        eagle3_tau=measured["eagle3"]["acceptance_length"],
        eagle1_tau=measured["eagle1"]["acceptance_length"],
        eagle3_equal=measured["eagle3"]["equal_to_greedy"],
        eagle1_equal=measured["eagle1"]["equal_to_greedy"],
        sample=sample,
    )


def build(out: Path, work: Path, budget: Budget) -> None:
    """Run every stage and write the demo directory."""
    log = Log(work)
    stages = Stages(work, log)
    training_files, held_out_files = library_files()
    texts, held_out_texts = read_sources(training_files), read_sources(held_out_files)
    tokenizer = train_tokenizer(texts, out / "base")
    train, held_out = encode(tokenizer, texts), encode(tokenizer, held_out_texts)
    corpus = (
        f"{len(training_files)} files, {sum(map(len, texts)):,} characters, {len(train):,} tokens; "
        f"{len(held_out_files)} held-out files, {len(held_out):,} tokens"
    )
    log.line(corpus)

    config = base_config(tokenizer.eos_token_id)
    model = new_base(config, budget.seed)
    for name in ("base", "cooldown"):
        model.load_state_dict(stages.run(name, partial(train_base, model, (train, held_out), budget, log, name)))
    model.load_state_dict(stages.run("unlikelihood", partial(train_against_loops, model, train, budget, log)))
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(out / "base")
    store(model.state_dict(), out / "base" / "model.safetensors")

    base = load_base(out / "base").requires_grad_(False)
    generated = stages.run("generated", lambda: {"rows": generated_rows(base, train, budget)})["rows"]
    for name in ("eagle3", "eagle1"):
        weights = stages.run(name, partial(train_head, name, base, train, generated, budget, log))
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "config.json").write_text(json.dumps(head_config(name), indent=2) + "\n")
        store(weights, out / name / "model.safetensors")

    prompts = held_out_prompts(tokenizer, held_out_texts)[:20]
    (work / "prompts.json").write_text(json.dumps(prompts))
    log.line("measuring")
    result = measure(out, prompts, NEW_TOKENS, TreeShape())
    (work / "measured.json").write_text(json.dumps(result, indent=2))
    result["held_out_loss"] = held_out_loss(base, held_out, budget)
    sample = generate_greedily(base, torch.tensor(prompts[4:5]), NEW_TOKENS)[0].tolist()
    (out / "README.md").write_text(model_card(out, corpus, tokenizer.decode(sample), stages.record, result, budget))
    log.line(f"wrote {out}")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; the committed model was trained with the defaults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("planner/demo"))
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="finished stages, resumed from")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps-base", type=int, default=400)
    parser.add_argument("--steps-cooldown", type=int, default=120)
    parser.add_argument("--steps-unlikelihood", type=int, default=12)
    parser.add_argument("--generated-rows", type=int, default=2048)
    parser.add_argument("--steps-eagle3", type=int, default=1500)
    parser.add_argument("--steps-eagle1", type=int, default=160)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Build the demo directory within the budget of the command line."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    budget = Budget(
        seed=args.seed,
        base_steps=args.steps_base,
        cooldown_steps=args.steps_cooldown,
        unlikelihood_steps=args.steps_unlikelihood,
        generated_rows=args.generated_rows,
        eagle3_steps=args.steps_eagle3,
        eagle1_steps=args.steps_eagle1,
    )
    build(args.out, args.work, budget)


if __name__ == "__main__":
    main()
