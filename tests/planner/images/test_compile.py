"""Compiling images: bytes equal to torch's, reproducible, each byte read once."""

import itertools
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from planner.families import inputs_of, load_base, load_draft
from planner.images import blocks
from planner.images.compile import compile_plan
from plans.ranges import share_range
from plans.schema import KvAxis, Plan, Run
from runtime.errors import ImageError
from runtime.image.verify import check_images
from tests.plan_factory import Group, group, make_plan, split_draft, write_base, write_draft
from tests.planner.images.two_stages import TORCH, images_of, names, save, two_stages


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


@pytest.mark.parametrize("nbytes", [1000, 100])
def test_small_blocks_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    """A block of 100 bytes is less than a row."""
    directory, base_dir, draft_dir, plan = two_stages(tmp_path, dtype="bfloat16")
    compile_plan(directory, base_dir, draft_dir)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", nbytes)
    again = save(plan, tmp_path / "again")
    compile_plan(again, base_dir, draft_dir)
    same_artifact(directory, again)


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


@pytest.mark.parametrize("block_bytes", [2 << 20, 1000])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_source_byte_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tied: bool, dtype: str, block_bytes: int
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
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
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


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    directory, base_dir, draft_dir, _ = two_stages(tmp_path)
    seen: list[tuple[int, int]] = []
    report = compile_plan(directory, base_dir, draft_dir, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {report.written_bytes}
    assert seen[-1][0] <= report.written_bytes
