"""Configs of quantized layers: which layers have codes, and what is refused, with the path of the datum."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from planner.errors import ConfigError
from planner.families import load_base
from planner.quantized import Recipe, read_recipe
from planner.quantized.layouts import Gptq
from planner.quantized.records import check
from planner.report.models import model_line
from plans.schema import WeightFormat
from tests.plan_factory import make_model, make_plan, whole_group
from tests.planner.tiny_checkpoints import bare, config_of

UP = "model.layers.0.mlp.up_proj"
WHERE = "config.json: quantization_config"
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
FP8: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
AUTOROUND: dict[str, Any] = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}
SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 128,
}  # fmt: skip
WEIGHTS: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}


def compressed(
    weights: dict[str, Any] | None = None, group: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    one = {"targets": ["Linear"], "weights": WEIGHTS | (weights or {})} | (group or {})
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": one}}
    return config | more


def read(config: Any) -> Recipe:
    recipe = read_recipe(config, WHERE)
    assert recipe is not None
    return recipe


def code(recipe: Recipe, module: str) -> str | None:
    stored = recipe.stored(module, 256, 256, "bfloat16")
    return None if stored is None else stored.form.code


@pytest.mark.parametrize(
    ("config", "plain", "coded"),
    [
        (GPTQ, "lm_head", UP),
        (GPTQ | {"dynamic": {r"-:.*\.down_proj": {}}}, "model.layers.3.mlp.down_proj", "model.layers.3.mlp.up_proj"),
        (AUTOROUND, "lm_head", UP),
        (AUTOROUND | {"extra_config": {UP: {"bits": 16}, "lm_head": {"bits": 8}}}, UP, "lm_head"),
        (AWQ | {"modules_to_not_convert": ["self_attn"]}, "model.layers.0.self_attn.q_proj", UP),
        (
            GPTQ | {"modules_in_block_to_quantize": [["self_attn.q_proj", "mlp.up_proj"], ["mlp.down_proj"]]},
            "model.layers.0.mlp.gate_proj", UP,
        ),
        (FP8 | {"modules_to_not_convert": ["gate"]}, "model.layers.0.mlp.gate", "model.layers.0.mlp.gate_proj"),
        (
            {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["model.layers.0.mlp.gate_proj", "lm_head"]},
            "model.layers.0.mlp.gate_proj", UP,
        ),
        (FP8 | {"ignored_layers": ["model.layers.1"]}, "model.layers.1.mlp.up_proj", "model.layers.10.mlp.up_proj"),
        (GPTQ | {"lm_head": True, "dynamic": {r"-:.*\.down_proj": {}}}, "model.layers.0.mlp.down_proj", "lm_head"),
        (compressed(ignore=["re:.*self_attn.*"]), "model.layers.0.self_attn.q_proj", "lm_head"),
        (compressed(ignore=["lm_head", "re:.*self_attn.*"]), "model.layers.0.self_attn.q_proj", UP),
        (compressed(ignore=["model.layers.0.mlp.up_proj"]), "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"),
        (compressed(group={"targets": ["re:.*mlp.*"]}), "model.layers.0.self_attn.q_proj", UP),
        (FP8 | {"modules_to_not_convert": ["model.layers.1."]}, "model.layers.1.mlp.up_proj", "model.layers.10.mlp.o"),
        (AWQ | {"modules_to_not_convert": [".gate", ""]}, "model.layers.1.mlp.gate", "model.layers.1.mlp.gate_proj"),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["model.layers.0*", "lm_head"]},
            "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj",
        ),
    ],
)  # fmt: skip
def test_layers_that_have_codes(config: dict[str, Any], plain: str, coded: str) -> None:
    recipe = read(config)
    assert code(recipe, plain) is None
    assert code(recipe, coded) is not None


def test_columns_are_sorted_where_groups_are_made_behind_their_order() -> None:
    """As GPTQModel and AutoGPTQ write their settings: a rule of a layer may say otherwise."""
    base = GPTQ | {"desc_act": True, "static_groups": False, "group_size": 64}
    for changes, up, down in (
        ({}, True, True),
        ({"desc_act": False}, None, None),
        ({"static_groups": True}, None, None),
        ({"group_size": -1}, None, None),
        ({"dynamic": {r"+:.*down_proj": {"desc_act": False}}}, True, None),
        ({"desc_act": False, "dynamic": {r".*down_proj": {"desc_act": True}}}, None, True),
        ({"dynamic": {r".*down_proj": {"group_size": -1}}}, True, None),
    ):
        recipe = read(base | changes)
        for name, expected in (("up", up), ("down", down)):
            stored = recipe.stored(f"model.layers.0.mlp.{name}_proj", 256, 256, "float16")
            assert stored is not None
            assert (stored.form.ordered, stored.sorts) == (expected, expected is True)


def test_versions_of_gptq_by_either_key() -> None:
    """GPTQModel writes both keys, and is going to write the one without "checkpoint" alone."""
    for keys, stored_zero in (
        ({}, 1),
        ({"format": "gptq"}, 1),
        ({"format": "gptq_v2"}, 0),
        ({"checkpoint_format": "gptq_v2"}, 0),
        ({"format": "gptq_v2", "checkpoint_format": "gptq_v2"}, 0),
    ):
        stored = read(GPTQ | keys).stored(UP, 256, 256, "float16")
        assert stored is not None
        assert stored.layout == Gptq(bits=4, stored_zero=stored_zero)


def test_bits_differ_by_layer() -> None:
    rules = {r"+:.*\.0\..*": {"bits": 8, "group_size": 64}}
    recipe = read(GPTQ | {"dynamic": rules})
    assert [code(recipe, f"model.layers.{layer}.mlp.up_proj") for layer in range(2)] == ["int8", "int4"]
    groups = compressed()["config_groups"]
    groups["group_1"] = {"targets": ["re:.*down_proj"], "weights": WEIGHTS | {"num_bits": 8}}
    recipe = read(compressed(config_groups=groups))
    assert [code(recipe, f"model.layers.0.mlp.{name}_proj") for name in ("up", "down")] == ["int4", "int8"]
    floats = {"num_bits": 8, "type": "float", "strategy": "channel", "group_size": None}
    groups["group_0"]["format"] = "pack-quantized"
    groups["group_1"] |= {"weights": WEIGHTS | floats, "format": "float-quantized"}
    recipe = read(compressed(config_groups=groups, format="mixed-precision"))
    assert [code(recipe, f"model.layers.0.mlp.{name}_proj") for name in ("up", "down")] == ["int4", "float8_e4m3fn"]


TARGETS = (
    "Linear", "re:.*self_attn.*", "re:.*mlp.*", "re:.*down_proj$", "re:model.layers.[01]..*", "re:layers.1",
    "re:.*layers.2.mlp.(gate|up)_proj", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj",
    "re:.*q_proj", "re:(?!.*lm_head).*", "lm_head", "model.layers.2", r"re:^model\.layers\.0\.",
)  # fmt: skip
IGNORED = (
    "lm_head", "re:.*lm_head", "re:.*q_proj$", "model.layers.0.self_attn.v_proj", "re:model.layers.0.*", "re:down_proj",
    "model.layers.1", "Linear", "re:.*o_proj", "mlp",
)  # fmt: skip
SCHEMES: tuple[dict[str, Any], ...] = (
    {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
    {"num_bits": 8, "type": "int", "strategy": "channel"},
    {"num_bits": 8, "type": "float", "strategy": "tensor"},
    {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": False},
)


@given(
    targets=st.lists(st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3, unique=True), min_size=1, max_size=3),
    schemes=st.permutations(SCHEMES),
    ignore=st.lists(st.sampled_from(IGNORED), max_size=3, unique=True),
)
@settings(max_examples=60, deadline=None)
def test_layers_have_the_schemes_that_compressed_tensors_gives_them(
    targets: list[list[str]], schemes: list[dict[str, Any]], ignore: list[str]
) -> None:
    """Names, expressions and classes may name a layer in several groups: its own program chooses for a model."""
    groups = {
        f"group_{number}": {
            "targets": names, "weights": weights,
            "format": "pack-quantized" if weights["num_bits"] == 4 else f"{weights['type']}-quantized",
        }
        for number, (names, weights) in enumerate(zip(targets, schemes, strict=False))
    }  # fmt: skip
    config = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    recipe = read(config | {"ignore": ignore})
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SMALL))
    apply_quantization_config(model, QuantizationConfig(**config, ignore=ignore, quantization_status="frozen"))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            scheme = getattr(module, "quantization_scheme", None)
            stored = recipe.stored(name, *module.weight.shape, "bfloat16")
            assert (scheme is None) == (stored is None), name
            if scheme is not None and stored is not None:
                weights, form = scheme.weights, stored.form
                kind = "float8_e4m3fn" if weights.type == "float" else f"int{weights.num_bits}"
                assert (form.code, form.group, form.zeros) == (kind, weights.group_size, not weights.symmetric), name


def test_exceptions_of_autoround_by_expression() -> None:
    """As AutoRound 0.16 and vLLM read them: searched; a layer's own name goes first, then the first that is found."""
    recipe = read(
        AUTOROUND
        | {
            "extra_config": {
                r".*layers\.0.*": {},
                r"mlp\.down_proj$": {"bits": 8},
                r".*layers\.1\..*": {"bits": 16},
                "model.layers.1.mlp.down_proj": {"bits": 4},
                "model.layers.2.mlp.gate": {"bits": 16},
            }
        }
    )
    found = [[code(recipe, f"model.layers.{layer}.mlp.{name}_proj") for name in ("gate", "down")] for layer in range(3)]
    assert found == [["int4", "int8"], [None, "int4"], ["int4", "int8"]]
    assert code(recipe, "model.layers.10.mlp.up_proj") == "int4"
    assert code(recipe, "lm_head") is None
    assert code(read(AUTOROUND | {"extra_config": {".*": {"bits": 16}}}), "lm_head") is None
    with pytest.raises(ConfigError, match=r"found '\.\*', which is found in lm_head: expected lm_head by its own name"):
        code(read(AUTOROUND | {"extra_config": {".*": {"bits": 8}}}), "lm_head")


