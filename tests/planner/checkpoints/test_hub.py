"""Models of the Hugging Face cache, laid out as huggingface_hub does and read through it, without a network."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from planner.checkpoints.checkpoint import INDEX, SINGLE, located
from planner.errors import CheckpointError
from planner.families import load_base
from tests.planner.tiny_checkpoints import refused, saved

OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache in which huggingface_hub looks."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def put(cache: Path, model: Path, revision: str, branch: str | None = None) -> Path:
    """Put a model into the cache as ``org/tiny``: files as links to blobs; return its snapshot."""
    repository = cache / "models--org--tiny"
    snapshot = repository / "snapshots" / revision
    for directory in (snapshot, repository / "blobs", repository / "refs"):
        directory.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        blob = repository / "blobs" / f"{revision}-{file.name}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    if branch:
        (repository / "refs" / branch).write_text(revision)
    return snapshot


def test_a_name_is_found_by_its_branch_or_its_commit(tmp_path: Path, cache: Path) -> None:
    old = put(cache, saved(tmp_path / "old"), OLD, branch="v1")
    new = put(cache, saved(tmp_path / "new", num_hidden_layers=3), NEW, branch="main")
    assert located(Path("org/tiny")) == new
    assert located(Path("org/tiny@v1")) == located(Path(f"org/tiny@{OLD}")) == old
    base = load_base(Path("org/tiny"))
    assert base.checkpoint.directory == new
    assert base.checkpoint.tensors
    assert (base.model.num_layers, load_base(Path("org/tiny@v1")).model.num_layers) == (3, 7)


def test_a_directory_comes_before_a_name(tmp_path: Path, cache: Path) -> None:
    put(cache, saved(tmp_path / "cached"), NEW, branch="main")
    here = saved(tmp_path / "org" / "tiny", num_hidden_layers=2)
    assert located(Path("org/tiny")) == Path("org/tiny")
    assert load_base(Path("org/tiny")).model == load_base(here).model


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("org/tiny", "hf download org/tiny"),
        ("org/tiny@v2", "hf download org/tiny --revision v2"),
        ("org/other", "hf download org/other"),
    ],
)
def test_what_is_not_in_the_cache_is_refused_with_the_command_that_downloads_it(
    tmp_path: Path, cache: Path, name: str, command: str
) -> None:
    put(cache, saved(tmp_path / "old"), OLD, branch="v1")
    assert refused(CheckpointError, lambda: load_base(Path(name))) == (
        f"{name}: no directory, and not in the Hugging Face cache {cache}: download it with `{command}`"
    )


def test_a_part_of_a_download_is_refused_with_the_file_that_is_missing(tmp_path: Path, cache: Path) -> None:
    snapshot = put(cache, saved(tmp_path / "sharded", max_shard_size="8KB"), NEW, branch="main")
    shards = sorted(set(json.loads((snapshot / INDEX).read_text())["weight_map"].values()))
    (snapshot / shards[1]).unlink()
    assert refused(CheckpointError, lambda: load_base(Path("org/tiny"))) == (
        f"{snapshot / INDEX}: weight_map: {shards[1]}: no such file in {snapshot}: "
        "download it with `hf download org/tiny`"
    )
    (snapshot / "config.json").unlink()
    assert "`hf download org/tiny`" in refused(CheckpointError, lambda: load_base(Path("org/tiny")))


def test_a_snapshot_without_weights_is_a_bare_config(tmp_path: Path, cache: Path) -> None:
    snapshot = put(cache, saved(tmp_path / "whole"), NEW, branch="main")
    (snapshot / SINGLE).unlink()
    assert load_base(Path("org/tiny")).checkpoint.tensors is None


@pytest.mark.parametrize("path", ["missing", "/org/tiny", "../org/tiny", "a/b/c", "org/tiny/config.json"])
def test_a_path_that_is_no_name_is_not_looked_up(cache: Path, path: str) -> None:
    assert located(Path(path)) == Path(path)


def test_the_library_is_imported_for_a_name_only() -> None:
    code = (
        "import sys; from pathlib import Path; from planner.families import load_base; "
        "load_base(Path('planner/demo/base')); sys.exit('huggingface_hub' in sys.modules)"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
