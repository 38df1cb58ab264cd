"""A base, drafters of each kind that often agree with it, and the tokens that transformers generates."""

import dataclasses
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from planner.families import BaseInput, DraftInput, load_base, load_draft
from planner.images.compile import compile_plan
from plans import codec
from plans.schema import Plan, RoundedWeights
from tests.contract.agreeing import LAYERS, write_agreeing_base, write_agreeing_head
from tests.planner.quantized.checkpoints import dequantised

CONTEXT = 80
CHUNK = 16
KINDS = ("eagle3", "eagle")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """A base and a drafter of each kind: files, inputs read by the planner, and the base in transformers."""

    base_dir: Path
    heads: dict[str, Path]
    base: BaseInput
    drafts: dict[str, DraftInput]
    model: LlamaForCausalLM
    _generated: dict[tuple[int, ...], list[int]] = dataclasses.field(default_factory=dict)
    """Greedy tokens of transformers by prompt, as many as were needed so far."""

    def greedy(self, prompt: tuple[int, ...], count: int) -> list[int]:
        """Return the tokens that transformers generates greedily."""
        if len(self._generated.get(prompt, ())) < count:
            most = max(count, CONTEXT - len(prompt))
            out = self.model.generate(torch.tensor([prompt]), max_new_tokens=most, min_new_tokens=most, do_sample=False)
            self._generated[prompt] = out[0, len(prompt) :].tolist()
        return self._generated[prompt][:count]


def write_checkpoints(
    directory: Path,
    *,
    layers: int = LAYERS,
    kinds: tuple[str, ...] = KINDS,
    weights: RoundedWeights | None = None,
    noise: float = 0.04,
) -> Checkpoints:
    """Write base and drafters to a directory; ``weights``: the base is rounded, in transformers as its values."""
    base_dir = write_agreeing_base(directory / "base", noise=noise, layers=layers)
    heads = {kind: write_agreeing_head(directory / kind, base_dir, kind=kind, noise=0.03) for kind in kinds}
    base = load_base(base_dir, weights)
    drafts = {kind: load_draft(head, base) for kind, head in heads.items()}
    values = base_dir if weights is None else dequantised(base_dir, directory / "values", weights)
    model = LlamaForCausalLM.from_pretrained(values, dtype=torch.float32)
    return Checkpoints(base_dir=base_dir, heads=heads, base=base, drafts=drafts, model=model.requires_grad_(False))


def compiled(directory: Path, plan: Plan, checkpoints: Checkpoints, kind: str | None) -> Path:
    directory.mkdir()
    (directory / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(directory, checkpoints.base_dir, checkpoints.heads[kind] if kind else None)
    return directory
