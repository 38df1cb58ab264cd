"""Which images of an earlier compile are what this one would make: known without reading a weight.

``.compiled`` beside the images says of each what it was made of, and the stamp that its file had. It is a memory of
this machine alone: where it is missing or does not fit, images are made or hashed again, and nothing else follows.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from planner.checkpoints.header import Stamp, TensorFile, stamp
from planner.images import publish
from plans.artifact import LAYOUT_VERSION, Image
from plans.codec import decode, dump_yaml, encode, load_yaml, read_document
from plans.schema import PlanError
from plans.slots import Slot

FILE = ".compiled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """Of one image: ``inputs_sha256`` makes bytes of this ``blake3``, and a file of this stamp has them."""

    device: str
    inputs_sha256: str
    blake3: str
    stamp: Stamp


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What is in the file."""

    base: str
    """Where the base checkpoint was."""
    draft: str | None
    images: tuple[Made, ...]

    def find(self, device: str) -> Made | None:
        return next((made for made in self.images if made.device == device), None)


def inputs_sha256(device: str, slots: Sequence[Slot], files: Iterable[TensorFile]) -> str:
    """Digest of all that determines the bytes of an image: slot table, source ranges, and the state of the sources."""
    states = [
        [file.original.name, *(encode(file.stamp)[name] for name in _STATE), file.header_sha256] for file in files
    ]
    text = json.dumps([LAYOUT_VERSION, device, encode(tuple(slots)), states], default=bytes.hex)
    return hashlib.sha256(text.encode()).hexdigest()


_STATE = ("size_bytes", "modified_ns", "changed_ns")


def recall(directory: Path) -> Memory | None:
    """What is remembered of a directory's images; None where the file is none of ours."""
    file = directory / FILE
    try:
        return decode(Memory, load_yaml(read_document(file), str(file)), str(file))
    except (OSError, PlanError):
        return None


def remember(directory: Path, memory: Memory) -> None:
    """Write what is remembered, where it is not written already; raise OutputError."""
    if memory != recall(directory):
        publish.write(directory / FILE, dump_yaml(encode(memory)))


def is_made(file: Path, image: Image | None, inputs: str, memory: Memory | None) -> bool:
    """Whether a file is the recorded ``image`` of these inputs; hashed only where its stamp is not remembered."""
    made = None if image is None or memory is None else memory.find(image.device)
    if image is None or made is None or (made.inputs_sha256, made.blake3) != (inputs, image.blake3):
        return False
    if not file.is_file() or file.stat().st_size != image.size_bytes:
        return False
    return stamp(file.stat()) == made.stamp or _blake3(file) == image.blake3


def _blake3(file: Path) -> str:
    digest = blake3(max_threads=os.cpu_count() or 1)
    with file.open("rb", buffering=0) as stream:
        buffer = memoryview(bytearray(16 << 20))
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