def test_what_autoround_writes_of_its_run_changes_nothing() -> None:
    """Its exports as GPTQ and AWQ have keys of its own beside theirs."""
    own = {
        "autoround_version": "0.9.0", "amp": True, "batch_size": 8, "block_name_to_quantize": "model.layers",
        "data_type": "int", "enable_minmax_tuning": True, "enable_norm_bias_tuning": False,
        "enable_quanted_input": True, "iters": 200, "low_gpu_mem_usage": True, "lr": 0.005, "minmax_lr": 0.005,
        "nsamples": 512, "provider": "auto-round", "seqlen": 2048, "scale_dtype": "torch.float16", "sym": False,
        "gradient_accumulate_steps": 1, "to_quant_block_names": "model.layers",
    }  # fmt: skip
    for exported in (GPTQ, AWQ):
        plain, beside = (read(exported | more).stored(UP, 256, 256, "float16") for more in ({}, own))
        assert plain == beside


@pytest.mark.parametrize("packing", ["auto_round", "auto_round:gptqmodel", "auto_round:auto_gptq"])
def test_a_layer_of_autoround_may_be_symmetric_or_not(packing: str) -> None:
    extra = {UP: {"sym": True, "bits": 8}, "model.layers.1.mlp.up_proj": {"bits": 16}}
    recipe = read(AUTOROUND | {"sym": False, "packing_format": packing, "extra_config": extra})
    found = [recipe.stored(name, 256, 256, "float16") for name in (UP, UP.replace("up", "down"))]
    assert [isinstance(one.layout, Gptq) and one.layout.symmetric for one in found if one is not None] == [True, False]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (3, "found 3, expected an object"),
        ({}, r"quant_method: found None, expected one of compressed-tensors"),
        ({"quant_method": "bitsandbytes"}, r"quant_method: found 'bitsandbytes'"),
        ({"quant_method": ["awq"]}, r"quant_method: found"),
        (GPTQ | {"bits": 3}, r"bits: found 3, expected 4 or 8"),
        (GPTQ | {"bits": True}, r"bits: found True"),
        (GPTQ | {"group_size": 0}, r"group_size: found 0"),
        (GPTQ | {"group_size": 10**40}, r"group_size: found an integer of 133 bits"),
        (GPTQ | {"checkpoint_format": "marlin"}, r"checkpoint_format: found 'marlin'"),
        (GPTQ | {"format": "marlin"}, r"\.format: found 'marlin'"),
        (GPTQ | {"format": "gptq", "checkpoint_format": "gptq_v2"}, r"\.format: found 'gptq', expected 'gptq_v2'"),
        ({"quant_method": "fbgemm_fp8", "fmt": "e5m2"}, r"fmt: unknown key"),
        (GPTQ | {"pack_dtype": "int8"}, r"pack_dtype"),
        (GPTQ | {"dynamic": {"(": {}}}, r"dynamic: found '\(', expected a regular expression"),
        (GPTQ | {"dynamic": {"+:x": {"bits": 2}}}, r"dynamic\['\+:x'\]\.bits: found 2"),
        (GPTQ | {"dynamic": []}, r"dynamic: found \[\], expected an object"),
        (GPTQ | {"rotation": "hadamard"}, r"rotation: unknown key"),
        (AUTOROUND | {"sym": 0}, r"sym: found 0, expected True or False"),
        (AUTOROUND | {"packing_format": "auto_round:fp8_static"}, r"packing_format: found 'auto_round:fp8_static'"),
        (AUTOROUND | {"packing_format": "auto_round:auto_awq", "bits": 8}, r"bits: found 8, expected 4"),
        (AUTOROUND | {"block_name_to_quantize": "model.visual.blocks"}, r"block_name_to_quantize: found 'model"),
        (AWQ | {"to_quant_block_names": ["h"]}, r"to_quant_block_names: found \['h'\], expected model\.layers or "),
        (AUTOROUND | {"extra_config": {"lm_head": {"bits": 3}}}, r"extra_config\['lm_head'\]\.bits: found 3"),
        (AUTOROUND | {"extra_config": {"lm_head": 4}}, r"extra_config\['lm_head'\]: found 4, expected an object"),
        (AUTOROUND | {"extra_config": {".*(": {"bits": 8}}}, r"extra_config: found '\.\*\(', expected a regular expr"),
        (AUTOROUND | {"bits": None}, r"quantization_config\.bits: found None, expected 4 or 8"),
        (AUTOROUND | {"group_size": None}, r"quantization_config\.group_size: found None, expected a positive integer"),
        (GPTQ | {"bits": None}, r"quantization_config\.bits: found None, expected 4 or 8"),
        (GPTQ | {"group_size": None}, r"quantization_config\.group_size: found None, expected a positive integer"),
        (AWQ | {"bits": None}, r"quantization_config\.bits: found None, expected 4"),
        (AWQ | {"group_size": None}, r"quantization_config\.group_size: found None, expected a positive integer"),
        (AUTOROUND | {"extra_config": []}, r"extra_config: found \[\], expected an object"),
        (AUTOROUND | {"data_type": "mx_fp"}, r"data_type: found 'mx_fp', expected 'int'"),
        (AUTOROUND | {"rotation": 1}, r"rotation: unknown key"),
        (AWQ | {"version": "gemv"}, r"version: found 'gemv', expected gemm"),
        (AWQ | {"zero_point": False}, r"zero_point: found False"),
        (AWQ | {"bits": 8}, r"bits: found 8"),
        (AWQ | {"q_group_size": 64}, r"q_group_size: unknown key"),
        (AWQ | {"lm_head": True}, r"lm_head: found True"),
        (GPTQ | {"lm_head": 1}, r"lm_head: found 1, expected True or False"),
        (GPTQ | {"modules_in_block_to_quantize": [["mlp.up_proj", 1]]}, r"modules_in_block_to_quantize: found \[\["),
        (GPTQ | {"modules_in_block_to_quantize": "mlp.up_proj"}, r"modules_in_block_to_quantize: found 'mlp\.up_proj'"),
        (AWQ | {"modules_to_not_convert": "gate"}, r"modules_to_not_convert: found 'gate', expected a list"),
        (FP8 | {"fmt": "e5m2"}, r"fmt: found 'e5m2'"),
        (FP8 | {"scale_fmt": "ue8m0"}, r"scale_fmt"),
        (FP8 | {"expert_dtype": "fp4"}, r"expert_dtype"),
        (FP8 | {"weight_block_size": [128]}, r"weight_block_size: found \[128\]"),
        (FP8 | {"weight_block_size": [0, 128]}, r"weight_block_size"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, r"quant_algo: found 'NVFP4', expected FP8"),
        (compressed(format="mixed-precision"), r"group_0\.format: found 'mixed-precision', expected 'pack-quantized'"),
        (compressed(format="nvfp4-pack-quantized"), r"format: found 'nvfp4-pack-quantized'"),
        (compressed({"num_bits": 3}), r"num_bits: found 3"),
        (compressed({"type": "float"}), r"num_bits: found 4 of type float"),
        (compressed({"strategy": "tensor_group"}), r"strategy: found 'tensor_group'"),
        (compressed({"group_size": -3}), r"group_size: found -3"),
        (compressed({"actorder": "group", "strategy": "channel"}), r"actorder: found 'group', expected none without"),
        (compressed({"actorder": "columns"}), r"actorder: found 'columns'"),
        (compressed({"dynamic": True}), r"dynamic: found True"),
        (compressed({"sparsity": 2}), r"sparsity: unknown key"),
        (compressed(config_groups={}), r"config_groups: found no group"),
        (compressed(config_groups=None), r"config_groups: found None, expected an object"),
        (compressed(transform_config={"R1": 1}), r"transform_config"),
        (compressed(sparsity_config={"format": "sparse-24-bitmask"}), r"sparsity_config"),
        (compressed(ignore=["re:["]), r"ignore: found '\[', expected a regular expression"),
        (compressed(quantization_status="initialized"), r"quantization_status"),
        (compressed(unknown=1), r"unknown: unknown key"),
        (compressed(group={"targets": ["Linear", "Embedding"]}), r"targets: found 'Embedding', expected layers"),
        (compressed(format="dense"), r"group_0\.format: found 'dense', expected 'pack-quantized'"),
        (GPTQ | {"adapter": {"name": "lora", "rank": 32}}, r"adapter: found .*, expected null: a LoRA beside codes"),
        (AUTOROUND | {"adapter": {"name": "lora"}}, r"adapter: found"),
    ],
)  # fmt: skip
def test_refused(config: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read(config)


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        compressed({"type": "float"}),
        compressed(format="nvfp4-pack-quantized"),
        compressed(format="mxfp4-pack-quantized"),
        compressed({"num_bits": 3}),
        AWQ | {"version": "gemv"},
    ],
)
def test_a_format_that_is_not_read_is_refused_with_what_to_do(config: Any) -> None:
    with pytest.raises(ConfigError, match="not read here: give the checkpoint before quantization"):
        read(config)


