"""A compiled plan, of which each test has a copy."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from planner.families import inputs_of, load_base, load_draft
from planner.images.compile import compile_plan
from plans import codec
from tests.plan_factory import group, make_plan, split_draft, write_base, write_draft
from tests.runtime.image.artifact import Artifact


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Compile a plan, which no test changes."""
    tmp_path = tmp_path_factory.mktemp("compiled")
    tensors = write_base(tmp_path / "base", num_layers=8)
    write_draft(tmp_path / "head")
    base = load_base(tmp_path / "base")
    draft = load_draft(tmp_path / "head", base)
    inputs = inputs_of(base, draft)
    plan = make_plan(
        base.model,
        [group(base.model, ["a", "b"], 8)],
        draft=draft.draft,
        placement=split_draft(base.model, draft.draft, ("b",)),
        inputs=inputs,
    )
    directory = tmp_path / "plan"
    directory.mkdir()
    (directory / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(directory, tmp_path / "base", tmp_path / "head")
    return Artifact(plan=plan, directory=directory, base=tensors)


@pytest.fixture
def artifact(compiled: Artifact, tmp_path: Path) -> Artifact:
    """Copy the compiled plan, for a test that may change its files."""
    shutil.copytree(compiled.directory, tmp_path / "plan")
    return dataclasses.replace(compiled, directory=tmp_path / "plan")
