"""Sliding windows: logits and tokens are those of transformers beyond the end of a ring, in trees and every division.

Prompts and answers are longer than the windows, and than the rows of a ring, so that rows are overwritten.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralForCausalLM

from planner.families import inputs_of, load_base, load_draft, within
from planner.images.compile import compile_plan
from plans import codec
from plans.schema import DType, KvAxis, KvDType, Plan
from plans.step import cache_positions
from runtime.processes.rank import Rank
from runtime.request import Completion, Request
from tests.contract.checkpoints import Checkpoints
from tests.contract.ranks import decoded, on_all_ranks, with_engines
from tests.contract.test_families import both_verified, compiled, last_states
from tests.plan_factory import make_plan, whole_group
from tests.planner.tiny_checkpoints import CLASSES, saved

pytestmark = pytest.mark.usefixtures("one_core")

CONTEXT = 160
COUNT = 24
SLIDING, FULL = "sliding_attention", "full_attention"
PROMPTS = (
    tuple((7 * i * i + 3 * i + 5) % 29 + 3 for i in range(97)),
    tuple((5 * i * i + i + 2) % 28 + 3 for i in range(41)),
)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "every layer": ("mistral", {"sliding_window": 9}),
    "last layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 4}),
    "in turns": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 7, "layer_types": [SLIDING, SLIDING, FULL] * 2 + [SLIDING]},
    ),
    "experts": ("mixtral", {"sliding_window": 3}),
    "capped": ("gemma2", {"sliding_window": 7, "tie_word_embeddings": False, "attn_logit_softcapping": 4.0}),
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A checkpoint, and what transformers makes of the prompts."""

    checkpoint: Path
    lm_head: torch.Tensor
    logits: torch.Tensor
    """Tokens of the first prompt."""
    model: Any

    def tokens(self, prompt: tuple[int, ...], count: int = COUNT) -> tuple[int, ...]:
        out = self.model.generate(torch.tensor([prompt]), max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return tuple(out[0, len(prompt) :].tolist())


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    return cache(lambda name: reference_of(tmp_path_factory.mktemp("base") / "base", *MODELS[name]))


def reference_of(directory: Path, family: str, changes: dict[str, Any]) -> Reference:
    torch.manual_seed(3)
    sizes = {"initializer_range": 0.4, "eos_token_id": None, "max_position_embeddings": 256}
    checkpoint = saved(directory, family, **(sizes | changes))
    model = CLASSES[family][1].from_pretrained(checkpoint, dtype=torch.float32).requires_grad_(False).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0]
    return Reference(checkpoint=checkpoint, lm_head=model.lm_head.weight, logits=logits, model=model)


CASES: list[tuple[str, tuple[str, ...], KvAxis, int]] = [
    ("every layer", ("a",), "heads", 2),
    ("every layer", ("a", "b"), "head_dim", 1),
    ("last layers", ("a", "b"), "heads", 1),
    ("last layers", ("a", "b"), "batch", 2),
    ("in turns", ("a", "b"), "heads", 1),
    ("in turns", ("a", "b"), "context", 2),
    ("experts", ("a",), "heads", 1),
    ("capped", ("a", "b"), "context", 1),
    ("capped", ("a", "b"), "heads", 2),
]


@pytest.mark.parametrize(("name", "devices", "axis", "batch"), CASES, ids=lambda value: str(value))
def test_logits_and_tokens_are_those_of_transformers(
    tmp_path: Path,
    references: Callable[[str], Reference],
    name: str,
    devices: tuple[str, ...],
    axis: KvAxis,
    batch: int,
) -> None:
    reference = references(name)
    plan, directory = planned(tmp_path, reference, devices, axis=axis, batch=batch)
    states = on_all_ranks(plan, directory, lambda image, comm: last_states(plan, image, comm, PROMPTS[0]))
    for state in states:
        ours, cap = state @ reference.lm_head.T, getattr(reference.model.config, "final_logit_softcapping", None)
        ours = ours if cap is None else cap * torch.tanh(ours / cap)
        assert (ours - reference.logits).abs().max() <= 1e-4 * reference.logits.abs().max()
    expected = [reference.tokens(prompt) for prompt in PROMPTS[:batch]]
    assert all(len(set(tokens)) > 4 for tokens in expected), "a model that repeats a few tokens would prove nothing"
    for draft in (True, False):
        requests = tuple(asked(prompt, draft=draft) for prompt in PROMPTS[:batch])
        for tokens in with_engines(plan, directory, lambda rank, requests=requests: together(rank, requests)):
            assert tokens == expected


