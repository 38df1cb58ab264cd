"""Device maps of accelerate and transformers: we read the maps they write, and they accept the maps we write."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import yaml
from accelerate.utils import check_device_map
from transformers import LlamaConfig, LlamaForCausalLM

from planner.demo_model import DEMO
from planner.errors import InputError
from planner.families import load_base, load_draft
from planner.problem.device_map import load_device_map, read, write
from plans.schema import Inventory, Model, Pin, Plan
from tests.plan_factory import group, make_draft, make_model, make_plan, split_draft
from tests.planner.instances import cpu, host, inventory_of

SIZES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6}


def gpu(name: str) -> dict[str, Any]:
    return {"id": name, "type": "rtx-4090"}


GPUS = inventory_of({"hosts": [host("box", gpu("gpu10"), gpu("gpu2"), gpu("gpu3"), links={"class": "pcie"})]})
WITH_CPU = inventory_of({"hosts": [host("box", cpu("host", 64), gpu("gpu0"), gpu("gpu1"), links={"class": "pcie"})]})
CPUS = inventory_of({"hosts": [host("box", cpu("a", 64), cpu("b", 64))]})
EVERY = {"model.embed_tokens": 0, "model.layers": 0, "model.norm": 0, "lm_head": 0}


def empty_model(tied: bool) -> LlamaForCausalLM:
    config = LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied)
    with accelerate.init_empty_weights():
        model = LlamaForCausalLM(config)
    model.tie_weights()
    return model


def base_of(model: LlamaForCausalLM, directory: Path) -> Model:
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(directory)
    return load_base(directory / "config.json").model


def pins(data: Any, inventory: Inventory = GPUS, **model: Any) -> dict[str, str]:
    placed = read(data, "map.yaml", make_model(**model), None, inventory.devices)
    assert [pin.module for pin in placed] == sorted(pin.module for pin in placed)
    return {pin.module: pin.device for pin in placed}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "memory", [{0: 250_000, 1: 400_000, "cpu": 10**9}, {0: 450_000, 1: 300_000, "cpu": 10**9}, {0: 10**9}]
)
@pytest.mark.filterwarnings("ignore")
def test_maps_inferred_by_accelerate_are_read(tied: bool, memory: dict[Any, int], tmp_path: Path) -> None:
    model = empty_model(tied)
    inferred = accelerate.infer_auto_device_map(
        model, max_memory=memory, no_split_module_classes=["LlamaDecoderLayer"], dtype=torch.float32
    )
    placed = {pin.module: pin.device for pin in read(inferred, "map", base_of(model, tmp_path), None, WITH_CPU.devices)}
    names = {0: "gpu0", 1: "gpu1", "cpu": "host"}

    def theirs(module: str) -> str:
        """Return a parameter's device as accelerate looks it up: by the whole name, then by each parent module."""
        while module and module not in inferred:
            module = module.rpartition(".")[0]
        return names[inferred[module]]

    assert placed["embed"] == theirs("model.embed_tokens")
    assert placed["head"] == theirs("lm_head")
    for i in range(6):
        assert placed[f"layers.{i}"] == theirs(f"model.layers.{i}")
    assert len(placed) == 8


def test_a_layer_that_accelerate_splits_is_refused(tmp_path: Path) -> None:
    model = empty_model(False)
    inferred = accelerate.infer_auto_device_map(model, max_memory={0: 250_000, 1: 400_000, "cpu": 10**9})
    with pytest.raises(
        InputError, match=r"map: 'model\.layers\.[0-9]\..*': a part of a layer, and a device map places"
    ):
        read(inferred, "map", base_of(model, tmp_path), None, WITH_CPU.devices)


def test_the_longest_name_decides() -> None:
    placed = pins({"": "gpu2", "model.layers": 1, "model.layers.1": "cuda:2", "model": 0, "lm_head": 0}, num_layers=3)
    assert placed == {"embed": "gpu2", "layers.0": "gpu3", "layers.1": "gpu10", "layers.2": "gpu3", "head": "gpu2"}


