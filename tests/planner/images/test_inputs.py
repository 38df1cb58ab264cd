"""Plans and checkpoints that do not match: messages name the cause first, then its consequence."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.api import compiling
from planner.demo_model import BASE
from planner.errors import InputError
from planner.families import inputs_of, load_base
from planner.images.compile import compile_plan
from planner.images.inputs import check_default
from plans import codec
from plans.check import InvalidPlanError
from plans.schema import Plan
from tests.plan_factory import group, make_plan, write_base


def planned(tmp_path: Path) -> tuple[Path, Path, Plan]:
    """Return the directory of a plan of one device, the directory of its checkpoint, and the plan."""
    base_dir, directory = tmp_path / "base", tmp_path / "plan"
    write_base(base_dir, num_layers=2)
    base = load_base(base_dir)
    plan = make_plan(base.model, [group(base.model, ["a"], 2)], inputs=inputs_of(base, None))
    directory.mkdir()
    save(plan, directory)
    return directory, base_dir, plan


def save(plan: Plan, directory: Path) -> None:
    (directory / "plan.yaml").write_text(codec.dumps(plan))


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert caught.value.exit_code == 2
    return str(caught.value)


def compiled(directory: Path, model: Path | None = None) -> None:
    compiling.compile(directory, model=model)


MODEL = "a llama model with 2 layers, hidden size 32 and 50 tokens"


def test_a_plan_of_another_model_than_the_demo_needs_model(tmp_path: Path) -> None:
    directory, base_dir, plan = planned(tmp_path)
    expected = f"{directory / 'plan.yaml'}: not built from the demo model, but from {MODEL}: "
    assert refused(lambda: compiled(directory)) == f"{expected}give its checkpoint with --model"
    compile_plan(directory, base_dir, None)
    assert f"{MODEL} (last compiled from {base_dir}): give" in refused(lambda: compiled(directory))
    demo = dataclasses.replace(plan.inputs, base_config_sha256=load_base(BASE).config_sha256)
    check_default(directory, dataclasses.replace(plan, inputs=demo), BASE)


def test_the_message_about_another_checkpoint_has_the_planned_sizes(tmp_path: Path) -> None:
    directory, _, plan = planned(tmp_path)
    write_base(tmp_path / "other", num_layers=3)
    digest = load_base(tmp_path / "other").config_sha256
    assert refused(lambda: compile_plan(directory, tmp_path / "other", None)) == (
        f"{tmp_path / 'other'}: not the checkpoint that was planned, {MODEL}: config.json has SHA-256 {digest}, but "
        f"inputs.base_config_sha256 of the plan is {plan.inputs.base_config_sha256}: "
        "give the planned checkpoint with --model, or build the plan again"
    )


def test_another_config_of_the_same_sizes_is_reported_as_such(tmp_path: Path) -> None:
    directory, base_dir, _ = planned(tmp_path)
    config = json.loads((base_dir / "config.json").read_text())
    (base_dir / "config.json").write_text(json.dumps(config | {"torch_dtype": "float16"}))
    message = refused(lambda: compile_plan(directory, base_dir, None))
    assert message.startswith(f"{base_dir}: of the same sizes, but not the checkpoint that was planned, {MODEL}: ")


def test_a_plan_whose_model_differs_from_its_config_was_edited(tmp_path: Path) -> None:
    directory, base_dir, plan = planned(tmp_path)
    save(dataclasses.replace(plan, model=dataclasses.replace(plan.model, norm_eps=0.5)), directory)
    expected = json.loads((base_dir / "config.json").read_text())["rms_norm_eps"]
    assert refused(lambda: compile_plan(directory, base_dir, None)) == (
        "plan.yaml: edited by hand, or built by another version: model.norm_eps: found 0.5, but the config that was "
        f"planned gives {expected}: build the plan again"
    )


def edit_text(directory: Path, plan: Plan) -> None:
    """Add a comment, which the planner never writes."""
    (directory / "plan.yaml").write_text(f"# faster\n{codec.dumps(plan)}")


def edit_option(directory: Path, plan: Plan) -> None:
    """Change a field to another valid value, in canonical form."""
    proof = dataclasses.replace(plan.proof, objective_ns=1_000_001, least_ns=1_000_001, bound_ns=1_000_001)
    save(dataclasses.replace(plan, proof=proof), directory)


@pytest.mark.parametrize(
    ("edit", "change"),
    [
        (edit_text, r"edited by hand (it is not the canonical text of its plan)"),
        (edit_option, r"changed since its images were compiled, by hand or by another build"),
    ],
)
def test_messages_name_the_change_of_the_plan_before_its_consequence(
    tmp_path: Path, edit: Callable[[Path, Plan], None], change: str
) -> None:
    directory, base_dir, plan = planned(tmp_path)
    compile_plan(directory, base_dir, None)
    edit(directory, plan)
    write_base(tmp_path / "other", num_layers=3)
    file = re.escape(str(directory / "plan.yaml"))
    message = refused(lambda: compile_plan(directory, tmp_path / "other", None))
    assert re.match(rf"{file}: {re.escape(change)}, and now: .*other: not the checkpoint that was planned, ", message)
    message = refused(lambda: compiled(directory))
    assert re.match(rf"{file}: {re.escape(change)}, and now: {file}: not built from the demo model, ", message)


def test_an_edit_that_changes_a_value_only_is_compiled(tmp_path: Path) -> None:
    directory, base_dir, plan = planned(tmp_path)
    compile_plan(directory, base_dir, None)
    edit_option(directory, plan)
    compile_plan(directory, base_dir, None)


@pytest.mark.parametrize("compiled_before", [True, False])
def test_a_text_that_the_runtime_would_refuse_is_not_compiled(tmp_path: Path, compiled_before: bool) -> None:
    directory, base_dir, plan = planned(tmp_path)
    if compiled_before:
        compile_plan(directory, base_dir, None)
    before = {file.name: file.read_bytes() for file in directory.glob("*.safetensors")}
    edit_text(directory, plan)
    message = refused(lambda: compile_plan(directory, base_dir, None))
    edited = "edited by hand (it is not the canonical text of its plan)"
    assert message.startswith(f"{directory / 'plan.yaml'}: {edited}, and the runtime refuses ")
    assert {file.name: file.read_bytes() for file in directory.glob("*.safetensors")} == before


@pytest.mark.parametrize("compiled_before", [True, False])
def test_an_inconsistent_plan_is_reported_as_edited(tmp_path: Path, compiled_before: bool) -> None:
    directory, base_dir, plan = planned(tmp_path)
    if compiled_before:
        compile_plan(directory, base_dir, None)
    save(dataclasses.replace(plan, options=dataclasses.replace(plan.options, context=63)), directory)
    with pytest.raises(InvalidPlanError) as caught:
        compile_plan(directory, base_dir, None)
    first, second, *_ = str(caught.value).splitlines()
    changed = "changed since its images were compiled, by hand or by another build"
    change = changed if compiled_before else "edited by hand, or built by another version"
    assert first == f"{directory / 'plan.yaml'}: {change}, and now:"
    assert second.startswith(f"{directory / 'plan.yaml'}: memory[0].")
    assert caught.value.violations
