"""Plans as arguments of other programs: read back by the rules that those programs document, or refused."""

import json
import math
import re
import shlex
from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.utils import check_device_map, compute_module_sizes
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from planner.cli import main
from planner.commands.declarations import EXPORTED
from planner.commands.show import EXPORTS
from planner.errors import InputError
from planner.exports import accelerate as accelerate_export
from planner.exports import exllamav3, llama_cpp, vllm
from plans.check import load
from plans.quantized import ROUNDED
from plans.schema import Device, Plan, Run, WeightFormat
from tests.plan_factory import Group, group, make_device, make_draft, make_model, make_plan
from tests.planner.instances import ROOT

MODEL = make_model(num_layers=8, num_heads=8, num_kv_heads=4)


def gpu(number: int, **changes: Any) -> Device:
    cuda = replace(make_device(f"gpu{number}"), kind="cuda", type="rtx-3090", ordinal=number, compute_capability=86)
    return replace(cuda, **changes)


def in_stages(*counts: int, devices: int = 1, **options: Any) -> Plan:
    """Return a plan of one stage for each count of layers, on so many GPUs each, with even shares."""
    names = [[f"gpu{devices * i + j}" for j in range(devices)] for i in range(len(counts))]
    groups = [group(MODEL, members, count) for members, count in zip(names, counts, strict=True)]
    listed = [gpu(number) for number in range(devices * len(counts))]
    return make_plan(replace_layers(sum(counts)), groups, devices=listed, complete=False, **options)


def replace_layers(count: int) -> Any:
    return replace(MODEL, layers=(replace(MODEL.layers[0], num_layers=count),))


def arguments(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment and the options of the command in an export; other lines must be comments."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    words = shlex.split("\n".join(lines))
    environment = dict(word.split("=", 1) for word in words if re.fullmatch(r"[A-Z_0-9]+=.*", word))
    options = {}
    for i, word in enumerate(words):
        if word.startswith("-"):
            following = words[i + 1] if i + 1 < len(words) else "-"
            options[word] = "" if following.startswith("-") else following
    return environment, options


def test_every_program_has_an_export() -> None:
    assert tuple(EXPORTS) == EXPORTED


# vLLM


def test_vllm_has_the_stages_and_the_size_of_their_groups() -> None:
    plan = in_stages(3, 5, devices=2, context=64, batch=2, dtype="bfloat16", kv_dtype="float8_e4m3fn")
    environment, options = arguments(vllm.export(plan))
    assert environment == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
        "VLLM_PP_LAYER_PARTITION": "3,5",
    }
    assert options == {
        "--tensor-parallel-size": "2",
        "--pipeline-parallel-size": "2",
        "--max-model-len": "64",
        "--max-num-seqs": "2",
        "--dtype": "bfloat16",
        "--kv-cache-dtype": "fp8_e4m3",
        "--gpu-memory-utilization": f"{math.floor(100 * 63 / 64) / 100}",
    }


def test_vllm_drafts_a_chain_of_the_depth_of_the_tree() -> None:
    plan = in_stages(8, draft=make_draft(MODEL))
    text = vllm.export(plan)
    _, options = arguments(text)
    assert json.loads(options["--speculative-config"]) == {
        "method": "eagle3",
        "model": "EAGLE_HEAD",
        "num_speculative_tokens": 4,
        "draft_tensor_parallel_size": 1,
    }
    assert "# vLLM drafts a chain of 4 tokens, not a tree" in text


def test_a_device_with_an_uuid_is_called_by_it() -> None:
    plan = in_stages(8)
    bound = replace(plan, inventory=replace(plan.inventory, devices=(gpu(0, uuid="MIG-1"),)))
    assert arguments(vllm.export(bound))[0]["CUDA_VISIBLE_DEVICES"] == "MIG-1"


UNEQUAL = Group(devices=("gpu0", "gpu1"), runs=(Run(num_layers=8, kv_heads=(3, 1), mlp_units=(6, 2)),))
SHARED = replace(group(MODEL, ("gpu0", "gpu1"), 8), axis="context", subgroups=(2,))
SHARED = replace(SHARED, runs=(Run(num_layers=8, kv_heads=(4, 4), mlp_units=(4, 4)),))
SPLIT_OTHERWISE = Group(devices=("gpu0", "gpu1"), runs=(Run(num_layers=8, kv_heads=(2, 2), mlp_units=(7, 1)),))


def on(*groups: Group, devices: list[Device], **options: Any) -> Plan:
    return make_plan(MODEL, groups, devices=devices, complete=False, **options)


CPU = make_device("cpu0")
HALF = [group(MODEL, ("gpu0",), 4), group(MODEL, ("gpu1",), 4)]