def test_a_name_is_no_prefix_of_a_longer_number() -> None:
    """Assert that ``model.layers.1`` does not cover ``model.layers.10``."""
    placed = pins({"": 0, "model.layers.1": 1}, num_layers=12)
    assert [placed[f"layers.{i}"] for i in (1, 10, 11)] == ["gpu3", "gpu2", "gpu2"]


def test_devices_have_ids_indices_and_the_name_cpu() -> None:
    assert set(pins({"": 1}, CPUS).values()) == {"b"}, "without an accelerator, indices count all devices"
    assert set(pins({"": "cpu"}, WITH_CPU).values()) == {"host"}
    assert set(pins({"": 0}, WITH_CPU).values()) == {"gpu0"}
    assert set(pins({"": "cuda:1"}, WITH_CPU).values()) == {"gpu1"}


def test_tensor_names_place_their_modules_and_modules_without_weights_are_ignored() -> None:
    tensors = {"model.embed_tokens.weight": 0, "model.norm.weight": 1, "lm_head.weight": 1, "model.layers": 1}
    assert pins(tensors)["embed"] == "gpu2"
    assert pins(tensors | {"model.rotary_emb": 2}) == pins(tensors)


def test_a_tied_lm_head_is_on_the_device_of_the_embedding() -> None:
    tied = {"model.embed_tokens": 0, "model.layers": 1, "model.norm": 1}
    assert pins(tied, tied_head=True)["head"] == "gpu2"
    with pytest.raises(InputError, match="lm_head: no line covers it"):
        pins(tied)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "map.yaml: found list, expected a mapping of modules to devices"),
        ({**EVERY, "model.layers.0.mlp": 1}, "map.yaml: 'model.layers.0.mlp': a part of a layer"),
        (
            {**EVERY, "model.layers.4": 1},
            "'model.layers.4': no such layer, the model has model.layers.0 to model.layers.3",
        ),
        ({**EVERY, "model.layers.01": 1}, "'model.layers.01': no such module"),
        ({**EVERY, "model.embed_token": 1}, "no such module, did you mean model.embed_tokens?"),
        ({**EVERY, "transformer.h.0": 1}, "'transformer.h.0': no such module"),
        ({"model.layers": 0, "model.norm": 0, "lm_head": 0}, "model.embed_tokens: no line covers it"),
        (
            {"model.embed_tokens": 0, "model.layers.0": 0, "model.norm": 0, "lm_head": 0},
            "model.layers.1: no line covers",
        ),
        ({**EVERY, "model.norm": 1}, "model.norm is on gpu3 and lm_head on gpu2: the two are one piece"),
        ({**EVERY, "draft": 0}, "'draft': there is no EAGLE head to place"),
        ({"": 3}, "found 3, the inventory has 0 (gpu2), 1 (gpu3), 2 (gpu10)"),
        ({"": -1}, "found -1, the inventory has"),
        ({"": "cuda:3"}, "found 'cuda:3', the inventory has"),
        ({"": True}, "found True, expected a device: gpu2, gpu3, gpu10, or an index"),
        ({"": None}, "found None, expected a device"),
        ({"": "gpu7"}, "found 'gpu7', expected a device"),
        ({"": "cpu"}, "found 'cpu', and the inventory lists no device of type cpu"),
        ({"": "disk"}, "found 'disk', expected a device: all weights stay in memory"),
    ],
)
def test_an_invalid_map_is_refused_with_its_reason(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        pins(data)


def test_the_name_cpu_is_ambiguous_with_several_cpu_devices() -> None:
    with pytest.raises(InputError, match="'cpu', the inventory has several: give one of a, b"):
        pins({"": "cpu"}, CPUS)


def test_files_are_yaml_or_json(tmp_path: Path) -> None:
    wanted = {"": 0, "model.layers.1": "gpu3"}
    for text in (json.dumps(wanted, indent=1), yaml.safe_dump(wanted), '"": 0\nmodel.layers.1: gpu3\n'):
        (tmp_path / "map").write_text(text)
        assert load_device_map(tmp_path / "map") == wanted
    (tmp_path / "map").write_text('{"": 0, "": 1}')
    with pytest.raises(InputError, match="duplicate key"):
        load_device_map(tmp_path / "map")
    (tmp_path / "map").write_text("# to be filled in\n")
    with pytest.raises(InputError, match="map: found nothing, expected a mapping of modules to devices"):
        load_device_map(tmp_path / "map")
    with pytest.raises(InputError, match=r"--device-map .*none: cannot read: No such file"):
        load_device_map(tmp_path / "none")


# Plans


def plan_of(*devices: tuple[str, ...], draft: tuple[str, ...] | None = None, inventory: Inventory = GPUS) -> Plan:
    """Build a plan with four layers on each group of devices."""
    model = make_model(num_layers=4 * len(devices))
    head = make_draft(model) if draft else None
    return make_plan(
        model,
        [group(model, members, 4) for members in devices],
        draft=head,
        placement=split_draft(model, head, draft) if head and draft else None,
        devices=inventory.devices,
    )


def as_pins(plan: Plan) -> tuple[Pin, ...]:
    placed = {"embed": plan.embed.devices[0], "head": plan.head.devices[0]}
    for stage in plan.stages:
        placed |= {f"layers.{stage.first_layer + i}": stage.devices[0] for i in range(stage.num_layers)}
    if plan.draft_placement:
        placed["draft"] = plan.draft_placement.devices[0]
    return tuple(Pin(module=module, device=placed[module]) for module in sorted(placed))


@pytest.mark.parametrize("inventory", [GPUS, WITH_CPU, CPUS])
@pytest.mark.parametrize("head", [False, True])
def test_a_map_that_was_written_reads_back(inventory: Inventory, head: bool) -> None:
    first, second = (device.id for device in inventory.devices[:2])
    plan = plan_of((first,), (second,), draft=(second,) if head else None, inventory=inventory)
    assert read(write(plan), "map", plan.model, plan.draft, inventory.devices) == as_pins(plan)


def test_devices_are_written_as_accelerate_calls_them() -> None:
    plan = plan_of(("gpu1",), ("host",), inventory=WITH_CPU)
    assert write(plan) == {
        "model.embed_tokens": 1,
        "model.layers.0": 1,
        "model.layers.1": 1,
        "model.layers.2": 1,
        "model.layers.3": 1,
        "model.layers.4": "cpu",
        "model.layers.5": "cpu",
        "model.layers.6": "cpu",
        "model.layers.7": "cpu",
        "model.norm": "cpu",
        "lm_head": "cpu",
        "model.rotary_emb": 1,
    }


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            plan_of(("gpu2",), ("gpu3", "gpu10")),
            "model.layers.4 is split over gpu3, gpu10: a device map places modules",
        ),
        (plan_of(("gpu2", "gpu3"), ("gpu10",)), "model.embed_tokens is split over gpu2, gpu3"),
    ],
)
def test_a_plan_with_a_split_module_has_no_map(plan: Plan, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(plan)


def test_a_split_drafter_is_not_written_to_the_map() -> None:
    plan = plan_of(("gpu2",), ("gpu3",), draft=("gpu3", "gpu10"))
    assert "draft" not in write(plan)


def test_accelerate_and_transformers_accept_written_maps(tmp_path: Path) -> None:
    config = LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2)
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    base = load_base(tmp_path).model
    one = inventory_of({"hosts": [host("box", cpu("only", 64))]})
    lines = write(make_plan(base, [group(base, ("only",), 6)], devices=one.devices))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_device_map(model, lines)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, device_map=lines)
    tokens = torch.arange(12)[None]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    # Tests run without several GPUs, so only check that the map covers every parameter.
    halves = [group(base, (name,), 3) for name in ("gpu2", "gpu3")]
    several = write(make_plan(base, halves, devices=GPUS.devices))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_device_map(model, several)
    assert set(several.values()) == {0, 1}


def test_the_drafter_has_its_own_line_in_a_map() -> None:
    base = load_base(DEMO / "base" / "config.json")
    draft = load_draft(DEMO / "eagle3" / "config.json", base).draft
    placed = read({"": 0, "draft": 1}, "map", base.model, draft, GPUS.devices)
    assert {pin.module for pin in placed if pin.device == "gpu3"} == {"draft"}
    assert "draft" not in {pin.module for pin in read({"": 0}, "map", base.model, draft, GPUS.devices)}
