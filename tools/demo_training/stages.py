"""Budget of the stages, their results on disk, their log, and the optimizers of all of them."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from head_training.optimizers import Muon

MAX_POSITIONS = 512
MUON_LR = 0.02
WARM_UP_STEPS = 25


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
