"""KV caches in another dtype than the activations: tokens equal those of transformers with a rounding cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from plans.schema import KvDType, Run
from tests.contract.agreeing import KV_HEADS, LAYERS
from tests.contract.checkpoints import CHUNK, CONTEXT, Checkpoints, compiled, inputs
from tests.contract.ranks import decoded
from tests.plan_factory import Group, even, group, make_plan

pytestmark = pytest.mark.usefixtures("one_core")

PROMPTS = ((5, 17, 33, 2, 60), tuple(range(90, 70, -1)))
COUNT = 24


class Rounded(DynamicCache):
    """Cache of transformers that rounds keys and values to a dtype and clamps them to its range."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        most = torch.finfo(self._dtype).max
        keys, values = (
            states.clamp(-most, most).to(self._dtype).to(states.dtype) for states in (key_states, value_states)
        )
        return super().update(keys, values, layer_idx, *args, **kwargs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("axis", ["heads", "context", "head_dim"])
def test_tokens_are_those_of_transformers_with_a_rounding_cache(
    dtype: KvDType, axis: Any, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    model, draft = checkpoints.base.model, checkpoints.drafts["eagle3"]
    units = model.layers[0].mlp.intermediate_size // model.layers[0].mlp.unit
    run = Run(num_layers=LAYERS, kv_heads=(KV_HEADS,) * 2, mlp_units=even(units, 2))
    divided = Group(devices=("a", "b"), runs=(run,), axis=axis, subgroups=(2,))
    plan = make_plan(
        model,
        [group(model, ["a"], LAYERS) if axis == "heads" else divided],
        draft=draft.draft,
        inputs=inputs(checkpoints.base, draft),
        context=CONTEXT,
        prefill_chunk=CHUNK,
        kv_dtype=dtype,
        batch=2,
    )
    directory = compiled(tmp_path / "plan", plan, checkpoints, "eagle3")
    expected = []
    for prompt in PROMPTS:
        out = checkpoints.model.generate(
            torch.tensor([prompt]),
            max_new_tokens=COUNT,
            min_new_tokens=COUNT,
            do_sample=False,
            past_key_values=Rounded(getattr(torch, dtype)),
        )
        expected.append(out[0, len(prompt) :].tolist())
    plain = [checkpoints.greedy(prompt, COUNT) for prompt in PROMPTS]
    assert (expected != plain) == (dtype == "float8_e4m3fn"), "only the coarsest dtype changes the tokens"
    for draft_too in (True, False):
        for result in decoded(plan, directory, PROMPTS, [COUNT] * 2, draft=draft_too):
            assert result.tokens == expected
            assert result.measured["kv"] == plan.memory[0].kv_bytes
