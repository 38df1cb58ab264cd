"""Durable writes: the order of fsync and rename calls, and the file after a failure."""

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from plans import durable


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


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "place").mkdir()
    link, target = tmp_path / "link", tmp_path / "place" / ("a" * 255)
    link.symlink_to(target)
    durable.write_whole(link, "old")
    assert (link.readlink(), target.read_text()) == (target, "old")
    with pytest.raises(FileExistsError):
        durable.write_new(link, "new")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        durable.write_whole(link, "new")
    with pytest.raises(OSError, match="No space left"):
        durable.write_new(tmp_path / "other", "new")
    assert target.read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == [target.name, "link", "place"]


def test_a_device_is_written_and_stays_one(tmp_path: Path) -> None:
    link = tmp_path / "stdout"
    link.symlink_to(os.devnull)
    durable.write_whole(link, "page")
    assert Path(os.devnull).is_char_device()
    with pytest.raises(IsADirectoryError):
        durable.write_whole(tmp_path, "page")
