"""Compile a plan and its checkpoints into the images of its devices and ``images.yaml``, complete or not at all.

Nothing that verifies is touched until all new images are complete on disk under temporary names. Then, each step on
disk before the next:

    images.yaml removed  ►  images renamed into place  ►  images.yaml renamed into place

Killed before: the old artifact, whole. In between: no ``images.yaml``, so nothing verifies. After: the new artifact.
"""

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.checkpoints.checkpoint import with_tensors
from planner.checkpoints.header import stamp
from planner.directory_lock import output_errors
from planner.errors import InputError
from planner.families import BaseInput, DraftInput, load_base, load_draft
from planner.images import publish, reuse
from planner.images.inputs import changes_first, check_base, check_draft, check_text, require_weights, sources_of
from planner.images.layout import Slot, abi, data_bytes, header, image_slots
from planner.images.pieces import Checkpoints, Copied, Piece, files_of, resolve
from planner.images.pipeline import Writer
from planner.images.reader import Reader
from planner.images.stream import ImageInput, Progress, stream
from planner.images.token_map import check_token_map
from plans import codec
from plans.artifact import IMAGES_FILE, Image, Images, Sources, dump_images, image_file, load_images
from plans.check import UNPLANNED, require
from plans.schema import Plan, PlanError

PICKLES = f"{publish.TEMPORARY}pickle-"
"""Prefix of the directories inside the plan's into which pickled checkpoints are converted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageReport:
    """Result for one image."""

    device: str
    file: str
    size_bytes: int
    blake3: str
    reused: bool
    """True if the image was there already, compiled from the same inputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundingReport:
    """Relative errors of the weights that were rounded, in parts per million (``plans.artifact.RoundingErrors``)."""

    median_ppm: int
    """Of all slots of the images."""
    most_ppm: int
    most_layer: int | None
    """None: embedding or lm_head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileReport:
    """Result of a compile."""

    images: tuple[ImageReport, ...]
    """Images of the devices that were asked for, in the order of the plan's devices."""
    missing: tuple[str, ...]
    """Devices of the plan that have no image yet, because ``only`` left them out."""
    read_bytes: int
    written_bytes: int
    rounding: RoundingReport | None
    """None: no weight was rounded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """An image as it is to be."""

    device: str
    file: Path
    slots: tuple[Slot, ...]
    pieces: tuple[Piece, ...]
    """The slots, found in their checkpoints."""
    inputs_sha256: str
    """Digest of all that determines the image's bytes."""

    @property
    def header(self) -> bytes:
        """Header of the image's file."""
        return header(self.slots, self.device)

    @property
    def size_bytes(self) -> int:
        """Bytes of the image's file."""
        return len(self.header) + data_bytes(self.slots)


