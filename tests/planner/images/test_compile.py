"""Compiling images: bytes equal to torch's, reproducible, reused, in bounded memory, complete or not written."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from planner.errors import CheckpointError, InputError, OutputError
from planner.families import BaseInput, DraftInput, load_base, load_draft
from planner.images import compile as compiling
from planner.images import reader, reuse, stream
from planner.images.casts import STORAGE, cast_into
from planner.images.compile import compile_plan
from plans import codec
from plans.artifact import IMAGES_FILE, load_images
from plans.ranges import share_range
from plans.schema import Inputs, KvAxis, Plan, PlanError, Run
from runtime.errors import ImageError
from runtime.image.verify import check_images
from tests.plan_factory import Group, group, make_device, make_plan, split_draft, write_base, write_draft

TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def inputs_of(base: BaseInput, draft: DraftInput | None) -> Inputs:
    return Inputs(
        base_config_sha256=base.config_sha256,
        base_tensors_sha256=base.tensors_sha256,
        draft_config_sha256=draft.config_sha256 if draft else None,
        draft_tensors_sha256=draft.tensors_sha256 if draft else None,
    )


def save(plan: Plan, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plan.yaml").write_text(codec.dumps(plan))
    return directory


def images_of(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return every image as the safetensors library reads it, without fillers."""
    images = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as image:
            assert image.metadata() == {"abi": "1", "device": file.stem}
            names = [name for name in image.keys() if not name.startswith("_pad.")]  # noqa: SIM118 - not a mapping
            images[file.stem] = {name: image.get_tensor(name) for name in names}
    return images


def two_stages(tmp_path: Path, *, kind: str = "eagle3", dtype: str = "float32") -> tuple[Path, Path, Path, Plan]:
    """Return the directory of a plan of two unequal pairs, its checkpoints, and the plan."""
    base_dir, draft_dir = tmp_path / "base", tmp_path / "head"
    write_base(base_dir, num_layers=8, shards=3)
    write_draft(draft_dir, kind=kind)
    base = load_base(base_dir)
    draft = load_draft(draft_dir, base)
    units = base.model.layers[0].mlp.intermediate_size // base.model.layers[0].mlp.unit
    first = Run(num_layers=4, kv_heads=(1, 1), mlp_units=(0, units))
    second = Run(num_layers=4, kv_heads=(1, 1), mlp_units=(units - units // 3, units // 3))
    plan = make_plan(
        base.model,
        [Group(devices=("a", "b"), runs=(first,)), Group(devices=("c", "d"), runs=(second,))],
        draft=draft.draft,
        placement=split_draft(base.model, draft.draft, ("b", "d")),
        embed_rows=(13, 37),
        head_rows=(50, 0),
        inputs=inputs_of(base, draft),
        dtype=dtype,  # type: ignore[arg-type]
    )
    return save(plan, tmp_path / "plan"), base_dir, draft_dir, plan


# ---- bytes ----


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    kv_heads = draw(st.integers(1, 3))
    return {
        "num_layers": draw(st.integers(7, 8)),
        "hidden_size": 8 * draw(st.integers(1, 4)),
        "num_heads": kv_heads * draw(st.integers(1, 2)),
        "num_kv_heads": kv_heads,
        "head_dim": draw(st.sampled_from([4, 8])),
        "intermediate_size": draw(st.sampled_from([16, 48, 80])),
        "vocab_size": draw(st.integers(31, 60)),
        "tied": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from(list(TORCH.values()))),
        "shards": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 99)),
    }


