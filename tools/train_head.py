"""Train an EAGLE-3 head for a base model, from prompts of your own.

    python tools/train_head.py --model Qwen3-0.6B/ --prompts chats.jsonl --work /tmp/head --out Qwen3-0.6B-eagle3/

The base answers the prompts greedily, in batches; the hidden states that EAGLE-3 reads are kept under `--work` as it
does. The head then learns from them, also from its own output. Everything continues where it was when it is started
again, after a kill too. `--out` gets `config.json` and `model.safetensors` in the layout of SafeAILab/EAGLE, which
`eagleplan build --draft` reads, and a README.md with data, losses and the drafts that were right on held-out prompts.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from head_training.answering import Answering, answer_all, digest_of
from head_training.base import DTYPES, Base, load_base
from head_training.card import model_card
from head_training.errors import TrainingError
from head_training.head import head_config, read_head, write_head
from head_training.progress import Usage
from head_training.prompts import Prompt, Text, in_groups, invent, is_held_out, read_prompts
from head_training.store import Stored, read_chunk
from head_training.training import Training, TrainingSettings

DRAFT_VOCAB = 4096


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse a command line, by default that of the process."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="directory of the base: config, safetensors, tokenizer")
    add("--prompts", type=Path, nargs="*", default=[], help="JSONL, or text: a question per line (see tools/README.md)")
    add("--invent", type=int, default=0, metavar="N", help="questions that the base writes itself, beside --prompts")
    add("--work", type=Path, required=True, help="answers, states and checkpoints, to resume from; 8 H bytes per token")
    add("--out", type=Path, required=True, help="directory of the head; its files are replaced")
    add("--from", type=Path, dest="beginning", metavar="HEAD", help="directory of a head to go on from, else a new one")
    add("--no-chat", dest="chat", action="store_false", help="plain text, without the chat template")
    add("--window", type=int, default=64, help="tokens of a prompt that is cut from plain text")
    add("--max-new-tokens", type=int, default=192, help="longest answer of the base")
    add("--longest", type=int, default=2048, help="most tokens of a prompt with its answer")
    add("--group", type=int, default=256, help="prompts that are answered together")
    add("--held-out", type=int, default=32, metavar="N", help="one of N prompts is kept for measuring")
    add(
        "--draft-vocab",
        type=int,
        help=f"tokens that the head can draft, the most frequent: {DRAFT_VOCAB}, or those of --from, unless given",
    )
    add("--mlp-width", type=int, help="hidden units of a new head's MLP; the base's number unless given")
    add("--passes", type=float, default=3.0, help="passes over the answers")
    add("--minutes", type=float, help="of processor time that the training takes at most, over all runs")
    add("--batch", type=int, default=16, help="sequences of a step")
    add("--unroll", type=int, default=5, help="steps of the head per pair; from the second on it is fed its own output")
    add("--self-fed-rows", type=int, default=32, help="pairs of a sequence from which the head is fed its own output")
    add("--hard-share", type=float, default=0.5, help="of the loss: on the base's first choice, else its distribution")
    add("--evaluate-every", type=int, default=100, metavar="STEPS", help="steps between measures on held-out prompts")
    add("--rate", type=float, default=1.0, help="factor on the learning rates; less for a head that is gone on from")
    add("--dtype", choices=sorted(DTYPES), default="bfloat16", help="in which base and training compute")
    add("--threads", type=int, default=1, help="of each process")
    add("--workers", type=int, default=1, help="processes that answer prompts")
    add("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    if not 0 < args.rate <= 10:
        parser.error(f"--rate: found {args.rate}, expected more than 0 and at most 10")
    if args.minutes is not None and not args.minutes > 0:
        parser.error(f"--minutes: found {args.minutes}, expected more than 0")
    if args.draft_vocab is not None and args.draft_vocab < 1:
        parser.error(f"--draft-vocab: found {args.draft_vocab}, expected at least 1")
    if args.mlp_width is not None and (args.mlp_width < 1 or args.beginning is not None):
        parser.error(f"--mlp-width: found {args.mlp_width}, expected at least 1, and not with --from")
    for name in (
        "window",
        "max_new_tokens",
        "group",
        "held_out",
        "batch",
        "unroll",
        "self_fed_rows",
        "threads",
        "workers",
    ):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: found {getattr(args, name)}, expected at least 1")
    if not args.prompts and not args.invent:
        parser.error("expected --prompts or --invent")
    if args.invent and not args.chat:
        parser.error("--invent needs the chat template: not with --no-chat")
    return args


def collect_prompts(args: argparse.Namespace, base: Base, text: Text, usage: Usage) -> list[list[Prompt]]:
    """Return the groups of all prompts, file by file; the invented ones are kept under the work directory."""
    files = list(args.prompts)
    if args.invent:
        file = args.work / f"invented-{args.invent}-{args.seed}.jsonl"
        if not file.exists():
            report(f"the base writes {args.invent} questions")
            before = usage.seconds()
            lines = [json.dumps({"prompt": question}) for question in invent(base, text, args.invent, args.seed)]
            usage.add("questions", before)
            partial = file.with_suffix(".part")
            partial.write_text("\n".join(lines) + "\n")
            partial.replace(file)
        files.append(file)
    return [group for file in files for group in in_groups(read_prompts(file, text, args.window), args.group)]


def load_rows(base: Base, work: Path, names: list[str], one_in: int) -> tuple[list[Stored], list[Stored]]:
    """Return the answered sequences to train on, and those held out by their prompts."""
    train: list[Stored] = []
    held_out: list[Stored] = []
    for name in names:
        for row in read_chunk(work, name, base.width):
            (held_out if is_held_out(row.tokens[: row.start], one_in) else train).append(row)
    return train, held_out


def train_head(args: argparse.Namespace) -> None:
    """Run all stages that are not done yet."""
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    usage = Usage(args.work)
    text = Text(args.model, chat=args.chat)
    base = load_base(args.model, args.dtype)
    beginning = None if args.beginning is None else read_head(args.beginning, base, args.draft_vocab)
    groups = collect_prompts(args, base, text, usage)
    answering = Answering(
        model=args.model,
        digest=digest_of(args.model),
        dtype=args.dtype,
        max_new_tokens=args.max_new_tokens,
        longest=args.longest,
    )
    names = answer_all(answering, groups, args.work, args.workers, args.threads, usage)
    train, held_out = load_rows(base, args.work, names, args.held_out)
    settings = TrainingSettings(
        steps=max(1, int(args.passes * len(train) / args.batch)),
        minutes=args.minutes,
        batch=args.batch,
        unroll=args.unroll,
        self_fed_rows=args.self_fed_rows,
        hard_share=args.hard_share,
        evaluate_every=args.evaluate_every,
        rate=args.rate,
        seed=args.seed,
    )
    if beginning is None:
        vocabulary = DRAFT_VOCAB if args.draft_vocab is None else args.draft_vocab
        config = head_config(base, vocabulary, args.longest, args.mlp_width)
    else:
        config = beginning.config
    training = Training(base, config, settings, (train, held_out), args.work, beginning)
    report(
        f"{len(training.train)} answers to train on, {len(training.held_out)} held out; "
        f"the draft vocabulary has {training.coverage:.1%} of their tokens"
    )
    training.run(report, usage)
    size = write_head(args.out, training.head, config)
    (args.out / "README.md").write_text(model_card(training, args.model.name, usage.minutes(), size))
    report(f"wrote {args.out}: {size} bytes")


def report(line: str) -> None:
    """Print a line of the protocol."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> None:
    """Train, or end with exit code 2 and one line where the input is wrong."""
    args = parse_arguments()
    try:
        train_head(args)
    except TrainingError as error:
        report(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        report("interrupted; start again with the same options to continue")
        sys.exit(130)


if __name__ == "__main__":
    main()
