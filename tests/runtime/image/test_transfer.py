"""The ring of transfer buffers: right bytes in the right order, even if copies run as late as allowed."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from blake3 import blake3

from plans import paging
from runtime.errors import ImageDamaged, ImageTruncated
from runtime.image import transfer
from runtime.image.slots import CudaCopies
from runtime.image.transfer import Chunk, Host, hash_file, hash_mapped, upload

START = 4096


class LateCopies:
    """Copy engine that copies only when a copy is awaited, so that a buffer refilled too early arrives damaged.

    It asserts that copies begin in the order of the file and that no two buffers overlap.
    """

    def __init__(self, memory: Chunk, eager: Callable[[], bool] = lambda: False) -> None:
        self._memory = memory
        self._eager = eager
        self._queue: list[tuple[int, Chunk]] = []
        self.buffers: list[Chunk] = []
        self.begun = self.done = 0
        self.next_byte = 0

    def buffer(self, nbytes: int) -> Chunk:
        self.buffers.append(np.full(nbytes, 0xEE, np.uint8))
        return self.buffers[-1]

    def copy(self, offset: int, chunk: Chunk) -> int:
        assert offset == self.next_byte, "chunks go out in the order of the file"
        self.next_byte += len(chunk)
        self._queue.append((offset, chunk))
        self.begun += 1
        if self._eager():
            self.wait(self.begun)
        return self.begun

    def wait(self, event: int) -> None:
        while self.done < event:
            offset, chunk = self._queue.pop(0)
            self._memory[offset : offset + len(chunk)] = chunk
            self.done += 1

    def finish(self) -> None:
        self.wait(self.begun)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write a file of 30 chunks and a part of one."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(START * b"h" + random.Random(0).randbytes(30 * 1000 + 17))
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "COPY_BYTES", 1000)
    monkeypatch.setattr(transfer, "HASH_BYTES", 1000)
    monkeypatch.setattr(transfer, "SLICE_BYTES", 4096)


@pytest.mark.parametrize("readers", [1, 3, 8])
@pytest.mark.parametrize("mood", ["late", "eager", "either"])
@pytest.mark.parametrize("hashed", [True, False])
def test_the_destination_equals_the_file(
    file: Path, readers: int, mood: str, hashed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "READERS", readers)
    generator = random.Random(readers)
    slow_fill = transfer._fill

    def uneven(*arguments: object) -> None:
        time.sleep(generator.random() / 500)
        slow_fill(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(transfer, "_fill", uneven)
    raw = file.read_bytes()
    memory = np.zeros(len(raw) - START, np.uint8)
    moods: dict[str, Callable[[], bool]] = {
        "late": lambda: False,
        "eager": lambda: True,
        "either": lambda: generator.random() < 0.5,
    }
    engine = LateCopies(memory, moods[mood])
    with file.open("rb") as stream:
        digest = upload(stream.fileno(), (START, len(raw)), file, engine, Host(), hashed=hashed)
    assert memory.tobytes() == raw[START:]
    assert digest == (blake3(raw).hexdigest() if hashed else "")
    assert engine.done == engine.begun == 31
    assert len(engine.buffers) == readers + transfer.BEHIND


def test_the_late_engine_sees_an_overwritten_buffer(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check of the test itself: without waiting for events, wrong bytes arrive."""
    memory = np.zeros(file.stat().st_size - START, np.uint8)
    engine = LateCopies(memory)
    monkeypatch.setattr(engine, "wait", lambda event: None)
    with file.open("rb") as stream:
        upload(stream.fileno(), (START, file.stat().st_size), file, engine, Host(), hashed=False)
    LateCopies.wait(engine, engine.begun)
    assert memory.tobytes() != file.read_bytes()[START:]


