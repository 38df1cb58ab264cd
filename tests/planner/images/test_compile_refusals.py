"""What a compile refuses: checkpoints, plans and devices that do not fit, sources that change or cannot be read."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from planner.errors import CheckpointError, InputError
from planner.families import inputs_of, load_base
from planner.images import reader
from planner.images.compile import compile_plan
from plans.artifact import load_images
from plans.schema import PlanError
from runtime.image.verify import check_images
from tests.plan_factory import Group, make_plan, write_draft
from tests.planner.images.two_stages import edited, names, save, two_stages


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, _ = two_stages(tmp_path)
    config = json.loads((base_dir / "config.json").read_text())
    (base_dir / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    with pytest.raises(InputError, match=r"config\.json has SHA-256 .* but inputs\.base_config_sha256 of the plan"):
        compile_plan(directory, base_dir, draft_dir)
    assert not list(directory.glob("*.safetensors"))


def test_the_tensor_table_is_compared(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    save(dataclasses.replace(plan, inputs=dataclasses.replace(plan.inputs, draft_tensors_sha256="f" * 64)), directory)
    with pytest.raises(InputError, match=r"inputs\.draft_tensors_sha256 of the plan is ffff"):
        compile_plan(directory, base_dir, draft_dir)


def test_a_missing_or_surplus_head_is_refused(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    with pytest.raises(InputError, match="give its checkpoint with --draft"):
        compile_plan(directory, base_dir, None)
    bare = [Group(devices=stage.devices, runs=stage.runs) for stage in plan.stages]
    save(make_plan(plan.model, bare, inputs=inputs_of(load_base(base_dir), None)), directory)
    with pytest.raises(InputError, match="leave out --draft"):
        compile_plan(directory, base_dir, draft_dir)


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, _ = two_stages(tmp_path)
    with pytest.raises(InputError, match="--only z: not a device of the plan, which has a, b, c, d"):
        compile_plan(directory, base_dir, draft_dir, only=["z"])


def test_a_bare_config_is_refused(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, _ = two_stages(tmp_path)
    with pytest.raises(InputError, match="a config without weights"):
        compile_plan(directory, base_dir / "config.json", draft_dir)


def test_shares_beyond_the_model_are_refused(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    save(dataclasses.replace(plan, embed=dataclasses.replace(plan.embed, rows=(13, 38))), directory)
    with pytest.raises(PlanError, match=r"plan\.yaml: embed\.rows: "):
        compile_plan(directory, base_dir, draft_dir)


@pytest.mark.parametrize(
    ("number", "value", "pickled"),
    [(0, -1, False), (29, 21, False), (29, (1 << 63) - 1, False), (4, -(1 << 63), False), (29, 21, True)],
)
def test_a_drafted_token_out_of_the_vocabulary_is_refused(
    tmp_path: Path, number: int, value: int, pickled: bool
) -> None:
    directory, base_dir, draft_dir, _ = two_stages(tmp_path)
    file = draft_dir / "model.safetensors"
    tensors = load_file(file)
    tensors["d2t"][number] = value
    if pickled:
        file.unlink()
        file = draft_dir / "pytorch_model.bin"
        torch.save(tensors, file)
    else:
        save_file(tensors, file)
    with pytest.raises(CheckpointError) as caught:
        compile_plan(directory, base_dir, draft_dir)
    assert str(caught.value) == (
        f"{file}: d2t[{number}]: found {value}, which makes drafted token {number} token {number + value} of the "
        "model, expected one of 0 to 49"
    )
    assert names(directory) == {"plan.yaml"}


def test_planned_bytes_that_differ_from_the_images_are_refused(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    most = max(plan.memory, key=lambda line: line.planned_bytes)
    lines = [dataclasses.replace(m, weights_bytes=m.weights_bytes - 256) if m != most else m for m in plan.memory]
    save(dataclasses.replace(plan, memory=tuple(lines)), directory)
    with pytest.raises(
        InputError, match=r"plan\.yaml: edited by hand.*: memory: \w: .* but the image takes \d+: build the plan again"
    ):
        compile_plan(directory, base_dir, draft_dir)


def test_a_source_that_shrinks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    before = load_images(directory)
    write_draft(draft_dir, seed=3)
    original = reader.Reader.read_into

    def shrinking(self: reader.Reader, *args: object) -> object:
        os.truncate(draft_dir / "model.safetensors", 5000)
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(reader.Reader, "read_into", shrinking)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: (ends at byte|changed while)"):
        compile_plan(directory, base_dir, draft_dir)
    assert load_images(directory) == before
    check_images(plan, directory, verify=True)
    assert not list(directory.glob(".compile-*"))


@pytest.mark.parametrize("how", ["replaced", "touched", "edited, with its old time"])
@pytest.mark.parametrize("when", ["after its header was read", "while its weights are read"])
def test_a_source_that_changes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, when: str) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    write_draft(draft_dir, seed=3)
    file = draft_dir / "model.safetensors"
    home, name = (reader.Reader, "__enter__") if when.startswith("after") else (reader.Reader, "check_unchanged")
    original = getattr(home, name)

    def changing(self: reader.Reader) -> object:
        edited(file, how)
        return original(self)

    monkeypatch.setattr(home, name, changing)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: changed while it was compiled"):
        compile_plan(directory, base_dir, draft_dir)
    monkeypatch.undo()
    check_images(plan, directory, verify=True)
    assert names(directory) == {"a", "b", "c", "d", "images.yaml", "plan.yaml", ".compiled"}


def test_a_source_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    write_draft(draft_dir, seed=3)

    def fails(*args: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(reader.os, "preadv", fails)
    with pytest.raises(CheckpointError, match=r"safetensors: cannot read at byte [0-9]+: Input/output error"):
        compile_plan(directory, base_dir, draft_dir)
    monkeypatch.undo()
    check_images(plan, directory, verify=True)
