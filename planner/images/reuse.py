"""Find the images of an earlier compile that this one would write again unchanged, without reading a weight.

``.compiled`` beside the images records the inputs of each and the stamp that its file had. It is only a cache of this
machine: where it is missing or does not match, images are hashed or written again, and nothing else follows.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from planner.checkpoints.header import Stamp, TensorFile, stamp
from planner.images import publish
from planner.images.layout import Slot
from plans.artifact import LAYOUT_VERSION, Image
from plans.codec import decode, encode, read_document
from plans.schema import PlanError
from plans.strict_yaml import dump_yaml, load_yaml

FILE = ".compiled"
_STATE = ("size_bytes", "modified_ns", "changed_ns")
"""Fields of a source file's stamp that are inputs of an image."""
_READ_BYTES = 16 << 20
"""Bytes that are hashed at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """Record of one image: ``inputs_sha256`` compiles to bytes of this ``blake3``, which a file of ``stamp`` has."""

    device: str
    inputs_sha256: str
    blake3: str
    stamp: Stamp


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Content of ``.compiled``."""

    base: str
    """Path of the base checkpoint of the last compile."""
    draft: str | None
    """Path of the EAGLE head's checkpoint; None without one."""
    images: tuple[Made, ...]

    def find(self, device: str) -> Made | None:
        """Return the record of a device's image, if there is one."""
        return next((image for image in self.images if image.device == device), None)


def inputs_sha256(device: str, slots: Sequence[Slot], files: Iterable[TensorFile]) -> str:
    """Return the digest of all that determines an image's bytes: slots, ranges of the sources, state of their files."""
    states = [
        [file.original.name, *(encode(file.stamp)[name] for name in _STATE), file.header_sha256] for file in files
    ]
    layers = [part.stored for slot in slots for part in slot.parts if part.stored is not None]
    coded = [
        [layer.module, repr(layer.layout), repr(layer.form), layer.repeats, layer.sorts, layer.share]
        for layer in layers
    ]
    coded += [[part.sorted_as.module] for slot in slots for part in slot.parts if part.sorted_as is not None]
    plain = tuple(
        replace(slot, parts=tuple(replace(part, stored=None, sorted_as=None) for part in slot.parts))
        if slot.parts
        else slot
        for slot in slots
    )
    text = json.dumps([LAYOUT_VERSION, device, encode(plain), coded, states], default=bytes.hex)
    return hashlib.sha256(text.encode()).hexdigest()


def recall(directory: Path) -> Memory | None:
    """Return the record of a directory's images; None if it is missing or cannot be read."""
    file = directory / FILE
    try:
        return decode(Memory, load_yaml(read_document(file, inside=True), str(file)), str(file))
    except (OSError, PlanError):
        return None


def remember(directory: Path, memory: Memory) -> None:
    """Write the record unless it is there already; raise OutputError."""
    if memory != recall(directory):
        publish.write(directory / FILE, dump_yaml(encode(memory)))


def is_made(file: Path, image: Image | None, inputs: str, memory: Memory | None) -> bool:
    """Return True if a file is the recorded ``image`` of these inputs; it is hashed only if its stamp is a new one."""
    record = None if image is None or memory is None else memory.find(image.device)
    if image is None or record is None or (record.inputs_sha256, record.blake3) != (inputs, image.blake3):
        return False
    if file.is_symlink() or not file.is_file() or file.stat().st_size != image.size_bytes:
        return False
    return stamp(file.stat()) == record.stamp or _blake3(file) == image.blake3


def _blake3(file: Path) -> str:
    digest = blake3(max_threads=os.cpu_count() or 1)
    with file.open("rb", buffering=0) as stream:
        buffer = memoryview(bytearray(_READ_BYTES))
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
