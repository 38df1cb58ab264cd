"""Checkpoints that all these tests share."""

import pytest

from tests.contract.checkpoints import Checkpoints, write_checkpoints


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))
