"""Every family: logits and tokens equal those of transformers, with and without drafting, on one device and on three,
in two stages of unlike shares of heads and channels.
"""

from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.families import inputs_of, load_base, load_draft, within
from planner.images.compile import compile_plan
from plans import codec
from plans.schema import DType, KvAxis, KvDType, Model, Plan, Run
from plans.step import accept_rows, layer_class
from runtime.comm.groups import Comm
from runtime.image.buffers import Memory
from runtime.image.slots import Image
from runtime.model.base import Base
from runtime.processes.machine import torch_device
from runtime.processes.rank import Rank
from runtime.request import Request
from tests.contract.ranks import on_all_ranks, with_engines
from tests.plan_factory import Group, make_plan, whole_group, write_draft
from tests.planner.tiny_checkpoints import CLASSES, WRAPPED, saved, saved_wrapper

pytestmark = pytest.mark.usefixtures("one_core")

PROMPT = (5, 17, 30, 2, 9, 11, 3)
COUNT = 20
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1000.0}
LONG = {"rope_type": "longrope", "long_factor": [1.5, 4.0], "attention_factor": 1.2, "rope_theta": 100.0}
GROWING = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 5}
GROWING |= {"llama_4_scaling_beta": 0.6}
CONTEXT = 48
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}),
    ("llama", {"rope_parameters": LONG | {"original_max_position_embeddings": 16, "short_factor": [1.0, 1.0]}}),
    ("llama", {"rope_parameters": LONG | {"original_max_position_embeddings": 64, "short_factor": [1.0, 1.1]}}),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0}, "max_position_embeddings": 32}),
    ("mistral", {"head_dim": 6}),
    ("mistral", {"tie_word_embeddings": True}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True, "rope_theta": 1000000.0}),
    ("qwen3", {"tie_word_embeddings": True, "head_dim": 12}),
    ("qwen3", {"attention_bias": True, "head_dim": 10}),
    ("mixtral", {}),
    ("mixtral", {"tie_word_embeddings": True, "num_local_experts": 3, "intermediate_size": 20}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"tie_word_embeddings": True, "norm_topk_prob": False, "mlp_only_layers": [1], "num_experts": 6}),
    ("qwen2_moe", {}),
    ("qwen2_moe", {"shared_expert_intermediate_size": 18, "qkv_bias": False, "mlp_only_layers": [2], "num_experts": 5}),
    ("phi3", {"head_dim": 6}),
    (
        "phi3",
        {
            "num_attention_heads": 2,
            "partial_rotary_factor": 0.5,
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0, 1.2], "long_factor": [1.5, 4.0]},
        },
    ),
    ("olmo2", {}),
    ("olmo2", {"attention_bias": True, "rope_parameters": YARN}),
    ("olmoe", {}),
    ("olmoe", {"norm_topk_prob": True, "num_key_value_heads": 4, "intermediate_size": 20}),
    ("smollm3", {"initializer_range": 0.25}),
    ("smollm3", {"no_rope_layers": [0, 1, 1, 0, 1, 1, 0], "tie_word_embeddings": False, "mlp_bias": True}),
    ("glm4", {"eos_token_id": 2}),
    ("exaone4", {"head_dim": 6, "sliding_window": None, "layer_types": ["full_attention"] * 7}),
    ("exaone4", {"sliding_window": 5, "sliding_window_pattern": 3, "tie_word_embeddings": True}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 6, "tie_word_embeddings": False}),
    ("gemma2", {"tie_word_embeddings": False, "sliding_window": 5, "initializer_range": 0.2}),
    ("gemma2", {"final_logit_softcapping": None, "attn_logit_softcapping": 3.0, "attention_bias": True}),
    ("gemma3_text", {"final_logit_softcapping": 5.0, "sliding_window": 5, "initializer_range": 0.1}),
    (
        "gemma3_text",
        {
            "tie_word_embeddings": False,
            "initializer_range": 0.5,
            "layer_types": ["full_attention", "sliding_attention"] * 3 + ["full_attention"],
        },
    ),
    ("gpt_oss", {}),
    ("ministral3", {"rope_parameters": GROWING}),
    ("glm4_moe", {"use_qk_norm": True}),
    ("dots1", {"first_k_dense_replace": 1, "n_group": 2, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("minimax_m2", {}),
    ("ernie4_5_moe", {"tie_word_embeddings": False}),
    (
        "gpt_oss",
        {
            "attention_bias": False,
            "initializer_range": 0.7,
            "num_key_value_heads": 4,
            "num_local_experts": 3,
            "swiglu_limit": 0.7,
            "tie_word_embeddings": True,
        },
    ),
    ("granite", {"embedding_multiplier": 1.5, "residual_multiplier": 1.1}),
    ("granite", {"residual_multiplier": 2.0, "embedding_multiplier": 0.5, "attention_bias": True, "head_dim": 6}),
    (
        "glm4",
        {
            "eos_token_id": 2,
            "attention_bias": False,
            "head_dim": 12,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
        },
    ),
    ("qwen3_moe", {"moe_intermediate_size": 16, "num_experts_per_tok": 3, "decoder_sparse_step": 2, "head_dim": 6}),
]


def compiled(
    directory: Path,
    checkpoint: Path,
    devices: tuple[str, ...],
    dtype: DType = "float32",
    *,
    axis: KvAxis = "heads",
    batch: int = 1,
    context: int = CONTEXT,
    spread: bool = False,
    kv_dtype: KvDType | None = None,
) -> tuple[Plan, Path]:
    """Compile a plan with a random drafter that fits the base.

    ``spread``: over two stages, the first of unlike shares, with tables on some devices of both.
    """
    base = load_base(checkpoint)
    write_draft(directory / "head", hidden_size=16, num_heads=4, head_dim=4, vocab_size=32, draft_vocab_size=20)
    draft = load_draft(directory / "head", base)
    model = within(base.model, context)
    tables: dict[str, Any] = {"embed": ("b", "c"), "embed_rows": (20, 12), "head": ("c", "a"), "head_rows": (7, 25)}
    plan = make_plan(
        model,
        unlike_stages(model) if spread else [whole_group(model, devices, axis)],
        **(tables if spread else {}),
        draft=draft.draft,
        inputs=inputs_of(base, draft),
        context=context,
        batch=batch,
        dtype=dtype,
        kv_dtype=kv_dtype,
    )
    target = directory / f"plan-{'spread' if spread else len(devices)}-{axis}-{dtype}"
    target.mkdir()
    (target / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(target, checkpoint, directory / "head")
    return plan, target


def unlike_stages(model: Model) -> list[Group]:
    """Make a stage of two devices, the leader with the smaller share, and one of a third device."""

    def runs(layers: range, members: int) -> tuple[Run, ...]:
        found = []
        for mlp, same in groupby((layer_class(model, layer) for layer in layers), lambda layers: layers.mlp):
            heads, units = model.layers[0].attention.num_kv_heads, mlp.units
            kv_heads, few = (heads,) if members == 1 else (1, heads - 1), units // 4
            shares = (units,) if members == 1 else (few, units - few)
            found.append(Run(num_layers=len(list(same)), kv_heads=kv_heads, mlp_units=shares))
        return tuple(found)

    middle = model.num_layers // 2 + 1
    return [
        Group(devices=("a", "b"), runs=runs(range(middle), 2)),
        Group(devices=("c",), runs=runs(range(middle, model.num_layers), 1)),
    ]


@pytest.mark.parametrize(
    ("family", "changes"), FAMILIES, ids=[f"{family}-{number}" for number, (family, _) in enumerate(FAMILIES)]
)
def test_logits_and_tokens_are_those_of_transformers(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    torch.manual_seed(3)
    checkpoint = saved(tmp_path / "base", family, **({"initializer_range": 0.4, "eos_token_id": None} | changes))
    model = CLASSES[family][1].from_pretrained(checkpoint, dtype=torch.float32).requires_grad_(False).eval()
    at_planned_length(model)
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        out = model.generate(torch.tensor([PROMPT]), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False)
        logits = model(torch.tensor([PROMPT])).logits[0]
    expected = tuple(out[0, len(PROMPT) :].tolist())
    assert len(set(expected)) > 4, "a model that repeats a few tokens would prove nothing"

    for spread in (False, True):
        plan, directory = compiled(tmp_path, checkpoint, ("a",), spread=spread)
        for state in states_of(plan, directory):
            ours = state @ model.lm_head.weight.T / getattr(model.config, "logits_scaling", 1)
            softcap = getattr(model.config, "final_logit_softcapping", None)
            ours = ours if softcap is None else softcap * torch.tanh(ours / softcap)
            assert (ours - logits).abs().max() <= 1e-4 * logits.abs().max()
        for tokens in with_engines(plan, directory, both_ways):
            assert tokens == [expected, expected]


def at_planned_length(model: Any) -> None:
    """Let a rotary embedding of transformers that looks at the present length see the planned one instead."""
    rotary = model.model.rotary_emb
    if rotary.rope_type in ("longrope", "dynamic"):
        rotary(torch.zeros(1), torch.arange(CONTEXT)[None])
        frequencies = rotary.inv_freq.clone()
        rotary.rope_type = "default"
        rotary.inv_freq = frequencies


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", WRAPPED)
def test_the_text_part_of_a_model_of_images_computes_what_the_whole_does_for_text(
    tmp_path: Path, name: str, tied: bool
) -> None:
    torch.manual_seed(5)
    spread = 0.05 if name == "gemma3" else 0.4  # its scaled, tied embedding repeats one token where it is larger
    checkpoint = saved_wrapper(tmp_path / "base", name, tied, initializer_range=spread, eos_token_id=None)
    model = WRAPPED[name][1].from_pretrained(checkpoint, dtype=torch.float32).requires_grad_(False).eval()
    with torch.inference_mode():
        out = model.generate(torch.tensor([PROMPT]), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False)
        logits = model(torch.tensor([PROMPT])).logits[0]
    expected = tuple(out[0, len(PROMPT) :].tolist())
    assert len(set(expected)) > 4, "a model that repeats a few tokens would prove nothing"
    plan, directory = compiled(tmp_path, checkpoint, ("a",), spread=not tied)
    for state in states_of(plan, directory):
        ours = state @ model.lm_head.weight.T
        assert (ours - logits).abs().max() <= 1e-4 * logits.abs().max()
    for tokens in with_engines(plan, directory, both_ways):
        assert tokens == [expected, expected]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral"])
def test_halves_are_as_near_to_float32_as_those_of_transformers(tmp_path: Path, family: str, dtype: DType) -> None:
    """Compare medians: if the scores of two experts are within rounding, implementations may choose differently."""
    theirs, ours = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        checkpoint = saved(tmp_path / f"{seed}", family, initializer_range=0.4)
        half = CLASSES[family][1].from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
        exact = CLASSES[family][1].from_pretrained(checkpoint, dtype=getattr(torch, dtype)).float().eval()
        with torch.inference_mode():
            expected = exact.model(torch.tensor([PROMPT])).last_hidden_state[0]
            theirs.append((half.model(torch.tensor([PROMPT])).last_hidden_state[0] - expected).abs())
        for devices in (("a",), ("a", "b")):
            plan, directory = compiled(tmp_path / f"{seed}", checkpoint, devices, dtype)
            ours += [(state - expected).abs() for state in states_of(plan, directory)]
    assert torch.cat(ours).median() <= 1.2 * torch.cat(theirs).median()


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *(("llama", "float32"), ("qwen3", "bfloat16"), ("mixtral", "float16"), ("qwen3_moe", "bfloat16")),
        *(("olmo2", "bfloat16"), ("qwen2_moe", "float16"), ("gpt_oss", "bfloat16")),
        *(("ministral3", "bfloat16"), ("glm4_moe", "bfloat16")),
    ],
)
def test_a_tree_is_verified_with_the_bits_of_plain_decoding(tmp_path: Path, family: str, dtype: DType) -> None:
    """Bit for bit on one or two CPU devices, in 16-bit types too, so that no token depends on a drafted one."""
    torch.manual_seed(1)
    own = {"rope_parameters": GROWING} if family == "ministral3" else {}
    checkpoint = saved(tmp_path, family, initializer_range=0.4, **own)
    for devices in (("a",), ("a", "b")):
        plan, directory = compiled(tmp_path, checkpoint, devices, dtype)
        for tree, alone in on_all_ranks(
            plan, directory, lambda image, comm, plan=plan: both_verified(plan, image, comm)
        ):
            assert torch.equal(tree, alone)


@torch.inference_mode()
def both_verified(
    plan: Plan, image: Image, comm: Comm, prompt: tuple[int, ...] = PROMPT
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normed hidden states [N, H] of a tree's nodes, verified as a tree and decoded one by one."""
    device = plan.devices[comm.rank]

    def prefilled_base() -> Base:
        base = Base(plan, image, Memory(plan, device.id, torch_device(device)), comm)
        chunk = plan.options.prefill_chunk
        for start in range(0, len(prompt), chunk):
            tokens = prompt[start : start + chunk]
            base.prefill(0, torch.tensor(tokens, device=torch_device(device)), len(tokens) - 1)
        return base

    def verified(base: Base, tokens: list[int], mask: torch.Tensor) -> torch.Tensor:
        target = torch_device(device)
        forward = base.verify(torch.tensor([tokens], device=target), mask.to(target)[None], 0)
        assert forward is not None
        return forward.normed.clone()

    paths, tokens = ((0,), (0, 1), (0, 2), (0, 1, 3), (0, 1, 4), (0, 1, 4, 5)), [7, 21, 4, 30, 13, 8]
    mask = torch.tensor([[row in path for row in range(len(paths))] for path in paths])
    tree, alone = verified(prefilled_base(), tokens, mask), []
    root = torch.zeros((1, accept_rows(plan.options)), dtype=torch.int64, device=torch_device(device))
    for path in paths:
        base = prefilled_base()
        for node in path:
            last = verified(base, [tokens[node]], torch.ones((1, 1), dtype=torch.bool))
            base.keep(root, root[:, 0], 1, 0)
            base.know([1], 0)
        alone.append(last)
    return tree, torch.cat(alone)


def states_of(plan: Plan, directory: Path) -> list[torch.Tensor]:
    """Return the normed hidden states of the prompt [P, H] on each device of the lm_head."""
    states = on_all_ranks(plan, directory, lambda image, comm: last_states(plan, image, comm))
    assert sum(state is not None for state in states) == len(plan.head.devices)
    return [state for state in states if state is not None]


@torch.inference_mode()
def last_states(plan: Plan, image: Image, comm: Comm, prompt: tuple[int, ...] = PROMPT) -> torch.Tensor | None:
    """Return the normed hidden states of the prompt, the input of the lm_head; None on devices without it."""
    device = plan.devices[comm.rank]
    base = Base(plan, image, Memory(plan, device.id, torch_device(device)), comm)
    chunk, states = plan.options.prefill_chunk, []
    for start in range(0, len(prompt), chunk):
        tokens = prompt[start : start + chunk]
        forward = base.prefill(0, torch.tensor(tokens, device=torch_device(device)), len(tokens) - 1)
        if forward is not None:
            states.append(forward.normed.cpu())
    return torch.cat(states) if states else None


def both_ways(engine: Rank) -> list[tuple[int, ...]]:
    """Return the tokens with drafting and without."""
    request = Request(prompt_ids=PROMPT, max_new_tokens=COUNT, draft=True, ignore_eos=True, stop=())
    return [engine.generate(replace(request, draft=draft)).tokens for draft in (True, False)]
