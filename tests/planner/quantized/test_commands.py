"""Plans of quantized checkpoints by the planner's commands: built, checked, shown, and compiled once."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from planner import cli
from planner.families import load_base
from planner.images import blocks, reader
from planner.quantized import Stored
from planner.quantized.codes import Read
from planner.quantized.column_order import Sorting, sorted_columns
from planner.quantized.proofs import require_proofs
from plans import codec
from plans.ranges import Ranges
from plans.slots import device_slots
from plans.weights import held
from tests.plan_factory import make_plan, whole_group
from tests.planner.quantized.checkpoints import METHODS, compiled, quantized
from tests.planner.tiny_checkpoints import bare, config_of, saved

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
DEVICES = [{"id": f"c{number}", "type": "cpu", "memory": "64 MiB", "bandwidth": "10 GB/s"} for number in range(2)]
HOSTS = {"hosts": [{"name": "h", "links": {"class": "shm"}, "devices": DEVICES}]}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(("kv_heads", "shares"), [(8, [{(4, 4)}]), (12, [{(8, 4)}, {(4, 8)}]), (4, [{(4,)}])])
def test_devices_have_kv_heads_whose_columns_are_whole_groups(
    kv_heads: int, shares: list[set[tuple[int, ...]]], tmp_path: Path
) -> None:
    """A KV head has 72 columns of o, and a group 32: both end after 4 heads. Slow devices divide what they can."""
    sizes = {"num_attention_heads": kv_heads, "num_key_value_heads": kv_heads, "head_dim": 72, "num_hidden_layers": 1}
    sizes |= {"hidden_size": 192}
    coded, _ = quantized(saved(tmp_path / "base", **(SIZES | sizes)), tmp_path, "gptq")
    slow = [device | {"bandwidth": "10 MB/s"} for device in DEVICES]
    (tmp_path / "inventory.yaml").write_text(json.dumps({"hosts": [HOSTS["hosts"][0] | {"devices": slow}]}))
    directory = tmp_path / "plan"
    output = run(
        "build", "--gpus", tmp_path / "inventory.yaml", "--model", coded, "--context", "64", "--out", directory
    )
    assert "divide attention in multiples of 4 KV heads" in output
    assert "clean" in run("check", directory)
    assert {run.kv_heads for stage in codec.load(directory).stages for run in stage.runs} in shares


@pytest.mark.parametrize("method", [method for method in METHODS if method != "mxfp4"])
def test_a_plan_is_solved_again_from_its_config_and_compiled_once(method: str, tmp_path: Path) -> None:
    """The config says float32; scales are float16 or bfloat16, which the headers tell alone, and then the plan."""
    coded, _ = quantized(saved(tmp_path / "base", **SIZES), tmp_path, method)
    (tmp_path / "inventory.yaml").write_text(json.dumps(HOSTS))
    directory = tmp_path / "plan"
    run("build", "--gpus", tmp_path / "inventory.yaml", "--model", coded, "--context", "64", "--out", directory)
    assert "clean" in run("check", directory)
    forms = codec.load(directory).model.layers[0].attention
    assert forms.o_format is not None
    assert bool(forms.o_format.ordered) == method.startswith("sorted")
    for slot in ("o.scales", "gate_up.weight"):
        assert "of model.layers.1" in run("show", directory, "--slot", f"layers.1.{slot}")
    if forms.o_format.ordered:
        rows = run("show", directory, "--slot", "layers.1.gate_up.weight")
        assert "sorted by groups, rows as the sorted columns of model.layers.1.mlp.down_proj" in rows
    before = {file.name: file.stat().st_mtime_ns for file in directory.glob("*.safetensors")}
    run("compile", directory, "--model", coded)
    assert before == {file.name: file.stat().st_mtime_ns for file in directory.glob("*.safetensors")}
    (directory / "moved").mkdir()
    for file in ("plan.yaml", "config.json"):
        (directory / "moved" / file).write_bytes((directory / file).read_bytes())
    bare = run("show", directory / "moved", "--slot", "layers.1.o.scales")
    assert "scales of model.layers.1.self_attn.o_proj" in bare


def test_settings_beside_a_config_are_copied_beside_the_plan(tmp_path: Path) -> None:
    """ModelOpt has them in a file of its own, without which the config would be that of a plain model."""
    settings = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    config = bare(tmp_path / "model", config_of("llama", **SIZES).to_dict())
    config.with_name("hf_quant_config.json").write_text(json.dumps(settings))
    (tmp_path / "other.json").write_bytes(config.read_bytes())
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(settings))
    (tmp_path / "inventory.yaml").write_text(json.dumps(HOSTS))
    for model, code in ((config, "float8_e4m3fn"), (tmp_path / "other.json", None)):
        out = tmp_path / f"plan-{code}"
        run("build", "--gpus", tmp_path / "inventory.yaml", "--model", model, "--context", "64", "--out", out)
        form = codec.load(out).model.layers[0].mlp.down_format
        assert (form and form.code) == code
        assert "clean" in run("check", out)


def test_a_plan_of_a_config_alone_may_have_other_scales_than_the_checkpoint(tmp_path: Path) -> None:
    """The config says float32, which the scales are not."""
    coded, _ = quantized(saved(tmp_path / "base", **SIZES), tmp_path, "gptq")
    device = {"id": "c", "type": "cpu", "memory": "64 MiB", "bandwidth": "10 GB/s"}
    hosts = {"hosts": [{"name": "h", "links": {"class": "shm"}, "devices": [device]}]}
    (tmp_path / "inventory.yaml").write_text(json.dumps(hosts))
    base = ("build", "--gpus", tmp_path / "inventory.yaml", "--context", "64", "--out", tmp_path / "plan")
    run(*base, "--model", coded / "config.json", "--plan-only")
    result = CliRunner().invoke(cli.main, ["compile", str(tmp_path / "plan"), "--model", str(coded)])
    assert result.exit_code == 2
    assert result.output.endswith(
        "model.layers[0].attention.qkv_format.scale: found 'float32', but the checkpoint has scales in 'float16', "
        "which a config without weights does not say: build the plan again, from the checkpoint\n"
    )
    assert not list((tmp_path / "plan").glob("*.safetensors"))


@pytest.mark.parametrize("method", ["sorted-gptq", "w4a16"])
def test_what_moves_to_a_device_without_weights_is_what_its_image_has(method: str, tmp_path: Path) -> None:
    coded, _ = quantized(saved(tmp_path / "base", **SIZES), tmp_path, method)
    model = load_base(coded).model
    plan = make_plan(model, [whole_group(model, ("a", "b"))], complete=False)
    for device in ("a", "b"):
        moved = sum(item.nbytes for item in held(plan) if item.device == device)
        assert moved == sum(slot.nbytes for slot in device_slots(plan, device))


def test_columns_are_sorted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks of rows a layer's parts are read in; of o, each device has other columns."""
    sorted_layers: Counter[tuple[str, Ranges | None]] = Counter()

    def counted(stored: Stored, read: Read) -> Sorting:
        sorted_layers[stored.module, stored.share] += 1
        return sorted_columns(stored, read)

    coded, _ = quantized(saved(tmp_path / "base", **SIZES), tmp_path, "sorted-gptq")
    compiled(coded, tmp_path / "plan")
    monkeypatch.setattr(reader, "sorted_columns", counted)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 256)
    compiled(coded, tmp_path / "blocks")
    assert sorted_layers == dict.fromkeys(sorted_layers, 1)
    assert len(sorted_layers) == 2 * (6 + 2)
    for device in ("a", "b"):
        images = [tmp_path / name / f"{device}.safetensors" for name in ("plan", "blocks")]
        assert images[0].read_bytes() == images[1].read_bytes()


