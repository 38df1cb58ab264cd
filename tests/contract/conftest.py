"""Checkpoints that the tests of one module share."""

import pytest

from tests.contract.checkpoints import Checkpoints, write_checkpoints


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))