@pytest.mark.parametrize(
    ("name", "devices", "axis", "kv_dtype"),
    [
        ("every layer", ("a",), "heads", None),
        ("in turns", ("a", "b"), "heads", None),
        ("capped", ("a",), "heads", None),
        ("every layer", ("a",), "heads", "int8"),
        ("in turns", ("a", "b"), "context", "int8"),
        ("capped", ("a", "b"), "heads", "int8"),
        ("last layers", ("a", "b"), "batch", "int8"),
        ("experts", ("a",), "heads", "int8"),
        ("every layer", ("a",), "heads", "float8_e4m3fn"),
        ("in turns", ("a", "b"), "context", "float8_e4m3fn"),
        ("capped", ("a", "b"), "heads", "float8_e4m3fn"),
    ],
)
def test_a_tree_is_verified_with_the_bits_of_plain_decoding(
    tmp_path: Path,
    references: Callable[[str], Reference],
    name: str,
    devices: tuple[str, ...],
    axis: KvAxis,
    kv_dtype: KvDType | None,
) -> None:
    """Beyond the end of the ring, which the rows of a path go round; in codes too, where KV heads are whole."""
    batch = 2 if axis == "batch" else 1
    plan, directory = planned(
        tmp_path, references(name), devices, dtype="bfloat16", axis=axis, batch=batch, kv_dtype=kv_dtype
    )
    for length in (60, 97):
        prompt = PROMPTS[0][:length]
        for tree, alone in on_all_ranks(
            plan, directory, lambda image, comm, prompt=prompt: both_verified(plan, image, comm, prompt)
        ):
            assert torch.equal(tree, alone)


@pytest.mark.parametrize("axis", ["heads", "context"])
def test_deep_paths_are_accepted_within_and_beyond_a_window(
    tmp_path: Path, checkpoints: Checkpoints, axis: KvAxis
) -> None:
    """With windows below and above the depth of a path, and a head that often agrees."""
    base = tmp_path / "base"
    shutil.copytree(checkpoints.base_dir, base)
    config = json.loads((base / "config.json").read_text())
    names = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "max_position_embeddings": 256}
    for window in (3, 40):
        (base / "config.json").write_text(json.dumps(config | names | {"sliding_window": window}))
        model = MistralForCausalLM.from_pretrained(base, dtype=torch.float32)
        own = load_base(base)
        draft = load_draft(checkpoints.heads["eagle"], own)
        plan = make_plan(
            within(own.model, CONTEXT),
            [whole_group(own.model, ("a", "b"), axis)],
            draft=draft.draft,
            inputs=inputs_of(own, draft),
            context=CONTEXT,
        )
        assert plan.options.tree is not None
        directory = tmp_path / f"plan-{window}"
        directory.mkdir()
        (directory / "plan.yaml").write_text(codec.dumps(plan))
        compile_plan(directory, base, checkpoints.heads["eagle"])
        prompt = (5, 17, 33, 2, 60) * 6
        out = model.generate(torch.tensor([prompt]), max_new_tokens=120, min_new_tokens=120, do_sample=False)
        for served in decoded(plan, directory, [prompt], [120], draft=True):
            assert served.tokens == [out[0, len(prompt) :].tolist()]
            assert max(served.accepted[0]) == plan.options.tree.depth + 1
            assert sum(served.accepted[0]) > len(served.accepted[0]) / 4


def test_a_prompt_reuses_what_a_ring_still_holds(tmp_path: Path, references: Callable[[str], Reference]) -> None:
    reference = references("in turns")
    plan, directory = planned(tmp_path, reference, ("a",), batch=2)
    assert cache_positions(plan.options, 7) == 22
    first = PROMPTS[0]
    (served,) = with_engines(plan, directory, lambda rank: conversation(rank, first))
    fresh = [
        reference.tokens(prompt, len(tokens)) for prompt, tokens in zip(served.prompts, served.tokens, strict=True)
    ]
    assert served.tokens == fresh
    assert served.reused == [0, len(first) + COUNT - 2, 0, 0, 9]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    prompts: list[tuple[int, ...]]
    tokens: list[tuple[int, ...]]
    reused: list[int]


def conversation(rank: Rank, first: tuple[int, ...]) -> Conversation:
    """Serve a prompt, its continuation, two that go back to before what a ring holds, and one after a short one."""
    served = Conversation(prompts=[], tokens=[], reused=[])

    def serve(prompt: tuple[int, ...], count: int = COUNT) -> tuple[int, ...]:
        request = replace(asked(prompt, draft=True), max_new_tokens=count, reuse=True)
        completion = rank.generate(request)
        served.prompts.append(prompt)
        served.tokens.append(completion.tokens)
        served.reused.append(completion.reused)
        return completion.tokens

    answer = serve(first)
    serve((*first, *answer, 4, 6, 3))
    serve((*first[:50], 9, 9))
    short = PROMPTS[1][:10]
    serve(short, 8)
    serve((*short, 5))
    return served


def planned(
    directory: Path,
    reference: Reference,
    devices: tuple[str, ...],
    dtype: DType = "float32",
    *,
    axis: KvAxis = "heads",
    batch: int = 1,
    kv_dtype: KvDType | None = None,
) -> tuple[Plan, Path]:
    return compiled(
        directory, reference.checkpoint, devices, dtype, axis=axis, batch=batch, context=CONTEXT, kv_dtype=kv_dtype
    )


def asked(prompt: tuple[int, ...], *, draft: bool) -> Request:
    return Request(prompt_ids=prompt, max_new_tokens=COUNT, draft=draft, ignore_eos=True, stop=())


def together(rank: Rank, requests: tuple[Request, ...]) -> list[tuple[int, ...]]:
    """Return the tokens of requests that are served as one batch."""
    outputs = {job: output for turn in rank.serve_batch(requests) for job, output in turn}
    completions = [outputs[job] for job in range(len(requests))]
    assert all(isinstance(completion, Completion) for completion in completions)
    return [completion.tokens for completion in completions]
