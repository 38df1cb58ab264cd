"""Images in, distrusted: whether they are there, whole and the plan's is told before a weight is used."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterator
from math import prod
from pathlib import Path
from typing import Any

from plans import artifact, codec
from plans.artifact import ALIGNMENT_BYTES, IMAGES_FILE, ITEM_BYTES, LAYOUT_VERSION, PAGE_BYTES, Images, SlotEntry
from plans.schema import Plan, PlanError
from runtime.errors import ImageDamaged, ImageForeign, ImageMissing, ImageTruncated
from runtime.image.lease import guard
from runtime.image.transfer import hash_file, hash_mapped

MAX_HEADER_BYTES = 16 << 20
"""The header of an image of 1000 layers is below 2 MB; nothing larger is parsed."""


# ---- what is refused ----


def check_images(plan: Plan, directory: Path, verify: bool, devices: Collection[str] | None = None) -> Images:
    """Check that the images of a plan are there and are the plan's; no weight is read.

    ``verify`` also reads each file and compares its BLAKE3, and ``plan.yaml`` byte by byte. ``devices``: only their
    images; None: those of all devices of the plan. Raises ImageMissing, ImageTruncated, ImageDamaged or ImageForeign,
    each with exit code 4.
    """
    wanted = [device.id for device in plan.devices if devices is None or device.id in devices]
    record = read_record(plan, directory, wanted)
    if verify:
        _check_plan_file(plan, directory, record)
    _check_present(plan, directory, record, wanted)
    for device in wanted:
        with opened(directory, device, record) as (descriptor, expected):
            read_slots(descriptor, directory, device, expected)
            if verify:
                check_digest(descriptor, artifact.image_file(directory, device), expected)
    return record


def _command(plan: Plan, directory: Path) -> str:
    return f"compile with: {artifact.compile_command(directory, plan.draft is not None)}"


def read_record(plan: Plan, directory: Path, wanted: list[str]) -> Images:
    """``images.yaml``, of this layout and of this plan."""
    try:
        record = artifact.load_images(directory)
    except FileNotFoundError as error:
        names = ", ".join(f"{device}.safetensors" for device in wanted)
        raise ImageMissing(
            f"{directory}: no {IMAGES_FILE}, so no images: expected {names}; {_command(plan, directory)}"
        ) from error
    except PlanError as error:
        raise ImageDamaged(f"{error}; {_command(plan, directory)}") from error
    _check_abi(plan, directory, record)
    digest = codec.digest(plan)
    if record.plan_sha256 != digest:
        raise ImageForeign(
            f"{directory / IMAGES_FILE}: plan_sha256: the images were compiled for plan {record.plan_sha256}, but "
            f"plan.yaml is now {digest}: it was changed after its images were compiled; {_command(plan, directory)}"
        )
    return record


def _check_abi(plan: Plan, directory: Path, record: Images) -> None:
    """Layout, byte order and dtype of the images must be those of this program, this machine and the plan."""
    for number, image in enumerate(record.images):
        pairs = (
            ("layout_version", image.abi.layout_version, LAYOUT_VERSION, "this program uses"),
            ("byte_order", image.abi.byte_order, sys.byteorder, "this machine has"),
            ("dtype", image.abi.dtype, plan.options.dtype, "the plan has"),
        )
        for name, found, expected, whose in pairs:
            if found != expected:
                raise ImageForeign(
                    f"{directory / IMAGES_FILE}: artifact.images[{number}].abi.{name}: found {found}, {whose} "
                    f"{expected}; {_command(plan, directory)}"
                )


def _check_plan_file(plan: Plan, directory: Path, record: Images) -> None:
    file = directory / "plan.yaml"
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ImageMissing(f"{file}: cannot read: {error.strerror}") from error
    if found != record.plan_sha256:
        raise ImageForeign(
            f"{file}: SHA-256 {found}, but the images were compiled for {record.plan_sha256}: it is not the canonical "
            f"text of its plan, so it was edited; build the plan again, then {_command(plan, directory)}"
        )


def _check_present(plan: Plan, directory: Path, record: Images, wanted: list[str]) -> None:
    files = {device: artifact.image_file(directory, device) for device in wanted}
    missing = [file.name for device, file in files.items() if record.find(device) is None or not file.is_file()]
    if missing:
        raise ImageMissing(f"{directory}: no image {', '.join(missing)}; {_command(plan, directory)}")


@contextlib.contextmanager
def opened(directory: Path, device: str, record: Images) -> Iterator[tuple[int, artifact.Image]]:
    """The file of an image, open and of the recorded size."""
    expected = record.find(device)
    file = artifact.image_file(directory, device)
    if expected is None:
        raise ImageMissing(f"{directory / IMAGES_FILE}: artifact.images: no image of {device}")
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ImageMissing(f"{file}: cannot open: {error.strerror}") from error
    try:
        found = os.fstat(descriptor).st_size
        if found != expected.size_bytes:
            raise ImageTruncated(f"{file}: {found} bytes, expected {expected.size_bytes}: copy or compile it again")
        yield descriptor, expected
    finally:
        os.close(descriptor)


def check_digest(descriptor: int, file: Path, expected: artifact.Image) -> None:
    guarded, before = guard(descriptor, file), _state(descriptor)  # in this order: a size that is guarded stays
    if guarded and before[0] == expected.size_bytes:
        found = hash_mapped(descriptor, expected.size_bytes)
    else:
        found = hash_file(descriptor, expected.size_bytes, file)
    if _state(descriptor) != before:
        raise ImageDamaged(f"{file}: changed while it was verified: copy or compile it again")
    compare_digest(file, found, expected)


def _state(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def compare_digest(file: Path, found: str, expected: artifact.Image) -> None:
    if found != expected.blake3:
        raise ImageDamaged(f"{file}: BLAKE3 {found}, expected {expected.blake3}: copy or compile it again")


# ---- header ----


def read_slots(descriptor: int, directory: Path, device: str, expected: artifact.Image) -> tuple[int, list[SlotEntry]]:
    """Where the data starts, and the slots of an open image, fillers included; checked against the recorded ABI."""
    file = artifact.image_file(directory, device)
    start = 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if start > min(expected.size_bytes, MAX_HEADER_BYTES) or start % PAGE_BYTES:
        raise ImageDamaged(
            f"{file}: header: claims to end at byte {start}, expected a multiple of {PAGE_BYTES} up to "
            f"{min(expected.size_bytes, MAX_HEADER_BYTES)}"
        )
    metadata, slots = _parse(os.pread(descriptor, start - 8, 8), file)
    end = _check_table(slots, file)
    if start + end != expected.size_bytes:
        raise ImageDamaged(f"{file}: header: slots end at byte {start + end}, the file at {expected.size_bytes}")
    if metadata.get("device") != device or metadata.get("abi") != str(LAYOUT_VERSION):
        wanted = {"abi": str(LAYOUT_VERSION), "device": device}
        raise ImageForeign(f"{file}: __metadata__: found {metadata}, expected {wanted}: compile it again")
    found = artifact.abi_of(slots, expected.abi.dtype)
    if found.slots_sha256 != expected.abi.slots_sha256:
        raise ImageForeign(
            f"{file}: slot table: SHA-256 {found.slots_sha256}, expected {expected.abi.slots_sha256} as {IMAGES_FILE} "
            "records: the image is of another plan or another layout; compile it again"
        )
    return start, slots


def _parse(text: bytes, file: Path) -> tuple[dict[str, Any], list[SlotEntry]]:
    """Metadata and slots in the order of the header, each with the types that the format demands."""
    try:
        table = json.loads(text.decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ImageDamaged(f"{file}: header: not valid JSON: {error}") from error
    metadata = table.pop("__metadata__", None) if isinstance(table, dict) else None
    if not isinstance(metadata, dict):
        raise ImageDamaged(f"{file}: header: expected a mapping with __metadata__")
    return metadata, [_entry(name, entry, file) for name, entry in table.items()]


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _entry(name: str, entry: Any, file: Path) -> SlotEntry:
    if not isinstance(entry, dict) or entry.keys() != {"data_offsets", "dtype", "shape"}:
        raise ImageDamaged(f"{file}: header: {name}: expected data_offsets, dtype and shape")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ImageDamaged(f"{file}: header: {name}: dtype: found {dtype!r}, expected one of {', '.join(ITEM_BYTES)}")
    if not _naturals(shape) or not 1 <= len(shape) <= 3:
        raise ImageDamaged(f"{file}: header: {name}: shape: found {shape!r}, expected one to three sizes")
    if not _naturals(offsets) or len(offsets) != 2:
        raise ImageDamaged(f"{file}: header: {name}: data_offsets: found {offsets!r}, expected start and stop")
    nbytes = prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise ImageDamaged(f"{file}: header: {name}: data_offsets: {offsets} for {nbytes} bytes of {dtype} {shape}")
    return SlotEntry(name=name, dtype=dtype, shape=tuple(shape), offset=offsets[0], nbytes=nbytes)


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_table(slots: list[SlotEntry], file: Path) -> int:
    """Slots follow each other without a hole, each (but fillers) aligned; the end of the last one."""
    end = 0
    for slot in slots:
        filler = slot.name.startswith("_pad.")
        if slot.offset != end or (slot.offset % ALIGNMENT_BYTES and not filler):
            raise ImageDamaged(
                f"{file}: header: {slot.name}: data_offsets: starts at {slot.offset}, expected {end}, a multiple of "
                f"{ALIGNMENT_BYTES}"
            )
        end += slot.nbytes
    return end
