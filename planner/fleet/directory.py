"""The directory of a fleet: ``fleet.yaml``, what it was planned from, and the directory of each template's plan.

config.json, draft/config.json, acceptance.yaml    inputs, from which the fleet can be divided again
NAME/                                              a plan, as :mod:`planner.plan_directory` writes it
fleet.yaml                                         last, so that it always has the others beside it
"""

import os
from pathlib import Path

from planner import plan_directory
from planner.build import recorded_profile
from planner.errors import OutputError
from planner.families import load_base, load_planned_draft
from planner.fleet.build import BuiltFleet
from planner.fleet.templates import FleetInput
from planner.plan_directory import BASE_CONFIG, DRAFT_CONFIG, DRAFT_DIRECTORY, draft_config
from planner.speculation.profiles import kept_profile
from plans import codec, durable
from plans.acceptance import ACCEPTANCE, dump_profile
from plans.codec import FLEET_FILE
from plans.fleet import Fleet, dump_fleet, is_fleet
from plans.quantized import has_codes


def write(directory: Path, built: BuiltFleet, given: FleetInput) -> None:
    """Write a fleet's directory; unchanged files are left alone. Raise OutputError, or CheckpointError."""
    refuse_foreign(directory)
    for name in built.plans:
        plan_directory.refuse_foreign(directory / name)
    files = {BASE_CONFIG: given.base.checkpoint.config_bytes}
    if given.draft is not None and given.profile is not None:
        files |= {DRAFT_CONFIG: given.draft.checkpoint.config_bytes, ACCEPTANCE: dump_profile(given.profile).encode()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fleet_file = directory / FLEET_FILE
        text = dump_fleet(built.fleet).encode()
        durable.write_synced(_temporary(fleet_file), text)  # by which a half-written directory is recognised
        for name in (DRAFT_CONFIG, ACCEPTANCE):
            if name not in files:
                (directory / name).unlink(missing_ok=True)
        if given.draft is not None:
            (directory / DRAFT_DIRECTORY).mkdir(exist_ok=True)
        for name, plan in built.plans.items():
            draft = given.draft if plan.draft is not None else None
            plan_directory.write(directory / name, plan, given.base, draft, kept_profile(plan, given.profile))
        for name, content in files.items():
            durable.replace(directory / name, content, _temporary(directory / name))
        durable.put_in_place(_temporary(fleet_file), fleet_file)
    except OSError as error:
        raise OutputError(f"{directory}: cannot write the fleet: {error}") from error


def refuse_foreign(directory: Path) -> None:
    """Raise OutputError unless a directory is free, or has a fleet, which may be half written."""
    if directory.is_dir():
        known = is_fleet(directory) or _temporary(directory / FLEET_FILE).is_file()
        if any(directory.iterdir()) and not known:
            raise OutputError(f"{directory}: holds something other than a fleet (no fleet.yaml): give another --out")
    elif os.path.lexists(directory):
        raise OutputError(f"{directory}: is not a directory: give another --out")


def read_input(directory: Path, fleet: Fleet) -> FleetInput:
    """Return the inputs recorded beside a fleet; raise CheckpointError, ArtifactError or PlanError."""
    base = load_base(directory / BASE_CONFIG, fleet.request.options.weights)
    if has_codes(base.model):
        planned = codec.load(directory / fleet.templates[0].name).model
        base = load_base(directory / BASE_CONFIG, fleet.request.options.weights, planned)
    if fleet.draft is None:
        return FleetInput(base=base, draft=None, profile=None, inventory=fleet.inventory)
    draft = load_planned_draft(draft_config(directory), base, fleet.draft)
    return FleetInput(base=base, draft=draft, profile=recorded_profile(directory), inventory=fleet.inventory)


def _temporary(file: Path) -> Path:
    """Return the name under which a file is written until it is complete."""
    return file.with_name(f".{file.name}.new")