def test_an_expression_that_takes_forever_is_refused() -> None:
    recipe = read(compressed(ignore=[r"re:(.+).*(.+).*(.+).*\3\2\1\1j"]))
    with pytest.raises(ConfigError, match=r"expected a regular expression that is matched with .* in 1\.0 s"):
        recipe.stored("model.layers.0.mlp.experts.117.down_proj" * 4, 128, 128, "bfloat16")


@pytest.mark.parametrize(
    ("config", "columns", "problem"),
    [
        (AWQ, 192, "found 192 columns, expected a multiple of group_size 128"),
        (GPTQ | {"group_size": 48}, 96, "found group_size 48, expected a multiple of 32"),
        (GPTQ | {"group_size": -1}, 72, "found 72 columns, expected a multiple of 32 at 4 bits"),
        (GPTQ | {"group_size": -1, "bits": 8}, 70, "found 70 columns, expected a multiple of 4, whole words of 32"),
    ],
)
def test_sizes_that_a_format_cannot_have(config: dict[str, Any], columns: int, problem: str) -> None:
    stored = read(config).stored("model.layers.0.mlp.up_proj", 64, columns, "float16")
    assert stored is not None
    with pytest.raises(ConfigError, match=problem):
        check(stored, "config.json")


@pytest.mark.parametrize(
    "settings", [compressed(group={"targets": ["LlamaMLP"]}), {"quant_method": "mxfp4"}, compressed(ignore=["Linear"])]
)
def test_settings_that_name_no_layer_are_refused(settings: Any, tmp_path: Path) -> None:
    """A config alone would be planned with plain weights."""
    config = config_of("llama").to_dict() | {"quantization_config": settings}
    with pytest.raises(ConfigError, match=r"config\.json: found settings of a quantizer that name no linear layer of"):
        load_base(bare(tmp_path, config))


