"""Durable writes: the order of fsync and rename calls, and the file after a failure."""

import os
from pathlib import Path

import pytest

from planner import durable


def test_a_file_is_replaced_by_a_synced_temporary_and_then_its_directory_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, temporary = tmp_path / "a", tmp_path / ".a.new"
    file.write_text("old")
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        steps.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}: {file.read_text()}")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        steps.append(f"rename {self.name} to {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    durable.replace(file, b"new", temporary)
    assert steps == ["fsync .a.new: old", "rename .a.new to a", f"fsync {tmp_path.name}: new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, temporary = tmp_path / "a", tmp_path / ".a.new"
    file.write_text("old")

    def fails(descriptor: int) -> None:
        raise OSError

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError):  # noqa: PT011 - any
        durable.replace(file, b"new", temporary)
    assert file.read_text() == "old"