@settings(max_examples=25, deadline=None)
@given(case=cases(), data=st.data())
def test_images_are_slices_of_the_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, case: dict[str, object], data: st.DataObject
) -> None:
    tmp_path = tmp_path_factory.mktemp("case")
    tensors = write_base(tmp_path / "base", **case)  # type: ignore[arg-type]
    base = load_base(tmp_path / "base")
    attention, mlp = base.model.layers[0].attention, base.model.layers[0].mlp
    members = data.draw(st.integers(1, attention.num_kv_heads))
    names = ("a", "b", "c")[:members]

    def deal(total: int, least: int) -> tuple[int, ...]:
        cuts = sorted(data.draw(st.integers(0, total - least * members)) for _ in range(members - 1))
        edges = [0, *cuts, total - least * members]
        return tuple(stop - start + least for start, stop in itertools.pairwise(edges))

    units = mlp.intermediate_size // mlp.unit
    layers = base.model.layers[0].num_layers
    run = Run(num_layers=layers, kv_heads=deal(attention.num_kv_heads, 1), mlp_units=deal(units, 0))
    dtype = data.draw(st.sampled_from(sorted(TORCH)))
    plan = make_plan(
        base.model,
        [Group(devices=names, runs=(run,))],
        embed_rows=deal(base.model.vocab_size, 0),
        head_rows=deal(base.model.vocab_size, 0),
        inputs=inputs_of(base, None),
        dtype=dtype,  # type: ignore[arg-type]
    )
    directory = save(plan, tmp_path / "plan")
    compile_plan(directory, tmp_path / "base", None)
    check_images(plan, directory, verify=True)
    images = [images_of(directory)[name] for name in names]
    wanted = {name: tensor.to(TORCH[dtype]) for name, tensor in tensors.items()}
    check_base(wanted, images, run, plan)


def check_base(wanted: dict[str, torch.Tensor], images: list[dict[str, torch.Tensor]], run: Run, plan: Plan) -> None:
    """Assert that the concatenated shares of all devices equal the tensors of the checkpoint."""
    attention = plan.model.layers[0].attention
    ratio, dim = attention.num_heads // attention.num_kv_heads, attention.head_dim

    def together(name: str, axis: int = 0) -> torch.Tensor:
        return torch.cat([image[name] for image in images if name in image], axis)

    embed = wanted["model.embed_tokens.weight"]
    for member, image in enumerate(images):
        (a, b), (c, d) = (share_range(split.rows, member) for split in (plan.embed, plan.head))
        one_has_all = a < b and c < d and ((a <= c and d <= b) or (c <= a and b <= d))
        if plan.model.tied_head and one_has_all:
            assert torch.equal(image["embed.weight"], embed[min(a, c) : max(b, d)])
            assert "head.weight" not in image
        else:
            assert torch.equal(image.get("embed.weight", embed[:0]), embed[a:b])
            head = wanted["model.embed_tokens.weight" if plan.model.tied_head else "lm_head.weight"]
            assert torch.equal(image.get("head.weight", head[:0]), head[c:d])
        assert torch.equal(image["norm.weight"], wanted["model.norm.weight"])
    for layer in range(run.num_layers):
        mine, theirs = f"layers.{layer}.", f"model.layers.{layer}."
        for kind in ["weight", "bias"] if attention.qkv_bias else ["weight"]:
            pieces = [
                image[f"{mine}qkv.{kind}"].split([ratio * k * dim, k * dim, k * dim])
                for image, k in zip(images, run.kv_heads, strict=True)
            ]
            for number, letter in enumerate("qkv"):
                rows = torch.cat([piece[number] for piece in pieces])
                assert torch.equal(rows, wanted[f"{theirs}self_attn.{letter}_proj.{kind}"])
        assert torch.equal(together(f"{mine}o.weight", 1), wanted[f"{theirs}self_attn.o_proj.weight"])
        for number, name in enumerate(["gate", "up"]):
            for kind in ["weight", "bias"] if plan.model.layers[0].mlp.bias else ["weight"]:
                halves = [
                    image[f"{mine}gate_up.{kind}"].chunk(2)[number] for image in images if f"{mine}down.weight" in image
                ]
                assert torch.equal(torch.cat(halves), wanted[f"{theirs}mlp.{name}_proj.{kind}"])
        assert torch.equal(together(f"{mine}down.weight", 1), wanted[f"{theirs}mlp.down_proj.weight"])
        if attention.o_bias:
            assert torch.equal(together(f"{mine}o.bias"), wanted[f"{theirs}self_attn.o_proj.bias"])
        if plan.model.layers[0].mlp.bias:
            assert torch.equal(together(f"{mine}down.bias"), wanted[f"{theirs}mlp.down_proj.bias"])


