"""Answers with their features on disk: a chunk is a group that was decoded together, written whole or not at all.

NAME.states   bfloat16 [rows of all sequences, 4 H], raw
NAME.json     tokens, first token of the answer and rows of each sequence; its presence makes the chunk complete
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from head_training.generation import Answer


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A sequence on disk; ``states`` is read when a batch takes it. ``choices[i]``: the base's for token i + 1."""

    tokens: list[int]
    start: int
    choices: list[int]
    states: np.ndarray[Any, np.dtype[np.int16]]

    def load_states(self) -> Tensor:
        """Return [len(tokens) - 1, 4 H] in bfloat16."""
        return torch.from_numpy(np.array(self.states)).view(torch.bfloat16)


def write_chunk(directory: Path, name: str, answers: Sequence[Answer]) -> None:
    """Write a chunk; a kill at any moment leaves none or the whole one."""
    states = directory / f"{name}.states"
    partial = states.with_suffix(f".{os.getpid()}.part")
    with partial.open("wb") as file:
        for answer in answers:
            file.write(answer.states.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    partial.replace(states)
    record = [{"tokens": answer.tokens, "start": answer.start, "choices": answer.choices} for answer in answers]
    partial.write_text(json.dumps(record))
    partial.replace(directory / f"{name}.json")


def read_chunk(directory: Path, name: str, width: int) -> list[Stored]:
    """Return the sequences of a complete chunk."""
    records = json.loads((directory / f"{name}.json").read_text())
    rows = sum(len(record["tokens"]) - 1 for record in records)
    states = np.memmap(directory / f"{name}.states", dtype=np.int16, mode="r", shape=(rows, width))
    sequences, first = [], 0
    for record in records:
        end = first + len(record["tokens"]) - 1
        tokens = record["tokens"]
        choices = record.get("choices") or tokens[1:]
        sequences.append(Stored(tokens=tokens, start=record["start"], choices=choices, states=states[first:end]))
        first = end
    return sequences
