"""Untrained checkpoints whose drafter often agrees with its base, so that trees are accepted at every length.

The base's layers add little, so that its next token is mostly a function of the last one. Each drafter is wired to pass
the last token's embedding to the lm_head, and thus guesses that function; noise makes it err.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.plan_factory import write_base, write_draft

LAYERS = 8
HIDDEN = 64
HEADS = 8
KV_HEADS = 4
HEAD_DIM = 8
DRAFT_HEADS = 8
DRAFT_KV_HEADS = 4
DRAFT_HEAD_DIM = HIDDEN // DRAFT_KV_HEADS
"""KV heads x head dim equals the hidden size, so that attention values can hold an embedding."""
VOCABULARY = 96
DRAFT_VOCABULARY = 80


def write_agreeing_base(
    directory: Path, *, noise: float, seed: int = 0, eos: int | None = None, layers: int = LAYERS
) -> Path:
    """Write a Llama whose layers add about ``noise`` to the embedding."""
    tensors = write_base(
        directory,
        num_layers=layers,
        hidden_size=HIDDEN,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        intermediate_size=96,
        vocab_size=VOCABULARY,
        seed=seed,
    )
    table = tensors["model.embed_tokens.weight"]
    table /= table.square().mean(1, keepdim=True).sqrt()
    table[:, 0] = 3.0
    tensors["lm_head.weight"] *= 4.0  # peaked logits, so that trees grow deep
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor *= noise
    save_file(tensors, directory / "model.safetensors")
    if eos is not None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"eos_token_id": eos}))
    return directory


def write_agreeing_head(directory: Path, base: Path, *, kind: str, noise: float, seed: int = 1) -> Path:
    """Write a drafter of ``kind`` for such a base, with ``noise`` in its weights."""
    tensors = write_draft(
        directory,
        kind=kind,
        hidden_size=HIDDEN,
        num_heads=DRAFT_HEADS,
        num_kv_heads=DRAFT_KV_HEADS,
        head_dim=DRAFT_HEAD_DIM,
        intermediate_size=96,
        vocab_size=VOCABULARY,
        draft_vocab_size=DRAFT_VOCABULARY,
        seed=seed,
    )
    for name, tensor in tensors.items():
        if not name.endswith("norm.weight") and tensor.is_floating_point():
            tensor *= noise
    (_wire_eagle3 if kind == "eagle3" else _wire_eagle)(tensors, load_file(base / "model.safetensors"))
    save_file(tensors, directory / "model.safetensors")
    return directory


def _wire_eagle(tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
    """Let fc pass the embedding through."""
    tensors["fc.weight"][:, :HIDDEN] += torch.eye(HIDDEN)


def _wire_eagle3(tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> None:
    """Let attention replace the residual, which is the previous token, by the embedding.

    Channel 0 of every embedding is a constant, so queries and keys made of it match best at distance 0.
    """
    tensors["fc.weight"][:, :HIDDEN] += torch.eye(HIDDEN)
    for name in ("q_proj", "k_proj"):
        tensors[f"midlayer.self_attn.{name}.weight"][:, 0] += 2.0
    tensors["midlayer.self_attn.v_proj.weight"] += torch.cat([torch.eye(HIDDEN), -torch.eye(HIDDEN)], 1)
    group = DRAFT_HEADS // DRAFT_KV_HEADS
    values = torch.eye(HIDDEN).view(HIDDEN, DRAFT_KV_HEADS, 1, DRAFT_HEAD_DIM)
    tensors["midlayer.self_attn.o_proj.weight"] += values.expand(-1, -1, group, -1).flatten(1) / group
    kept = torch.arange(DRAFT_VOCABULARY) + tensors["d2t"]
    tensors["lm_head.weight"] += base["lm_head.weight"][kept]
