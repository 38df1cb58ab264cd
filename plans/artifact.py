"""What ``images.yaml`` says of compiled images, and the numbers that compiler and runtime must share to agree.

An image is a safetensors file: 8 bytes of header length, the header in JSON padded with spaces so that the data starts
at a multiple of ``PAGE_BYTES``, then slots at multiples of ``ALIGNMENT_BYTES``; gaps are declared ``U8`` tensors
``_pad.N``. ``images.yaml`` is canonical YAML and carries its own digest, so that no byte of it can change unseen.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from plans.codec import decode, dump_yaml, encode, load_yaml
from plans.schema import PlanError

LAYOUT_VERSION = 1
"""Of names, order and alignment of slots; images of another version are foreign."""
PAGE_BYTES = 4096
ALIGNMENT_BYTES = 256
IMAGES_FILE = "images.yaml"
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "int64": "I64", "uint8": "U8"}
"""Names of the plan's dtypes in a safetensors header."""
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I64": 8, "U8": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotEntry:
    """One tensor of an image as its header declares it; ``offset`` counts from the start of the data."""

    name: str
    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """One compiled image."""

    device: str
    size_bytes: int
    blake3: str
    """Of the whole file, in hex."""
    abi_sha256: str
    """Of the layout version and the slot table."""
    inputs_sha256: str
    """Of all that determines the bytes: slot table, source ranges, and the identity of the source files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """The checkpoints that were read: digests of their headers, and of config and tensor table as in the plan."""

    base_config_sha256: str
    base_tensors_sha256: str
    base_headers_sha256: str
    draft_config_sha256: str | None
    draft_tensors_sha256: str | None
    draft_headers_sha256: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """What ``images.yaml`` holds; ``images`` in the order of the plan's devices, perhaps not all of them."""

    layout_version: int
    plan_sha256: str
    sources: Sources
    images: tuple[Image, ...]

    def find(self, device: str) -> Image | None:
        return next((image for image in self.images if image.device == device), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sealed:
    """The file: the record and the digest of its canonical text."""

    artifact: Images
    sha256: str


def image_file(directory: Path, device: str) -> Path:
    """Where the image of a device lies; raise PlanError for an id that is no file name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", device):
        raise PlanError(f"device {device!r}: not a file name: expected letters, digits, '.', '_' and '-'")
    return directory / f"{device}.safetensors"


def align(nbytes: int) -> int:
    """The bytes that a slot of ``nbytes`` takes, with its filler."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def abi_sha256(slots: Iterable[SlotEntry]) -> str:
    """Digest of what a program must know of an image: layout version, byte order, names, dtypes, shapes, offsets."""
    table = [[slot.name, slot.dtype, list(slot.shape), slot.offset] for slot in slots]
    text = json.dumps([LAYOUT_VERSION, "little", table], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def compile_command(directory: Path, draft: bool) -> str:
    """The command that makes the images of a plan."""
    return f"python -m planner compile {directory} --model <DIR>" + (" --draft <DIR>" if draft else "")


def dump_images(images: Images) -> str:
    """The text of ``images.yaml``."""
    digest = hashlib.sha256(dump_yaml(encode(images)).encode()).hexdigest()
    return dump_yaml(encode(_Sealed(artifact=images, sha256=digest)))


def load_images(directory: Path) -> Images:
    """Read ``images.yaml``; raise PlanError naming what is wrong, FileNotFoundError where there is none."""
    file = directory / IMAGES_FILE
    raw = file.read_bytes()
    sealed = decode(_Sealed, load_yaml(raw, str(file)), str(file))
    if dump_images(sealed.artifact).encode() != raw:
        raise PlanError(f"{file}: sha256: the file was changed after the images were compiled: compile again")
    if len({image.device for image in sealed.artifact.images}) != len(sealed.artifact.images):
        raise PlanError(f"{file}: artifact.images: a device is listed twice: compile again")
    return sealed.artifact
