"""A plan of two unequal pairs of devices with its checkpoints, and what a compile leaves of it."""

import os
import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from planner.families import inputs_of, load_base, load_draft
from plans import codec
from plans.schema import Plan, Run
from tests.plan_factory import Group, make_plan, split_draft, write_base, write_draft

TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def names(directory: Path) -> set[str]:
    """Return the names in a directory; images by their devices."""
    return {file.name.removesuffix(".safetensors") for file in directory.iterdir()}


def flip(file: Path, position: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[position] ^= 1
    file.write_bytes(raw)


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
