"""Plan + checkpoints -> the images of its devices and ``images.yaml``, and never half there.

Nothing that verifies is touched until all new images are complete on disk under temporary names. Then, each step on
disk before the next:

    images.yaml removed  ►  images renamed into place  ►  images.yaml renamed into place

Killed before: the old artifact, whole. Between: no ``images.yaml``, so nothing verifies. After: the new one.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from planner.checkpoint import TensorInfo
from planner.errors import CheckpointError, InputError, OutputError
from planner.families import BaseInput, DraftInput, load_base, load_draft
from planner.layout import Part, Slot, data_bytes, header, image_slots, table_sha256
from planner.stream import Progress, Reader, Writer, castable, row_width, stream
from plans import codec
from plans.artifact import IMAGES_FILE, LAYOUT_VERSION, Image, Images, Sources, dump_images, image_file, load_images
from plans.check import require
from plans.codec import encode
from plans.ranges import Ranges
from plans.schema import Plan, PlanError

TEMPORARY = ".compile-"
"""Prefix of files that a killed run may leave, and the next removes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageReport:
    """What became of one image."""

    device: str
    file: str
    size_bytes: int
    blake3: str
    reused: bool
    """It was there already, made of the same inputs, and its digest holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileReport:
    """What a compile did; ``missing`` names the plan's devices that have no image yet (``only``)."""

    images: tuple[ImageReport, ...]
    missing: tuple[str, ...]
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """An image to be: its slots and the digest of all that determines its bytes."""

    device: str
    file: Path
    slots: tuple[Slot, ...]
    inputs_sha256: str

    @property
    def size_bytes(self) -> int:
        return len(header(self.slots, self.device)) + data_bytes(self.slots)


def compile_plan(
    directory: Path,
    base_checkpoint: Path,
    draft_checkpoint: Path | None,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
    pickle_cache: Path | None = None,
) -> CompileReport:
    """Write the images of a plan, and ``images.yaml``; raise PlanError, InputError, CheckpointError or OutputError.

    ``only``: the devices to compile; the images of others are left as they are. ``pickle_cache``: where a head in
    ``pytorch_model.bin`` is converted to; None refuses it.
    """
    plan = codec.load(directory)
    require(plan, str(directory / "plan.yaml"))
    base = load_base(base_checkpoint)
    draft = None if draft_checkpoint is None else load_draft(draft_checkpoint, base, pickle_cache=pickle_cache)
    _check_inputs(plan, base, draft)
    chosen = _chosen(plan, only)
    with _locked(directory):
        _clean(directory)
        checkpoints = {"base": base.checkpoint} | ({} if draft is None else {"draft": draft.checkpoint})
        with Reader(checkpoints) as reader:
            targets = [_target(plan, directory, device.id, base, draft, reader) for device in plan.devices]
            try:
                return _compile(plan, directory, targets, chosen, reader, progress)
            finally:
                _clean(directory)


def _compile(
    plan: Plan, directory: Path, targets: list[_Target], chosen: set[str], reader: Reader, progress: Progress | None
) -> CompileReport:
    old = _old_record(directory)
    kept = {target.device: image for target in targets if (image := _reusable(target, old, target.device in chosen))}
    todo = [target for target in targets if target.device in chosen and target.device not in kept]
    made = _write_images(todo, reader, progress) if todo else {}
    images = kept | made
    record = Images(
        layout_version=LAYOUT_VERSION,
        plan_sha256=codec.digest(plan),
        sources=_sources(plan, reader),
        images=tuple(images[target.device] for target in targets if target.device in images),
    )
    if todo or record != old:
        _publish(directory, todo, record)
    return CompileReport(
        images=tuple(
            ImageReport(
                device=target.device,
                file=target.file.name,
                size_bytes=images[target.device].size_bytes,
                blake3=images[target.device].blake3,
                reused=target.device in kept,
            )
            for target in targets
            if target.device in chosen
        ),
        missing=tuple(target.device for target in targets if target.device not in images),
        read_bytes=reader.read_bytes,
        written_bytes=sum(image.size_bytes for image in made.values()),
    )


# ---- what is asked ----


def _check_inputs(plan: Plan, base: BaseInput, draft: DraftInput | None) -> None:
    """The checkpoints must be those that were planned; the first datum that differs is named."""
    if plan.draft is None and draft is not None:
        raise InputError(f"{draft.checkpoint.directory}: a draft head, but the plan has none: leave out --draft")
    if plan.draft is not None and draft is None:
        raise InputError("the plan has a draft head: give its checkpoint with --draft")
    _check_source("base", base, plan.inputs.base_config_sha256, plan.inputs.base_tensors_sha256)
    if plan.model != base.model:
        raise InputError("plan.yaml: model: not what the checkpoint's config gives: build the plan again")
    if draft is not None:
        _check_source("draft", draft, plan.inputs.draft_config_sha256, plan.inputs.draft_tensors_sha256)
        if plan.draft != draft.draft:
            raise InputError("plan.yaml: draft: not what the head's config gives: build the plan again")


def _check_source(
    role: str, given: BaseInput | DraftInput, config_sha256: str | None, table_sha256: str | None
) -> None:
    where = given.checkpoint.directory
    if given.config_sha256 != config_sha256:
        raise InputError(
            f"{where}/config.json: SHA-256 {given.config_sha256}, but inputs.{role}_config_sha256 of the plan is "
            f"{config_sha256}: give the checkpoint that was planned, or build the plan again"
        )
    if given.tensors_sha256 != table_sha256:
        raise InputError(
            f"{where}: the table of tensors has SHA-256 {given.tensors_sha256}, but inputs.{role}_tensors_sha256 of "
            f"the plan is {table_sha256}: give the checkpoint that was planned, or build the plan again"
        )
    if given.checkpoint.tensors is None:
        raise InputError(f"{where}: a config without weights: give a directory with model.safetensors")