@pytest.mark.parametrize("axis", ["heads", "context", "head_dim", "batch"])
@pytest.mark.parametrize("only", [None, ("b",)])
def test_members_of_a_subgroup_have_their_slices(tmp_path: Path, axis: KvAxis, only: tuple[str, ...] | None) -> None:
    """Two KV heads on one device, one shared by two devices, one by three; compared with indexing by torch."""
    tensors = write_base(
        tmp_path / "base", num_layers=2, num_heads=24, num_kv_heads=4, head_dim=12, attention_bias=True, shards=2
    )
    base = load_base(tmp_path / "base")
    names, sizes = tuple("abcdef"), (1, 2, 3)
    held = [(0, 2, 1, 0), (2, 1, 2, 0), (2, 1, 2, 1), (3, 1, 3, 0), (3, 1, 3, 1), (3, 1, 3, 2)]
    run = Run(num_layers=2, kv_heads=tuple(heads for _, heads, _, _ in held), mlp_units=(3, 1, 1, 1, 1, 1))
    plan = make_plan(
        base.model,
        [Group(devices=names, runs=(run,), axis=axis, subgroups=sizes)],
        inputs=inputs_of(base, None),
        batch=3,
    )
    directory = save(plan, tmp_path / "plan")
    compile_plan(directory, tmp_path / "base", None, only)
    images = images_of(directory)
    for name, (first, heads, parts, part) in zip(names, held, strict=True):
        if only is None or name in only:
            _check_attention(images[name], tensors, axis, range(first, first + heads), parts, part)


