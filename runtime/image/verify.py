"""Check images before a weight is used: that they are present, complete, undamaged and those of the plan.

    images.yaml ── plan digest, layout, byte order, dtype ──► ImageForeign
    each image ─── present, size ───────────────────────────► ImageMissing, ImageTruncated
               ─── header: format, recorded ABI ────────────► ImageDamaged, ImageForeign
               ─── slots and bytes as the plan has them ────► ImageForeign
               ─── values that are indices ─────────────────► ImageDamaged
               ─── BLAKE3 (``verify`` only) ────────────────► ImageDamaged

Every refusal ends a command with exit code 4 and says how to get good images.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from plans import artifact, codec
from plans.artifact import ALIGNMENT_BYTES, IMAGES_FILE, LAYOUT_VERSION, PAGE_BYTES, Images, image_metadata, is_filler
from plans.dtypes import IMAGE_DTYPES
from plans.files import open_inside
from plans.ranges import length
from plans.safetensors_header import PREFIX_BYTES, Header, HeaderError, TensorEntry, header_length, parse_header
from plans.schema import Plan, PlanError
from plans.share_slots import ORDER_DTYPE
from plans.slot_records import SlotSpec
from plans.slots import TOKEN_MAP, device_slots
from runtime.errors import ImageDamaged, ImageForeign, ImageMissing, ImageTruncated
from runtime.image.lease import guard
from runtime.image.transfer import hash_file, hash_mapped, read

# ---- images of a plan ----


def check_images(plan: Plan, directory: Path, verify: bool, devices: Collection[str] | None = None) -> Images:
    """Check that the images of a plan are present and belong to it; return the record in ``images.yaml``.

    ``verify``: also read each file and compare its BLAKE3, and ``plan.yaml`` byte by byte; without it no slots but
    ``d2t`` and orders of columns are read. ``devices``: check only their images; None: those of all devices of the
    plan. Raise ImageMissing, ImageTruncated, ImageDamaged or ImageForeign, each with exit code 4.
    """
    wanted = [device.id for device in plan.devices if devices is None or device.id in devices]
    record = read_record(plan, directory, wanted)
    if verify:
        _check_plan_file(plan, directory, record)
    _check_present(plan, directory, record, wanted)
    for device in wanted:
        with opened(directory, device, record) as (descriptor, expected):
            read_slots(plan, descriptor, directory, device, expected)
            if verify:
                check_digest(descriptor, artifact.image_file(directory, device), expected)
    return record


def _command(plan: Plan, directory: Path) -> str:
    return f"compile with: {artifact.compile_command(directory, plan.draft is not None)}"


def read_record(plan: Plan, directory: Path, wanted: list[str]) -> Images:
    """Return ``images.yaml``; raise an ImageError unless it is of this layout and of this plan."""
    try:
        record = artifact.load_images(directory)
    except FileNotFoundError as error:
        names = ", ".join(map(artifact.image_name, wanted))
        raise ImageMissing(
            f"{directory}: no {IMAGES_FILE}, so no images: expected {names}; {_command(plan, directory)}"
        ) from error
    except PlanError as error:
        raise ImageDamaged(f"{error}; {_command(plan, directory)}") from error
    _check_abi(plan, directory, record)
    digest = codec.digest(plan)
    if record.plan_sha256 != digest:
        raise ImageForeign(
            f"{directory / codec.PLAN_FILE}: it was changed after its images were compiled, by hand or by another build"
            f": its digest is {digest}, but plan_sha256 in {IMAGES_FILE} is {record.plan_sha256}; "
            f"{_command(plan, directory)}"
        )
    return record


def _check_abi(plan: Plan, directory: Path, record: Images) -> None:
    """Raise ImageForeign unless layout, byte order and dtype are those of this program, this machine and the plan."""
    for number, image in enumerate(record.images):
        pairs = (
            ("layout_version", image.abi.layout_version, LAYOUT_VERSION, "this program uses"),
            ("byte_order", image.abi.byte_order, sys.byteorder, "this machine has"),
            ("dtype", image.abi.dtype, plan.options.dtype, "the plan has"),
        )
        for name, value, expected, owner in pairs:
            if value != expected:
                raise ImageForeign(
                    f"{directory / IMAGES_FILE}: artifact.images[{number}].abi.{name}: found {value}, {owner} "
                    f"{expected}; {_command(plan, directory)}"
                )


def _check_plan_file(plan: Plan, directory: Path, record: Images) -> None:
    """Raise ImageForeign unless ``plan.yaml`` has the very bytes for which the images were compiled."""
    file = directory / codec.PLAN_FILE
    try:
        digest = hashlib.sha256(codec.read_document(file, inside=True)).hexdigest()
    except OSError as error:
        raise ImageMissing(f"{file}: cannot read: {error.strerror}") from error
    if digest != record.plan_sha256:
        raise ImageForeign(
            f"{file}: it was edited by hand (it is not the canonical text of its plan): its SHA-256 is {digest}, but "
            f"the images were compiled for {record.plan_sha256}; build the plan again, then {_command(plan, directory)}"
        )


def _check_present(plan: Plan, directory: Path, record: Images, wanted: list[str]) -> None:
    """Raise ImageMissing with the names of all images that are not there."""
    files = {device: artifact.image_file(directory, device) for device in wanted}
    missing = [file.name for device, file in files.items() if record.find(device) is None or not file.exists()]
    if missing:
        raise ImageMissing(f"{directory}: no image {', '.join(missing)}; {_command(plan, directory)}")


@contextlib.contextmanager
def opened(directory: Path, device: str, record: Images) -> Iterator[tuple[int, artifact.Image]]:
    """Open the file of an image, of the recorded size; yield its descriptor and its record."""
    expected = record.find(device)
    file = artifact.image_file(directory, device)
    if expected is None:
        raise ImageMissing(f"{directory / IMAGES_FILE}: artifact.images: no image of {device}")
    try:
        descriptor = open_inside(directory, file.name)
    except OSError as error:
        raise ImageMissing(f"{file}: cannot open: {error.strerror}") from error
    try:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes != expected.size_bytes:
            raise ImageTruncated(
                f"{file}: {size_bytes} bytes, expected {expected.size_bytes}: copy or compile it again"
            )
        yield descriptor, expected
    finally:
        os.close(descriptor)


def check_digest(descriptor: int, file: Path, expected: artifact.Image) -> None:
    """Raise ImageDamaged unless an open image has the recorded BLAKE3, and does not change while it is hashed.

    A write is seen by the size and the time of the last write, another file under the name by its inode. The time of
    the inode's last change (ctime) is not compared: hard links, ``chmod`` and backups change it, and no content.
    """
    guarded = guard(descriptor, file)
    before = _state(os.fstat(descriptor))  # after the guard, as only then the size cannot change unnoticed
    if guarded and before[0] == expected.size_bytes:
        digest = hash_mapped(descriptor, expected.size_bytes)
    else:
        digest = hash_file(descriptor, expected.size_bytes, file)
    try:
        after = _state(os.fstat(descriptor)), _state(file.stat())
    except OSError as error:
        raise ImageDamaged(f"{file}: vanished while it was verified: copy or compile it again") from error
    if after != (before, before):
        raise ImageDamaged(f"{file}: changed while it was verified: copy or compile it again")
    compare_digest(file, digest, expected)


def _state(status: os.stat_result) -> tuple[int, int, int, int]:
    """Return size, time of the last write, device and inode."""
    return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino


def compare_digest(file: Path, digest: str, expected: artifact.Image) -> None:
    """Raise ImageDamaged unless a BLAKE3 is the recorded one."""
    if digest != expected.blake3:
        raise ImageDamaged(f"{file}: BLAKE3 {digest}, expected {expected.blake3}: copy or compile it again")


# ---- header ----


def read_slots(
    plan: Plan, descriptor: int, directory: Path, device: str, expected: artifact.Image
) -> tuple[int, list[TensorEntry]]:
    """Return the offset of the data in an open image, and its slots, fillers included.

    The header is checked against the rules of its format and of images, against the recorded ABI, and against the plan:
    what a shape, an allocation or an index is taken from is what was planned. Raise ImageDamaged or ImageForeign.
    """
    file = artifact.image_file(directory, device)
    header = _read_header(descriptor, file, expected)
    slots = header.tensors
    for slot in slots:
        _check_slot(slot, file)
    _check_order(slots, file)
    if header.metadata is None:
        raise ImageDamaged(f"{file}: header: no __metadata__, expected one with abi and device")
    wanted = image_metadata(device)
    if any(header.metadata.get(name) != value for name, value in wanted.items()):
        raise ImageForeign(f"{file}: __metadata__: found {dict(header.metadata)}, expected {wanted}: compile it again")
    abi = artifact.abi_of(slots, expected.abi.dtype)
    if abi.slots_sha256 != expected.abi.slots_sha256:
        raise ImageForeign(
            f"{file}: slot table: SHA-256 {abi.slots_sha256}, expected {expected.abi.slots_sha256} as {IMAGES_FILE} "
            "records: the image is of another plan or another layout; compile it again"
        )
    specs = device_slots(plan, device)
    _check_planned(plan, device, specs, slots, file)
    _check_columns(specs, slots, descriptor, header.data_start, file)
    _check_token_map(plan, slots, descriptor, header.data_start, file)
    return header.data_start, slots


def _check_planned(plan: Plan, device: str, specs: Sequence[SlotSpec], slots: list[TensorEntry], file: Path) -> None:
    """Raise ImageForeign unless an image has the slots that the plan implies, in as many bytes as it counts."""
    present = [(slot.name, slot.dtype, slot.shape) for slot in slots if not is_filler(slot.name)]
    planned = [(spec.name, spec.dtype, spec.shape) for spec in specs]
    for own, expected in zip_longest(present, planned):
        if own != expected:
            raise ImageForeign(
                f"{file}: header: found {_slot_text(own)}, expected {_slot_text(expected)} as {codec.PLAN_FILE} has it"
                ": the image is of another plan; compile it again"
            )
    line = next(line for line in plan.memory if line.device == device)
    nbytes, counted = sum(slot.nbytes for slot in slots), line.weights_bytes + line.draft_weights_bytes
    if nbytes != counted:
        raise ImageForeign(
            f"{file}: {nbytes} bytes of weights, expected {counted} as {codec.PLAN_FILE} counts for {device}: "
            "build the plan again, and compile it"
        )


def _slot_text(slot: tuple[str, str, tuple[int, ...]] | None) -> str:
    return "no more slots" if slot is None else f"slot {slot[0]}, {slot[1]} {list(slot[2])}"


def _check_columns(
    specs: Sequence[SlotSpec], slots: list[TensorEntry], descriptor: int, data_start: int, file: Path
) -> None:
    """Raise ImageDamaged where an order of columns, whose values are indices, leads out of the input's columns."""
    named = {slot.name: slot for slot in slots}
    for spec in specs:
        if spec.dtype != ORDER_DTYPE:
            continue
        slot, share = named[spec.name], spec.pieces[0].share
        columns = spec.shape[-1] if share is None else length(share)
        order = read(descriptor, data_start + slot.offset, slot.nbytes, file).view(np.int32)
        wrong = np.flatnonzero((order < -1) | (order >= columns))
        if len(wrong):
            raise ImageDamaged(
                f"{file}: {slot.name}[{wrong[0]}]: found column {order[wrong[0]]}, expected one of 0 to {columns - 1}, "
                "or -1: compile it again"
            )


