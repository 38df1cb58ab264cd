"""Reference of the EAGLE-3 heads that are published: EAGLE-3.1, several layers, norms, biases and P-EAGLE.

Plain torch in float32, from the tensors by their names in the file; no cache, no masks of trees, and no code of the
product. ``reference_eagle.decode`` grows the trees.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

Pairs = list[tuple[Tensor, int]]


class ReferenceForm:
    """An EAGLE-3 head of any form; ``form`` says what its layout means, as its authors define it."""

    def __init__(self, directory: Path, base: LlamaForCausalLM, form: dict[str, Any]) -> None:
        """``form``: boundaries, heads, head_dim, theta, eps, and the flags of the head that are not in its tensors."""
        self.form = form
        tensors = load_file(directory / "model.safetensors")
        self.tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        first = "midlayer" if any(name.startswith("midlayer.") for name in self.tensors) else "layers.0"
        later = {name.split(".")[1] for name in self.tensors if name.startswith("layers.")} - {"0"}
        self.layers = [first, *(f"layers.{number}" for number in sorted(later))]
        self.embedding = self.tensors.get("embed_tokens.weight", base.model.embed_tokens.weight)
        self.lm_head = self.tensors.get("lm_head.weight", base.lm_head.weight)

    def targets(self, base: LlamaForCausalLM, sequence: Tensor) -> Tensor:
        """Return the concatenated states at the boundaries of the base, of every position; of none, its output."""
        inputs: list[Tensor] = []
        last: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0])) for layer in base.model.layers
        ]
        hooks.append(base.model.norm.register_forward_pre_hook(lambda _, args: last.append(args[0][0])))
        output = base.model(sequence).last_hidden_state[0]
        for hook in hooks:
            hook.remove()
        if not self.form["boundaries"]:
            return output
        return torch.cat([[*inputs, *last][boundary] for boundary in self.form["boundaries"]], 1)

    def enter(self, target: Tensor) -> Tensor:
        if "input_norm.weight" in self.tensors:
            target = self.rms(target, "input_norm")
        if "fc_norm.0.weight" in self.tensors:
            parts = target.split(target.shape[-1] // len(self.form["boundaries"]))
            target = torch.cat([self.rms(part, f"fc_norm.{number}") for number, part in enumerate(parts)])
        return self.linear(target, "fc") if "fc.weight" in self.tensors else target

    def run(self, sequences: list[Pairs]) -> Tensor:
        """Return what is fed back after the last pair of each sequence."""
        return self.outputs(sequences)[:, -1]

    def outputs(self, sequences: list[Pairs]) -> Tensor:
        """Return what is fed back after every pair [n, length, H]."""
        hidden = torch.stack([torch.stack([feature for feature, _ in pairs]) for pairs in sequences])
        embedded = self.embedding[torch.tensor([[token for _, token in pairs] for pairs in sequences])]
        for number, layer in enumerate(self.layers):
            if number == 0:
                normed = self.rms(hidden, f"{layer}.hidden_norm")
                x = torch.cat((self.rms(embedded, f"{layer}.input_layernorm"), normed), -1)
                hidden = normed if self.form.get("norm_before_residual") else hidden
            else:
                x = self.rms(hidden, f"{layer}.input_layernorm")
            hidden = hidden + self.attend(x, layer)
            x = self.rms(hidden, f"{layer}.post_attention_layernorm")
            gate = functional.silu(self.linear(x, f"{layer}.mlp.gate_proj"))
            hidden = hidden + self.linear(gate * self.linear(x, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj")
        return self.rms(hidden, "norm") if self.form.get("norm_output") else hidden

    def attend(self, x: Tensor, layer: str) -> Tensor:
        dim, (count, length, _) = self.form["head_dim"], x.shape
        q, k, v = (
            self.linear(x, f"{layer}.self_attn.{name}_proj").view(count, length, -1, dim).transpose(1, 2)
            for name in "qkv"
        )
        if f"{layer}.self_attn.q_norm.weight" in self.tensors:
            q, k = self.rms(q, f"{layer}.self_attn.q_norm"), self.rms(k, f"{layer}.self_attn.k_norm")
        frequencies = self.form["frequencies"]
        angles = torch.outer(torch.arange(length).float(), frequencies)
        turn = torch.polar(torch.full_like(angles, self.form.get("rope_scale", 1.0)), angles)

        def rotated(heads: Tensor) -> Tensor:
            real, imaginary = heads.chunk(2, -1)
            turned = torch.complex(real, imaginary) * turn
            return torch.cat((turned.real, turned.imag), -1)

        share = q.shape[1] // k.shape[1]
        q, k, v = rotated(q), rotated(k).repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        scores = q @ k.mT / math.sqrt(dim)
        scores = scores + torch.full((length, length), -math.inf).triu(1)
        return self.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{layer}.self_attn.o_proj")

    def children(self, output: Tensor, count: int) -> list[tuple[int, float]]:
        """Return the most probable tokens, as ids of the base, with their log-probabilities."""
        read = output if self.form.get("norm_output") else self.rms(output, "norm")
        logits = self.form.get("logit_scale", 1.0) * (self.lm_head @ read)
        top = logits.log_softmax(0).topk(count)
        offsets = self.tensors.get("d2t", torch.zeros(len(logits), dtype=torch.int64))
        return [(int(i + offsets[i]), float(p)) for i, p in zip(top.indices, top.values, strict=True)]

    def draft_at_once(self, pairs: Pairs, count: int) -> list[tuple[int, ...]]:
        """Return the chain of ``count`` tokens of P-EAGLE, as the path to each: behind the pairs stand masks."""
        mask = (self.enter(self.tensors["mask_hidden"].flatten()), self.form["mask_token_id"])
        outputs = self.outputs([pairs + [mask] * (count - 1)])[0, len(pairs) - 1 :]
        tokens = [self.children(output, 1)[0][0] for output in outputs]
        return [tuple(tokens[: length + 1]) for length in range(count)]

    def rms(self, x: Tensor, name: str) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.form["eps"])
        return self.tensors[f"{name}.weight"] * (x * scale)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))