def _check_attention(
    image: dict[str, torch.Tensor],
    tensors: dict[str, torch.Tensor],
    axis: KvAxis,
    heads: range,
    parts: int,
    part: int,
) -> None:
    """Assert the attention slots of a member of a model with 4 KV heads of 12 dims and 6 query heads each."""
    dims = torch.arange(12).view(2, parts, 6 // parts)[:, part].flatten() if axis == "head_dim" else torch.arange(12)
    values = torch.arange(12).chunk(parts)[part] if axis == "head_dim" else torch.arange(12)
    queries = torch.arange(24).view(4, 6)[heads.start : heads.stop]
    if axis == "heads":
        queries = queries.chunk(parts, dim=1)[part]
    queries = queries.reshape(-1, 1) * 12
    keys = torch.arange(heads.start, heads.stop).unsqueeze(1) * 12
    columns = (queries + values).flatten()
    if axis == "context":
        columns = columns.chunk(parts)[part]
    for layer in range(2):
        prefix = f"model.layers.{layer}.self_attn."
        for kind in ("weight", "bias"):
            rows = [
                tensors[f"{prefix}q_proj.{kind}"][(queries + dims).flatten()],
                tensors[f"{prefix}k_proj.{kind}"][(keys + dims).flatten()],
                tensors[f"{prefix}v_proj.{kind}"][(keys + values).flatten()],
            ]
            assert torch.equal(image[f"layers.{layer}.qkv.{kind}"], torch.cat(rows))
        assert torch.equal(image[f"layers.{layer}.o.weight"], tensors[f"{prefix}o_proj.weight"][:, columns])


def test_embedding_and_lm_head_on_separate_devices(tmp_path: Path) -> None:
    tensors = write_base(tmp_path / "base", num_layers=2)
    base = load_base(tmp_path / "base")
    groups = [group(base.model, ["a"], 2)]
    plan = make_plan(base.model, groups, embed=["b"], head=["c", "a"], head_rows=(30, 20), inputs=inputs_of(base, None))
    directory = save(plan, tmp_path / "plan")
    compile_plan(directory, tmp_path / "base", None)
    images = images_of(directory)
    assert set(images["b"]) == {"embed.weight"}
    assert torch.equal(images["b"]["embed.weight"], tensors["model.embed_tokens.weight"])
    assert set(images["c"]) == {"norm.weight", "head.weight"}
    assert torch.equal(torch.cat([images["c"]["head.weight"], images["a"]["head.weight"]]), tensors["lm_head.weight"])
    assert "embed.weight" not in images["a"]


@pytest.mark.parametrize("kind", ["eagle3", "eagle"])
def test_a_head_split_over_two_devices(tmp_path: Path, kind: str) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path, kind=kind)
    report = compile_plan(directory, base_dir, draft_dir)
    assert [image.device for image in report.images] == ["a", "b", "c", "d"]
    assert not report.missing
    images = images_of(directory)
    with safe_open(draft_dir / "model.safetensors", framework="pt") as file:
        head = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    with_head = [images["b"], images["d"]]
    prefix = "midlayer." if kind == "eagle3" else "layers.0."
    down = torch.cat([image["draft.layers.0.down.weight"] for image in with_head], 1)
    assert torch.equal(down, head[f"{prefix}mlp.down_proj.weight"])
    for image in with_head:
        assert torch.equal(image["draft.fc.weight"], head["fc.weight"])
        if kind == "eagle3":
            assert torch.equal(image["draft.d2t"], head["d2t"])
            assert torch.equal(image["draft.layers.0.hidden_norm.weight"], head[f"{prefix}hidden_norm.weight"])
        else:
            assert torch.equal(image["draft.fc.bias"], head["fc.bias"])
    rows = torch.cat([image["draft.head.weight"] for image in with_head])
    with safe_open(base_dir / "model-00001-of-00003.safetensors", framework="pt") as file:
        lm_head = file.get_tensor("lm_head.weight")
    assert torch.equal(rows, head["lm_head.weight"] if kind == "eagle3" else lm_head)
    assert not any(name.startswith("draft.") for name in [*images["a"], *images["c"]])
    check_images(plan, directory, verify=True)


