"""The digest of a plan's inputs: what counts beside a bare config, and among the planner's own files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from planner.api.digesting import SOURCES, inputs_digest
from tests.planner.instances import ROOT

CHANGES: dict[str, Callable[[Path], object]] = {
    "a profile": lambda directory: (directory / "acceptance.yaml").write_text("a"),
    "a link to nowhere": lambda directory: (directory / "acceptance.yaml").symlink_to("gone"),
    "a tokenizer": lambda directory: (directory / "tokenizer.json").write_text("a"),
    "the config": lambda directory: (directory / "config.json").write_text("{ }"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("given", ["", "config.json"])
def test_what_is_read_beside_a_config_counts(given: str, change: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = inputs_digest([None, tmp_path / given], [], "")
    (tmp_path / "others.txt").write_text("not read")
    assert inputs_digest([None, tmp_path / given], [], "") == before
    CHANGES[change](tmp_path)
    assert inputs_digest([None, tmp_path / given], [], "") != before


def test_the_data_that_the_planner_reads_counts_as_its_sources() -> None:
    data = {file.relative_to(ROOT) for file in (ROOT / "planner").rglob("*.yaml")}
    assert len(data) >= 3
    assert data <= {file.relative_to(ROOT) for pattern in SOURCES for file in ROOT.glob(pattern)}