REFUSED = [
    ("vllm", on(UNEQUAL, devices=[gpu(0), gpu(1)]), "gpu0, gpu1 have unequal shares, 3 + 1 KV heads, and vLLM's are"),
    ("vllm", on(SHARED, devices=[gpu(0), gpu(1)]), "gpu0, gpu1 share KV heads by context"),
    (
        "vllm",
        on(group(MODEL, ("gpu0",), 4), group(MODEL, ("gpu1", "gpu2"), 4), devices=[gpu(0), gpu(1), gpu(2)]),
        "stages have 1 and 2 devices, and vLLM's have one tensor parallel size",
    ),
    ("vllm", on(group(MODEL, ("cpu0",), 8), devices=[CPU]), "layers are on cpu0, a CPU"),
    ("vllm", on(HALF[0], HALF[0], devices=[gpu(0)]), "gpu0 is in several stages"),
    ("vllm", on(*HALF, devices=[gpu(0), gpu(1, host="box1")]), "the layers are on several hosts, box0, box1"),
    ("accelerate", on(UNEQUAL, devices=[gpu(0), gpu(1)]), "model.embed_tokens is split over gpu0, gpu1"),
    ("accelerate", on(*HALF, devices=[gpu(0), gpu(1, host="box1")]), "the layers are on several hosts, box0, box1"),
    ("llama.cpp", on(SPLIT_OTHERWISE, devices=[gpu(0), gpu(1)]), "KV heads are 2 : 2, MLP units 7 : 1, and llama.cpp"),
    ("llama.cpp", on(*HALF, devices=[gpu(0), gpu(1)], head=("gpu0",)), "the lm_head is on gpu0, the last layers on"),
    (
        "llama.cpp",
        on(group(MODEL, ("gpu0",), 4), group(MODEL, ("cpu0",), 4), devices=[gpu(0), CPU]),
        "layers on a CPU are not the first ones",
    ),
    (
        "llama.cpp",
        on(
            group(MODEL, ("gpu0",), 4),
            group(MODEL, ("gpu1", "gpu2"), 4),
            devices=[gpu(0), gpu(1), gpu(2)],
        ),
        "groups of devices follow one another",
    ),
    ("exllamav3", on(SHARED, devices=[gpu(0), gpu(1)]), "gpu0, gpu1 share KV heads by context"),
    ("exllamav3", on(group(MODEL, ("cpu0",), 8), devices=[CPU]), "layers are on cpu0, a CPU"),
]


@pytest.mark.parametrize(("program", "plan", "reason"), REFUSED, ids=[f"{row[0]}-{row[2][:30]}" for row in REFUSED])
def test_another_placement_is_refused_with_the_reason(program: str, plan: Plan, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        EXPORTS[program](plan)
    assert reason in str(caught.value)


# llama.cpp


def llama_cpp_devices(layers: int, options: dict[str, str]) -> list[int | None]:
    """Return the GPU of each layer and of the output, None for the CPU, as docs/multi-gpu.md and -ngl have it."""
    total = layers + 1
    on_gpus = min(int(options["-ngl"]), total)
    parts = [float(part) for part in options.get("-ts", "1").split(",")]
    ends = [end / sum(parts) for end in accumulate(parts)]
    first = total - on_gpus
    return [None if i < first else bisect_right(ends, (i - first) / on_gpus) for i in range(total)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 20))
def test_llama_cpp_has_each_layer_where_the_plan_has_it(counts: list[int], on_cpu: int) -> None:
    plan = in_stages(*counts)
    if on_cpu:
        model = replace_layers(sum(counts) + on_cpu)
        stages = [group(MODEL, ("cpu0",), on_cpu), *(group(MODEL, (f"gpu{i}",), n) for i, n in enumerate(counts))]
        listed = [CPU, *(gpu(i) for i in range(len(counts)))]
        plan = make_plan(model, stages, devices=listed, complete=False)
    environment, options = arguments(llama_cpp.export(plan))
    expected: list[int | None] = [None] * on_cpu
    for i, count in enumerate(counts):
        expected += [i] * count
    assert llama_cpp_devices(plan.model.num_layers, options) == [*expected, len(counts) - 1]
    assert environment["CUDA_VISIBLE_DEVICES"] == ",".join(str(i) for i in range(len(counts)))
    assert options["-sm"] == ("layer" if len(counts) > 1 else "none")


def test_llama_cpp_divides_one_group_by_the_ratio_of_the_plan() -> None:
    text = llama_cpp.export(on(UNEQUAL, devices=[gpu(0), gpu(1)], batch=2, context=64))
    _, options = arguments(text)
    assert (options["-sm"], options["-ts"], options["-ngl"]) == ("tensor", "3,1", "all")
    assert (options["-c"], options["-np"], options["-fa"], options["-ctk"]) == ("128", "2", "on", "f32")
    assert "experimental" in text