def special_floats() -> torch.Tensor:
    """Return every bfloat16, its neighbours at the rounding ties, and random bits; no NaN."""
    high = torch.arange(1 << 16, dtype=torch.int64) << 16
    ties = torch.cat([high + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    noise = torch.randint(0, 1 << 32, (200_000,), generator=torch.Generator().manual_seed(0))
    bits = torch.cat([ties, noise])
    values = torch.from_numpy(bits.numpy().astype(np.uint32).view(np.float32))
    return values[~values.isnan()]


@pytest.mark.parametrize("target", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("source", ["bfloat16", "float16", "float32"])
def test_casts_are_torchs_bit_for_bit(source: str, target: str) -> None:
    values = special_floats().to(TORCH[source])
    stored = values.view(torch.uint16).numpy() if source == "bfloat16" else values.numpy()
    out = np.empty((len(stored), 1), STORAGE[CODES[target]])
    cast_into(out, stored.reshape(-1, 1), CODES[source], CODES[target])
    expected = values.to(TORCH[target])
    bits = expected.view(torch.int32 if target == "float32" else torch.int16).numpy()
    assert np.array_equal(out.view(bits.dtype)[:, 0], bits)


@pytest.mark.parametrize("target", ["bfloat16", "float16", "float32"])
def test_casts_keep_nan(target: str) -> None:
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], "<u4").view("<f4")
    out = np.empty((4, 1), STORAGE[CODES[target]])
    cast_into(out, nans.reshape(4, 1), "F32", CODES[target])
    assert torch.from_numpy(out).view(TORCH[target]).isnan().all()


@pytest.mark.parametrize("nbytes", [1000, 100])
def test_small_blocks_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    """A block of 100 bytes is less than a row."""
    directory, base_dir, draft_dir, plan = two_stages(tmp_path, dtype="bfloat16")
    compile_plan(directory, base_dir, draft_dir)
    monkeypatch.setattr(stream, "BLOCK_BYTES", nbytes)
    again = save(plan, tmp_path / "again")
    compile_plan(again, base_dir, draft_dir)
    same_artifact(directory, again)


def names(directory: Path) -> set[str]:
    """Return the names in a directory; images by their devices."""
    return {file.name.removesuffix(".safetensors") for file in directory.iterdir()}


def same_artifact(a: Path, b: Path) -> None:
    """Assert that all files are equal except ``.compiled``, which is specific to a machine."""
    assert names(a) == names(b) == {"a", "b", "c", "d", "images.yaml", "plan.yaml", ".compiled"}
    for file in a.iterdir():
        assert file.name == ".compiled" or file.read_bytes() == (b / file.name).read_bytes(), file.name


def test_a_copy_of_the_checkpoint_elsewhere_gives_the_same_bytes(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path, dtype="float16")
    compile_plan(directory, base_dir, draft_dir)
    shutil.copytree(base_dir, tmp_path / "other base", copy_function=shutil.copyfile)
    shutil.copytree(draft_dir, tmp_path / "other head", copy_function=shutil.copyfile)
    again = save(plan, tmp_path / "again")
    compile_plan(again, tmp_path / "other base", tmp_path / "other head", only=["d", "b"])
    compile_plan(again, tmp_path / "other base", tmp_path / "other head", only=["box0"])
    same_artifact(directory, again)


@pytest.mark.parametrize("blocks", [2 << 20, 1000])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_source_byte_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tied: bool, dtype: str, blocks: int
) -> None:
    """Embedding and lm_head have different splits and are used by the EAGLE head too; system calls count the reads."""
    tensors = write_base(tmp_path / "base", num_layers=8, tied=tied, shards=2)
    write_draft(tmp_path / "head", kind=kind)
    base = load_base(tmp_path / "base")
    draft = load_draft(tmp_path / "head", base)
    plan = make_plan(
        base.model,
        [group(base.model, ["a", "b"], 8)],
        draft=draft.draft,
        placement=split_draft(base.model, draft.draft, ("b",)),
        embed_rows=(13, 37),
        head_rows=(30, 20),
        inputs=inputs_of(base, draft),
        dtype=dtype,  # type: ignore[arg-type]
    )
    monkeypatch.setattr(stream, "BLOCK_BYTES", blocks)
    asked: dict[Path, list[tuple[int, int]]] = {}
    original = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = original(descriptor, buffers, offset)
        asked.setdefault(Path(f"/proc/self/fd/{descriptor}").readlink(), []).append((offset, offset + count))
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    report = compile_plan(save(plan, tmp_path / "plan"), tmp_path / "base", tmp_path / "head")
    monkeypatch.undo()
    of_sources = [sorted(spans) for file, spans in asked.items() if tmp_path / "plan" not in file.parents]
    for spans in of_sources:
        assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans))
    assert sum(stop - start for spans in of_sources for start, stop in spans) == report.read_bytes
    head = load_file(tmp_path / "head" / "model.safetensors")
    everything = [*tensors.values(), *(tensor for name, tensor in head.items() if name != "t2d")]
    assert report.read_bytes == sum(tensor.nbytes for tensor in everything)
    images = images_of(tmp_path / "plan")
    embed = tensors["model.embed_tokens.weight"].to(TORCH[dtype])
    of_head = tensors["model.embed_tokens.weight" if tied else "lm_head.weight"].to(TORCH[dtype])
    assert torch.equal(images["b"]["draft.embed.weight"], embed)
    if tied:
        assert torch.equal(images["a"]["embed.weight"], embed[:30]), "the lm_head's 30, among them the embedding's 13"
        assert torch.equal(images["b"]["embed.weight"], embed[13:]), "the embedding's 37, among them the lm_head's 20"
        assert not any("head.weight" in image for image in images.values())
    else:
        assert torch.equal(torch.cat([images[name]["head.weight"] for name in "ab"]), of_head)
    if kind == "eagle":
        assert torch.equal(images["b"]["draft.head.weight"], of_head)
    check_images(plan, tmp_path / "plan", verify=True)