def test_groups_of_activations_alone_leave_weights_plain() -> None:
    """As llm-compressor writes them of attention, or of a KV cache in fewer bits."""
    of_attention = {"targets": ["re:.*self_attn.*"], "weights": None, "input_activations": WEIGHTS | {"num_bits": 8}}
    groups = compressed()["config_groups"] | {"group_1": of_attention}
    recipe = read(compressed(config_groups=groups))
    assert code(recipe, "model.layers.0.self_attn.q_proj") is None
    assert code(recipe, UP) == "int4"
    for config in (
        compressed(config_groups={"group_0": of_attention}),
        compressed(config_groups={}, format="dense", kv_cache_scheme=WEIGHTS | {"num_bits": 8, "type": "float"}),
    ):
        assert read_recipe(config, "config.json") is None


@pytest.mark.parametrize("config", [AWQ, GPTQ | {"lm_head": True}])
def test_rows_are_whole_words(config: dict[str, Any]) -> None:
    stored = read(config).stored("model.layers.0.mlp.up_proj", 100, 256, "float16")
    assert stored is not None
    with pytest.raises(ConfigError, match="up_proj: found 100 rows, expected a multiple of 8, whole words of 32 bits"):
        check(stored, "config.json")


def test_a_plan_says_in_which_formats_weights_are() -> None:
    form = WeightFormat(code="int4", group=64, zeros=True, scale="float16")
    down = dataclasses.replace(form, code="int8", group=None, zeros=False)
    model = make_model(num_layers=1)
    (layers,) = model.layers
    coded = dataclasses.replace(
        layers,
        attention=dataclasses.replace(layers.attention, o_format=form),
        mlp=dataclasses.replace(layers.mlp, down_format=down),
    )
    plan = make_plan(dataclasses.replace(model, layers=(coded,)), [whole_group(model, ("a",))], complete=False)
    expected = "weights in int4 with groups of 64 and zero points, int8 with a scale for each row and plain weights"
    assert expected in model_line(plan)
