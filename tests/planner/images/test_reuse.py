"""Reuse of images of the last compile: what has not changed is neither read nor written."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from planner.images import compile as compiling
from planner.images import reuse
from planner.images.compile import compile_plan
from plans.artifact import load_images
from runtime.image.verify import check_images
from tests.plan_factory import Group, make_plan, split_draft, write_draft
from tests.planner.images.two_stages import edited, flip, names, save, two_stages


def test_nothing_changed_writes_nothing(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, _ = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    before = {file.name: file.stat().st_mtime_ns for file in directory.iterdir()}
    report = compile_plan(directory, base_dir, draft_dir)
    assert report.written_bytes == report.read_bytes == 0
    assert all(image.reused for image in report.images)
    assert {file.name: file.stat().st_mtime_ns for file in directory.iterdir()} == before


def test_an_unchanged_image_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, base_dir, draft_dir, _ = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    hashed: list[str] = []
    original = reuse._blake3
    monkeypatch.setattr(reuse, "_blake3", lambda file: hashed.append(file.stem) or original(file))  # type: ignore[func-returns-value]
    compile_plan(directory, base_dir, draft_dir)
    assert not hashed
    (directory / "c.safetensors").touch()
    report = compile_plan(directory, base_dir, draft_dir)
    assert (hashed, report.written_bytes) == (["c"], 0)
    compile_plan(directory, base_dir, draft_dir)
    assert hashed == ["c"], "the digest is remembered in .compiled"


@pytest.mark.parametrize("damage", [b"", b"images: []\n", b"\xff", b"- &a [*a]\n"])
def test_a_damaged_record_of_the_last_compile_is_ignored(tmp_path: Path, damage: bytes) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    (directory / ".compiled").write_bytes(damage)
    assert not any(image.reused for image in compile_plan(directory, base_dir, draft_dir).images)
    check_images(plan, directory, verify=True)
    assert all(image.reused for image in compile_plan(directory, base_dir, draft_dir).images)


def test_the_record_of_another_compile_is_ignored(tmp_path: Path) -> None:
    """A compile killed between writing ``images.yaml`` and ``.compiled`` leaves a record of the previous images."""
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    shutil.copytree(draft_dir, tmp_path / "old head")
    compile_plan(directory, base_dir, tmp_path / "old head")
    remembered = (directory / ".compiled").read_bytes()
    wanted = load_images(directory)
    write_draft(draft_dir, seed=7)
    compile_plan(directory, base_dir, draft_dir)
    (directory / ".compiled").write_bytes(remembered)
    compile_plan(directory, base_dir, tmp_path / "old head")
    assert load_images(directory) == wanted
    check_images(plan, directory, verify=True)


def test_a_head_in_a_pickle_is_reused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    tensors = load_file(draft_dir / "model.safetensors")
    compile_plan(directory, base_dir, draft_dir)
    expected = [image.blake3 for image in load_images(directory).images]
    (draft_dir / "model.safetensors").unlink()
    torch.save(tensors, draft_dir / "pytorch_model.bin")
    assert compile_plan(directory, base_dir, draft_dir).written_bytes
    assert [image.blake3 for image in load_images(directory).images] == expected
    assert names(directory) == {"a", "b", "c", "d", "images.yaml", "plan.yaml", ".compiled"}
    with monkeypatch.context() as patch:
        patch.delattr(compiling, "with_tensors")  # no conversion if no image needs it
        assert all(image.reused for image in compile_plan(directory, base_dir, draft_dir).images)
    reader = load_images(directory).sources
    assert reader.draft is not None
    assert [file.file for file in reader.draft.files] == ["pytorch_model.bin"]
    check_images(plan, directory, verify=True)


def test_a_new_head_rewrites_only_images_that_hold_it(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    write_draft(draft_dir, seed=7)
    report = compile_plan(directory, base_dir, draft_dir)
    assert [image.device for image in report.images if not image.reused] == ["b", "d"]
    check_images(plan, directory, verify=True)


def test_a_source_that_is_edited_and_set_back_in_time_is_read_again(tmp_path: Path) -> None:
    """The change is noticed by the ctime, which programs cannot set."""
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    before = load_images(directory)
    edited(base_dir / "model-00003-of-00003.safetensors", "edited, with its old time")
    compile_plan(directory, base_dir, draft_dir)
    after = load_images(directory)
    assert after.sources == before.sources, "sources record headers only; the images record the bytes"
    assert after.images != before.images
    check_images(plan, directory, verify=True)


def test_a_damaged_image_is_made_again(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    flip(directory / "c.safetensors", 5000)
    report = compile_plan(directory, base_dir, draft_dir)
    assert [image.device for image in report.images if not image.reused] == ["c"]
    check_images(plan, directory, verify=True)


def test_a_plan_that_changes_one_device_reuses_the_others(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    assert plan.draft is not None
    placement = split_draft(plan.model, plan.draft, ("b", "c"))
    changed = make_plan(
        plan.model,
        [Group(devices=stage.devices, runs=stage.runs) for stage in plan.stages],
        draft=plan.draft,
        placement=placement,
        embed_rows=plan.embed.rows,
        head_rows=plan.head.rows,
        inputs=plan.inputs,
    )
    save(changed, directory)
    report = compile_plan(directory, base_dir, draft_dir)
    assert [image.device for image in report.images if not image.reused] == ["c", "d"]
    check_images(changed, directory, verify=True)
