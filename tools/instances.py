"""Instances for measuring the planner: configs of models, inventories of machines, and pairs of the two.

Named models are real. A model of N GB has layers of a real one, as many as give that size in bfloat16 with embedding
and lm_head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from planner.families.load import FAMILIES
from plans.schema import DType

Config = dict[str, Any]
Hosts = dict[str, Any]
"""An inventory as plain data."""

_LLAMA: Config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def _llama(hidden: int, heads: int, kv_heads: int, intermediate: int, layers: int, vocab: int) -> Config:
    return _LLAMA | {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
    }


def base_config(shape: Config) -> Config:
    """Return the config of a model of the family ``model_type`` with these keys, else as Llama's are."""
    architecture = FAMILIES[shape["model_type"]] + ("Eagle3" if "draft_vocab_size" in shape else "")
    known = _LLAMA if shape["model_type"] == "llama" else {k: v for k, v in _LLAMA.items() if not k.endswith("_bias")}
    return known | {"architectures": [architecture]} | shape


def eagle3_config(base: Config) -> Config:
    """Return the config of an EAGLE-3 head as published for this family: one layer with the base's width."""
    return base | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "draft_vocab_size": 32000,
        "torch_dtype": "float16",
    }


LLAMA_2_70B = _llama(8192, 64, 8, 28672, 80, 32000)
LLAMA_3_70B = _llama(8192, 64, 8, 28672, 80, 128256)
LLAMA_3_405B = _llama(16384, 128, 8, 53248, 126, 128256)
GB_50 = _llama(5120, 40, 8, 27648, 51, 32000)
"""50.4 GB: 51 layers of Qwen2.5-32B's shape."""
GB_80 = _llama(8192, 64, 8, 28672, 46, 32000)
"""79.8 GB: 46 layers of Llama-2-70B's shape."""
QWEN_32B: Config = {key: value for key, value in _LLAMA.items() if key not in ("attention_bias", "mlp_bias")} | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 5120,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "vocab_size": 152064,
    "use_sliding_window": False,
}
"""Qwen2.5-32B, 65.5 GB."""
YI_6B = _llama(4096, 32, 4, 11008, 32, 64000)
"""Yi-6B, which has four KV heads."""
MIXTRAL_8X7B: Config = {key: value for key, value in _LLAMA.items() if key not in ("attention_bias", "mlp_bias")} | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
    "vocab_size": 32000,
}


# ---- machines ----


def box(link: str, *types: str, name: str = "box0") -> dict[str, Any]:
    """Return a host with devices of these types, in order; ``4 x a100-80g`` stands for four."""
    devices = []
    for entry in types:
        count, _, type_name = entry.rpartition(" x ")
        devices += [type_name] * int(count or 1)
    listed = [{"id": f"{name}-{index}", "type": type_name} for index, type_name in enumerate(devices)]
    return {"name": name, "links": {"class": link}, "devices": listed}


def one(link: str, *types: str) -> Hosts:
    return {"hosts": [box(link, *types)]}


def several(network: dict[str, str], *hosts: tuple[str, Sequence[str]]) -> Hosts:
    """Return an inventory of several hosts, given as (link class, device types)."""
    named = [box(link, *types, name=f"box{index:02}") for index, (link, types) in enumerate(hosts)]
    return {"hosts": named, "network": network}


def alone(network: dict[str, str], *types: str) -> Hosts:
    """Return an inventory with one device per host."""
    (devices,) = one("pcie", *types)["hosts"]
    return several(network, *(("pcie", [device["type"]]) for device in devices["devices"]))


INFINIBAND = {"class": "infiniband"}
ETHERNET_10 = {"class": "ethernet", "bandwidth": "10 Gbit/s"}
ETHERNET_25 = {"class": "ethernet", "bandwidth": "25 Gbit/s"}

