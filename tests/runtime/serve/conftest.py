"""A plan, its server, and an engine of the same plan that says what a request gets alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import Engine
from tests.runtime.serve.live import KEY, LiveServer, build_plan, live


@pytest.fixture(scope="session")
def plan_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_plan(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def server(plan_dir: Path, key_file: Path, one_core: None) -> Iterator[LiveServer]:
    with live(plan_dir, "--api-key-file", str(key_file), "--queue", "40") as running:
        yield running


@pytest.fixture(scope="module")
def alone(plan_dir: Path, one_core: None) -> Iterator[Engine]:
    with Engine.open(plan_dir) as engine:
        yield engine
