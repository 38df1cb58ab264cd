"""EAGLE-1 and EAGLE-3 heads as torch modules, in float32, for training and measuring.

Module names are the tensor names of the official checkpoints. Independent of the runtime's heads.

Shapes: B batch, T tokens, H hidden, D head dim. A pair is (feature at position i, token i + 1).
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HeadShape:
    """The config keys that decide the shapes of an EAGLE head's tensors."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float
    draft_vocab_size: int | None

    @classmethod
    def read(cls, config: dict[str, Any]) -> "HeadShape":
        """Read the shape from a config.json; a `draft_vocab_size` marks EAGLE-3 here."""
        keys: dict[str, Any] = {f.name: config.get(f.name) for f in dataclasses.fields(cls)}
        return cls(**keys)


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Apply the half-split rotary embedding to [B, heads, T, D] at integer positions [T] or [B, T]."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half) / half)
    angle = positions.unsqueeze(-2)[..., None] * frequency
    cos, sin = angle.cos(), angle.sin()  # [1, T, D/2] or [B, 1, T, D/2]
    a, b = x.split(half, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    """Projections and rotary embedding; `attend` decides which keys a query sees."""

    def __init__(self, shape: HeadShape, width: int) -> None:
        super().__init__()
        self.shape = shape
        hidden = shape.hidden_size
        kv_width = hidden // shape.num_attention_heads * shape.num_key_value_heads
        self.q_proj = nn.Linear(width, hidden, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, positions: Tensor, attend: Attend, first: int = 0) -> Tensor:
        """Map [B, T, width] to [B, T - first, H]: rows before ``first`` give keys and values alone."""
        head_dim, theta = self.shape.hidden_size // self.shape.num_attention_heads, self.shape.rope_theta
        q, k, v = (
            project(rows).unflatten(-1, (-1, head_dim)).transpose(1, 2)
            for project, rows in ((self.q_proj, x[:, first:]), (self.k_proj, x), (self.v_proj, x))
        )
        q = rotate(q, positions[..., first:], theta)
        seen = attend(q, rotate(k, positions, theta), v)  # [B, heads, T - first, D]
        out: Tensor = self.o_proj(seen.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, H] to [B, T, H]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """A decoder layer; with `wide` it is EAGLE-3's, which attends over the normed (embedding, feature) pair."""

    def __init__(self, shape: HeadShape, wide: bool) -> None:
        super().__init__()
        hidden, eps = shape.hidden_size, shape.rms_norm_eps
        self.self_attn = Attention(shape, 2 * hidden if wide else hidden)
        self.mlp = Mlp(shape)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)
        if wide:
            self.hidden_norm = nn.RMSNorm(hidden, eps)
            self.input_layernorm = nn.RMSNorm(hidden, eps)

    def forward(self, residual: Tensor, x: Tensor, positions: Tensor, attend: Attend, first: int = 0) -> Tensor:
        """Return the residual stream [B, T - first, H] after the layer; attention reads `x`, all of its rows."""
        h = residual[:, first:] + self.self_attn(x, positions, attend, first)
        out: Tensor = h + self.mlp(self.post_attention_layernorm(h))
        return out


class Eagle3Head(nn.Module):
    """EAGLE-3: three target features fused once, its own output recurring un-normed, its own reduced vocabulary."""

    d2t: Tensor
    t2d: Tensor

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        assert shape.draft_vocab_size is not None
        self.fc = nn.Linear(3 * shape.hidden_size, shape.hidden_size, bias=False)
        self.midlayer = Layer(shape, wide=True)
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.lm_head = nn.Linear(shape.hidden_size, shape.draft_vocab_size, bias=False)
        self.register_buffer("d2t", torch.zeros(shape.draft_vocab_size, dtype=torch.int64))
        self.register_buffer("t2d", torch.zeros(shape.vocab_size, dtype=torch.bool))

    def target_feature(self, hidden_states: tuple[Tensor, ...]) -> Tensor:
        """Fuse the inputs of layers 2, L//2 and L-3 of the base to [B, T, H]."""
        layers = len(hidden_states) - 1
        out: Tensor = self.fc(torch.cat([hidden_states[i] for i in (2, layers // 2, layers - 3)], dim=-1))
        return out

    def forward(self, embedding: Tensor, feature: Tensor, positions: Tensor, attend: Attend, first: int = 0) -> Tensor:
        """Map pairs from ``first`` on, embedding and feature [B, T, H], to the next features [B, T - first, H]."""
        layer = self.midlayer
        x = torch.cat((layer.input_layernorm(embedding), layer.hidden_norm(feature)), dim=-1)
        out: Tensor = layer(feature, x, positions, attend, first)
        return out

    def logits(self, feature: Tensor, base: LlamaForCausalLM) -> Tensor:
        """Return logits over the draft vocabulary."""
        out: Tensor = self.lm_head(self.norm(feature))
        return out

    def token_ids(self) -> Tensor:
        """Return the base's id of each draft id."""
        return torch.arange(len(self.d2t)) + self.d2t


class Eagle1Head(nn.Module):
    """EAGLE-1: predicts the base's final normed hidden state and uses the base's lm_head."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        self.fc = nn.Linear(2 * shape.hidden_size, shape.hidden_size, bias=True)
        self.layers = nn.ModuleList([Layer(shape, wide=False)])

    def target_feature(self, hidden_states: tuple[Tensor, ...]) -> Tensor:
        """Return the base's last hidden state, after its final norm."""
        return hidden_states[-1]

    def forward(self, embedding: Tensor, feature: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Map pairs, embedding and feature [B, T, H], to the next features [B, T, H]."""
        x = self.fc(torch.cat((embedding, feature), dim=-1))
        out: Tensor = self.layers[0](x, x, positions, attend)
        return out

    def logits(self, feature: Tensor, base: LlamaForCausalLM) -> Tensor:
        """Return logits over the base's vocabulary."""
        out: Tensor = base.lm_head(feature)
        return out

    def token_ids(self) -> Tensor:
        """Return the base's id of each draft id, which is the same id."""
        return torch.arange(self.shape.vocab_size)


Head = Eagle3Head | Eagle1Head


def load_head(directory: Path) -> Head:
    """Load an EAGLE head in float32; absent or surplus tensors are errors."""
    shape = HeadShape.read(json.loads((directory / "config.json").read_text()))
    head = Eagle1Head(shape) if shape.draft_vocab_size is None else Eagle3Head(shape)
    head.load_state_dict(load_file(directory / "model.safetensors"), strict=True)
    return head.eval()


def load_base(directory: Path) -> LlamaForCausalLM:
    """Load the base's stored (bfloat16) weights for computing in float32."""
    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