def _check_token_map(plan: Plan, slots: list[TensorEntry], descriptor: int, data_start: int, file: Path) -> None:
    """Raise ImageDamaged where ``d2t``, whose values are indices, leads out of the vocabulary."""
    slot = next((slot for slot in slots if slot.name == TOKEN_MAP), None)
    if slot is None:
        return
    offsets = read(descriptor, data_start + slot.offset, slot.nbytes, file).view(np.int64)
    tokens, vocabulary = offsets + np.arange(len(offsets)), plan.model.vocab_size
    wrong = np.flatnonzero((tokens < 0) | (tokens >= vocabulary))
    if len(wrong):
        number = int(wrong[0])
        raise ImageDamaged(
            f"{file}: {slot.name}[{number}]: found {offsets[number]}, which makes drafted token {number} token "
            f"{number + int(offsets[number])} of the model, expected one of 0 to {vocabulary - 1}: compile it again"
        )


def _read_header(descriptor: int, file: Path, expected: artifact.Image) -> Header:
    try:
        length = header_length(os.pread(descriptor, PREFIX_BYTES, 0), expected.size_bytes)
        if (PREFIX_BYTES + length) % PAGE_BYTES:
            raise HeaderError(
                f"claims {length} bytes, so the data starts at byte {PREFIX_BYTES + length}, expected a multiple of "
                f"{PAGE_BYTES}"
            )
        return parse_header(os.pread(descriptor, length, PREFIX_BYTES), expected.size_bytes)
    except HeaderError as error:
        raise ImageDamaged(f"{file}: header: {error}") from error


def _check_slot(tensor: TensorEntry, file: Path) -> None:
    """Raise ImageDamaged unless a tensor may be a slot: an image has fewer dtypes and ranks than the format."""
    if tensor.dtype not in IMAGE_DTYPES:
        expected = ", ".join(IMAGE_DTYPES)
        raise ImageDamaged(f"{file}: header: {tensor.name}: dtype: found {tensor.dtype}, expected one of {expected}")
    if not 1 <= len(tensor.shape) <= 3:
        raise ImageDamaged(
            f"{file}: header: {tensor.name}: shape: found {list(tensor.shape)}, expected one to three sizes"
        )


def _check_order(slots: list[TensorEntry], file: Path) -> None:
    """Raise ImageDamaged unless the header lists slots in the order of their data, each but fillers aligned."""
    end = 0
    for slot in slots:
        filler = is_filler(slot.name)
        if slot.offset != end or (slot.offset % ALIGNMENT_BYTES and not filler):
            raise ImageDamaged(
                f"{file}: header: {slot.name}: data_offsets: starts at {slot.offset}, expected {end}, a multiple of "
                f"{ALIGNMENT_BYTES}"
            )
        end += slot.nbytes