def compile_plan(
    directory: Path,
    base_checkpoint: Path,
    draft_checkpoint: Path | None,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> CompileReport:
    """Write the images of a plan, and ``images.yaml``; raise PlanError, InputError, CheckpointError or OutputError.

    ``only``: devices to compile, by their ids or by their hosts; the images of others are left as they are.
    """
    plan = codec.load(directory)
    with changes_first(directory, plan):
        require(plan, str(directory / codec.PLAN_FILE))
    chosen = _chosen(plan, only)
    with publish.locked(directory):
        base = load_base(base_checkpoint, plan.options.weights)
        with changes_first(directory, plan):
            check_base(plan, base)
        asked = plan.draft.aux_layers if plan.draft and plan.draft.aux_layers_from == "option" else None
        not_chosen = plan.draft is None and plan.speculation is not None
        known = None if not_chosen else draft_checkpoint
        draft = None if known is None else load_draft(known, base, aux_layers=asked)
        with changes_first(directory, plan):
            check_draft(plan, draft)
        require_weights(base.checkpoint)
        checkpoints = {"base": base.checkpoint}
        if draft is not None:
            require_weights(draft.checkpoint)
            checkpoints["draft"] = draft.checkpoint
        with changes_first(directory, plan):
            targets = [_target(plan, directory, device.id, base, draft, checkpoints) for device in plan.devices]
        check_text(directory, plan)
        images, report = _compile(plan, directory, targets, chosen, checkpoints, sources_of(base, draft), progress)
        present = [target for target in targets if target.device in images]
        reuse.remember(directory, _memory(base, draft, present, images))
        return report


# ---- what is to be written ----


def _chosen(plan: Plan, only: Sequence[str] | None) -> set[str]:
    """Return the ids of the devices to compile; raise InputError for a name that is neither a device nor a host."""
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
    """Lay out the image of a device and find its bytes; raise InputError or CheckpointError."""
    slots = image_slots(plan, device, base, draft)
    line = next(line for line in plan.memory if line.device == device)
    if data_bytes(slots) != line.weights_bytes + line.draft_weights_bytes:
        raise InputError(
            f"{directory / codec.PLAN_FILE}: {UNPLANNED}: memory: {device}: "
            f"{line.weights_bytes} + {line.draft_weights_bytes} bytes of weights, but the image takes "
            f"{data_bytes(slots)}: build the plan again"
        )
    pieces = resolve(slots, checkpoints)
    copied = [piece for piece in pieces if isinstance(piece, Copied)]
    files = {file.path: file for piece in copied for file in files_of(piece, checkpoints)}
    inputs = reuse.inputs_sha256(device, slots, [files[path] for path in sorted(files)])
    return _Target(device=device, file=image_file(directory, device), slots=slots, pieces=pieces, inputs_sha256=inputs)


# ---- writing ----


def _compile(
    plan: Plan,
    directory: Path,
    targets: list[_Target],
    chosen: set[str],
    checkpoints: Checkpoints,
    sources: Sources,
    progress: Progress | None,
) -> tuple[dict[str, Image], CompileReport]:
    """Write and publish the chosen images that are not there yet; return the record of all that are, by device."""
    old, memory = _old_record(directory), reuse.recall(directory)
    recorded = {target.device: old.find(target.device) if old else None for target in targets}
    kept = {
        target.device: image
        for target in targets
        if (image := recorded[target.device]) and reuse.is_made(target.file, image, target.inputs_sha256, memory)
    }
    todo = [target for target in targets if target.device in chosen and target.device not in kept]
    written, read_bytes = _write_images(plan, directory, todo, checkpoints, progress) if todo else ({}, 0)
    images = kept | written
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
        written_bytes=sum(image.size_bytes for image in written.values()),
        rounding=_rounding(record),
    )


def _rounding(record: Images) -> RoundingReport | None:
    """Return the errors of all images in few numbers."""
    layers = [layer for image in record.images for layer in image.rounding or ()]
    errors = [(ppm, layer.layer) for layer in layers for ppm in layer.errors_ppm]
    if not errors:
        return None
    most_ppm, layer = max(errors, key=lambda error: error[0])
    median_ppm = round(statistics.median(ppm for ppm, _ in errors))
    return RoundingReport(median_ppm=median_ppm, most_ppm=most_ppm, most_layer=layer)


def _old_record(directory: Path) -> Images | None:
    """Return the record of the last compile; None if it is missing or damaged."""
    try:
        return load_images(directory)
    except (FileNotFoundError, PlanError):
        return None


def _write_images(
    plan: Plan, directory: Path, targets: list[_Target], checkpoints: Checkpoints, progress: Progress | None
) -> tuple[dict[str, Image], int]:
    """Write images under temporary names, complete and on disk; return their records by device, and the bytes read.

    Only the checkpoints that these images need are opened, and only here is a pickle converted.
    """
    needed: set[str] = {piece.part.source for target in targets for piece in target.pieces if isinstance(piece, Copied)}
    with output_errors(directory):
        readable = {name: with_tensors(checkpoints[name], directory / f"{PICKLES}{name}") for name in sorted(needed)}
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(Reader(readable))
        check_token_map((piece for target in targets for piece in target.pieces), reader, plan.model.vocab_size)
        writers = []
        for target in targets:
            writer = Writer(publish.temporary(target.file), target.size_bytes)
            stack.callback(writer.close)
            writers.append(writer)
        images = [
            ImageInput(writer=writer, header=target.header, pieces=target.pieces)
            for writer, target in zip(writers, targets, strict=True)
        ]
        rounding = stream(images, reader, progress)
        records = {
            target.device: Image(
                device=target.device,
                size_bytes=target.size_bytes,
                blake3=writer.finish(),
                abi=abi(target.slots, plan.options.dtype),
                rounding=errors,
            )
            for writer, target, errors in zip(writers, targets, rounding, strict=True)
        }
        return records, reader.read_bytes


def _memory(
    base: BaseInput, draft: DraftInput | None, targets: list[_Target], images: dict[str, Image]
) -> reuse.Memory:
    """Return the record that lets the next compile reuse these images."""
    return reuse.Memory(
        base=str(base.checkpoint.directory.resolve()),
        draft=None if draft is None else str(draft.checkpoint.directory.resolve()),
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
