"""Plan + checkpoints -> the images of its devices and ``images.yaml``, and never half there.

Nothing that verifies is touched until all new images are complete on disk under temporary names. Then, each step on
disk before the next:

    images.yaml removed  ►  images renamed into place  ►  images.yaml renamed into place

Killed before: the old artifact, whole. Between: no ``images.yaml``, so nothing verifies. After: the new one.
"""

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.checkpoints.checkpoint import Checkpoint, with_tensors
from planner.checkpoints.header import TensorInfo, stamp
from planner.errors import CheckpointError, InputError
from planner.families import BaseInput, DraftInput, load_base, load_draft
from planner.images import publish, reuse
from planner.images.casts import castable
from planner.images.layout import abi, data_bytes, header, image_slots
from planner.images.pipeline import Writer
from planner.images.reader import Checkpoints, Reader, locate
from planner.images.stream import Progress, row_width, stream
from plans import codec
from plans.artifact import IMAGES_FILE, Image, Images, Source, SourceFile, Sources, dump_images, image_file, load_images
from plans.check import load
from plans.ranges import Ranges
from plans.schema import Plan, PlanError
from plans.slots import Part, Slot

PICKLES = f"{publish.TEMPORARY}pickle-"
"""In the plan's directory: where a checkpoint in a pickle is converted to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageReport:
    """What became of one image."""

    device: str
    file: str
    size_bytes: int
    blake3: str
    reused: bool
    """It was there already, made of the same inputs."""


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
) -> CompileReport:
    """Write the images of a plan, and ``images.yaml``; raise PlanError, InputError, CheckpointError or OutputError.

    ``only``: the devices to compile, by their ids or by their hosts; the images of others are left as they are.
    """
    plan = load(directory)
    chosen = _chosen(plan, only)
    with publish.locked(directory):
        base = load_base(base_checkpoint)
        draft = None if draft_checkpoint is None else load_draft(draft_checkpoint, base)
        check_inputs(plan, base, draft)
        _require_weights(base)
        _require_weights(draft)
        checkpoints = {"base": base.checkpoint} | ({} if draft is None else {"draft": draft.checkpoint})
        targets = [_target(plan, directory, device.id, base, draft, checkpoints) for device in plan.devices]
        images, report = _compile(plan, directory, targets, chosen, checkpoints, sources_of(base, draft), progress)
        there = [target for target in targets if target.device in images]
        reuse.remember(directory, _memory(base_checkpoint, draft_checkpoint, there, images))
        return report


def _compile(
    plan: Plan,
    directory: Path,
    targets: list[_Target],
    chosen: set[str],
    checkpoints: Checkpoints,
    sources: Sources,
    progress: Progress | None,
) -> tuple[dict[str, Image], CompileReport]:
    """What is there now, and what was done."""
    old, memory = _old_record(directory), reuse.recall(directory)
    found = {target.device: old.find(target.device) if old else None for target in targets}
    kept = {
        target.device: image
        for target in targets
        if (image := found[target.device]) and reuse.is_made(target.file, image, target.inputs_sha256, memory)
    }
    todo = [target for target in targets if target.device in chosen and target.device not in kept]
    made, read_bytes = _write_images(plan, directory, todo, checkpoints, progress) if todo else ({}, 0)
    images = kept | made
    record = Images(
        plan_sha256=codec.digest(plan),
        sources=sources,
        images=tuple(images[target.device] for target in targets if target.device in images),
    )
    if todo or record != old:
        new = {target.file: publish.temporary(target.file) for target in todo}
        publish.publish(new, directory / IMAGES_FILE, dump_images(record))
    return images, CompileReport(
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
        read_bytes=read_bytes,
        written_bytes=sum(image.size_bytes for image in made.values()),
    )


# ---- what is asked ----


def check_inputs(plan: Plan, base: BaseInput, draft: DraftInput | None) -> None:
    """The checkpoints must be those that were planned; raise InputError naming the first datum that differs."""
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


def _require_weights(given: BaseInput | DraftInput | None) -> None:
    if given is not None and given.checkpoint.tensors is None:
        where = given.checkpoint.directory
        raise InputError(f"{where}: a config without weights: give a directory with model.safetensors")


def _chosen(plan: Plan, only: Sequence[str] | None) -> set[str]:
    if only is None:
        return {device.id for device in plan.devices}
    chosen: set[str] = set()
    for name in only:
        named = {device.id for device in plan.devices if name in (device.id, device.host)}
        if not named:
            known = ", ".join(device.id for device in plan.devices)
            hosts = ", ".join(sorted({device.host for device in plan.devices}))
            raise InputError(f"--only {name}: not a device of the plan, which has {known} on {hosts}")
        chosen |= named
    return chosen


def _target(
    plan: Plan, directory: Path, device: str, base: BaseInput, draft: DraftInput | None, checkpoints: Checkpoints
) -> _Target:
    slots = image_slots(plan, device, base, draft)
    line = next(line for line in plan.memory if line.device == device)
    if data_bytes(slots) != line.weights_bytes + line.draft_weights_bytes:
        raise InputError(
            f"{directory / 'plan.yaml'}: memory: {device}: {line.weights_bytes} + {line.draft_weights_bytes} bytes of "
            f"weights, but the image takes {data_bytes(slots)}: build the plan again"
        )
    files = {}
    for slot in slots:
        for part in slot.parts:
            info, file = locate(checkpoints, part)
            _check_part(slot, part, info)
            files[file.path] = file
    inputs = reuse.inputs_sha256(device, slots, [files[path] for path in sorted(files)])
    return _Target(device=device, file=image_file(directory, device), slots=slots, inputs_sha256=inputs)


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


# ---- what is written ----


def _old_record(directory: Path) -> Images | None:
    """What the last compile recorded; None where there is nothing that can be believed."""
    try:
        return load_images(directory)
    except (FileNotFoundError, PlanError):
        return None


def _write_images(
    plan: Plan, directory: Path, targets: list[_Target], checkpoints: Checkpoints, progress: Progress | None
) -> tuple[dict[str, Image], int]:
    """Write images under temporary names, complete and on disk; what ``images.yaml`` will say of each, and bytes read.

    Only what these images are made of is opened, and only here is a pickle converted.
    """
    needed: set[str] = {part.source for target in targets for slot in target.slots for part in slot.parts}
    with publish.output_errors(directory):
        readable = {name: with_tensors(checkpoints[name], directory / f"{PICKLES}{name}") for name in sorted(needed)}
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(Reader(readable))
        writers = []
        for target in targets:
            writer = Writer(publish.temporary(target.file), target.size_bytes)
            stack.callback(writer.close)
            writers.append(writer)
        work = [
            (writer, header(target.slots, target.device), target.slots)
            for writer, target in zip(writers, targets, strict=True)
        ]
        stream(work, reader, progress)
        images = {
            target.device: Image(
                device=target.device,
                size_bytes=target.size_bytes,
                blake3=writer.finish(),
                abi=abi(target.slots, plan.options.dtype),
            )
            for writer, target in zip(writers, targets, strict=True)
        }
        return images, reader.read_bytes


def sources_of(base: BaseInput, draft: DraftInput | None) -> Sources:
    """What ``images.yaml`` says of checkpoints."""

    def source(given: BaseInput | DraftInput) -> Source:
        return Source(
            config_sha256=given.config_sha256, tensors_sha256=given.tensors_sha256, files=_files(given.checkpoint)
        )

    return Sources(base=source(base), draft=None if draft is None else source(draft))


def _files(checkpoint: Checkpoint) -> tuple[SourceFile, ...]:
    return tuple(
        SourceFile(file=name, size_bytes=file.stamp.size_bytes, header_sha256=file.header_sha256)
        for name, file in sorted(checkpoint.files.items())
    )


def _memory(base: Path, draft: Path | None, targets: list[_Target], images: dict[str, Image]) -> reuse.Memory:
    return reuse.Memory(
        base=str(base.resolve()),
        draft=None if draft is None else str(draft.resolve()),
        images=tuple(
            reuse.Made(
                device=target.device,
                inputs_sha256=target.inputs_sha256,
                blake3=images[target.device].blake3,
                stamp=stamp(target.file.stat()),
            )
            for target in targets
        ),
    )