def test_that_columns_have_the_checkpoints_order_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks of rows a layer's codes are read in."""
    read_orders: Counter[str] = Counter()

    def counted(stored: Stored, read: Read) -> None:
        read_orders[stored.module] += 1
        require_proofs(stored, read)

    coded, _ = quantized(saved(tmp_path / "base", **SIZES), tmp_path, "gptq")
    monkeypatch.setattr(reader, "require_proofs", counted)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 256)
    compiled(coded, tmp_path / "blocks")
    assert read_orders == dict.fromkeys(read_orders, 1)
    assert len(read_orders) == 2 * 7


def test_plain_rows_and_biases_are_sorted_as_the_columns_that_read_them(tmp_path: Path) -> None:
    """Of a layer of which only down has codes, on a device that has a part of it."""
    coded, exact = quantized(saved(tmp_path / "base", **SIZES, mlp_bias=True), tmp_path, "sorted-gptq")
    tensors, values = load_file(coded / "model.safetensors"), load_file(exact / "model.safetensors")
    for name in [name for name in tensors if ".gate_proj." in name or ".up_proj." in name]:
        del tensors[name]
    tensors |= {name: value for name, value in values.items() if ".gate_proj." in name or ".up_proj." in name}
    for name in [name for name in values if name.endswith(("gate_proj.bias", "up_proj.bias"))]:
        tensors[name] = torch.randn(values[name].shape, generator=torch.Generator().manual_seed(len(name)))
    save_file(tensors, coded / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((coded / "config.json").read_text())
    config["quantization_config"]["dynamic"] = {r"-:.*(gate|up)_proj": {}}
    (coded / "config.json").write_text(json.dumps(config))
    plan = compiled(coded, tmp_path / "plan")
    image = load_file(tmp_path / "plan/b.safetensors")
    units = plan.stages[0].runs[0].mlp_units
    channels = slice(units[0] * plan.model.layers[0].mlp.unit, None)
    for layer in range(2):
        order = tensors[f"model.layers.{layer}.mlp.down_proj.g_idx"].sort(stable=True).indices[channels]
        for part in ("weight", "bias"):
            both = [tensors[f"model.layers.{layer}.mlp.{name}_proj.{part}"][order] for name in ("gate", "up")]
            assert torch.equal(image[f"layers.{layer}.gate_up.{part}"], torch.cat(both))
