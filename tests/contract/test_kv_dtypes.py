"""KV caches in another dtype than the activations: tokens equal those of transformers with a rounding cache."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from planner.families import inputs_of
from plans.schema import KvAxis, KvDType, Run
from tests.contract.agreeing import DRAFT_KV_HEADS, KV_HEADS, LAYERS
from tests.contract.checkpoints import CHUNK, CONTEXT, Checkpoints, compiled
from tests.contract.ranks import decoded, on_all_ranks
from tests.contract.test_families import compiled as families_compiled
from tests.contract.test_families import last_states
from tests.plan_factory import Group, even, group, make_plan, shared_draft
from tests.planner.tiny_checkpoints import CLASSES, saved

pytestmark = pytest.mark.usefixtures("one_core")

PROMPTS = ((5, 17, 33, 2, 60), tuple(range(90, 70, -1)))
COUNT = 24
CODES: tuple[KvDType, ...] = ("int8", "float8_e4m3fn")


def rounded(states: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return keys or values [B, k, t, D] as a cache keeps them.

    ``shape``: of D, such that in codes the dims that have a scale in common are the first and last of its three.
    """
    if dtype not in (torch.int8, torch.float8_e4m3fn):
        most = torch.finfo(dtype).max
        return states.clamp(-most, most).to(dtype).to(states.dtype)
    heads = states.unflatten(-1, shape)
    scale = heads.abs().amax((-3, -1), keepdim=True) / (127 if dtype == torch.int8 else 448)
    near = torch.round(heads / scale) if dtype == torch.int8 else (heads / scale).to(dtype).to(states.dtype)
    return (near * scale).nan_to_num(0.0).flatten(-3)


class Rounded(DynamicCache):
    """Cache of transformers that rounds keys and values, in codes by parts of a head on different devices."""

    def __init__(self, dtype: torch.dtype, parts: int = 1) -> None:
        super().__init__()
        self._dtype, self._parts = dtype, parts

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        # a device has some rotary pairs of a key, which are half a head apart, and dims of a value that adjoin
        keys = rounded(key_states, self._dtype, (2, self._parts, -1))
        values = rounded(value_states, self._dtype, (1, self._parts, -1))
        return super().update(keys, values, layer_idx, *args, **kwargs)


@pytest.mark.parametrize(
    ("dtype", "axis"),
    [
        *itertools.product(("float16", "bfloat16"), ("heads", "context", "head_dim")),
        *itertools.product(CODES, (None, "heads", "repeated", "context", "head_dim", "batch")),
    ],
)
def test_tokens_are_those_of_transformers_with_a_rounding_cache(
    dtype: KvDType, axis: Any, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """On one device, or two that divide KV heads, the drafter's too; ``repeated``: both have each head's cache."""
    model, draft = checkpoints.base.model, checkpoints.drafts["eagle3"]
    units = model.layers[0].mlp.intermediate_size // model.layers[0].mlp.unit
    run = Run(num_layers=LAYERS, kv_heads=(KV_HEADS,) * 2, mlp_units=even(units, 2))
    along: KvAxis = "heads" if axis == "repeated" else axis
    divided = Group(devices=("a", "b"), runs=(run,), axis=along, subgroups=(2,))
    alone = axis is None or (dtype not in CODES and axis == "heads")
    halves = group(model, ["a", "b"], LAYERS) if axis == "heads" else divided
    placement = None
    if dtype in CODES and axis not in (None, "batch"):
        by_heads = axis == "heads"
        heads = (DRAFT_KV_HEADS // 2,) * 2 if by_heads else (DRAFT_KV_HEADS,)
        placement = shared_draft(model, draft.draft, ("a", "b"), along, (1, 1) if by_heads else (2,), heads)
    plan = make_plan(
        model,
        [group(model, ["a"], LAYERS) if alone else halves],
        draft=draft.draft,
        placement=placement,
        inputs=inputs_of(checkpoints.base, draft),
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
            past_key_values=Rounded(getattr(torch, dtype), 2 if axis == "head_dim" else 1),
        )
        expected.append(out[0, len(prompt) :].tolist())
    plain = [checkpoints.greedy(prompt, COUNT) for prompt in PROMPTS]
    coarse = dtype == "float8_e4m3fn" and axis != "head_dim"
    assert (expected != plain) == coarse, "only the coarsest dtype changes the tokens, and with more scales it does not"
    for draft_too in (True, False):
        for result in decoded(plan, directory, PROMPTS, [COUNT] * 2, draft=draft_too):
            assert result.tokens == expected
            assert result.measured["kv"] == plan.memory[0].kv_bytes
            assert not draft_too or max(map(max, result.accepted)) > 1, "the drafter reads its own cache"


SLIDING = {
    "use_sliding_window": True,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
}
LONG = tuple((7 * i * i + 3 * i + 5) % 29 + 3 for i in range(97))


@pytest.mark.parametrize(
    ("family", "changes", "devices", "axis"),
    [
        ("llama", {}, ("a",), "heads"),
        ("qwen3", SLIDING, ("a",), "heads"),
        ("qwen3", SLIDING, ("a", "b"), "context"),
        ("gpt_oss", {}, ("a", "b"), "heads"),
        ("gpt_oss", {}, ("a", "b"), "head_dim"),
    ],
)
@pytest.mark.parametrize("kv_dtype", CODES)
def test_logits_in_codes_are_those_of_the_rule(
    tmp_path: Path, family: str, changes: dict[str, Any], devices: tuple[str, ...], axis: KvAxis, kv_dtype: KvDType
) -> None:
    """Windows, sinks, a prompt longer than a ring: near those of a rounding cache, and not those of another."""
    torch.manual_seed(3)
    checkpoint = saved(tmp_path / "base", family, eos_token_id=None, max_position_embeddings=256, **changes)
    whole = torch.float32 if family == "gpt_oss" else torch.float64  # its experts take no float64
    model = CLASSES[family][1].from_pretrained(checkpoint, dtype=whole).requires_grad_(False).eval()
    parts = len(devices) if axis == "head_dim" else 1
    with torch.inference_mode():
        prompt = torch.tensor([LONG])
        exact = model(prompt).logits[0]
        expected = model(prompt, past_key_values=Rounded(getattr(torch, kv_dtype), parts)).logits[0]
    plan, directory = families_compiled(
        tmp_path, checkpoint, devices, "float32", axis=axis, batch=1, context=160, kv_dtype=kv_dtype
    )
    for state in on_all_ranks(plan, directory, lambda image, comm: last_states(plan, image, comm, LONG)):
        ours = state.to(whole) @ model.lm_head.weight.T
        most = expected.abs().max()
        assert (ours - expected).abs().max() <= 1e-5 * most
        assert (ours - exact).abs().max() > 1e-4 * most
