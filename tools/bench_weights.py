"""Rounded weights and KV caches: how far a model's answers are the same, and what its EAGLE head accepts, by format.

    python tools/bench_weights.py MODEL --draft tools/smollm2_head --prompts tools/smollm2_head/prompts.json
    python tools/bench_weights.py ... --formats "KV int8,KV float8"

Greedy answers to chat prompts on one CPU device in bfloat16, as they are and rounded (`planner build --weights`,
`--kv-dtype`). Of each answer: the first tokens that are those of the model's own answer, and acceptance length.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_decode import built
from plans import codec
from plans.artifact import load_images
from runtime.engine import Engine
from runtime.generation import Generation

TREE = "total_token=6,depth=2,top_k=3"
FORMATS = {
    "int8": ("--weights", "int8"),
    "int4-g32": ("--weights", "int4-g32"),
    "KV int8": ("--kv-dtype", "int8"),
    "KV float8": ("--kv-dtype", "float8_e4m3fn"),
}
"""Options of `planner build`, by the names of formats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Answers to all prompts by one format."""

    image_bytes: int
    kv_bytes: int
    answers: list[Generation]


def answers(plan: Path, prompts: Sequence[str], tokens: int) -> Answers:
    """Answer each prompt with the head."""
    with Engine.open(plan) as engine:
        asked = [
            engine.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
            for prompt in prompts
        ]
        generated = [engine.generate(ids, max_new_tokens=tokens) for ids in asked]
    (image,), (line,) = load_images(plan).images, codec.load(plan).memory
    return Answers(image_bytes=image.size_bytes, kv_bytes=line.kv_bytes + line.draft_kv_bytes, answers=generated)


def same_tokens(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many first tokens two answers have in common."""
    return next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def row(name: str, found: Answers, exact: Answers) -> str:
    """Return one line of the table."""
    pairs = list(zip(found.answers, exact.answers, strict=True))
    common = [same_tokens(a.tokens, b.tokens) for a, b in pairs]
    whole = sum(a.tokens == b.tokens for a, b in pairs)
    lengths = [answer.acceptance_length for answer in found.answers]
    return (
        f"| {name} | {found.image_bytes / 1e6:.1f} | {found.kv_bytes / 1e6:.1f} | {whole} of {len(pairs)} "
        f"| {statistics.median(common):g} ({min(common)} to {max(common)}) | {statistics.fmean(lengths):.2f} |"
    )


def main() -> None:
    """Answer with each format and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="JSON: a list of questions")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--most", type=int, default=None, help="ask only so many of the prompts")
    parser.add_argument("--show", type=int, default=0, help="print the answers to so many prompts")
    parser.add_argument("--formats", default=",".join(FORMATS), help="by default all of %(default)s")
    args = parser.parse_args()
    prompts = json.loads(args.prompts.read_text())[: args.most]
    found: dict[str, Answers] = {}
    with tempfile.TemporaryDirectory(prefix="weights-") as name:
        for number, form in enumerate(("as it is", *args.formats.split(","))):
            options = FORMATS[form] if number else ()
            plan = built(Path(name) / str(number), args.model, args.draft, "bfloat16", TREE, 512, *options)
            found[form] = answers(plan, prompts, args.tokens)
    print("| format | image MB | KV MB | same answers | first tokens in common | acceptance length |")
    print("|---|---|---|---|---|---|")
    for form, of_form in found.items():
        print(row(form, of_form, found["as it is"]))
    for number in range(args.show):
        print(f"\n{prompts[number]}")
        for form, of_form in found.items():
            print(f"  {form}: {of_form.answers[number].text!r}")


if __name__ == "__main__":
    main()
