"""Checks of a plan's model and its drafter."""

from dataclasses import replace
from typing import Any

import pytest

from plans.check import check
from plans.codec import encode
from plans.schema import Plan, WeightFormat
from tests.plans.violations import violations_of
from tests.sample_plans import edited, one_device_plan, spread_plan, two_stage_plan, with_memory

ROUTER: dict[str, Any] = {
    "scores": "sigmoid",
    "bias": False,
    "float32": True,
    "correction": True,
    "groups": 1,
    "picked_groups": 1,
    "scale": 2.5,
}
MOE: dict[str, Any] = {
    "kind": "moe",
    "intermediate_size": 768,
    "unit": 16,
    "activation": "silu",
    "bias": False,
    "num_experts": 8,
    "experts_per_token": 2,
    "norm_topk_prob": True,
}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "model.layers[0].attention.num_heads",
            7,
            "model.layers[0].attention.num_heads: found 7, expected a multiple of 4 KV heads",
        ),
        (
            "model.layers[0].attention.head_dim",
            33,
            "model.layers[0].attention.head_dim: found 33, expected an even number: rotary pairs",
        ),
        (
            "model.layers[0].mlp.unit",
            500,
            "model.layers[0].mlp.intermediate_size: found 768, expected a multiple of the unit, 500",
        ),
        (
            "model.layers[0].mlp.num_experts",
            8,
            "model.layers[0].mlp.num_experts: found 8, expected 1, as a gated MLP has no experts",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"experts_per_token": 9},
            "model.layers[0].mlp.experts_per_token: found 9, expected from 1 to the 8 experts",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"router": ROUTER | {"groups": 3}},
            "model.layers[0].mlp.router.groups: found 3, "
            "expected 1, or a divisor of the 8 experts with at least 2 in a group",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"router": ROUTER | {"groups": 4, "picked_groups": 5}},
            "model.layers[0].mlp.router.picked_groups: found 5, expected from 1 to the 4 groups",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"experts_per_token": 3, "router": ROUTER | {"groups": 4}},
            "model.layers[0].mlp.router.picked_groups: found 1, expected groups with 3 experts, which a token takes",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"router": ROUTER | {"scale": 0.0}},
            "model.layers[0].mlp.router.scale: found 0.0, expected from 1e-06 to 1000000.0",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"swiglu_alpha": 1.0},
            "model.layers[0].mlp.swiglu_alpha: found 1.0, expected nothing, as there is no swiglu_limit",
        ),
        (
            "model.layers[0].mlp.router",
            ROUTER,
            "model.layers[0].mlp.router: found one, expected nothing, as a gated MLP has no experts",
        ),
        (
            "model.layers[0].mlp.swiglu_limit",
            7.0,
            "model.layers[0].mlp.swiglu_limit: found 7.0, expected nothing, but in experts that are gated by silu",
        ),
        ("draft.mlp", MOE, "draft.mlp.kind: found moe, expected gated: an EAGLE head has no experts"),
        ("model.eos_token_ids[0]", 1024, "model.eos_token_ids[0]: found 1024, expected less than the vocabulary, 1024"),
        *(
            ("draft.aux_layers", aux, f"draft.aux_layers: found [{shown}], expected {expected}")
            for aux, shown, expected in (
                ([2, 4, 9], "2, 4, 9", "at most 16 different ones from 0 to 8, in order"),
                ([2, 4, 4], "2, 4, 4", "at most 16 different ones from 0 to 8, in order"),
                ([4, 2], "4, 2", "at most 16 different ones from 0 to 8, in order"),
            )
        ),
        ("draft.norm_output", False, "draft.norm_output: found false, expected true, or nothing"),
        ("draft.logit_scale", 0.0, "draft.logit_scale: found 0.0, expected from 1e-06 to 1000000.0"),
        ("draft.mask_token_id", 1024, "draft.mask_token_id: found 1024, expected less than the vocabulary, 1024"),
        (
            "draft.mask_token_id",
            5,
            "options.tree: found total_token 60, depth 7, top_k 10, "
            "expected a chain, as one pass drafts it: top_k 1, total_token = depth + 2",
        ),
        ("draft.kind", "eagle", "draft.aux_layers: found [2, 4, 5], expected none, as the drafter is of kind eagle"),
        ("draft.target_hidden_size", 128, "draft.target_hidden_size: found 128, expected the model's, 256"),
        ("draft.hidden_size", 128, "draft.own_embedding: found false, expected true, as the model's is 256 wide"),
        (
            "draft.maps_vocabulary",
            False,
            "draft.maps_vocabulary: found false, expected true, as 512 of 1024 tokens are drafted",
        ),
        ("model.layers[0].num_layers", 1025, "model.layers[0].num_layers: found 1025, expected from 1 to 1024"),
        ("model.vocab_size", 1 << 31, "model.vocab_size: found 2147483648, expected from 1 to 2147483647"),
        ("model.hidden_size", 1 << 31, "model.hidden_size: found 2147483648, expected from 1 to 2147483647"),
        ("model.norm_eps", 1e300, "model.norm_eps: found 1e+300, expected from 1e-15 to 1.0"),
        ("model.norm_eps", 8.0, "model.norm_eps: found 8.0, expected from 1e-15 to 1.0"),
        ("model.norm_eps", 0.0, "model.norm_eps: found 0.0, expected from 1e-15 to 1.0"),
        ("model.norm_eps", -1e-6, "model.norm_eps: found -1e-06, expected from 1e-15 to 1.0"),
        ("draft.norm_eps", 1e300, "draft.norm_eps: found 1e+300, expected from 1e-15 to 1.0"),
        ("draft.hidden_size", 0, "draft.hidden_size: found 0, expected from 1 to 2147483647"),
        ("draft.num_layers", 0, "draft.num_layers: found 0, expected from 1 to 1024"),
        (
            "model.layers[0].attention.num_heads",
            1028,
            "model.layers[0].attention.num_heads: found 1028, expected at most 1024",
        ),
        ("draft.attention.head_dim", 4098, "draft.attention.head_dim: found 4098, expected at most 4096"),
        (
            "model.layers[0].mlp.intermediate_size",
            1 << 40,
            "model.layers[0].mlp.intermediate_size: found 1099511627776, expected at most 2147483647",
        ),
        (
            "model.layers[0].mlp",
            MOE | {"num_experts": 1025},
            "model.layers[0].mlp.num_experts: found 1025, expected from 1 to 1024",
        ),
    ],
)
def test_each_violation_of_a_model_and_its_drafter_is_reported(path: str, value: Any, message: str) -> None:
    assert message in violations_of(edited(two_stage_plan(), path, value))


