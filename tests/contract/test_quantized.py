"""Quantized models: logits and tokens equal those of transformers on the dequantised weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.families import inputs_of, load_base, load_draft
from planner.images.compile import compile_plan
from plans import codec
from plans.check import InvalidPlanError, require
from plans.schema import DType, KvAxis, Plan, RoundedWeights
from tests.contract.checkpoints import compiled as compiled_plan
from tests.contract.checkpoints import write_checkpoints
from tests.contract.ranks import decoded, on_all_ranks, with_engines
from tests.contract.test_families import COUNT, PROMPT, both_verified, both_ways, last_states
from tests.contract.test_placements import PROMPTS, placed
from tests.plan_factory import make_plan, whole_group, write_draft
from tests.planner.quantized.checkpoints import METHODS, MIXED, dequantised, mixed, quantized, written
from tests.planner.tiny_checkpoints import CLASSES, saved

pytestmark = pytest.mark.usefixtures("one_core")

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 7, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.2, "eos_token_id": None,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 64}


def compiled(
    directory: Path,
    checkpoint: Path,
    devices: tuple[str, ...],
    dtype: DType = "float32",
    weights: RoundedWeights | None = None,
    embed: Sequence[str] | None = None,
    head: Sequence[str] | None = None,
    axis: KvAxis = "heads",
) -> tuple[Plan, Path]:
    """Compile a plan with a random drafter that fits the base; of several devices the first has most of the MLPs.

    ``embed``, ``head``: devices of the tables.
    """
    base = load_base(checkpoint, weights)
    drafter = directory / "head"
    write_draft(
        drafter, hidden_size=base.model.hidden_size, num_heads=4, head_dim=16, vocab_size=32, draft_vocab_size=20
    )
    draft = load_draft(drafter, base)
    group = whole_group(base.model, devices, axis)
    others = (1,) * (len(devices) - 1)
    runs = tuple(replace(run, mlp_units=(sum(run.mlp_units) - len(others), *others)) for run in group.runs)
    plan = make_plan(
        base.model,
        [replace(group, runs=runs)],
        draft=draft.draft,
        inputs=inputs_of(base, draft),
        context=48,
        batch=1,
        dtype=dtype,
        embed=embed,
        head=head,
    )
    plan = replace(plan, options=replace(plan.options, weights=weights))
    require(plan, "options.weights")
    target = directory / f"plan-{len(devices)}-{dtype}"
    target.mkdir()
    (target / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(target, checkpoint, drafter)
    return plan, target


@pytest.mark.parametrize(
    ("method", "family", "changes"),
    [
        *((method, "llama", {}) for method in METHODS if method not in ("mxfp4", "auto-round")),
        ("mxfp4", "gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9}),
        ("gptq", "qwen2", {"tie_word_embeddings": True}),
        ("awq", "qwen3", {"head_dim": 16}),
        ("sorted-gptq", "phi3", {"pad_token_id": None, "head_dim": 16}),
        ("sorted-w8", "qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 128, "num_experts": 4}),
        ("fp8", "qwen3_moe", EXPERTS),
        ("w4a16", "mixtral", {}),
        ("w8", "phi3", {"pad_token_id": None, "head_dim": 16}),
    ],
)
def test_logits_and_tokens_are_those_of_the_dequantised_model(
    tmp_path: Path, method: str, family: str, changes: dict[str, Any]
) -> None:
    torch.manual_seed(4)
    coded, exact = quantized(saved(tmp_path / "base", family, **(SIZES | changes)), tmp_path, method)
    same_as_exact(tmp_path, coded, exact, family)


@pytest.mark.parametrize(
    ("recipe", "family"),
    [
        *((recipe, "llama") for recipe in MIXED),
        ("dynamic of GPTQModel", "qwen2"),
        ("v and down in 8 bits", "olmo2"),
        ("k, v and gate plain", "qwen3"),
    ],
)
def test_formats_that_differ_within_a_layer(tmp_path: Path, recipe: str, family: str) -> None:
    """q, k and v, and gate and up, of different formats or none; qwen2 has biases, olmo2 norms of all heads."""
    torch.manual_seed(4)
    coded, exact = mixed(saved(tmp_path / "base", family, **SIZES), tmp_path, recipe)
    layers = load_base(coded).model.layers[0]
    assert layers.attention.qkv_formats is not None
    assert layers.mlp.gate_up_formats is not None
    same_as_exact(tmp_path, coded, exact, family)


def test_formats_that_differ_keep_the_bits_of_trees(tmp_path: Path) -> None:
    torch.manual_seed(1)
    coded, _ = mixed(saved(tmp_path / "base", "llama", **SIZES), tmp_path, "v and down in 8 bits")
    plan, directory = compiled(tmp_path, coded, ("a", "b"), "bfloat16")
    for tree, alone in on_all_ranks(plan, directory, lambda image, comm: both_verified(plan, image, comm)):
        assert torch.equal(tree, alone)


def test_experts_that_are_listed_as_plain_are_so_beside_mxfp4(tmp_path: Path) -> None:
    torch.manual_seed(4)
    changes = SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9}
    pack, settings = METHODS["mxfp4"]
    listed = [*settings["modules_to_not_convert"], "model.layers.0.mlp.experts", "model.layers.2.mlp"]
    coded, exact = written(
        saved(tmp_path / "base", "gpt_oss", **changes), tmp_path,
        lambda name: None if name.startswith(("model.layers.0.", "model.layers.2.")) else pack,
        settings | {"modules_to_not_convert": listed},
    )  # fmt: skip
    forms = {layers.mlp.down_format is None for layers in load_base(coded).model.layers}
    assert forms == {True, False}
    same_as_exact(tmp_path, coded, exact, "gpt_oss")


@pytest.mark.parametrize(
    ("method", "changes", "divisions"),
    [
        ("gptq", {"head_dim": 24}, (("a",),)),  # groups of 32 beside 48 columns of a KV head: two KV heads
        ("w8", {"head_dim": 24}, (("a",), ("a", "b"))),  # a scale for each row
        ("gptq", {"head_dim": 16, "num_key_value_heads": 4}, (("a",), ("a", "b"))),  # two of four KV heads each
        ("fp8", {"head_dim": 24, "num_key_value_heads": 4}, (("a",),)),
        ("awq", {"head_dim": 40, "num_key_value_heads": 4}, (("a",),)),
    ],
)
def test_heads_that_groups_do_not_end_with_are_on_one_device_or_together(
    tmp_path: Path, method: str, changes: dict[str, Any], divisions: Sequence[tuple[str, ...]]
) -> None:
    torch.manual_seed(4)
    coded, exact = quantized(saved(tmp_path / "base", "llama", **(SIZES | changes)), tmp_path, method)
    same_as_exact(tmp_path, coded, exact, "llama", divisions=divisions)
    notes = [note for note in load_base(coded).notes if "end together after" in note]
    assert bool(notes) == (method != "w8")
    if divisions == (("a",),):
        (tmp_path / "both").mkdir()
        with pytest.raises(InvalidPlanError, match=r"all but the last in multiples of . KV heads, with whole groups"):
            compiled(tmp_path / "both", coded, ("a", "b"))


@pytest.mark.parametrize("axis", ["context", "head_dim"])
def test_columns_that_are_sorted_are_divided_along_every_axis(tmp_path: Path, axis: KvAxis) -> None:
    """A device has columns of o from parts of heads; MLPs are divided unequally."""
    torch.manual_seed(4)
    coded, exact = quantized(saved(tmp_path / "base", "llama", **SIZES), tmp_path, "sorted-gptq")
    same_as_exact(tmp_path, coded, exact, "llama", axis=axis, divisions=(("a", "b"),))


@pytest.mark.parametrize("method", ["gptq", "w4a16", "w8", "sorted-gptq"])
def test_a_quantized_lm_head_is_read(tmp_path: Path, method: str) -> None:
    torch.manual_seed(4)
    coded, exact = quantized(saved(tmp_path / "base", "llama", **SIZES), tmp_path, method, head=True)
    assert load_base(coded).model.head_format is not None
    same_as_exact(tmp_path, coded, exact, "llama")


@pytest.mark.parametrize(
    ("weights", "family", "changes"),
    [
        ("int4-g32", "qwen3", {"num_attention_heads": 6, "num_key_value_heads": 3}),
        ("int4-g32", "llama", {"tie_word_embeddings": True}),
        ("int4-g128", "llama", {"hidden_size": 128, "intermediate_size": 512}),
        ("int8", "phi3", {"pad_token_id": None, "head_dim": 16}),
        ("fp8", "qwen3_moe", EXPERTS),
        ("int4-g32", "gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9}),
    ],
)
def test_rounded_weights_decode_as_the_dequantised_model(
    tmp_path: Path, weights: RoundedWeights, family: str, changes: dict[str, Any]
) -> None:
    torch.manual_seed(4)
    base = saved(tmp_path / "base", family, **(SIZES | changes))
    same_as_exact(tmp_path, base, dequantised(base, tmp_path / "exact", weights), family, weights)


def same_as_exact(
    tmp_path: Path,
    coded: Path,
    exact: Path,
    family: str,
    weights: RoundedWeights | None = None,
    axis: KvAxis = "heads",
    divisions: Sequence[tuple[str, ...]] = (("a",), ("a", "b")),
) -> None:
    """Compare logits and tokens of a compiled checkpoint with those of a model in transformers."""
    model = CLASSES[family][1].from_pretrained(exact, dtype=torch.float32).requires_grad_(False).eval()
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        out = model.generate(torch.tensor([PROMPT]), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False)
        logits = model(torch.tensor([PROMPT])).logits[0]
    expected = tuple(out[0, len(PROMPT) :].tolist())
    assert len(set(expected)) > 4, "a model that repeats a few tokens would prove nothing"
    for devices in divisions:
        plan, directory = compiled(tmp_path, coded, devices, weights=weights, axis=axis)
        for state in on_all_ranks(plan, directory, lambda image, comm, plan=plan: last_states(plan, image, comm)):
            ours = state @ model.lm_head.weight.T
            assert (ours - logits).abs().max() <= 1e-4 * logits.abs().max()
        for tokens in with_engines(plan, directory, both_ways):
            assert tokens == [expected, expected]


@pytest.mark.parametrize(
    "name",
    [
        "tensor parallel, unequal, head of the base",
        "two unequal stages, eagle, draft whole",
        "tables on each other's stage",
        "all tables on all devices",
    ],
)
def test_an_lm_head_in_codes_is_divided_and_lent_to_the_drafter(name: str, tmp_path: Path) -> None:
    """Greedy in trees and plainly; an EAGLE-1 drafter reads the base's rows, on the same devices or on others."""
    checkpoints = write_checkpoints(tmp_path, weights="int8")
    plan, kind = placed(name, checkpoints)
    assert plan.model.head_format is not None
    plan = replace(plan, options=replace(plan.options, weights="int8"))
    directory, prompts, most = compiled_plan(tmp_path / "plan", plan, checkpoints, kind), PROMPTS[1::2], []
    for start in range(0, len(prompts), plan.options.batch):
        together = prompts[start : start + plan.options.batch]
        expected = [checkpoints.greedy(prompt, 20) for prompt in together]
        for draft in (True, False):
            for result in decoded(plan, directory, together, [20] * len(together), draft=draft):
                assert result.tokens == expected, draft
                most += [max(lengths, default=0) for lengths in result.accepted]
    assert max(most) > 1, "a drafter that never agrees would prove nothing"


