"""The stage that trains the head: batches of cached sequences, steps, checkpoints to resume from, held-out measures."""

import dataclasses
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle_heads import Eagle3Head
from head_training.base import Base
from head_training.errors import TrainingError
from head_training.head import Beginning, extended, new_head
from head_training.loss import Batch, StepResult, run_steps
from head_training.optimizers import Schedule
from head_training.progress import Progress, Usage
from head_training.store import Stored

WARM_UP_STEPS = 30
STEP_DECAY = 0.9
"""Weight of a self-fed step relative to the one before."""
BATCHES_SORTED = 16
"""Batches among whose sequences those of like lengths are put together."""
CHECKPOINT_S = 60.0
PROGRESS_UNITS = 1000
CHECKPOINT = "training.pt"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSettings:
    """Everything that decides the trained head, beside the answers."""

    steps: int
    """Most steps."""
    minutes: float | None
    """Most minutes of processor time, over all runs; the learning rates fall by whichever limit is nearer."""
    batch: int
    unroll: int
    self_fed_rows: int
    hard_share: float
    evaluate_every: int
    rate: float
    """Factor on the learning rates."""
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Counts of right drafts at one depth, over held-out answers: ``reached`` rows were right at all before it."""

    rows: int
    right: int
    reached: int
    right_of_reached: int
    loss: float

    @property
    def rate(self) -> float:
        """Share of reached drafts that the base chooses too."""
        return self.right_of_reached / max(1, self.reached)


def chain_length(positions: Sequence[Position]) -> float:
    """Return the acceptance length of a chain without branches: 1 + the sum over depths of reaching and being right."""
    return 1 + sum(math.prod(p.rate for p in positions[: i + 1]) for i in range(len(positions)))


def make_batch(base: Base, rows: Sequence[Stored]) -> Batch:
    """Pad sequences to the longest and read their states."""
    length = max(len(row.tokens) for row in rows) - 2
    hidden, width = base.config.hidden_size, base.width
    tokens = torch.zeros(len(rows), length + 2, dtype=torch.int64)
    choices = torch.zeros(len(rows), length + 1, dtype=torch.int64)
    states = torch.zeros(len(rows), length + 1, width, dtype=torch.bfloat16)
    for i, row in enumerate(rows):
        count = len(row.tokens)
        tokens[i, :count] = torch.tensor(row.tokens)
        choices[i, : count - 1] = torch.tensor(row.choices)
        states[i, : count - 1] = row.load_states()
    return Batch(
        tokens=tokens,
        choices=choices,
        features=states[:, :length, : 3 * hidden].to(base.dtype),
        final=states[:, :, 3 * hidden :].to(base.dtype),
        pairs=torch.tensor([len(row.tokens) - 2 for row in rows]),
        starts=torch.tensor([row.start - 1 for row in rows]),
    )


def self_fed_rows(batch: Batch, count: int, rng: random.Random) -> Tensor:
    """Return pairs of each row [B, count] from which the head is fed its own output, in order."""
    chosen = []
    for start, end in zip(batch.starts.tolist(), batch.pairs.tolist(), strict=True):
        pairs = range(start, end)
        chosen.append(sorted(rng.sample(pairs, count) if len(pairs) >= count else rng.choices(pairs, k=count)))
    return torch.tensor(chosen)


def is_usable(row: Stored) -> bool:
    """Decide whether a sequence has a pair to learn from."""
    return len(row.tokens) - row.start >= 3


def batches_of_like(rows: Sequence[Stored], size: int, rng: random.Random) -> list[list[Stored]]:
    """Return all rows, but what is left over, in batches of sequences of like lengths, in random order."""
    order = rng.sample(rows, len(rows))
    batches = []
    for first in range(0, len(order), BATCHES_SORTED * size):
        near = sorted(order[first : first + BATCHES_SORTED * size], key=lambda row: (row.start, len(row.tokens)))
        batches += [near[i : i + size] for i in range(0, len(near) - size + 1, size)]
    rng.shuffle(batches)
    return batches


class Training:
    """A head in training over fixed sequences; every random choice follows from the seed and the step."""

    def __init__(
        self,
        base: Base,
        config: dict[str, Any],
        settings: TrainingSettings,
        rows: tuple[Sequence[Stored], Sequence[Stored]],
        work: Path,
        beginning: Beginning | None = None,
    ) -> None:
        """``rows``: those to train on, and those held out. ``beginning``: the head to go on from, else a new one."""
        self.base, self.config, self.settings, self.work = base, config, settings, work
        self.beginning = beginning
        self.train = sorted(filter(is_usable, rows[0]), key=lambda row: row.tokens)
        self.held_out = sorted(filter(is_usable, rows[1]), key=lambda row: row.tokens)
        if len(self.train) < settings.batch or not self.held_out:
            raise TrainingError(
                f"{len(self.train)} answers to train on and {len(self.held_out)} held out, expected at least "
                f"{settings.batch} and 1: give more prompts, or a smaller --batch"
            )
        counts = torch.zeros(base.config.vocab_size)
        for row in self.train:
            counts += torch.bincount(torch.tensor(row.tokens[row.start :]), minlength=len(counts))
        torch.manual_seed(settings.seed)
        self.head: Eagle3Head = (
            new_head(base, config, counts) if beginning is None else extended(beginning.head, base, config, counts)
        )
        self.coverage = float(counts[self.head.t2d].sum() / counts.sum())
        warm_up = min(WARM_UP_STEPS, max(1, settings.steps // 4))
        self.schedule = Schedule(self.head, warm_up, settings.rate, base.dtype)
        self.step = 0
        self.seconds = 0.0
        """Processor time of this training, over all runs."""
        self._order: tuple[int, list[list[Stored]]] | None = None
        """Number of a pass and its batches."""
        self.losses: list[float] = []
        self.measures: list[dict[str, Any]] = []

    def run(self, report: Callable[[str], None], usage: Usage) -> None:
        """Train to the last step or minute, from the checkpoint if there is one."""
        self._resume()
        progress = Progress("training", PROGRESS_UNITS, int(PROGRESS_UNITS * self.done))
        before, saved = usage.seconds(), time.monotonic()
        first, resumed = before, self.seconds
        while self.done < 1:
            if self.step % self.settings.evaluate_every == 0:
                self._measure(report)
            loss = self._one_step()
            self.seconds = resumed + usage.seconds() - first
            progress.advance(int(PROGRESS_UNITS * self.done) - progress.done, f"step {self.step}, loss {loss:.3f}")
            if time.monotonic() - saved > CHECKPOINT_S:
                usage.add("training", before)
                before, saved = usage.seconds(), time.monotonic()
                self._save()
        if not self.measures or self.measures[-1]["step"] < self.step:
            self._measure(report)
        self._save()
        usage.add("training", before)

    @property
    def done(self) -> float:
        """Share of the training that is done, 1 at its end."""
        minutes = self.settings.minutes
        return max(self.step / self.settings.steps, 0.0 if minutes is None else min(self.seconds / 60 / minutes, 1.0))

    @torch.no_grad()
    def measure(self) -> list[Position]:
        """Return the held-out measures of each depth."""
        sums = [[0.0] * 5 for _ in range(self.settings.unroll)]
        rng = random.Random(0)
        for first in range(0, len(self.held_out), self.settings.batch):
            batch = make_batch(self.base, self.held_out[first : first + self.settings.batch])
            for total, result in zip(sums, self._results(batch, rng), strict=True):
                numbers = (
                    result.rows,
                    result.right,
                    result.rows_right_before,
                    result.right_in_chain,
                    float(result.loss),
                )
                for i, number in enumerate(numbers):
                    total[i] += number
        return [
            Position(
                rows=int(rows), right=int(right), reached=int(reached), right_of_reached=int(chain), loss=loss / rows
            )
            for rows, right, reached, chain, loss in sums
        ]

    def _results(self, batch: Batch, rng: random.Random) -> list[StepResult]:
        rows = self_fed_rows(batch, self.settings.self_fed_rows, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.base.dtype == torch.bfloat16):
            return run_steps(self.head, self.base, batch, rows, self.settings.unroll, self.settings.hard_share)

    def _batch(self) -> Batch:
        """Return the batch of the current step: each pass over the sequences has an order of its own."""
        size = self.settings.batch
        number, within = divmod(self.step, len(self.train) // size)
        if self._order is None or self._order[0] != number:
            self._order = number, batches_of_like(self.train, size, random.Random(f"{self.settings.seed} {number}"))
        return make_batch(self.base, self._order[1][within])

    def _one_step(self) -> float:
        rng = random.Random(f"{self.settings.seed} rows {self.step}")
        results = self._results(self._batch(), rng)
        weights = [STEP_DECAY**j for j in range(len(results))]
        parts = [
            weight * result.loss / result.rows for weight, result in zip(weights, results, strict=True) if result.rows
        ]
        loss = torch.stack(parts).sum() / sum(weights)
        loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"the loss of step {self.step} is {value}: the answers hold values that are no numbers")
        self.schedule.step(self.step, self.done)
        self.losses.append(value)
        self.step += 1
        return value

    def _measure(self, report: Callable[[str], None]) -> None:
        positions = self.measure()
        smooth = self.losses[-20:]
        self.measures.append(
            {
                "step": self.step,
                "training_loss": sum(smooth) / len(smooth) if smooth else None,
                "losses": [p.loss for p in positions],
                "rates": [p.rate for p in positions],
                "chain": chain_length(positions),
            }
        )
        rates = " ".join(f"{p.rate:.3f}" for p in positions)
        report(
            f"step {self.step}: held-out loss {positions[0].loss:.3f}, right by position {rates}, "
            f"acceptance length of a chain {chain_length(positions):.2f}"
        )

    def _key(self) -> dict[str, Any]:
        """Return what must be equal in a checkpoint to resume from."""
        key = {**dataclasses.asdict(self.settings), **self.config, "sequences": len(self.train)}
        return key | {"from": None if self.beginning is None else self.beginning.digest}

    def _save(self) -> None:
        """Write the checkpoint; a kill at any moment leaves the old or the new one."""
        state = {
            "key": self._key(),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "measures": self.measures,
            "head": self.head.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.schedule.optimizers],
        }
        partial = self.work / f"{CHECKPOINT}.part"
        torch.save(state, partial)
        partial.replace(self.work / CHECKPOINT)

    def _resume(self) -> None:
        """Take up the checkpoint; raise TrainingError for one of other settings."""
        file = self.work / CHECKPOINT
        if not file.exists():
            return
        state = torch.load(file, weights_only=True)
        for name, value in self._key().items():
            found = state["key"].get(name, "nothing")  # of what an earlier version has not written
            if found != value:
                raise TrainingError(
                    f"{file}: {name}: found {found}, expected {value}: it is of a training with other settings; remove "
                    "it or give another --work"
                )
        self.step, self.losses, self.measures = state["step"], state["losses"], state["measures"]
        self.seconds = state["seconds"]
        self.head.load_state_dict(state["head"])
        for optimizer, saved in zip(self.schedule.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
