"""The scripts of tools/: valid syntax, and pinned versions that satisfy the requirements of the package."""

import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = ("tools/setup", "tools/check", "tools/demo", ".ci/run")


def pinned() -> dict[str, str]:
    lines = (ROOT / "tools/constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse_and_stop_at_the_first_error(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    assert (ROOT / script).stat().st_mode & 0o111
    assert "\nset -euo pipefail\n" in (ROOT / script).read_text()


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    project = PROJECT["project"]
    pins = pinned()
    optional = (line for group in project["optional-dependencies"].values() for line in group)
    for line in (*project["dependencies"], *optional):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line


def test_torch_is_pinned_without_a_build() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", pinned()["torch"])


def test_every_package_is_installed() -> None:
    find = PROJECT["tool"]["setuptools"]["packages"]["find"]
    assert find["where"] == [".", "tools"]
    directories = {
        ".".join(file.parent.relative_to(place).parts): file.parent
        for place, packages in ((ROOT, ("plans", "planner", "runtime")), (ROOT / "tools", ("eagleplan",)))
        for package in packages
        for file in (place / package).rglob("*.py")
    }
    assert [name for name in directories if not any(fnmatch(name, pattern) for pattern in find["include"])] == []
    assert [name for name, directory in directories.items() if not (directory / "__init__.py").is_file()] == []


def test_the_data_of_packages_is_there() -> None:
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            assert list((ROOT / package.replace(".", "/")).glob(pattern)), f"{package}: {pattern}"


def test_the_set_up_refuses_an_older_python(tmp_path: Path) -> None:
    """Every name under which Python is looked for leads to one that is too old, in a copy of the tree."""
    for file in ("pyproject.toml", "tools/setup", "tools/constraints.txt"):
        target = tmp_path / "tree" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / file).read_bytes())
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11"):
        (binaries / name).write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 || exit 1\n')
        (binaries / name).chmod(0o755)
    command = ["bash", tmp_path / "tree" / "tools" / "setup"]
    environment = {"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "tools/setup: no Python 3.11.1 or newer found (python3 is Python 3.9.2): install one\n"
    assert not (tmp_path / "tree" / ".venv").exists()
