"""The model card of the demo directory, from `card.md`."""

import dataclasses
import platform
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from demo_training.corpus import PROMPT_TOKENS
from demo_training.heads import HEAD_ROWS, HEAD_TOKENS, SELF_FED_ROWS
from demo_training.stages import Budget

TEMPLATE = Path(__file__).with_name("card.md")


def model_card(
    out: Path, corpus: str, sample: str, stages: dict[str, Any], measured: dict[str, Any], budget: Budget
) -> str:
    """Return the README of the demo directory; every figure in it was measured by this run."""
    directories = ("base", "eagle3", "eagle1")
    tensors = {name: load_file(out / name / "model.safetensors") for name in directories}
    parameters = {
        f"{name}_parameters": sum(t.numel() for t in held.values() if t.is_floating_point())
        for name, held in tensors.items()
    }
    total = sum(path.stat().st_size for name in directories for path in (out / name).iterdir())
    return TEMPLATE.read_text().format(
        **parameters,
        **stages,
        **dataclasses.asdict(budget),
        head_step=f"{HEAD_ROWS * HEAD_TOKENS} pairs, {HEAD_ROWS * SELF_FED_ROWS} of them",
        total_bytes=total,
        python=platform.python_version(),
        corpus=corpus,
        prompts=measured["prompts"],
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=measured["new_tokens"],
        held_out_loss=measured["held_out_loss"],
        distinct=measured["distinct_8gram_median"],
        eagle3_tau=measured["eagle3"]["acceptance_length"],
        eagle1_tau=measured["eagle1"]["acceptance_length"],
        eagle3_equal=measured["eagle3"]["equal_to_greedy"],
        eagle1_equal=measured["eagle1"]["equal_to_greedy"],
        sample=sample,
    )