def _chosen(plan: Plan, only: Sequence[str] | None) -> set[str]:
    known = [device.id for device in plan.devices]
    for device in only or ():
        if device not in known:
            raise InputError(f"--only {device}: not a device of the plan, which has {', '.join(known)}")
    return set(known if only is None else only)


def _target(
    plan: Plan, directory: Path, device: str, base: BaseInput, draft: DraftInput | None, reader: Reader
) -> _Target:
    slots = image_slots(plan, device, base, draft)
    line = next(line for line in plan.memory if line.device == device)
    if data_bytes(slots) != line.weights_bytes + line.draft_weights_bytes:
        raise InputError(
            f"{directory / 'plan.yaml'}: memory: {device}: {line.weights_bytes} + {line.draft_weights_bytes} bytes of "
            f"weights, but the image takes {data_bytes(slots)}: build the plan again"
        )
    parts = [(slot, part) for slot in slots for part in slot.parts]
    for slot, part in parts:
        _check_part(slot, part, reader.locate(part)[0])
    files = sorted({reader.locate(part)[1] for _, part in parts})
    text = json.dumps(
        [LAYOUT_VERSION, device, encode(slots), [reader.identity(file) for file in files]], default=bytes.hex
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    return _Target(device=device, file=image_file(directory, device), slots=slots, inputs_sha256=digest)


def _are_inside(ranges: Ranges, length: int) -> bool:
    """Whether the ranges are ascending and disjoint, from 0 to ``length``."""
    edges = [0, *(edge for span in ranges for edge in span), length]
    return all(a <= b for a, b in itertools.pairwise(edges))


def _check_part(slot: Slot, part: Part, info: TensorInfo) -> None:
    width = row_width(info)
    rows, cols = part.rows, part.cols or ((0, width),)
    inside = _are_inside(rows, info.shape[0]) and _are_inside(cols, width)
    assert inside, f"{slot.name}: rows {rows} and columns {cols} of {part.tensor}, which has shape {info.shape}"
    if not castable(info.dtype, slot.dtype):
        raise CheckpointError(f"{part.tensor}: dtype {info.dtype} cannot become {slot.dtype}")


# ---- directory ----


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory against another compile; the lock goes with the process, however it ends."""
    with _output_errors(directory):
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{directory}: another compile of this plan is running: wait for it") from error
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _output_errors(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{where}: cannot write: {error.strerror or error}") from error


def _clean(directory: Path) -> None:
    with _output_errors(directory):
        for file in directory.glob(f"{TEMPORARY}*"):
            file.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _old_record(directory: Path) -> Images | None:
    """What the last compile recorded; None where there is nothing that can be believed."""
    try:
        return load_images(directory)
    except (FileNotFoundError, PlanError):
        return None


def _reusable(target: _Target, old: Images | None, hashed: bool) -> Image | None:
    """The recorded image of a target, where it is made of the same inputs and is still whole."""
    image = None if old is None else old.find(target.device)
    if image is None or image.inputs_sha256 != target.inputs_sha256 or not target.file.is_file():
        return None
    if target.file.stat().st_size != image.size_bytes:
        return None
    if hashed and blake3(max_threads=blake3.AUTO).update_mmap(target.file).hexdigest() != image.blake3:
        return None
    return image


def _write_images(targets: list[_Target], reader: Reader, progress: Progress | None) -> dict[str, Image]:
    """Write images under temporary names, complete and on disk; what ``images.yaml`` will say of each."""
    with contextlib.ExitStack() as stack:
        writers = []
        for target in targets:
            writer = Writer(_temporary(target), target.size_bytes)
            stack.callback(writer.close)
            writer.write(header(target.slots, target.device))
            writers.append(writer)
        stream([(writer, target.slots) for writer, target in zip(writers, targets, strict=True)], reader, progress)
        return {
            target.device: Image(
                device=target.device,
                size_bytes=target.size_bytes,
                blake3=writer.finish(),
                abi_sha256=table_sha256(target.slots),
                inputs_sha256=target.inputs_sha256,
            )
            for writer, target in zip(writers, targets, strict=True)
        }


def _sources(plan: Plan, reader: Reader) -> Sources:
    base_headers = reader.headers_sha256("base")
    assert base_headers is not None
    return Sources(
        base_config_sha256=plan.inputs.base_config_sha256,
        base_tensors_sha256=plan.inputs.base_tensors_sha256,
        base_headers_sha256=base_headers,
        draft_config_sha256=plan.inputs.draft_config_sha256,
        draft_tensors_sha256=plan.inputs.draft_tensors_sha256,
        draft_headers_sha256=reader.headers_sha256("draft"),
    )


def _publish(directory: Path, made: list[_Target], record: Images) -> None:
    """Put the new images and their record in place; between the first and the last rename nothing verifies."""
    temporary = directory / f"{TEMPORARY}{IMAGES_FILE}"
    with _output_errors(directory):
        with temporary.open("wb") as stream:
            stream.write(dump_images(record).encode())
            stream.flush()
            os.fsync(stream.fileno())
        if made:
            (directory / IMAGES_FILE).unlink(missing_ok=True)
            _sync(directory)
        for target in made:
            _temporary(target).rename(target.file)
        _sync(directory)
        temporary.rename(directory / IMAGES_FILE)
        _sync(directory)


def _temporary(target: _Target) -> Path:
    return target.file.with_name(f"{TEMPORARY}{target.file.name}")
