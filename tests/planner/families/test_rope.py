"""Rotary frequencies against transformers."""

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from planner.errors import ConfigError
from planner.families import Rope, inv_freq, load_base, rope_bytes
from planner.families.rope import LongScaling, rotaries
from runtime.model.layers import rotary_table
from tests.planner.tiny_checkpoints import SMALL, bare, refused

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
    rope = load_base(tmp_path).ropes[0]
    assert torch.tensor(inv_freq(rope, 64)).tolist() == LlamaRotaryEmbedding(config).inv_freq.tolist()
    assert rope_bytes(rope, 64) == struct.pack(f"<{dim // 2}f", *inv_freq(rope, 64))


YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.5],
    "long_factor": [1.0, 2.0, 3.5, 4],
}
SCALED: list[dict[str, Any]] = [
    YARN,
    YARN | {"beta_fast": 64, "beta_slow": 2.0},
    YARN | {"truncate": False, "factor": 8},
    YARN | {"attention_factor": 1.25},
    YARN | {"mscale": 0.707, "mscale_all_dim": 1.3, "factor": 40.0},
    YARN | {"factor": None},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    LONG | {"original_max_position_embeddings": 32},
    LONG | {"original_max_position_embeddings": 16, "factor": 8.0},
    LONG | {"original_max_position_embeddings": 32, "attention_factor": 1.5},
]


@pytest.mark.parametrize("parameters", SCALED, ids=[f"{row['rope_type']}-{i}" for i, row in enumerate(SCALED)])
@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("context", [24, 64, 200])
def test_scaled_tables_are_those_of_transformers_at_the_planned_length(
    tmp_path: Path, parameters: dict[str, Any], spelling: str, context: int
) -> None:
    """Below and beyond the original length, which is 16 or 32, and the trained one, 64; to the last places."""
    config = LlamaConfig(**(SMALL | {"head_dim": 8, "rope_parameters": dict(parameters) | {"rope_theta": 50000.0}}))
    theirs = LlamaRotaryEmbedding(config)
    positions = torch.arange(context)[None]
    cos, sin = theirs(torch.zeros(1), positions)
    written = SMALL | {"model_type": "llama", "head_dim": 8, "rope_theta": 50000.0, spelling: parameters}
    base = load_base(bare(tmp_path, written))
    slot = torch.frombuffer(bytearray(rope_bytes(base.ropes[0], context)), dtype=torch.float32)
    table = rotary_table(slot.view(-1, 4) if slot.numel() > 4 else slot, context, torch.float32)
    assert (base.model.rotary is None) == (parameters["rope_type"] == "default")
    steps = (torch.tensor(inv_freq(base.ropes[0], context)).view(torch.int32) - theirs.inv_freq.view(torch.int32)).abs()
    assert int(steps.max()) <= 2
    torch.testing.assert_close(table[0], cos[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cat([-table[1][:, :4], table[1][:, 4:]], 1), sin[0], rtol=0, atol=1e-4)


def test_a_frequency_is_chosen_once_by_the_planned_context_and_not_by_the_present_length() -> None:
    scaling = LongScaling(
        short_factor=(1.0, 2.0), long_factor=(4.0, 8.0), original_max_position_embeddings=32, attention_factor=1.5
    )
    rope = Rope(theta=100.0, dim=4, scaling=scaling, passed=2)
    assert inv_freq(rope, 32) == pytest.approx((1.0, 0.05, 0.0))
    assert inv_freq(rope, 33) == pytest.approx((0.25, 0.0125, 0.0))
    assert struct.unpack("<6f", rope_bytes(rope, 33))[3:] == (1.5, 1.5, 1.0)
    table = rotaries([rope, rope, Rope(theta=100.0, dim=0, scaling=None, passed=6)])
    assert table is not None
    assert [(one.layers, one.channels, one.scaled, one.by_context) for one in table] == [
        ((0, 1), 4, True, True),
        ((2,), 0, False, False),
    ]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"rope_type": "mrope"},
            "rope_type: found 'mrope', expected one of default, linear, dynamic, yarn, longrope, llama3",
        ),
        (YARN | {"mscale_all_dims": 1.0}, "mscale_all_dims: unknown key"),
        (YARN | {"attention_factor": "1"}, "attention_factor: found '1', expected a number from 1e-06 to 1e+06"),
        (LONG | {"short_factor": [1.0]}, "short_factor: found a list of 1, expected a list of 4 numbers"),
        (LONG | {"long_factor": [1.0, 2.0, 3.0, 0]}, "long_factor: found 0, expected a list of 4 numbers"),
        ({"rope_type": "dynamic"}, "factor: missing, expected a number"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor: found 0.5, expected 1"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    config = bare(tmp_path, SMALL | {"model_type": "llama", "head_dim": 8, "rope_scaling": parameters})
    assert f"config.json: rope_scaling: {message}" in refused(ConfigError, lambda: load_base(config))


@pytest.mark.parametrize("theta", [1e4, 1e5, 1e6, 8e6])
def test_other_frequencies_are_transformers_to_the_last_place(theta: float) -> None:
    for dim in range(2, 258, 16):
        ours = torch.tensor(inv_freq(Rope(theta=theta, dim=dim, scaling=None), 64))
        theirs = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
        steps = (ours.view(torch.int32) - theirs.view(torch.int32)).abs()
        assert int(steps.max()) <= 2
