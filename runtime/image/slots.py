"""Open the weights of a device as views of one memory: on a CPU the mapped image, on a GPU one copy of it.

file      8 | header, padded ...        | slots and fillers ...            |
          0                             data_start (multiple of 4096)      size in images.yaml
CPU       ╰────────────── one read-only mapping; the slots are views of it ╯
CUDA                                    ╰ one allocation, copied in one piece ╯
"""

import mmap
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plans import artifact, paging
from plans.artifact import Images, is_filler
from plans.safetensors_header import TensorEntry
from plans.schema import Plan
from runtime.errors import ImageForeign, ImageTruncated
from runtime.image.dtypes import HEADER_DTYPES
from runtime.image.lease import guard
from runtime.image.transfer import Chunk, Host, upload
from runtime.image.verify import check_digest, compare_digest, opened, read_record, read_slots


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """The weights of one device: ``image["layers.0.qkv.weight"]`` is a view of ``memory``."""

    file: Path
    slots: dict[str, TensorEntry]
    """Slots by name, without fillers."""
    memory: torch.Tensor
    """All slots and fillers, uint8 [bytes]; on a CPU the read-only mapping itself."""

    @property
    def nbytes(self) -> int:
        """Bytes of all slots and fillers."""
        return self.memory.numel()

    def __contains__(self, name: str) -> bool:
        """Return True if the image has a slot of this name."""
        return name in self.slots

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a slot as a view of ``memory``; raise ImageForeign if there is none of this name."""
        if name not in self.slots:
            raise ImageForeign(f"{self.file}: {name}: no such slot: the image is of another plan; compile it again")
        slot = self.slots[name]
        return self.memory[slot.offset : slot.offset + slot.nbytes].view(HEADER_DTYPES[slot.dtype]).view(slot.shape)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a slot of a given shape and dtype; raise ImageForeign if it is missing or has others."""
        tensor = self[name]
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
            raise ImageForeign(
                f"{self.file}: {name}: found {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {tuple(shape)}: "
                "the image is of another plan; compile it again"
            )
        return tensor


class CudaCopies:
    """Copies from pinned buffers into memory of a GPU, uint8 [bytes], on a stream of its own."""

    def __init__(self, memory: torch.Tensor) -> None:
        self._memory = memory
        self._stream = torch.cuda.Stream(memory.device)
        self._stream.wait_stream(torch.cuda.current_stream(memory.device))

    def buffer(self, nbytes: int) -> Chunk:
        """Return pinned memory."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()  # the view keeps the tensor alive

    def copy(self, offset: int, chunk: Chunk) -> Any:
        """Begin to copy a chunk to an offset of the memory; return the event of its end."""
        with torch.cuda.stream(self._stream):
            self._memory[offset : offset + len(chunk)].copy_(torch.from_numpy(chunk), non_blocking=True)
        return self._stream.record_event()

    def wait(self, event: torch.cuda.Event) -> None:
        """Wait for the end of one copy."""
        event.synchronize()

    def finish(self) -> None:
        """Wait for all copies."""
        self._stream.synchronize()


def open_image(
    plan: Plan, directory: Path, device: str, torch_device: torch.device, record: Images | None = None, *, verify: bool
) -> Image:
    """Return the image of one device as tensors on ``torch_device``; raise the errors of ``check_images``.

    ``record``: result of ``check_images``; None reads ``images.yaml`` again. ``verify``: check the image's BLAKE3 while
    it is read.
    """
    record = read_record(plan, directory, [device]) if record is None else record
    file = artifact.image_file(directory, device)
    with opened(directory, device, record) as (descriptor, expected):
        start, slots = read_slots(plan, descriptor, directory, device, expected)
        if torch_device.type == "cpu":
            if verify:
                check_digest(descriptor, file, expected)
            memory = _mapped(descriptor, start, file, expected)
        else:
            memory = torch.empty(expected.size_bytes - start, dtype=torch.uint8, device=torch_device)
            data = start, expected.size_bytes
            digest = upload(descriptor, data, file, CudaCopies(memory), host_of(plan, device, record), hashed=verify)
            if verify:
                compare_digest(file, digest, expected)
    named = {slot.name: slot for slot in slots if not is_filler(slot.name)}
    return Image(file=file, slots=named, memory=memory)


def host_of(plan: Plan, device: str, record: Images) -> Host:
    """Return what the processes of a device's host share, which load their images at once.

    Pages stay where the images of the host take at most half of the memory that the page cache may have, so that the
    next start reads them from there; more would drive out what other programs read.
    """
    host = next(other.host for other in plan.devices if other.id == device)
    images = [record.find(other.id) for other in plan.devices if other.host == host]
    sizes = [image.size_bytes for image in images if image is not None]
    available = paging.available_bytes()
    return Host(processes=len(sizes), keeps_pages=available is None or 2 * sum(sizes) <= available)


def _mapped(descriptor: int, start: int, file: Path, expected: artifact.Image) -> torch.Tensor:
    """Return the data of a file as uint8 [bytes] in the page cache, mapped read-only, so that a stray write faults."""
    guard(descriptor, file)
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes != expected.size_bytes:
        raise ImageTruncated(
            f"{file}: {size_bytes} bytes, expected {expected.size_bytes}: it changed while it was opened"
        )
    mapping = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(mapping, dtype=torch.uint8)[start:]
