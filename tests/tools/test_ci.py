"""The workflow that reviews plans: its steps run in a shell, on a repository made for the test."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((ROOT / "tools/ci/review-plans.yml").read_text())
GH = '#!/bin/sh\nprintf "%s\\n" "$*" >>"$GH_LOG"\n'
DEMO = ["--gpus", str(ROOT / "inventory.yaml"), "--tree", "total_token=16,depth=4,top_k=3", "--plan-only"]


def git(repository: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout.strip()


def build(repository: Path, name: str, *options: str) -> None:
    command = [sys.executable, "-m", "planner", "build", *DEMO, "--out", str(repository / "plans" / name), *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a repository of two commits: the first has plans a and b; the second changes a, removes b and adds c."""
    path = tmp_path_factory.mktemp("committed") / "work"
    (path / "plans").mkdir(parents=True)
    build(path, "a")
    build(path, "b", "--context", "128")
    git(path, "init", "-q")
    git(path, "add", "-A")
    git(path, "commit", "-qm", "before")
    build(path, "a", "--context", "256")
    build(path, "c", "--no-draft", "--replicas", "1")  # a fleet
    git(path, "rm", "-rq", "plans/b")
    git(path, "add", "-A")
    git(path, "commit", "-qm", "after")
    return path


@pytest.fixture
def repository(committed: Path, tmp_path: Path) -> Path:
    """Return a copy of the repository, for one test."""
    return Path(shutil.copytree(committed, tmp_path / "work"))


def run_steps(repository: Path) -> dict[str, int]:
    """Run each step that has a command, except the installation; return the exit codes."""
    binaries = repository.parent / "bin"
    binaries.mkdir()
    for name, script in (("gh", GH), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        (binaries / name).write_text(script)
        (binaries / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "BASE": git(repository, "rev-parse", "HEAD~1"),
        "PULL_REQUEST": "7",
        "GH_LOG": str(repository.parent / "gh.log"),
    }
    codes: dict[str, int] = {}
    for step in WORKFLOW["jobs"]["review"]["steps"]:
        failed = any(codes.values())
        if "run" in step and step["name"] != "install" and ("if" in step or not failed):
            command = ["bash", "-e", "-c", step["run"]]
            codes[step["name"]] = subprocess.run(command, cwd=repository, env=environment, check=False).returncode
    return codes


def test_it_posts_the_changes_and_that_all_plans_are_proven(repository: Path) -> None:
    assert run_steps(repository) == {"write what changed": 0, "solve every plan again": 0, "comment": 0}
    review = (repository / "review.md").read_text()
    for heading in (
        "## `plans/a`",
        "## `plans/b`\n\nRemoved.",
        "## `plans/c`\n\nNew.",
        "## check\n\n    plans/a: clean\n",
    ):
        assert heading in review
    changed = review[review.index("## `plans/a`") : review.index("## `plans/b`")]
    assert "context" in changed
    log = (repository.parent / "gh.log").read_text()
    assert log == "pr comment 7 --edit-last --create-if-none --body-file review.md\n"


def test_a_plan_that_was_edited_by_hand_fails_and_is_posted(repository: Path) -> None:
    plan = repository / "plans" / "a" / "plan.yaml"
    text = plan.read_text()
    assert "batch: 1" in text
    plan.write_text(text.replace("batch: 1", "batch: 2"))
    git(repository, "commit", "-qam", "by hand")
    git(repository, "reset", "-q", "--soft", "HEAD~2")
    git(repository, "commit", "-qm", "both")
    codes = run_steps(repository)
    assert codes["solve every plan again"] != 0
    assert codes["comment"] == 0
    assert "plans/a" in (repository / "review.md").read_text().partition("## check")[2]


def test_the_workflow_installs_one_package_and_needs_no_more_rights() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert WORKFLOW[True] == {"pull_request": {"paths": ["plans/**"]}}  # YAML 1.1 reads the key `on` as true
    installs = [step["run"] for step in WORKFLOW["jobs"]["review"]["steps"] if "pip" in step.get("run", "")]
    assert installs == ['pip install "$EAGLEPLAN"']
