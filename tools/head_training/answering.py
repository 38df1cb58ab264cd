"""The stage that answers all prompts: in groups, each of which is a chunk on disk, by one or several processes."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from head_training.base import Base, load_base
from head_training.errors import TrainingError
from head_training.generation import Answer, Choice, answer_group, follow_group
from head_training.progress import Progress, Usage
from head_training.prompts import Prompt
from head_training.store import write_chunk


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answering:
    """Settings that decide what an answer is."""

    model: Path
    digest: str
    """Digest of the base's files."""
    dtype: str
    max_new_tokens: int
    longest: int
    """Most tokens of a prompt and its answer; longer ones are refused, longer given answers cut."""

    def chunk(self, group: Sequence[Prompt]) -> str:
        """Return the name of the chunk that holds a group's answers."""
        rows = [[list(prompt.tokens), None if prompt.answer is None else list(prompt.answer)] for prompt in group]
        key = json.dumps([self.digest, self.dtype, self.max_new_tokens, self.longest, rows])
        return hashlib.sha256(key.encode()).hexdigest()[:16]


def digest_of(model: Path) -> str:
    """Return a digest of a checkpoint: config and tokenizer whole, weights by name and size."""
    digest = hashlib.sha256()
    for file in sorted(model.iterdir()):
        if file.name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            digest.update(f"{file.name}\0".encode() + file.read_bytes())
        elif file.suffix == ".safetensors":
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as content:
                digest.update(content.read(1 << 20))
    return digest.hexdigest()[:16]


def answer_all(
    settings: Answering, groups: Sequence[Sequence[Prompt]], work: Path, workers: int, threads: int, usage: Usage
) -> list[str]:
    """Answer all groups whose chunk is not there; return the names of all chunks, in the order of the groups."""
    for group in groups:
        for prompt in group:
            if len(prompt.tokens) + 2 > settings.longest:
                raise TrainingError(
                    f"a prompt has {len(prompt.tokens)} tokens, expected at most {settings.longest - 2} (--longest)"
                )
    names = [settings.chunk(group) for group in groups]
    missing = [i for i, name in enumerate(names) if not (work / f"{name}.json").exists()]
    if workers == 1:
        run_worker(settings, groups, missing, work, threads, usage)
        return names
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(
            target=run_worker,
            args=(settings, groups, missing[i::workers], work, threads, usage, os.getpid()),
            daemon=True,
        )
        for i in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise TrainingError(f"a worker ended with exit code {failed[0]}; its output is above")
    return names


def run_worker(
    settings: Answering,
    groups: Sequence[Sequence[Prompt]],
    numbers: Sequence[int],
    work: Path,
    threads: int,
    usage: Usage,
    parent: int | None = None,
) -> None:
    """Answer the groups of these numbers one after the other; end without the process that started this one."""
    if not numbers:
        return
    torch.set_num_threads(threads)
    base = load_base(settings.model, settings.dtype)
    progress = Progress("answers", sum(len(groups[i]) for i in numbers))
    for number in numbers:
        if parent is not None and os.getppid() != parent:
            return
        started, before = time.monotonic(), usage.seconds()
        answers = answer(base, settings, groups[number])
        write_chunk(work, settings.chunk(groups[number]), answers)
        tokens = sum(len(row.tokens) - row.start for row in answers)
        usage.add("answers", before)
        progress.advance(len(answers), f"{tokens / (time.monotonic() - started):.0f} tokens/s")


def answer(base: Base, settings: Answering, group: Sequence[Prompt]) -> list[Answer]:
    """Return the rows of a group: greedy answers of the base, and given ones as they are."""
    asked = [i for i, prompt in enumerate(group) if prompt.answer is None]
    answered = [i for i, prompt in enumerate(group) if prompt.answer is not None]
    rows: dict[int, Answer] = {}
    if asked:
        longest = max(len(group[i].tokens) for i in asked)
        new = min(settings.max_new_tokens, settings.longest - longest)
        rows |= dict(zip(asked, answer_group(base, [list(group[i].tokens) for i in asked], new, Choice()), strict=True))
    if answered:
        texts = [(list(group[i].tokens), list(group[i].answer or ())) for i in answered]
        rows |= dict(zip(answered, follow_group(base, texts, settings.longest), strict=True))
    return [rows[i] for i in range(len(group))]
