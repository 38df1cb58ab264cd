"""Bytes planned for published checkpoints of 4 bits, against the sizes of their files."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from planner.families import BaseInput, load_base
from plans.slot_bytes import weights_bytes
from tests.plan_factory import make_plan, whole_group

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens", "lm_head"],
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A checkpoint: its shape, and the sizes of its files in GB as huggingface.co lists them."""

    family: str
    layers: int
    hidden: int
    heads: tuple[int, int]
    """Query and KV heads."""
    channels: int
    vocabulary: int
    gigabytes: tuple[float, ...]
    more: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The config without the settings of its quantizer."""
        heads, kv_heads = self.heads
        sizes = {
            "model_type": self.family, "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": self.channels,
            "vocab_size": self.vocabulary, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
            "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16", "tie_word_embeddings": False,
        }  # fmt: skip
        return sizes | self.more


def row(family: str, layers: int, hidden: int, heads: tuple[int, int], channels: int, vocabulary: int,
        *gigabytes: float, **more: Any) -> Published:  # fmt: skip
    return Published(
        family=family, layers=layers, hidden=hidden, heads=heads, channels=channels, vocabulary=vocabulary,
        gigabytes=gigabytes, more=more,
    )  # fmt: skip


EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None}
PUBLISHED = {
    "TheBloke/Llama-2-7B-AWQ": row("llama", 32, 4096, (32, 32), 11008, 32000, 3.89),
    "TheBloke/Llama-2-13B-chat-AWQ": row("llama", 40, 5120, (40, 40), 13824, 32000, 7.25),
    "TheBloke/CodeLlama-13B-AWQ": row("llama", 40, 5120, (40, 40), 13824, 32016, 7.25),
    "TheBloke/Llama-2-70B-AWQ": row("llama", 80, 8192, (64, 8), 28672, 32000, 36.61),
    "TheBloke/blossom-v3_1-yi-34b-AWQ": row("llama", 60, 7168, (56, 8), 20480, 64000, 19.23),
    "casperhansen/llama-3-8b-instruct-awq": row("llama", 32, 4096, (32, 8), 14336, 128256, 4.68, 1.05),
    "casperhansen/llama-3-70b-instruct-awq": row(
        "llama", 80, 8192, (64, 8), 28672, 128256, 4.97, *(4.89,) * 6, 3.36, 2.1
    ),
    "casperhansen/llama-3.2-1b-instruct-awq": row(
        "llama", 16, 2048, (32, 8), 8192, 128256, 1.03, tie_word_embeddings=True, head_dim=64
    ),
    "TheBloke/Mistral-7B-v0.1-AWQ": row("mistral", 32, 4096, (32, 8), 14336, 32000, 4.15, sliding_window=None),
    "TheBloke/mixtral-8x7b-v0.1-AWQ": row("mixtral", 32, 4096, (32, 8), 14336, 32000, 9.97, 9.98, 4.7, **EXPERTS),
    "thesven/Qwen2-7B-Instruct-awq": row("qwen2", 28, 3584, (28, 4), 18944, 152064, 4.48, 1.09),
    "Qwen/Qwen2.5-32B-Instruct-AWQ": row(
        "qwen2", 64, 5120, (40, 8), 27648, 152064, 3.94, 3.98, 3.95, 3.98, 3.48
    ),
    "openai/gpt-oss-20b": row(
        "gpt_oss", 24, 2880, (64, 8), 2880, 201088, 4.79, 4.8, 4.17, num_local_experts=32, num_experts_per_tok=4,
        head_dim=64, sliding_window=128, swiglu_limit=7.0, attention_bias=True,
    ),
    "openai/gpt-oss-120b": row(  # total_size of its index: 65 248 815 744
        "gpt_oss", 36, 2880, (64, 8), 2880, 201088, 65.2488, num_local_experts=128, num_experts_per_tok=4,
        head_dim=64, sliding_window=128, swiglu_limit=7.0, attention_bias=True,
    ),
}  # fmt: skip
"""File lists of huggingface.co/NAME/tree/main, or sizes in the model cards, as of 2023 to 2025."""


def planned(directory: Path, config: dict[str, Any], rounded: bool = False) -> int:
    """Return the bytes of all weights on one device, in 16 bits where they are plain."""
    file = directory / "config.json"
    file.write_text(json.dumps(config))
    base: BaseInput = load_base(file, "int4-g128" if rounded else None)
    model = replace(base.model, head_format=None)  # theirs is plain
    plan = make_plan(model, [whole_group(model, ("a",))], dtype="float16", complete=False)
    return weights_bytes(plan, "a")[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_planned_bytes_are_those_of_published_files(name: str, tmp_path: Path) -> None:
    published = PUBLISHED[name]
    size = sum(published.gigabytes) * 1e9
    settings = MXFP4 if published.family == "gpt_oss" else AWQ | {"modules_to_not_convert": ["gate"]}
    nbytes = planned(tmp_path, published.config | {"quantization_config": settings})
    assert nbytes / size == pytest.approx(1, abs=0.02)
    if published.family != "gpt_oss":  # 2880 columns have no groups of 128
        assert planned(tmp_path, published.config, rounded=True) / size == pytest.approx(1, abs=0.02)