def test_tied_tables_in_codes_are_on_devices_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(4)
    base = saved(tmp_path / "base", "llama", **(SIZES | {"tie_word_embeddings": True}))
    model = CLASSES["llama"][1].from_pretrained(dequantised(base, tmp_path / "exact", "int8"), dtype=torch.float32)
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        out = model.generate(torch.tensor([PROMPT]), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False)
    for number, (embed, head) in enumerate(((["b"], ["c", "a"]), (["a", "b"], ["b"]))):
        (tmp_path / str(number)).mkdir()
        plan, directory = compiled(tmp_path / str(number), base, ("a",), weights="int8", embed=embed, head=head)
        for tokens in with_engines(plan, directory, both_ways):
            assert tokens == [tuple(out[0, len(PROMPT) :].tolist())] * 2


@pytest.mark.parametrize("method", ["w4a16", "fp8"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_tree_is_verified_with_the_bits_of_plain_decoding(tmp_path: Path, method: str, family: str) -> None:
    torch.manual_seed(1)
    coded, _ = quantized(saved(tmp_path / "base", family, **SIZES), tmp_path, method)
    plan, directory = compiled(tmp_path, coded, ("a", "b"), "bfloat16")
    for tree, alone in on_all_ranks(plan, directory, lambda image, comm: both_verified(plan, image, comm)):
        assert torch.equal(tree, alone)
