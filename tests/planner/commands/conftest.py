"""Models, and a plan of them, that the tests of all commands read."""

from pathlib import Path

import pytest
import yaml

from tests.plan_factory import write_base, write_draft
from tests.planner.commands.built import INVENTORY, SIZES, build


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random base, an EAGLE head for it, and an inventory; return their directory."""
    directory = tmp_path_factory.mktemp("models")
    write_base(directory / "base", num_layers=8, vocab_size=512, shards=2, **SIZES)
    head = {"num_heads": 8, "head_dim": 8, "hidden_size": 64, "intermediate_size": 192}
    write_draft(directory / "head", vocab_size=512, draft_vocab_size=256, **head)
    (directory / "inventory.yaml").write_text(yaml.safe_dump(INVENTORY))
    return directory


@pytest.fixture(scope="session")
def plan(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a plan with its images; return its directory."""
    out = tmp_path_factory.mktemp("plans") / "p"
    assert build(models, out).exit_code == 0
    return out
