"""Directories with a stranger's files: nothing outside is read into a plan, and nothing outside is written."""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from planner.directory_lock import LOCK, held
from planner.errors import CheckpointError, InputError, InventoryError, OutputError
from planner.families import BaseInput, inputs_of, load_base, load_draft
from planner.hardware.inventory import load_inventory
from planner.images import publish, reuse
from planner.images.compile import compile_plan
from planner.plan_directory import TOKENIZER_FILES, draft_config, write
from planner.problem.device_map import load_device_map
from plans import codec
from plans.schema import Plan, PlanError
from tests.plan_factory import group, make_plan, write_base, write_draft


def planned(tmp_path: Path, *, base_dir: Path | None = None) -> tuple[Plan, BaseInput]:
    """Return a plan without drafter, and its checkpoint."""
    base_dir = base_dir or tmp_path / "base"
    if not base_dir.exists():
        write_base(base_dir)
    base = load_base(base_dir)
    inputs = inputs_of(base, None)
    return make_plan(base.model, [group(base.model, ["a"], 4)], inputs=inputs), base


def test_a_hub_cache_is_copied_as_files(tmp_path: Path) -> None:
    """Files of a cache are links into its blobs; a plan has their contents."""
    model = tmp_path / "models--x"
    (model / "snapshots").mkdir(parents=True)
    (model / "blobs").mkdir()
    snapshot = model / "snapshots" / "0123"
    write_base(snapshot)
    for name in TOKENIZER_FILES:
        (snapshot / name).write_text(f"content of {name}")
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(model / "blobs" / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    plan, base = planned(tmp_path, base_dir=snapshot)
    write(tmp_path / "plan", plan, base, None)
    for name in TOKENIZER_FILES:
        assert (tmp_path / "plan" / name).read_text() == f"content of {name}"
    assert not any(file.is_symlink() for file in (tmp_path / "plan").iterdir())
    compile_plan(tmp_path / "plan", snapshot, None)


ATTACKS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a link to a secret": (lambda file, secret: file.symlink_to(secret), "outside of"),
    "a chain of links": (
        lambda file, secret: [(file.parent / "hop").symlink_to(secret), file.symlink_to("hop")],
        "outside of",
    ),
    "a pipe": (lambda file, secret: os.mkfifo(file), "a pipe, a socket or a device, expected a regular file"),
    "a device": (lambda file, secret: file.symlink_to("/dev/zero"), "a pipe, a socket or a device"),
    "a file of 30 GB": (lambda file, secret: [file.touch(), os.truncate(file, 30 << 30)], "bytes, expected at most"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_nothing_outside_of_the_checkpoint_is_copied(name: str, attack: str, tmp_path: Path) -> None:
    plan, base = planned(tmp_path)
    secret = tmp_path / "id_rsa"
    secret.write_text("PRIVATE KEY")
    make, reason = ATTACKS[attack]
    make(tmp_path / "base" / name, secret)
    with pytest.raises(CheckpointError, match=reason) as caught:
        write(tmp_path / "plan", plan, base, None)
    assert str(caught.value).startswith(f"{tmp_path / 'base' / name}: cannot read: ")
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_nothing_outside_of_the_checkpoint_is_read(name: str, attack: str, tmp_path: Path) -> None:
    if name == "model.safetensors" and "30 GB" in attack:
        pytest.skip("a file of tensors may have any size: its header says which")
    write_base(tmp_path / "base", shards=2 if name.endswith("index.json") else 1)
    secret = tmp_path / "elsewhere"
    (tmp_path / "base" / name).rename(secret)
    make, reason = ATTACKS[attack]
    make(tmp_path / "base" / name, secret)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_base(tmp_path / "base")
    assert str(caught.value).startswith(f"{tmp_path / 'base' / name}: ")


@pytest.mark.parametrize("attack", ["a link to a secret", "a chain of links", "a pipe", "a device"])
@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_no_tensors_are_read_outside_of_the_checkpoint(name: str, attack: str, tmp_path: Path) -> None:
    write_base(tmp_path / "base", shards=2, num_layers=8)
    write_draft(tmp_path / "head")
    directory = tmp_path / ("head" if name == "pytorch_model.bin" else "base")
    base = load_base(tmp_path / "base")
    secret = tmp_path / "elsewhere"
    (directory / (name if (directory / name).exists() else "model.safetensors")).rename(secret)
    make, reason = ATTACKS[attack]
    make(directory / name, secret)
    with pytest.raises(CheckpointError, match=reason):
        load_draft(directory, base) if directory.name == "head" else load_base(directory)


def test_an_inventory_and_a_device_map_are_regular_files_of_any_place(tmp_path: Path) -> None:
    """The user names them, so that they may be links to anywhere; a pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "inventory.yaml").symlink_to(Path(__file__).parents[2] / "inventory.yaml")
    assert load_inventory(tmp_path / "inventory.yaml").devices
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InventoryError, match="a pipe, a socket or a device, expected a regular file"):
            load_inventory(file)
        with pytest.raises(InputError, match="a pipe, a socket or a device, expected a regular file"):
            load_device_map(file)


# ---- a plan's directory ----


def test_a_directory_that_cannot_be_written_may_have_all_that_is_to_be_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is refused where nothing changes: no lock, and no file that is not there is removed."""
    plan, base = planned(tmp_path)
    directory = tmp_path / "plan"
    write(directory, plan, base, None)
    compile_plan(directory, tmp_path / "base", None)

    def refuse(*arguments: object, **options: object) -> None:
        """Fail as a file system does that is mounted read-only."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    opened = os.open

    def read_only(file: str | Path, flags: int, *arguments: int, **options: int) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            refuse()
        return opened(file, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", read_only)
    for name in ("unlink", "rename", "replace", "rmdir"):
        monkeypatch.setattr(os, name, refuse)
    write(directory, plan, base, None)
    assert all(image.reused for image in compile_plan(directory, tmp_path / "base", None).images)
    (directory / "images.yaml").write_text("")
    with pytest.raises(OutputError, match="bytes: Read-only file system"):
        compile_plan(directory, tmp_path / "base", None)
    other = replace(plan, options=replace(plan.options, stall_timeout_s=7))
    with pytest.raises(OutputError, match="plan: cannot write the plan: Read-only file system"):
        write(directory, other, base, None)


def outside(tmp_path: Path) -> Path:
    file = tmp_path / "precious"
    file.write_text("precious")
    return file


def test_links_under_the_names_that_are_written_are_replaced(tmp_path: Path) -> None:
    plan, base = planned(tmp_path)
    precious, directory = outside(tmp_path), tmp_path / "plan"
    (tmp_path / "base" / "tokenizer_config.json").write_text("{}")
    write(directory, plan, base, None)
    (directory / "tokenizer_config.json").write_text("old")
    (directory / "config.json").unlink()
    for name in ("plan.yaml", "tokenizer_config.json", "config.json"):
        (directory / f".{name}.new").symlink_to(precious)
    (directory / "config.json").symlink_to(precious)
    same = directory / "same"
    same.write_bytes((directory / "plan.yaml").read_bytes())
    (directory / "plan.yaml").unlink()
    (directory / "plan.yaml").symlink_to("same")
    write(directory, plan, base, None)
    assert precious.read_text() == "precious"
    assert {file.name for file in directory.iterdir()} == {"plan.yaml", "tokenizer_config.json", "config.json", "same"}
    assert all(stat.S_ISREG(file.lstat().st_mode) for file in directory.iterdir())
    assert (directory / "tokenizer_config.json").read_text() == "{}"
    assert codec.load(directory) == plan
    (directory / "plan.yaml").unlink()
    same.rename(tmp_path / "same")
    (directory / "plan.yaml").symlink_to("../same")
    with pytest.raises(OutputError, match=r"plan\.yaml: is no plan, and would be overwritten"):
        write(directory, plan, base, None)


@pytest.mark.parametrize("drafted", [True, False])
def test_a_link_as_the_directory_of_the_drafter_is_refused(tmp_path: Path, drafted: bool) -> None:
    plan, base = planned(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text("precious")
    directory = tmp_path / "plan"
    write(directory, plan, base, None)
    (directory / "draft").symlink_to(elsewhere)
    draft = None
    if drafted:
        write_base(tmp_path / "deep", num_layers=8)
        write_draft(tmp_path / "head")
        draft = load_draft(tmp_path / "head", load_base(tmp_path / "deep"))
    with pytest.raises(OutputError, match="draft: a link or a file, expected a directory: take it away"):
        write(directory, plan, base, draft)
    assert (elsewhere / "config.json").read_text() == "precious"
    with pytest.raises(CheckpointError, match=r"draft/config\.json: cannot read: a link to .* outside of"):
        draft_config(directory)


def test_a_lock_that_is_a_link_creates_nothing_at_its_target(tmp_path: Path) -> None:
    plan, base = planned(tmp_path)
    directory = tmp_path / "plan"
    write(directory, plan, base, None)
    (directory / LOCK).symlink_to(tmp_path / "created")
    with pytest.raises(OutputError, match=r"\.lock: a link or another special file"):
        compile_plan(directory, tmp_path / "base", None)
    assert not (tmp_path / "created").exists()
    (directory / LOCK).unlink()
    os.mkfifo(directory / LOCK)
    with pytest.raises(OutputError, match=r"\.lock: a link or another special file"):
        compile_plan(directory, tmp_path / "base", None)


def test_a_plan_that_another_command_writes_is_left_alone(tmp_path: Path) -> None:
    """The lock of a command that was killed is no lock, nor something other than a plan."""
    plan, base = planned(tmp_path)
    directory = tmp_path / "plan"
    directory.mkdir()
    with held(directory):
        with pytest.raises(OutputError, match="another command writes this plan: wait for it"):
            write(directory, plan, base, None)
        assert [file.name for file in directory.iterdir()] == [LOCK]
    (directory / LOCK).touch()
    write(directory, plan, base, None)
    assert codec.load(directory) == plan
    assert not (directory / LOCK).exists()


def test_compile_writes_nothing_through_links(tmp_path: Path) -> None:
    plan, base = planned(tmp_path)
    precious, directory = outside(tmp_path), tmp_path / "plan"
    write(directory, plan, base, None)
    for name in ("a.safetensors", "images.yaml", ".compiled"):
        (directory / name).symlink_to(precious)
        (directory / f"{publish.TEMPORARY}{name}").symlink_to(precious)
    compile_plan(directory, tmp_path / "base", None)
    assert precious.read_text() == "precious"
    assert not any(file.is_symlink() for file in directory.iterdir())


@pytest.mark.parametrize("attack", ["a link to a secret", "a chain of links", "a pipe", "a device", "a file of 30 GB"])
@pytest.mark.parametrize("name", ["plan.yaml", "images.yaml", ".compiled"])
def test_records_that_are_no_regular_files_are_refused_at_once(name: str, attack: str, tmp_path: Path) -> None:
    plan, base = planned(tmp_path)
    directory = tmp_path / "plan"
    write(directory, plan, base, None)
    compile_plan(directory, tmp_path / "base", None)
    secret = tmp_path / "elsewhere"
    (directory / name).rename(secret)
    make, reason = ATTACKS[attack]
    make(directory / name, secret)
    if name == "plan.yaml":
        with pytest.raises(PlanError, match=reason):
            compile_plan(directory, tmp_path / "base", None)
        return
    if name == ".compiled":
        assert reuse.recall(directory) is None
    assert compile_plan(directory, tmp_path / "base", None).images, "both are made again"
    assert stat.S_ISREG((directory / name).lstat().st_mode)
