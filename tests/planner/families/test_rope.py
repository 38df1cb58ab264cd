"""Rotary frequencies against transformers."""

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from planner.families import Rope, inv_freq, inv_freq_bytes, load_base
from tests.planner.tiny_checkpoints import SMALL

LLAMA3: dict[str, Any] = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}

ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "default", "rope_theta": 500000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    LLAMA3 | {"rope_theta": 500000.0},
    LLAMA3 | {"rope_theta": 500000.0, "factor": 32.0},
]


@pytest.mark.parametrize("dim", [24, 32, 64, 128])
@pytest.mark.parametrize("parameters", ROPES, ids=[f"{row['rope_type']}-{row['rope_theta']:g}" for row in ROPES])
def test_frequencies_are_those_of_transformers_bit_for_bit(
    tmp_path: Path, parameters: dict[str, Any], dim: int
) -> None:
    config = LlamaConfig(**(SMALL | {"head_dim": dim, "rope_parameters": dict(parameters)}))
    config.save_pretrained(tmp_path)
    rope = load_base(tmp_path).rope
    assert torch.tensor(inv_freq(rope)).tolist() == LlamaRotaryEmbedding(config).inv_freq.tolist()
    assert inv_freq_bytes(rope) == struct.pack(f"<{dim // 2}f", *inv_freq(rope))


@pytest.mark.parametrize("theta", [1e4, 1e5, 1e6, 8e6])
def test_other_frequencies_are_transformers_to_the_last_place(theta: float) -> None:
    for dim in range(2, 258, 16):
        ours = torch.tensor(inv_freq(Rope(theta=theta, dim=dim, scaling=None)))
        theirs = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
        steps = (ours.view(torch.int32) - theirs.view(torch.int32)).abs()
        assert int(steps.max()) <= 2