FOUR_A100 = one("nvlink", "4 x a100-80g")
TWO_BOXES = several(ETHERNET_25, *[("pcie", ("2 x a100-80g", "3 x a6000", "3 x rtx-4090"))] * 2)
UNLIKE = one("pcie", "a100-80g", "a6000", "rtx-4090", "rtx-3090", "l40s", "rtx-5090", "a10", "l4")
SIXTEEN_H100 = several(INFINIBAND, *[("nvlink", ("8 x h100-80g",))] * 2)
THREE_EQUAL = several(ETHERNET_25, *[("pcie", ("4 x rtx-3090",))] * 3)
EIGHT_BOXES = several(
    INFINIBAND,
    *[("nvlink", ("8 x h100-80g",))] * 2,
    *[("nvlink", ("8 x a100-80g",))] * 2,
    *[("pcie", ("8 x l40s",))] * 2,
    *[("pcie", ("8 x a6000",))] * 2,
)
THOUSAND = several(
    INFINIBAND,
    *[("nvlink", ("8 x h100-80g",))] * 32,
    *[("nvlink", ("8 x a100-80g",))] * 31,
    *[("pcie", ("8 x l40s",))] * 31,
    *[("pcie", ("8 x a6000",))] * 31,
)
"""1000 GPUs of 4 types on 125 hosts."""
FOUR_3090 = one("pcie3", "4 x rtx-3090")
"""As in the rig of the published runs: PCIe 3.0 x16 with peer copies (club-3090, BENCHMARKS.md)."""
AWQ_12B = _llama(5120, 32, 8, 14336, 40, 131072) | {
    "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
}
"""12 billion parameters in 4 bits: the shape of Mistral-NeMo."""


# ---- pairs ----


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """An instance whose planning is timed, with the EAGLE-3 head."""

    name: str
    title: str
    model: Config
    inventory: Hosts
    most_solve_s: float | None
    most_wall_s: float | None
    """Limits on the seconds of a run; None: no limit."""

    @property
    def draft(self) -> Config:
        return eagle3_config(self.model)


