"""Files of directories that may come from a stranger: regular files inside are read, and nothing else is waited for."""

import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from plans.files import open_inside, read_inside, read_regular

SPECIAL = "a pipe, a socket or a device, expected a regular file"


def bind(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(file))


def sparse(file: Path) -> None:
    file.touch()
    os.truncate(file, 30 << 30)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "fifo": (os.mkfifo, SPECIAL),
    "socket": (bind, SPECIAL),
    "zero": (lambda file: file.symlink_to("/dev/zero"), SPECIAL),
    "tty": (lambda file: file.symlink_to("/dev/tty"), SPECIAL),
    "directory": (lambda file: file.mkdir(), "Is a directory"),
    "huge": (sparse, f"{30 << 30} bytes, expected at most 100"),
    "loop": (lambda file: file.symlink_to(file), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_small_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    make, reason = KINDS[kind]
    make(tmp_path / "x")
    begin = time.monotonic()
    for read in (lambda: read_regular(tmp_path / "x", 100), lambda: read_inside(tmp_path, "x", 100)):
        with pytest.raises(OSError, match=re.escape(reason)) as caught:
            read()
        assert caught.value.strerror == reason
    assert time.monotonic() - begin < 5


def test_a_fifo_of_a_writer_that_waits_is_refused_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    writer = os.open(tmp_path / "x", os.O_RDWR)
    os.write(writer, b"text")
    with pytest.raises(OSError, match=SPECIAL):
        read_inside(tmp_path, "x", 100)
    os.close(writer)


def test_links_stay_inside(tmp_path: Path) -> None:
    inner, secret = tmp_path / "plan", tmp_path / "secret"
    (inner / "sub").mkdir(parents=True)
    secret.write_bytes(b"key")
    (inner / "real").write_bytes(b"text")
    (inner / "relative").symlink_to("real")
    (inner / "absolute").symlink_to(inner.resolve() / "real")
    (inner / "sub" / "up").symlink_to("../real")
    (tmp_path / "other name").symlink_to(inner)
    for directory in (inner, tmp_path / "other name"):
        for name in ("real", "relative", "absolute", "sub/up"):
            assert read_inside(directory, name, 4) == b"text"
    (inner / "out").symlink_to("../secret")
    (inner / "chain").symlink_to("out")
    (inner / "elsewhere").symlink_to(tmp_path)
    (tmp_path / "plan-b").mkdir()
    (tmp_path / "plan-b" / "beside").write_bytes(b"key")
    (inner / "beside").symlink_to("../plan-b/beside")  # whose path begins with that of the directory
    for name in ("out", "chain", "elsewhere/secret", "beside", "../secret"):
        with pytest.raises(OSError, match=r"a link to .*, outside of .*, expected a file in it"):
            open_inside(inner, name)
    (inner / "nowhere").symlink_to("nothing")
    with pytest.raises(FileNotFoundError):
        open_inside(inner, "nowhere")
    assert read_regular(inner / "out", 3) == b"key", "a file that the user named"


def test_the_links_of_a_hub_cache(tmp_path: Path) -> None:
    model = tmp_path / "models--x"
    (model / "blobs").mkdir(parents=True)
    (model / "blobs" / "1f").write_bytes(b"text")
    (model / "snapshots" / "ab" / "sub").mkdir(parents=True)
    (model / "snapshots" / "ab" / "config.json").symlink_to("../../blobs/1f")
    (model / "snapshots" / "ab" / "sub" / "config.json").symlink_to("../../../blobs/1f")
    assert read_inside(model / "snapshots" / "ab", "config.json", 4) == b"text"
    assert read_inside(model / "snapshots" / "ab", "sub/config.json", 4) == b"text"
    assert read_inside(model / "snapshots" / "ab" / "sub", "config.json", 4) == b"text"
    (model / "refs").write_bytes(b"other")
    (model / "snapshots" / "ab" / "out").symlink_to("../../refs")
    with pytest.raises(OSError, match="outside of"):
        read_inside(model / "snapshots" / "ab", "out", 10)


@pytest.mark.parametrize("name", ["a\0b", "\0"])
def test_a_path_with_a_nul_byte_is_refused_as_one_that_is_no_file(name: str, tmp_path: Path) -> None:
    for reads in (lambda: read_regular(tmp_path / name, 9), lambda: read_inside(tmp_path, name, 9)):
        with pytest.raises(OSError, match="a NUL byte in the path, expected the path of a file"):
            reads()
