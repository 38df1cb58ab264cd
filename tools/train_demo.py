"""Train the demonstration model on the CPU: a small Python-writing Llama and two EAGLE heads for it.

The corpus is the standard library of the interpreter that runs this file. Each stage is budgeted in steps, so that the
seed decides the result, and kept under `--work`, so that an interrupted run resumes at the stage it was in:

    tokenizer -> base -> cooldown -> unlikelihood -> generated text -> eagle3, eagle1 -> measured model card

Run it from the root of the repository as `python tools/train_demo.py`.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from demo_training.base import NEW_TOKENS, base_config, held_out_loss, new_base, train_against_loops, train_base
from demo_training.card import model_card
from demo_training.corpus import encode, held_out_prompts, library_files, read_sources, train_tokenizer
from demo_training.heads import generated_rows, head_config, train_head
from demo_training.stages import Budget, Log, Stages, store
from eagle_heads import load_base
from measure_demo import TreeShape, generate_greedily, measure


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
