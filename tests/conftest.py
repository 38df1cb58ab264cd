"""Options of the test run, and fixtures that several test modules share."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests import plan_factory

if "--cuda" not in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: the tests run them without a GPU

# Tests start hundreds of processes: bytecode is compiled by the first of them, whatever the environment says, and the
# kernels (a minute for all dtypes) once for all checkouts of the same sources, by whose checksum their files are named.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if os.access(Path.home(), os.W_OK):
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path.home() / ".cache" / "eagleplan" / "kernels"))

# A fifth of the time of importing and collecting all modules would go into looking for garbage, of which there is none.
gc.disable()

ROOT = Path(__file__).parent.parent
LONGEST = (
    "tests/runtime/processes/test_exits.py",
    "tests/contract/test_families.py",
    "tests/contract/test_forged_plans.py",
    "tests/runtime/decode/test_gpu_steps.py",
    "tests/contract/test_continuous.py",
    "tests/tools/test_train_head.py",
    "tests/runtime/processes/test_endings.py",
    "tests/planner/problem/test_previous_plan.py",
    "tests/runtime/model/kernels/test_inner_loops.py",
    "tests/planner/checkpoints/test_checkpoint.py",
    "tests/planner/families/test_family_tensors.py",
    "tests/runtime/test_cli.py",
    "tests/runtime/test_engine.py",
    "tests/runtime/model/kernels/test_code.py",
)
"""Files that take more than 10 s of processor time. They begin first, so that none is all that is left at the end."""

settings.register_profile("unhurried", deadline=None)  # a slow machine is no failure
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options for the number of random trials, of which CI runs a sample."""
    parser.addoption("--kills", type=int, default=8, help="compiles that are killed at a random moment")
    parser.addoption("--flips", type=int, default=120, help="bits of an artifact that are flipped, one at a time")
    parser.addoption("--cuda", action="store_true", help="make test devices parts of the first GPU")
    parser.addoption("--sparse-gigabytes", type=float, default=0.6, help="size of the checkpoint of the memory test")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--cuda"):
        plan_factory.KIND = "cuda"
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist, which would begin with the files of most tests
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of LONGEST first; the others stay in their order."""
    order = {ROOT / file: number for number, file in enumerate(LONGEST)}
    missing = [file.name for file in order if not file.is_file()]
    assert not missing, f"LONGEST: {missing}: not there"
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but not among what all tests share."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, without which pytest may run
def pytest_xdist_auto_num_workers() -> int:
    """Return the workers of ``-n auto``: one more for every two cores, as tests of processes wait for them."""
    cores = len(os.sched_getaffinity(0))
    return cores + cores // 2


@pytest.fixture(scope="module", autouse=True)
def without_garbage() -> None:
    """Collect what earlier modules left: hypothesis makes an error of any warning while it looks up types, also of one
    about a file of theirs that is freed there.
    """
    gc.collect()


@pytest.fixture(scope="module")
def one_core() -> Iterator[None]:
    """Run on one thread and core: with small models, two threads on busy cores mostly wait for each other.

    Each worker of pytest-xdist has a core of its own, as far as there are enough; the others take what is left.
    """
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    if worker < len(cores):
        os.sched_setaffinity(0, {sorted(cores)[worker]})
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)
