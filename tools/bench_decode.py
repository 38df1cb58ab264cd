"""Decoding on one CPU device: transformers' `generate`, our plain decoding and our EAGLE decoding, in one process.

    python tools/bench_decode.py [--rounds 5] [--tokens 128] [--json]

Two models: a random bf16 Llama of 134 M parameters with a random EAGLE-3 head, where every step is forced to accept
three tokens, and the embedded model with its EAGLE head and the prompt of `runtime run`. All decoders take turns with
the same weights, prompt, dtype and threads. Times are of whole requests with prefill, medians over rounds; ratios are
of times of one round. The reference is the faster of transformers' dynamic and static caches. The limit is the time to
read the weights once per pass at the measured memory bandwidth.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from runtime.commands.prompts import DEFAULT_PROMPT
from runtime.engine import Engine
from runtime.request import Request
from runtime.text import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "planner" / "demo"
PROMPT_TOKENS = 32
HIDDEN, HEADS, WIDE, LAYERS, VOCABULARY, DRAFT_VOCABULARY = 768, 12, 2048, 12, 32000, 8000
INVENTORY = "hosts: [{name: box, devices: [{id: cpu, type: cpu, memory: 8 GiB, bandwidth: 35 GB/s}]}]\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One model decoded by one decoder."""

    model: str
    decoder: str
    """transformers with one of its caches, our plain decoding, or EAGLE."""
    tokens_per_s: float
    over_transformers: float
    """Median over rounds of the time of transformers over the time of this decoder."""
    over_plain: float
    acceptance_length: float
    of_limit: float
    """Passes over the weights per second, as a share of those that the bandwidth allows."""


