"""The record of compiled images, ``images.yaml``, and the constants of an image that compiler and runtime share.

An image is a safetensors file: 8 bytes of header length, the header in JSON padded with spaces so that the data starts
at a multiple of ``PAGE_BYTES``, then slots at multiples of ``ALIGNMENT_BYTES``; gaps are declared ``U8`` tensors
``_pad.N``, the fillers. ``images.yaml`` is canonical YAML with its own digest, which reveals any change.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from plans.codec import decode, encode, read_document
from plans.safetensors_header import TensorEntry
from plans.schema import DType, PlanError
from plans.strict_yaml import dump_yaml, load_yaml

LAYOUT_VERSION = 1
"""Version of names, order and alignment of slots; images of another version are refused as foreign."""
BYTE_ORDER = "little"
PAGE_BYTES = 4096
ALIGNMENT_BYTES = 256
IMAGES_FILE = "images.yaml"
DEVICE_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/-]{0,95}")
"""UUID of a GPU or of a MIG slice as the driver has it."""
DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Ids that a device may have: its image is named after it."""
_FILLER = "_pad."


@dataclass(frozen=True, kw_only=True, slots=True)
class Abi:
    """Layout of an image, on which a program depends that uses its bytes."""

    layout_version: int
    byte_order: str
    dtype: DType
    """The plan's dtype: that of all floats but the rotary frequencies."""
    slots_sha256: str
    """SHA-256 of layout version, byte order, and name, dtype, shape and offset of each slot."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundingErrors:
    """Errors of the weights of a layer, or of the tables, that were rounded when they were compiled."""

    layer: int | None = None
    """None: embedding and lm_head."""
    errors_ppm: tuple[int, ...]
    """sqrt(sum((values of codes - weights)^2) / sum(weights^2)) in parts per million, of each slot of codes in order
    of the file, over the rows of which the image has all columns or some."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """One compiled image."""

    device: str
    size_bytes: int
    blake3: str
    """BLAKE3 of the whole file, in hex."""
    abi: Abi
    rounding: tuple[RoundingErrors, ...] | None = None
    """Errors of each layer whose weights were rounded, in order, then of the tables; None: of none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file of tensors, as it was when it was read."""

    file: str
    size_bytes: int
    header_sha256: str
    """SHA-256 of the header's length and text: names, dtypes, shapes and offsets of its tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A checkpoint that was read: digests of its config and tensor table as in the plan, and its files by name."""

    config_sha256: str
    tensors_sha256: str
    files: tuple[SourceFile, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """The checkpoints that were read."""

    base: Source
    draft: Source | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Content of ``images.yaml``; ``images`` in the order of the plan's devices, perhaps not all of them.

    A pure function of the plan, the checkpoints and the devices that were compiled: no time, host or path.
    """

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


def image_name(device: str) -> str:
    """Return the name of the file of a device's image."""
    return f"{device}.safetensors"


def image_file(directory: Path, device: str) -> Path:
    """Return the path of a device's image; raise PlanError for an id that is no file name."""
    if not DEVICE_ID.fullmatch(device):
        raise PlanError(f"device {device!r}: not a file name: expected at most 64 letters, digits, '.', '_' and '-'")
    return directory / image_name(device)


def filler_name(number: int) -> str:
    """Return the name of the filler behind a slot; fillers are numbered from 0 in the order of the file."""
    return f"{_FILLER}{number}"


def is_filler(name: str) -> bool:
    """Return True if a tensor of an image is a filler."""
    return name.startswith(_FILLER)


def image_metadata(device: str) -> dict[str, str]:
    """Return the metadata in the header of a device's image.

    The plan's digest is not among it: an image that a new plan leaves as it was keeps its bytes.
    """
    return {"abi": str(LAYOUT_VERSION), "device": device}


def align(nbytes: int) -> int:
    """Return the bytes that a slot of ``nbytes`` takes with its filler."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def abi_of(slots: Iterable[TensorEntry], dtype: DType) -> Abi:
    """Return the ABI of an image with these slots, of a plan in ``dtype``."""
    table = [[slot.name, slot.dtype, list(slot.shape), slot.offset] for slot in slots]
    text = json.dumps([LAYOUT_VERSION, BYTE_ORDER, table], separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Abi(layout_version=LAYOUT_VERSION, byte_order=BYTE_ORDER, dtype=dtype, slots_sha256=digest)


def compile_command(directory: Path, draft: bool) -> str:
    """Return the command that makes the images of a plan."""
    return f"python -m planner compile {directory} --model <DIR>" + (" --draft <DIR>" if draft else "")


def dump_images(images: Images) -> str:
    """Return the text of ``images.yaml``."""
    digest = hashlib.sha256(dump_yaml(encode(images)).encode()).hexdigest()
    return dump_yaml(encode(_Sealed(artifact=images, sha256=digest)))


def load_images(directory: Path) -> Images:
    """Read ``images.yaml``; raise PlanError naming what is wrong, FileNotFoundError where there is none."""
    file = directory / IMAGES_FILE
    try:
        raw = read_document(file, inside=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PlanError(f"{file}: cannot read: {error.strerror}") from error
    sealed = decode(_Sealed, load_yaml(raw, str(file)), str(file))
    if dump_images(sealed.artifact).encode() != raw:
        raise PlanError(f"{file}: sha256: the file was changed after the images were compiled: compile again")
    if len({image.device for image in sealed.artifact.images}) != len(sealed.artifact.images):
        raise PlanError(f"{file}: artifact.images: a device is listed twice: compile again")
    return sealed.artifact