def two_classes(plan: Plan, **attention: object) -> Plan:
    """Return the plan with its last layer in a class of its own, of another attention."""
    (layers,) = plan.model.layers
    other = replace(layers, num_layers=1, attention=replace(layers.attention, **attention))  # type: ignore[arg-type]
    classes = (replace(layers, num_layers=layers.num_layers - 1), other)
    run = plan.stages[0].runs[0]
    runs = (replace(run, num_layers=run.num_layers - 1), replace(run, num_layers=1))
    stages = (replace(plan.stages[0], runs=runs),)
    return with_memory(
        replace(plan, model=replace(plan.model, layers=classes), stages=stages),
        {entry.device: entry.weights_bytes for entry in plan.memory},
        {entry.device: entry.draft_weights_bytes for entry in plan.memory},
    )


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [("head_dim", 16, "32"), ("num_heads", 16, "8"), ("num_kv_heads", 2, "4"), ("qk_norm", True, "False")],
)
def test_layers_differ_in_their_mlps_windows_and_formats_alone(field: str, value: Any, expected: str) -> None:
    """A stage has one rotary table: with another head_dim the kernel of attention would read beyond it."""
    assert check(two_classes(one_device_plan())) == ()
    reason = "as in model.layers[0]: only MLPs, windows and formats differ"
    message = f"attention.{field}: found {value}, expected {expected}, {reason}"
    violations = violations_of(two_classes(one_device_plan(), **{field: value}))
    assert f"model.layers[1].{message}" in violations


@pytest.mark.parametrize(("ordered", "found"), [(None, None), (True, None), (False, "false")])
def test_columns_are_ordered_or_nothing_is_said_of_it(ordered: bool | None, found: str | None) -> None:
    plan, path = one_device_plan(), "model.head_format.ordered"
    form = WeightFormat(code="int4", group=32, zeros=False, scale="float16", ordered=ordered)
    violations = check(replace(plan, model=replace(plan.model, head_format=form)))
    expected = [] if found is None else [f"{path}: found {found}, expected true, or nothing"]
    assert [str(violation) for violation in violations if violation.path == path] == expected


def test_layers_of_all_classes_are_bounded_together() -> None:
    plan = one_device_plan()
    (layers,) = plan.model.layers
    many = replace(plan, model=replace(plan.model, layers=(replace(layers, num_layers=600),) * 2))
    assert "model.layers: found 1200 layers, expected at most 1024" in violations_of(many)


def test_classes_follow_a_pattern_that_may_be_cut_short() -> None:
    def with_pattern(counts: tuple[int, int], pattern: list[int], window: int = 100) -> Plan:
        plan = spread_plan()
        layers = plan.model.layers[0]
        sliding = replace(layers, num_layers=counts[0], attention=replace(layers.attention, window=window))
        classes = [encode(kind) for kind in (sliding, replace(layers, num_layers=counts[1]))]
        return edited(edited(plan, "model.layers", classes), "model.pattern", pattern)

    def facts(plan: Plan) -> list[str]:
        return [str(violation) for violation in check(plan) if violation.path.startswith("model")]

    assert spread_plan().model.num_layers == 80
    assert facts(with_pattern((54, 26), [0, 0, 1])) == []
    assert not [v for v in check(with_pattern((54, 26), [0, 0, 1])) if v.path.startswith("stages")], "one run of all"
    assert facts(with_pattern((53, 27), [0, 0, 1])) == [
        "model.layers[0].num_layers: found 53, expected 54, as in model.pattern",
        "model.layers[1].num_layers: found 27, expected 26, as in model.pattern",
    ]
    for pattern, found in (([], "[]"), ([0, 2], "[0, 2]")):
        expected = f"model.pattern: found {found}, expected from 1 to 80 indices of model.layers"
        assert facts(with_pattern((54, 26), pattern)) == [expected]
    context = spread_plan().options.context
    for window in (0, context):
        assert facts(with_pattern((54, 26), [0, 0, 1], window)) == [
            f"model.layers[0].attention.window: found {window}, expected from 1 to less than the context, {context}: "
            "nothing, where all positions are seen"
        ]


def test_every_field_of_the_drafter_is_there_or_none() -> None:
    plan = edited(edited(two_stage_plan(), "draft", None), "options.tree", None)
    assert violations_of(plan) == [
        f"inputs.draft_config_sha256: found {'3' * 64}, expected nothing, as there is no draft",
        f"inputs.draft_tensors_sha256: found {'4' * 64}, expected nothing, as there is no draft",
        "draft_placement: found one, expected nothing, as there is no draft",
    ]
