"""Provenance of a slot: the reported source ranges, read and joined, are the bytes of the slot."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file

from planner.cli import main
from planner.families import load_base, load_draft
from planner.images.compile import compile_plan
from planner.images.provenance import ByteRuns, Origin, provenance
from tests.planner.images.test_compile_families import two_devices
from tests.planner.images.two_stages import images_of, save, two_stages
from tests.planner.tiny_checkpoints import saved

WIDTHS = {"F32": torch.float32, "I64": torch.int64}


def read(file: Path, span: ByteRuns) -> bytes:
    raw = file.read_bytes()
    starts = range(span.offset, span.offset + max(1, span.count) * max(1, span.stride_bytes), max(1, span.stride_bytes))
    return b"".join(raw[start : start + span.nbytes] for start in list(starts)[: span.count])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ranges_of_every_slot_are_its_bytes(tmp_path: Path, dtype: str) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path, dtype=dtype)
    compile_plan(directory, base_dir, draft_dir)
    base = load_base(base_dir)
    draft = load_draft(draft_dir, base)
    seen = 0
    for device, tensors in images_of(directory).items():
        raw = (directory / f"{device}.safetensors").read_bytes()
        for name, tensor in tensors.items():
            (slot,) = [one for one in provenance(plan, name, base, draft) if one.device == device]
            assert (
                raw[slot.offset : slot.offset + slot.nbytes] == tensor.contiguous().view(torch.uint8).numpy().tobytes()
            )
            pieces = []
            for origin in slot.origins:
                assert origin.file is not None
                assert origin.ranges is not None
                where = (base_dir if origin.checkpoint == "base" else draft_dir) / origin.file
                with safe_open(where, "pt") as file:
                    source = file.get_tensor(origin.tensor)
                assert tuple(source.shape) == origin.shape
                assert ("cast" in origin.operation) == (source.dtype != tensor.dtype)
                for span in origin.ranges:
                    values = torch.frombuffer(bytearray(read(where, span)), dtype=source.dtype)
                    pieces.append(values.reshape(-1, span.nbytes // source.itemsize if origin.columns else 1))
            if pieces:
                together = torch.cat(pieces, 1 if slot.origins[0].columns else 0).to(tensor.dtype)
                assert torch.equal(together.reshape(tensor.shape), tensor)
                seen += 1
    assert seen > 100


def show(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["show", *map(str, arguments)])


def test_show_slot_prints_the_compiled_sources(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    save(plan, tmp_path / "bare")
    compile_plan(directory, base_dir, draft_dir)
    result = show(directory, "--slot", "layers.2.down.weight")
    assert result.exit_code == 0, result.output
    assert "b: F32 [32x64], 8192 bytes at" in result.stdout
    assert "copy, columns: rows 0-31, columns 0-63 of model.layers.2.mlp.down_proj.weight (base)" in result.stdout
    assert "model-0000" in result.stdout
    data = json.loads(show(directory, "--slot", "draft.fc.weight", "--json").stdout)
    assert [device["device"] for device in data["devices"]] == ["b", "d"]
    assert data["devices"][0]["origins"][0]["file"] == "model.safetensors"
    assert "rotary frequencies" in show(directory, "--slot", "rope.inv_freq").stdout
    near = show(directory, "--slot", "layers.2.dwn.weight")
    assert (near.exit_code, "did you mean layers.2.down.weight" in near.stderr) == (2, True)


def test_a_checkpoint_of_other_files_is_refused(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, _ = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    index = json.loads((base_dir / "model.safetensors.index.json").read_text())
    first = base_dir / sorted(set(index["weight_map"].values()))[0]
    raw = first.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    first.write_bytes((length + 8).to_bytes(8, "little") + raw[8 : 8 + length] + 8 * b" " + raw[8 + length :])
    result = show(directory, "--slot", "norm.weight")
    assert result.exit_code == 2
    assert "its files are not those that were compiled" in result.stderr


def test_transposed_experts_are_traced_to_columns(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, "gpt_oss", num_hidden_layers=1)
    base = load_base(checkpoint)
    plan, stored = two_devices(base, 2), load_file(checkpoint / "model.safetensors")
    channels = 2 * base.model.layers[0].mlp.unit

    def origins(name: str) -> tuple[Origin, ...]:
        return provenance(plan, name, base, None)[0].origins

    gate, up = origins("layers.0.gate_up.weight")[2:4]
    assert (gate.rows, gate.columns) == (((16, 32),), ((0, 2 * channels - 1),))
    assert (up.rows, up.columns) == (((16, 32),), ((1, 2 * channels),))
    assert gate.operation == "copy, transposed, one of 2 columns"
    assert gate.ranges is not None
    assert gate.ranges[0].nbytes == 4 * (2 * channels - 1)
    down = origins("layers.0.down.weight")[1]
    assert (down.rows, down.columns, down.operation) == (
        ((24, 24 + channels),),
        ((0, 16),),
        "copy, transposed, columns",
    )
    assert down.ranges is not None
    read_back = torch.frombuffer(bytearray(read(checkpoint / "model.safetensors", down.ranges[0])), dtype=torch.float32)
    expected = stored["model.layers.0.mlp.experts.down_proj"][1, :channels]
    assert torch.equal(read_back.view(channels, 16), expected)
    assert origins("layers.0.gate_up.bias")[0].operation == "copy, transposed, one of 2 columns"