SPEED = (
    Speed(
        name="a100x4",
        title="Llama-3.3-70B, 4 x A100-80G",
        model=LLAMA_3_70B,
        inventory=FOUR_A100,
        most_solve_s=None,
        most_wall_s=2,
    ),
    Speed(
        name="16of3",
        title="Llama-3.3-70B, 16 GPUs of 3 types on 2 hosts",
        model=LLAMA_3_70B,
        inventory=TWO_BOXES,
        most_solve_s=1,
        most_wall_s=None,
    ),
    Speed(
        name="unlike8",
        title="Llama-3.3-70B, 8 all different GPUs on 1 host",
        model=LLAMA_3_70B,
        inventory=UNLIKE,
        most_solve_s=10,
        most_wall_s=None,
    ),
    Speed(
        name="h100x16",
        title="Llama-3.1-405B, 16 x H100 on 2 hosts",
        model=LLAMA_3_405B,
        inventory=SIXTEEN_H100,
        most_solve_s=5,
        most_wall_s=None,
    ),
    Speed(
        name="64of4",
        title="Llama-3.1-405B, 64 GPUs of 4 types on 8 hosts",
        model=LLAMA_3_405B,
        inventory=EIGHT_BOXES,
        most_solve_s=60,
        most_wall_s=None,
    ),
    Speed(
        name="3x4",
        title="Llama-3.3-70B, 3 equal hosts of 4 x RTX 3090",
        model=LLAMA_3_70B,
        inventory=THREE_EQUAL,
        most_solve_s=2,
        most_wall_s=None,
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rivalry:
    """An instance for the comparison with rivals: plain decoding of one sequence, without drafter."""

    name: str
    title: str
    model: Config
    inventory: Hosts
    dtype: DType
    context: int = 4096


def _rivalry(name: str, title: str, model: Config, inventory: Hosts, dtype: DType = "bfloat16") -> Rivalry:
    return Rivalry(name=name, title=title, model=model, inventory=inventory, dtype=dtype)


RIVALRIES = (
    _rivalry("24-24-12", "50 GB, 2 x RTX 3090 + RTX 3060", GB_50, one("pcie", "rtx-3090", "rtx-3090", "rtx-3060-12g")),
    _rivalry(
        "24-12-24", "50 GB, RTX 3090 + RTX 3060 + RTX 3090", GB_50, one("pcie", "rtx-3090", "rtx-3060-12g", "rtx-3090")
    ),
    _rivalry("12-24-24", "50 GB, RTX 3060 + 2 x RTX 3090", GB_50, one("pcie", "rtx-3060-12g", "rtx-3090", "rtx-3090")),
    _rivalry("48-24-24", "80 GB, A6000 + 2 x A5000", GB_80, one("pcie", "a6000", "a5000", "a5000")),
    _rivalry("32-20-20", "Qwen2.5-32B, RTX 5090 + 2 x RTX A4500", QWEN_32B, one("pcie", "rtx-5090", "a4500", "a4500")),
    _rivalry("3x24", "Qwen2.5-32B, 3 x RTX 3090", QWEN_32B, one("pcie", "3 x rtx-3090")),
    _rivalry(
        "7x24-12", "Llama-2-70B, 7 x RTX 3090 + RTX 3060", LLAMA_2_70B, one("pcie", "7 x rtx-3090", "rtx-3060-12g")
    ),
    _rivalry(
        "hexgen",
        "Llama-2-70B, 4 x A6000, 2 x A5000, 2 x A4000 on 3 hosts (HexGen)",
        LLAMA_2_70B,
        several(ETHERNET_10, ("pcie", ("4 x a6000",)), ("pcie", ("2 x a5000",)), ("pcie", ("2 x a4000",))),
    ),
    _rivalry(
        "helix24",
        "Llama-2-70B, 4 x A100-40G, 8 x L4, 12 x T4, one a host (Helix)",
        LLAMA_2_70B,
        alone(ETHERNET_10, "4 x a100-40g", "8 x l4", "12 x t4"),
        dtype="float16",
    ),
    _rivalry(
        "helix10",
        "Llama-2-70B, 4 x L4, 6 x T4, one a host (Helix)",
        LLAMA_2_70B,
        alone(ETHERNET_10, "4 x l4", "6 x t4"),
        dtype="float16",
    ),
    _rivalry(
        "1-2-1",
        "Llama-2-70B, 1 + 2 + 1 A100-40G on 3 hosts",
        LLAMA_2_70B,
        several(ETHERNET_25, ("pcie", ("a100-40g",)), ("nvlink", ("2 x a100-40g",)), ("nvlink", ("a100-40g",))),
    ),
    _rivalry("4090-3090", "80 GB, 2 x RTX 4090 + 2 x RTX 3090", GB_80, one("pcie", "2 x rtx-4090", "2 x rtx-3090")),
    _rivalry(
        "6-unlike",
        "Llama-3.3-70B, 2 x A6000 + 2 x RTX 4090 + 2 x RTX 3090",
        LLAMA_3_70B,
        one("pcie", "2 x a6000", "2 x rtx-4090", "2 x rtx-3090"),
    ),
    _rivalry("a100x4", "Llama-3.3-70B, 4 x A100-80G", LLAMA_3_70B, FOUR_A100),
    _rivalry("mixtral", "Mixtral-8x7B, 3 x A6000", MIXTRAL_8X7B, one("pcie", "3 x a6000")),
    _rivalry("few-heads", "Yi-6B (4 KV heads), 8 x L4", YI_6B, one("pcie", "8 x l4")),
    _rivalry("h100x16", "Llama-3.1-405B, 16 x H100 on 2 hosts", LLAMA_3_405B, SIXTEEN_H100),
    _rivalry("h100x8", "Llama-3.1-405B, 8 x H100 (too small)", LLAMA_3_405B, one("nvlink", "8 x h100-80g")),
)
