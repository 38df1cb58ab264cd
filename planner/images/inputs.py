"""Check that a plan and the checkpoints to compile belong together, and say why where they do not (exit code 2).

    plan.yaml is not the canonical text of its plan ───────► it was edited by hand
    its digest is not the one in images.yaml ──────────────► it was changed since its images were compiled
    its input digests are not those of the checkpoints ────► another model, or another config of the same model
    its model, draft or bytes are not what the inputs give ► it was edited by hand, or built by another version
    plan.yaml contradicts itself (plans.check) ────────────► the same

The first two come first in a message, before what follows from them.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planner.checkpoints.checkpoint import Checkpoint
from planner.errors import InputError
from planner.families import BaseInput, DraftInput, within
from planner.images import reuse
from plans import codec
from plans.artifact import Source, SourceFile, Sources, load_images
from plans.check import UNPLANNED, InvalidPlanError
from plans.schema import Draft, Model, Plan, PlanError

EDITED = "edited by hand (it is not the canonical text of its plan)"


def check_inputs(plan: Plan, base: BaseInput, draft: DraftInput | None) -> None:
    """Raise InputError unless the checkpoints are those that were planned, naming the first datum that differs."""
    check_base(plan, base)
    check_draft(plan, draft)


def check_base(plan: Plan, base: BaseInput) -> None:
    """Raise InputError unless this is the base model that was planned."""
    model = within(base.model, plan.options.context)
    _check_digests(plan, "base", "--model", base, model == plan.model, describe_model(plan.model))
    _check_record("model", plan.model, model)


def check_draft(plan: Plan, draft: DraftInput | None) -> None:
    """Raise InputError unless this is the EAGLE head that was planned, or there is none in both.

    One that was given and not chosen may be given again.
    """
    if plan.draft is None:
        if draft is not None and plan.speculation is None:
            raise InputError(f"{draft.checkpoint.directory}: an EAGLE head, but the plan has none: leave out --draft")
        return
    if draft is None:
        raise InputError(f"the plan has {describe_draft(plan.draft)}: give its checkpoint with --draft")
    _check_digests(plan, "draft", "--draft", draft, draft.draft == plan.draft, describe_draft(plan.draft))
    _check_record("draft", plan.draft, draft.draft)


def check_default(directory: Path, plan: Plan, default: Path) -> None:
    """Raise InputError unless the plan was built from ``default``, the checkpoint of a command without --model."""
    digest = hashlib.sha256((default / "config.json").read_bytes()).hexdigest()
    if digest != plan.inputs.base_config_sha256:
        memory = reuse.recall(directory)
        last = "" if memory is None else f" (last compiled from {memory.base})"
        head = "" if plan.draft is None else ", and its EAGLE head with --draft"
        raise InputError(
            f"{directory / codec.PLAN_FILE}: not built from the demo model, but from {describe_model(plan.model)}{last}"
            f": give its checkpoint with --model{head}"
        )


def check_text(directory: Path, plan: Plan) -> None:
    """Raise InputError unless ``plan.yaml`` is the canonical text of its plan: the runtime refuses another text."""
    if not codec.is_canonical(directory, plan):
        raise InputError(
            f"{directory / codec.PLAN_FILE}: {EDITED}, and the runtime refuses a plan whose text is not the "
            "one for which its images are compiled: build the plan again"
        )


def require_weights(checkpoint: Checkpoint) -> None:
    """Raise InputError for a bare config."""
    if checkpoint.tensors is None:
        raise InputError(f"{checkpoint.directory}: a config without weights: give a directory with model.safetensors")


@contextlib.contextmanager
def changes_first(directory: Path, plan: Plan) -> Iterator[None]:
    """Put how ``plan.yaml`` was changed first in the message of an InputError or InvalidPlanError of the context."""
    file = directory / codec.PLAN_FILE
    try:
        yield
    except InputError as error:
        change = _change(directory, plan)
        if change is None:
            raise
        raise type(error)(f"{file}: {change}, and now: {error}") from error
    except InvalidPlanError as error:
        change = _change(directory, plan)
        if change is None:
            raise
        raise InvalidPlanError(str(file), error.violations, change) from error


def sources_of(base: BaseInput, draft: DraftInput | None) -> Sources:
    """Return the checkpoints as ``images.yaml`` records them."""
    return Sources(base=_source(base), draft=None if draft is None else _source(draft))


def describe_model(model: Model) -> str:
    """Return what a plan says of its base model, in words."""
    sizes = f"{model.num_layers} layers, hidden size {model.hidden_size} and {model.vocab_size} tokens"
    return f"a {model.family} model with {sizes}"


def describe_draft(draft: Draft) -> str:
    """Return what a plan says of its EAGLE head, in words."""
    sizes = f"hidden size {draft.hidden_size} and {draft.draft_vocab_size} tokens"
    return f"an EAGLE head of kind {draft.kind} with {sizes}"


def _check_digests(
    plan: Plan, role: str, option: str, source: BaseInput | DraftInput, same_sizes: bool, planned: str
) -> None:
    """Raise InputError unless config and table of tensors are those of the plan's ``inputs``.

    ``planned``: the planned checkpoint in words; ``same_sizes``: this checkpoint gives the same record of the plan.
    """
    inputs = codec.encode(plan.inputs)
    for name, subject, digest in (
        (f"{role}_config_sha256", "config.json", source.config_sha256),
        (f"{role}_tensors_sha256", "the table of tensors", source.tensors_sha256),
    ):
        if digest != inputs[name]:
            difference = "of the same sizes, but not" if same_sizes else "not"
            raise InputError(
                f"{source.checkpoint.directory}: {difference} the checkpoint that was planned, {planned}: "
                f"{subject} has SHA-256 {digest}, but inputs.{name} of the plan is {inputs[name]}: "
                f"give the planned checkpoint with {option}, or build the plan again"
            )


def _check_record(name: str, planned: Model | Draft, implied: Model | Draft) -> None:
    """Raise InputError unless a record of the plan is what a config with the planned digest gives."""
    if planned != implied:
        path, value, expected = _first_difference(name, codec.encode(planned), codec.encode(implied))
        if path.endswith("_format.scale"):
            raise InputError(
                f"plan.yaml: {path}: found {value!r}, but the checkpoint has scales in {expected!r}, which a config "
                "without weights does not say: build the plan again, from the checkpoint"
            )
        raise InputError(
            f"plan.yaml: {UNPLANNED}: {path}: found {value!r}, but the config that "
            f"was planned gives {expected!r}: build the plan again"
        )


def _first_difference(path: str, value: Any, expected: Any) -> tuple[str, Any, Any]:
    """Return path and values of the first datum in which two encoded records differ."""
    if isinstance(value, dict) and isinstance(expected, dict) and value.keys() == expected.keys():
        pairs = [(f"{path}.{key}", value[key], expected[key]) for key in value]
    elif isinstance(value, list) and isinstance(expected, list) and len(value) == len(expected):
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(value, expected, strict=True))]
    else:
        return path, value, expected
    return next(_first_difference(*pair) for pair in pairs if pair[1] != pair[2])


def _change(directory: Path, plan: Plan) -> str | None:
    """Return how ``plan.yaml`` was changed after it was built, as far as that can be proven; None: it cannot."""
    if not codec.is_canonical(directory, plan):
        return EDITED
    try:
        record = load_images(directory)
    except (FileNotFoundError, PlanError):
        return None
    if record.plan_sha256 != codec.digest(plan):
        return "changed since its images were compiled, by hand or by another build"
    return None


def _source(source: BaseInput | DraftInput) -> Source:
    files = tuple(
        SourceFile(file=name, size_bytes=file.stamp.size_bytes, header_sha256=file.header_sha256)
        for name, file in sorted(source.checkpoint.files.items())
    )
    return Source(config_sha256=source.config_sha256, tensors_sha256=source.tensors_sha256, files=files)