@pytest.mark.parametrize("mood", ["late", "eager"])
def test_no_buffer_is_filled_before_it_is_hashed(file: Path, mood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        """A digest that takes its time."""

        def __init__(self, max_threads: int) -> None:
            self._digest = blake3(max_threads=max_threads)

        def update(self, data: bytes | memoryview) -> None:
            time.sleep(0.002)
            self._digest.update(data)

        def hexdigest(self) -> str:
            return self._digest.hexdigest()

    monkeypatch.setattr(transfer, "blake3", Slow)
    raw = file.read_bytes()
    engine = LateCopies(np.zeros(len(raw) - START, np.uint8), lambda: mood == "eager")
    with file.open("rb") as stream:
        digest = upload(stream.fileno(), (START, len(raw)), file, engine, Host(), hashed=True)
    assert digest == blake3(raw).hexdigest()


def test_processes_of_a_host_share_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "READERS", 8)
    monkeypatch.setattr(transfer, "HASHERS", 16)
    shares = [(host.readers, host.hashers) for host in (Host(), Host(processes=3), Host(processes=64))]
    assert shares == [(8, 16), (2, 5), (1, 1)]


def cold(path: Path, raw: bytes) -> None:
    """Write a file of which nothing is in the page cache."""
    with path.open("wb") as out:
        out.write(raw)
        out.flush()
        os.fsync(out.fileno())
        paging.forget(out.fileno(), 0, len(raw))


def is_cached(path: Path) -> bool:
    """Tell whether the last byte of a file is in the page cache; to ask may begin to read it."""
    with path.open("rb") as stream:
        return paging.is_cached(stream.fileno(), path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("keeps_pages", "was_cached", "stays"), [(True, False, True), (False, False, False), (False, True, True)]
)
def test_only_pages_that_were_cached_before_stay(
    tmp_path: Path, keeps_pages: bool, was_cached: bool, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold(tmp_path / "other", bytes(4096))
    if is_cached(tmp_path / "other"):
        pytest.skip("the file system keeps its pages")
    monkeypatch.setattr(transfer, "COPY_BYTES", 16 << 20)  # more than is read ahead
    path, raw = tmp_path / "a.safetensors", random.Random(0).randbytes(48 << 20)
    cold(path, raw)
    if was_cached:
        path.read_bytes()
    engine, host = LateCopies(np.zeros(len(raw) - START, np.uint8)), Host(keeps_pages=keeps_pages)
    with path.open("rb") as stream:
        digest = upload(stream.fileno(), (START, len(raw)), path, engine, host, hashed=True)
    assert is_cached(path) == stays
    assert digest == blake3(raw).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 34_113])
def test_a_hash_is_blake3_of_the_whole_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    with path.open("rb") as stream:
        expected = blake3(path.read_bytes()).hexdigest()
        assert hash_file(stream.fileno(), size, path) == expected
        if size:
            assert hash_mapped(stream.fileno(), size) == expected


def test_a_file_that_ends_early(file: Path) -> None:
    size = file.stat().st_size
    os.truncate(file, 20_000)
    with file.open("rb") as stream:
        with pytest.raises(ImageTruncated, match="ends at byte 20000: it was truncated while it was read"):
            hash_file(stream.fileno(), size, file)
        memory = np.zeros(size - START, np.uint8)
        with pytest.raises(ImageTruncated):
            upload(stream.fileno(), (START, size), file, LateCopies(memory), Host(), hashed=True)


def test_a_disk_that_fails(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(transfer.os, "preadv", fails)
    with file.open("rb") as stream, pytest.raises(ImageDamaged, match=r"cannot read at byte [0-9]+: Input/output"):
        hash_file(stream.fileno(), file.stat().st_size, file)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(file: Path) -> None:
    raw = file.read_bytes()
    memory = torch.zeros(len(raw) - START, dtype=torch.uint8, device="cuda:0")
    with file.open("rb") as stream:
        digest = upload(stream.fileno(), (START, len(raw)), file, CudaCopies(memory), Host(), hashed=True)
    assert memory.cpu().numpy().tobytes() == raw[START:]
    assert digest == blake3(raw).hexdigest()