def random_llama(directory: Path) -> Path:
    """Write a random Llama of 134 M parameters in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=WIDE, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=2048, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


def random_head(directory: Path) -> Path:
    """Write a random EAGLE-3 head for that Llama."""
    directory.mkdir()
    shapes = {
        "fc.weight": (HIDDEN, 3 * HIDDEN),
        "lm_head.weight": (DRAFT_VOCABULARY, HIDDEN),
        **{f"midlayer.self_attn.{name}_proj.weight": (HIDDEN, 2 * HIDDEN) for name in "qkv"},
        "midlayer.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "midlayer.mlp.gate_proj.weight": (WIDE, HIDDEN),
        "midlayer.mlp.up_proj.weight": (WIDE, HIDDEN),
        "midlayer.mlp.down_proj.weight": (HIDDEN, WIDE),
    }
    tensors = {name: (torch.randn(shape) / shape[1] ** 0.5).to(torch.bfloat16) for name, shape in shapes.items()}
    for name in ("midlayer.hidden_norm", "midlayer.input_layernorm", "midlayer.post_attention_layernorm", "norm"):
        tensors[f"{name}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
    tensors["d2t"] = torch.arange(DRAFT_VOCABULARY) * 3
    tensors["t2d"] = torch.zeros(VOCABULARY, dtype=torch.bool)
    tensors["t2d"][::4][:DRAFT_VOCABULARY] = True
    save_file(tensors, directory / "model.safetensors")
    config = {
        "model_type": "llama", "vocab_size": VOCABULARY, "draft_vocab_size": DRAFT_VOCABULARY, "hidden_size": HIDDEN,
        "intermediate_size": WIDE, "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def built(directory: Path, base: Path, head: Path | None, dtype: str, tree: str, context: int, *options: str) -> Path:
    """Build a plan of one device, with its image; without a head there is no tree. ``options``: more of `build`."""
    inventory = directory.parent / "inventory.yaml"
    inventory.write_text(INVENTORY)
    subprocess.run(
        [sys.executable, "-m", "planner", "build", "--gpus", inventory, "--model", base, "--dtype", dtype,
         "--context", str(context), "--out", directory, *options, *(("--draft", head, "--tree", tree) if head else ())],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return directory


def reading_bytes_per_s() -> float:
    """Measure the bandwidth of a sum over a block larger than the caches."""
    block = torch.ones(1 << 28, dtype=torch.float32)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - started)
    return block.nbytes / min(times)


def measure(
    name: str,
    base: Path,
    plan: Path,
    prompt: tuple[int, ...],
    dtype: torch.dtype,
    accept: int | None,
    tokens: int,
    rounds: int,
    limit: float,
) -> list[Row]:
    """Measure all decoders of one model in turns."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    weights = sum(p.nbytes for p in model.parameters()) - model.get_input_embeddings().weight.nbytes
    lengths: list[float] = []

    def reference(cache: str) -> None:
        with torch.inference_mode():
            model.generate(
                torch.tensor([prompt]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                cache_implementation=cache, disable_compile=True, pad_token_id=0,
            )  # fmt: skip

    def ours(draft: bool) -> None:
        completion = engine.serve(
            Request(prompt_ids=prompt, max_new_tokens=tokens, draft=draft, ignore_eos=True, stop=(),
                    accept=accept if draft else None)
        ).finished()  # fmt: skip
        if draft:
            lengths.append(completion.acceptance_length)

    decoders: dict[str, Callable[[], None]] = {
        "transformers, dynamic cache": lambda: reference("dynamic"),
        "transformers, static cache": lambda: reference("static"),
        "plain": lambda: ours(False),
        "EAGLE": lambda: ours(True),
    }
    times: dict[str, list[float]] = {name: [] for name in decoders}
    with Engine.open(plan) as engine:
        threads = torch.get_num_threads()
        for number in range(rounds + 1):
            for decoder, decode in decoders.items():
                torch.set_num_threads(threads)
                started = time.perf_counter()
                decode()
                if number:  # the first round warms up
                    times[decoder].append(time.perf_counter() - started)
    fastest = min(list(decoders)[:2], key=lambda name: statistics.median(times[name]))

    def over(other: str, decoder: str) -> float:
        return statistics.median(a / b for a, b in zip(times[other], times[decoder], strict=True))

    rows = []
    for decoder in decoders:
        per_s = tokens / statistics.median(times[decoder])
        length = statistics.median(lengths) if decoder == "EAGLE" else 1.0
        rows.append(
            Row(
                model=name, decoder=decoder, tokens_per_s=per_s, over_transformers=over(fastest, decoder),
                over_plain=over("plain", decoder), acceptance_length=length, of_limit=per_s / length * weights / limit,
            )
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure both models and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--tree", default="total_token=4,depth=2,top_k=1", help="tree of the random model")
    parser.add_argument("--demo-tree", default="total_token=12,depth=4,top_k=2", help="tree of the embedded model")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    limit = reading_bytes_per_s()
    with tempfile.TemporaryDirectory(prefix="decode-") as name:
        directory = Path(name)
        base, head = random_llama(directory / "base"), random_head(directory / "head")
        random = built(directory / "random", base, head, "bfloat16", arguments.tree, 512)
        demo = built(directory / "demo", DEMO / "base", DEMO / "eagle3", "float32", arguments.demo_tree, 512)
        prompt = tuple(1 + number * 7 % 1000 for number in range(PROMPT_TOKENS))
        text = tuple(load_tokenizer(demo).encode(DEFAULT_PROMPT).ids)
        rows = measure(
            "134 M, bf16", base, random, prompt, torch.bfloat16, 3, arguments.tokens, arguments.rounds, limit
        )
        rows += measure(
            "embedded", DEMO / "base", demo, text, torch.float32, None, arguments.tokens, arguments.rounds, limit
        )
    if arguments.json:
        print(json.dumps({"read_bytes_per_s": limit, "rows": [asdict(row) for row in rows]}))
        return
    print(f"reading memory: {limit / 1e9:.1f} GB/s, {len(os.sched_getaffinity(0))} cores\n")
    print("| model | decoder | tokens/s | x transformers | x plain | acceptance length | of the limit |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        ratios = f"{row.over_transformers:.2f} | {row.over_plain:.2f} | {row.acceptance_length:.2f}"
        print(f"| {row.model} | {row.decoder} | {row.tokens_per_s:.1f} | {ratios} | {row.of_limit:.0%} |")


if __name__ == "__main__":
    main()
