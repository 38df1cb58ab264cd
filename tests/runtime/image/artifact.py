"""Images of a plan of two devices, and ways to change and to seal them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3

from plans.artifact import IMAGES_FILE, Images, dump_images, load_images
from plans.schema import Plan
from runtime.errors import ImageError
from runtime.image.verify import check_images

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A compiled plan of two devices, with an EAGLE head on the second, and the tensors of the checkpoint."""

    plan: Plan
    directory: Path
    base: dict[str, torch.Tensor]


def refusal(kind: type[ImageError], artifact: Artifact, *, verify: bool = False) -> str:
    """Return the message with which the images are refused."""
    with pytest.raises(kind) as caught:
        check_images(artifact.plan, artifact.directory, verify=verify)
    assert type(caught.value) is kind
    assert caught.value.exit_code == 4
    return str(caught.value)


def seal(directory: Path, record: Images) -> None:
    (directory / IMAGES_FILE).write_text(dump_images(record))


def replaced(record: Images, device: str, **changes: Any) -> Images:
    changed = tuple(dataclasses.replace(i, **changes) if i.device == device else i for i in record.images)
    return dataclasses.replace(record, images=changed)


def flip(file: Path, position: int, bit: int = 0) -> None:
    raw = bytearray(file.read_bytes())
    raw[position] ^= 1 << bit
    file.write_bytes(raw)


Table = dict[str, Any]


def first(table: Table) -> Table:
    entry: Table = table["embed.weight"]
    return entry


def rewrite(artifact: Artifact, header: bytes, data: bytes, length: int | None = None) -> None:
    """Replace the header of an image, and record the new size and digest."""
    header += b" " * (-(8 + len(header)) % 4096)
    raw = (len(header) if length is None else length).to_bytes(8, "little") + header + data
    (artifact.directory / "a.safetensors").write_bytes(raw)
    record = load_images(artifact.directory)
    seal(artifact.directory, replaced(record, "a", size_bytes=len(raw), blake3=blake3(raw).hexdigest()))
