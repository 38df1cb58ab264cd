"""Weights in the mapping of an image: views of it, whatever happens to the file while it is read."""

import faulthandler
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any

import pytest
import torch

from plans import paging
from runtime.errors import ImageDamaged, ImageError, ImageForeign, ImageTruncated
from runtime.image import slots, transfer
from runtime.image.slots import host_of, open_image
from runtime.image.transfer import Host
from runtime.image.verify import check_images
from tests.runtime.image.artifact import CPU, Artifact, flip

FORK = multiprocessing.get_context("fork")


# ---- weights ----


def test_slots_are_views_of_the_mapping(artifact: Artifact) -> None:
    record = check_images(artifact.plan, artifact.directory, verify=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = open_image(artifact.plan, artifact.directory, "a", CPU, record, verify=True)
    down = image.tensor("layers.3.down.weight", (32, 32), torch.float32)
    assert torch.equal(down, artifact.base["model.layers.3.mlp.down_proj.weight"][:, :32])
    start, stop = image.memory.data_ptr(), image.memory.data_ptr() + image.nbytes
    for name, slot in image.slots.items():
        tensor = image[name]
        assert start <= tensor.data_ptr() < stop
        assert tensor.data_ptr() % 256 == 0
        assert tensor.is_contiguous()
        assert tuple(tensor.shape) == slot.shape
    line = artifact.plan.memory[0]
    assert image.nbytes == line.weights_bytes + line.draft_weights_bytes
    assert not any(name.startswith("_pad.") for name in image.slots)


def test_pages_stay_where_the_images_of_a_host_take_half_of_what_is_free(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = check_images(artifact.plan, artifact.directory, verify=False)
    total = sum(image.size_bytes for image in record.images)
    for available, keeps_pages in ((2 * total, True), (2 * total - 1, False), (None, True)):
        monkeypatch.setattr(paging, "available_bytes", lambda free=available: free)
        assert host_of(artifact.plan, "a", record) == Host(processes=2, keeps_pages=keeps_pages)


def test_the_system_says_how_much_memory_is_free() -> None:
    available = paging.available_bytes()
    assert available is not None
    assert 0 < available < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_slot_outlives_its_image(artifact: Artifact) -> None:
    tensor = open_image(artifact.plan, artifact.directory, "b", CPU, verify=False)["draft.d2t"]
    assert tensor.dtype == torch.int64
    assert tensor.numel() == 30
    assert int(tensor.min()) >= 0


def forked(action: Callable[[Artifact, Connection], None], artifact: Artifact) -> tuple[ForkProcess, Connection]:
    """Fork a process that runs ``action`` and reports its progress through a pipe; torch is imported already."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=action, args=(artifact, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def write_to_the_mapping(artifact: Artifact, channel: Connection) -> None:
    faulthandler.disable()
    open_image(artifact.plan, artifact.directory, "a", CPU, verify=False)["norm.weight"].fill_(0)


def test_the_mapping_is_read_only(artifact: Artifact) -> None:
    process, _ = forked(write_to_the_mapping, artifact)
    process.join()
    assert process.exitcode == -11, "a write faults instead of changing the weights of every reader"
    check_images(artifact.plan, artifact.directory, verify=True)


def test_a_slot_of_another_shape_or_name_is_foreign(artifact: Artifact) -> None:
    image = open_image(artifact.plan, artifact.directory, "a", CPU, verify=False)
    with pytest.raises(ImageForeign, match=r"norm\.weight: found torch\.float32 \(32,\), expected .*\(33,\)"):
        image.tensor("norm.weight", (33,), torch.float32)
    with pytest.raises(ImageForeign, match=r"expected torch\.bfloat16"):
        image.tensor("norm.weight", (32,), torch.bfloat16)
    with pytest.raises(ImageForeign, match=r"draft\.fc\.weight: no such slot"):
        image.tensor("draft.fc.weight", (32, 96), torch.float32)
    assert "norm.weight" in image
    assert "draft.fc.weight" not in image


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("chunk", [4096, 1 << 24])
def test_one_allocation_on_a_gpu(artifact: Artifact, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "COPY_BYTES", chunk)
    on_cpu = open_image(artifact.plan, artifact.directory, "b", CPU, verify=False)
    on_gpu = open_image(artifact.plan, artifact.directory, "b", torch.device("cuda:0"), verify=True)
    assert torch.equal(on_gpu.memory.cpu(), on_cpu.memory)
    assert on_gpu["draft.d2t"].is_cuda
    flip(artifact.directory / "b.safetensors", -300)
    with pytest.raises(ImageDamaged, match="BLAKE3"):
        open_image(artifact.plan, artifact.directory, "b", torch.device("cuda:0"), verify=True)


def read_on(artifact: Artifact, channel: Connection) -> None:
    try:
        weight = open_image(artifact.plan, artifact.directory, "a", CPU, verify=True)["layers.7.down.weight"]
        channel.send("ready")
        while True:
            weight.sum()
    except ImageError as error:
        channel.send(f"{type(error).__name__}: {error}")


def test_a_file_that_is_truncated_under_a_running_process(artifact: Artifact) -> None:
    file = artifact.directory / "a.safetensors"
    process, channel = forked(read_on, artifact)
    assert channel.recv() == "ready"
    os.truncate(file, 4096)
    assert channel.recv().startswith(f"ImageTruncated: {file}: another program writes to it"), "an error, not a fault"
    process.join()
    assert process.exitcode == 0


def test_a_file_that_is_replaced_under_a_running_process(artifact: Artifact) -> None:
    """Put a new file in its place, which has no effect: the mapping is of the verified file."""
    process, channel = forked(read_on, artifact)
    assert channel.recv() == "ready"
    (artifact.directory / "other").write_bytes(b"")
    (artifact.directory / "other").rename(artifact.directory / "a.safetensors")
    assert not channel.poll(0.3)
    assert process.is_alive()
    process.kill()
    process.join()


def verify_slowly(artifact: Artifact, channel: Connection) -> None:
    def slow(descriptor: int, start: int, nbytes: int) -> None:
        if start == 3 * 4096:
            channel.send("hashing")
            time.sleep(30)

    transfer.SLICE_BYTES, transfer.paging.will_read = 4096, slow
    try:
        check_images(artifact.plan, artifact.directory, verify=True)
    except ImageError as error:
        channel.send(f"{type(error).__name__}: {error}")


def test_a_file_that_is_truncated_while_its_mapping_is_hashed(artifact: Artifact) -> None:
    file = artifact.directory / "a.safetensors"
    process, channel = forked(verify_slowly, artifact)
    assert channel.recv() == "hashing"
    os.truncate(file, 8192)
    assert channel.recv().startswith(f"ImageTruncated: {file}: another program writes to it"), "an error, not a fault"
    process.join()
    assert process.exitcode == 0


def test_a_file_that_is_truncated_while_it_is_verified(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    file = artifact.directory / "a.safetensors"
    original = slots.read_slots

    def late(*arguments: Any) -> Any:
        slots = original(*arguments)
        os.truncate(file, 8192)
        return slots

    monkeypatch.setattr(slots, "read_slots", late)
    with pytest.raises(ImageTruncated, match="ends at byte 8192: it was truncated while it was read"):
        open_image(artifact.plan, artifact.directory, "a", CPU, verify=True)
    with pytest.raises(ImageTruncated, match="8192 bytes"):
        open_image(artifact.plan, artifact.directory, "a", CPU, verify=False)