# ---- reuse ----


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


def flip(file: Path, position: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[position] ^= 1
    file.write_bytes(raw)


def test_only_some_devices(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    report = compile_plan(directory, base_dir, draft_dir, only=["a", "b"])
    assert report.missing == ("c", "d")
    assert sorted(file.stem for file in directory.glob("*.safetensors")) == ["a", "b"]
    with pytest.raises(ImageError, match=r"no image c\.safetensors, d\.safetensors"):
        check_images(plan, directory, verify=True)
    check_images(plan, directory, verify=True, devices=["a"])
    report = compile_plan(directory, base_dir, draft_dir, only=["c", "d"])
    assert not report.missing
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


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, _ = two_stages(tmp_path)
    seen: list[tuple[int, int]] = []
    report = compile_plan(directory, base_dir, draft_dir, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {report.written_bytes}
    assert seen[-1][0] <= report.written_bytes


# ---- refusals ----


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


def edited(file: Path, how: str) -> None:
    """Change a source but not its size, nor, in one case, its modification time."""
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    if how == "replaced":
        shutil.copy(file, file.with_name("other"))
        file.with_name("other").rename(file)
    elif how == "touched":
        file.touch()
    else:
        flip(file, -1)
        os.utime(file, ns=times)


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


IN_A_SMALL_ROOM = """
mount -t tmpfs -o size=$1 tmpfs "$2" && cp -a "$3/." "$2" && "$4" -m planner compile "$2" --model "$5" --draft "$6"
code=$?
diff -r "$3" "$2" && exit $code
"""


@pytest.mark.parametrize("short", ["images", "images.yaml"])
def test_a_disk_that_is_really_full(tmp_path: Path, short: str) -> None:
    directory, base_dir, draft_dir, _ = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    write_draft(draft_dir, seed=3)
    (tmp_path / "room").mkdir()
    new = [directory / f"{name}.safetensors" for name in "bd"] if short == "images.yaml" else []
    pages = sum(-(-file.stat().st_size // 4096) for file in [*directory.iterdir(), *new])
    arguments = [str(4096 * pages), *map(str, (tmp_path / "room", directory, sys.executable, base_dir, draft_dir))]
    command = ["unshare", "-rm", "sh", "-c", IN_A_SMALL_ROOM, "sh", *arguments]
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    refusal = r"room/\.compile-b\.safetensors: cannot write \d+ bytes" if short == "images" else "room: cannot write"
    assert re.search(rf"{refusal}: No space left on device", result.stderr)
    assert result.stdout == "", "diff must print nothing: all files are the old ones and there are no others"


@pytest.mark.parametrize("call", ["write", "fsync", "posix_fallocate"])
def test_a_full_disk_leaves_the_old_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    write_draft(draft_dir, seed=3)

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutputError, match=r"cannot write.*No space left on device"):
        compile_plan(directory, base_dir, draft_dir)
    monkeypatch.undo()
    check_images(plan, directory, verify=True)
    assert not list(directory.glob(".compile-*"))


def removed(directory: Path) -> None:
    for file in directory.glob(".compile-*"):
        file.unlink()


def obstructed(directory: Path) -> None:
    (directory / "d.safetensors").rename(directory / "other")
    (directory / "d.safetensors").mkdir()


@pytest.mark.parametrize("change", [removed, obstructed, shutil.rmtree], ids=lambda change: change.__name__)
def test_changes_of_the_directory_during_a_compile_are_reported(tmp_path: Path, change: Callable[[Path], None]) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    write_draft(draft_dir, seed=3)
    changes = iter([change])

    def change_directory(done: int, total: int) -> None:
        for change in changes:
            change(directory)

    with pytest.raises(OutputError, match="plan: cannot write: "):
        compile_plan(directory, base_dir, draft_dir, progress=change_directory)
    if directory.exists():
        check_images(plan, directory, verify=True, devices=["a", "b", "c"])


# ---- killed, two at once, memory ----

COMPILE = """
import sys, time
from pathlib import Path
from planner.images import publish, reader as sources, stream
from planner.images.compile import compile_plan
stream.BLOCK_BYTES = 1 << 20
print("ready", flush=True)
sys.stdin.readline()
directory, base, draft = (None if name == "-" else Path(name) for name in sys.argv[1:4])
compile_plan(directory, base, draft)
print("done", flush=True)
"""


def start(directory: Path, base_dir: Path, draft_dir: Path | None) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", COMPILE, str(directory), str(base_dir), str(draft_dir or "-")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def go(child: "subprocess.Popen[str]") -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def test_killed_at_any_moment_no_mixture_verifies(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 2000, "num_layers": 7}
    write_base(tmp_path / "old", **sizes, seed=1)  # type: ignore[arg-type]
    write_base(tmp_path / "new", **sizes, seed=2)  # type: ignore[arg-type]
    base = load_base(tmp_path / "old")
    devices = [make_device(name, memory_bytes=1 << 30) for name in "abcd"]
    groups = [group(base.model, ["a", "b"], 3), group(base.model, ["c", "d"], 4)]
    plan = make_plan(base.model, groups, inputs=inputs_of(base, None), devices=devices)
    directory = save(plan, tmp_path / "plan")
    artifacts = []
    for name in ("new", "old"):
        began = time.monotonic()
        compile_plan(directory, tmp_path / name, None)
        elapsed = time.monotonic() - began
        artifacts.append([image.blake3 for image in load_images(directory).images])
    generator = random.Random(0)
    outcomes = set()
    for _ in range(pytestconfig.getoption("--kills")):
        outcome = kill_and_look(plan, directory, tmp_path / "new", generator.uniform(0, 1.3 * elapsed), artifacts)
        outcomes.add(outcome)
        if outcome != "old":
            compile_plan(directory, tmp_path / "old", None)
    compile_plan(directory, tmp_path / "old", None)
    assert names(directory) == {"a", "b", "c", "d", "images.yaml", "plan.yaml", ".compiled"}, (
        "the next run removes the temporary files"
    )
    assert "old" in outcomes


def kill_and_look(plan: Plan, directory: Path, source: Path, delay: float, artifacts: list[list[str]]) -> str:
    """Kill a compile after a delay; return which artifact then verifies, ``old`` or ``new``, or ``refused``."""
    with start(directory, source, None) as child:
        go(child)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
    try:
        check_images(plan, directory, verify=True)
    except ImageError:
        return "refused"
    digests = [image.blake3 for image in load_images(directory).images]
    assert digests in artifacts
    return ("new", "old")[artifacts.index(digests)]


def test_killed_between_any_two_renames_no_mixture_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    original = Path.rename
    for last in range(5):
        compile_plan(directory, base_dir, draft_dir)
        write_draft(draft_dir, seed=100 + last)
        calls = iter(range(10))

        def until(self: Path, target: Path, calls: "iter[int]" = calls, last: int = last) -> Path:  # type: ignore[valid-type]
            if next(calls) == last:  # type: ignore[call-overload]
                raise KeyboardInterrupt
            return original(self, target)

        monkeypatch.setattr(Path, "rename", until)
        with pytest.raises(KeyboardInterrupt) if last < 4 else contextlib.nullcontext():
            compile_plan(directory, base_dir, draft_dir)
        monkeypatch.undo()
        with pytest.raises(ImageError) if last < 3 else contextlib.nullcontext():
            check_images(plan, directory, verify=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_it_leaves_nothing_behind(tmp_path: Path, number: int, code: int) -> None:
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    compile_plan(directory, base_dir, draft_dir)
    before = names(directory)
    write_draft(draft_dir, seed=3)
    program = SLOW.format(number=int(number))
    command = [sys.executable, "-c", program, "compile", str(directory), "--model", str(base_dir)]
    result = subprocess.run([*command, "--draft", str(draft_dir)], capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert names(directory) == before
    check_images(plan, directory, verify=True)


SLOW = """
import os, sys
from planner.cli import main
from planner.images.pipeline import Writer
original, sent = Writer.write, []

def write(self, piece):
    original(self, piece)
    if self.written_bytes > 10000 and not sent:
        sent.append(os.kill(os.getpid(), {number}))

Writer.write = write
main()
"""


def test_of_two_commands_at_once_the_second_is_refused(tmp_path: Path) -> None:
    """The second is refused even for other images, as one record lists all images."""
    directory, base_dir, draft_dir, plan = two_stages(tmp_path)
    arguments = ["compile", str(directory), "--model", str(base_dir), "--draft", str(draft_dir), "--only"]
    program = SLOW.format(number=int(signal.SIGSTOP))
    with subprocess.Popen([sys.executable, "-c", program, *arguments, "a"], stderr=subprocess.DEVNULL) as first:
        assert os.WIFSTOPPED(os.waitpid(first.pid, os.WUNTRACED)[1])
        second = [sys.executable, "-m", "planner", *arguments, "c"]
        refused = subprocess.run(second, capture_output=True, text=True, check=False)
        first.send_signal(signal.SIGCONT)
    assert (first.returncode, refused.returncode) == (0, 2)
    assert refused.stderr == f"error: {directory}: another compile of this plan is running: wait for it\n"
    check_images(plan, directory, verify=True, devices=["a"])
    assert not list(directory.glob(".compile-*"))


MEMORY = """
import sys
from pathlib import Path
from planner.images.compile import compile_plan

def peak_bytes():  # of this address space; ru_maxrss would start at the parent's size at the fork
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

before = peak_bytes()
report = compile_plan(Path(sys.argv[1]), Path(sys.argv[2]), None)
print(report.written_bytes, peak_bytes() - before)
"""


def test_memory_does_not_depend_on_the_model(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    base_dir = tmp_path / "base"
    sizes = {"hidden_size": 1024, "num_heads": 8, "num_kv_heads": 2, "head_dim": 128, "num_layers": 1}
    rows = int(pytestconfig.getoption("--sparse-gigabytes") * 1e9) // (2 * 4 * 1024)
    sizes |= {"intermediate_size": 4096, "vocab_size": rows - 8_000}
    sparse_base(base_dir, sizes)
    base = load_base(base_dir)
    devices = [make_device(name, memory_bytes=1 << 40) for name in "ab"]
    groups = [group(base.model, ["a", "b"], 1)]
    plan = make_plan(base.model, groups, inputs=inputs_of(base, None), devices=devices, dtype="bfloat16")
    directory = save(plan, tmp_path / "plan")
    command = [sys.executable, "-c", MEMORY, str(directory), str(base_dir)]
    written, grown = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert written > 140 << 20
    assert 8 << 20 <= grown < 64 << 20, f"{grown / 2**20:.0f} MiB"
    assert (directory / IMAGES_FILE).exists()


def sparse_base(directory: Path, sizes: dict[str, int]) -> None:
    """Write a checkpoint of zeros that takes no disk space: a header, and a sparse hole for the data."""
    tiny = write_base(directory, **(sizes | {"vocab_size": 1, "intermediate_size": 4096}))  # type: ignore[arg-type]
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": sizes["vocab_size"]}))
    table, offset = {}, 0
    for name, tensor in tiny.items():
        table_like = name in {"model.embed_tokens.weight", "lm_head.weight"}
        shape = [sizes["vocab_size"], sizes["hidden_size"]] if table_like else list(tensor.shape)
        nbytes = 4 * int(np.prod(shape))
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(table).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