INT4 = ROUNDED["int4-g32"]


@pytest.mark.parametrize(
    ("form", "comment"),
    [
        (INT4, "in int4: convert the checkpoint before quantization, then llama-quantize to Q4_0"),
        (replace(INT4, zeros=True), "then llama-quantize to Q4_1"),
        (ROUNDED["fp8"], "in float8_e4m3fn: convert the checkpoint before quantization, then llama-quantize to Q8_0"),
        (replace(INT4, code="float4_e2m1", scale="float8_e8m0"), "keeps experts in MXFP4"),
    ],
)
def test_llama_cpp_names_the_type_with_as_many_bits(form: WeightFormat, comment: str) -> None:
    (layers,) = MODEL.layers
    mlp = replace(layers.mlp, down_format=form)
    model = replace(MODEL, layers=(replace(layers, mlp=mlp),))
    plan = make_plan(model, [group(model, ("gpu0",), 8)], devices=[gpu(0)], complete=False)
    assert comment in llama_cpp.export(plan)


def test_every_export_says_that_weights_are_rounded() -> None:
    plan = make_plan(MODEL, [group(MODEL, ("gpu0",), 8)], devices=[gpu(0)], complete=False)
    plan = replace(plan, options=replace(plan.options, weights="int8"))
    for program in ("vllm", "exllamav3", "accelerate"):
        assert "rounded to int8" in EXPORTS[program](plan), program


# exllamav3


def test_exllamav3_has_the_gib_of_each_device() -> None:
    plan = load(ROOT / "plans/llama70b-6gpu")
    _, options = arguments(exllamav3.export(plan))
    limits = [float(part) for part in options["-gs"].split(",")]
    for line, limit in zip(plan.memory, limits, strict=True):
        assert 0 <= limit - line.planned_bytes / (1 << 30) < 0.01 + 1e-9
    assert {"-tp", "-tpb", "-cs"} <= options.keys()
    assert options["-cs"] == str(plan.options.context)


# accelerate


def tiny_llama(layers: int) -> LlamaForCausalLM:
    attention, mlp = MODEL.layers[0].attention, MODEL.layers[0].mlp
    config = LlamaConfig(
        vocab_size=MODEL.vocab_size,
        hidden_size=MODEL.hidden_size,
        intermediate_size=mlp.intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=attention.num_heads,
        num_key_value_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
    )
    return LlamaForCausalLM(config).eval()


def test_accelerate_takes_the_device_map_and_has_the_bytes_of_the_plan_on_each_device() -> None:
    plan = make_plan(
        MODEL,
        [group(MODEL, ("gpu0",), 3), group(MODEL, ("gpu1",), 5)],
        devices=[gpu(0), gpu(1)],
    )
    content = json.loads(accelerate_export.export(plan))
    model = tiny_llama(8)
    check_device_map(model, content["device_map"])
    sizes = compute_module_sizes(model)
    held = dict.fromkeys((0, 1), 0)
    for module, device in content["device_map"].items():
        held[device] += sizes.get(module, 0)
    for i, line in enumerate(plan.memory):
        assert 0 <= line.weights_bytes - held[i] < 2048, "but for the alignment of some 30 tensors, and rotary tables"
    assert content["max_memory"] == {"0": 63 << 20, "1": 63 << 20}
    assert content["dtype"] == "float32"


def test_accelerate_dispatches_a_model_as_the_plan_says(tmp_path: Path) -> None:
    plan = make_plan(MODEL, [group(MODEL, ("cpu0",), 8)], devices=[make_device("cpu0")])
    content = json.loads(accelerate_export.export(plan))
    model = tiny_llama(8)
    tokens = torch.tensor([[3, 7, 11, 2]])
    with torch.inference_mode():
        expected = model(tokens).logits
        dispatched = accelerate.dispatch_model(model, content["device_map"])
        assert torch.equal(dispatched(tokens).logits, expected)
    assert dispatched.hf_device_map == content["device_map"]
    assert set(content["device_map"].values()) == {"cpu"}


# The command


def test_show_writes_an_export_or_refuses_it() -> None:
    plan = str(ROOT / "plans/llama70b-4gpu")
    result = CliRunner().invoke(main, ["show", plan, "--export", "vllm"])
    assert result.exit_code == 0
    assert arguments(result.stdout)[1]["--tensor-parallel-size"] == "4"
    refused = CliRunner().invoke(main, ["show", plan, "--export", "accelerate"])
    assert (refused.exit_code, "split over" in refused.stderr) == (2, True)
    both = CliRunner().invoke(main, ["show", plan, "--export", "vllm", "--markdown"])
    assert both.exit_code == 2
