"""A cache of compiled kernels that another user can write is refused before anything in it is read."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import MachineError
from runtime.model.kernels.cache_owner import REMEDY, require_private

NOBODY = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir(mode=0o755)
    (tmp_path / "cache" / "kernel_b.o").write_bytes(b"")
    (tmp_path / "cache" / "kernel_a.o").write_bytes(b"")
    return tmp_path / "cache"


def test_a_cache_of_this_user_is_accepted(cache: Path) -> None:
    require_private(cache, "kernel")


def test_other_files_of_the_directory_do_not_matter(cache: Path) -> None:
    (cache / "another.o").touch()
    (cache / "another.o").chmod(0o666)
    require_private(cache, "kernel")


@pytest.mark.parametrize("name", [".", "..", "kernel_b.o", "kernel_a.o"])
def test_what_every_user_can_write_is_refused(cache: Path, name: str) -> None:
    file = (cache / name).resolve()
    file.chmod(0o777)
    with pytest.raises(MachineError) as refusal:
        require_private(cache, "kernel")
    assert str(refusal.value).startswith(f"cache of the CPU kernels: {file}: every user can write it: ")
    assert str(refusal.value).endswith(REMEDY)


def test_a_sticky_directory_above_is_no_danger(cache: Path) -> None:
    cache.parent.chmod(0o1777)
    require_private(cache, "kernel")
    cache.chmod(0o1777)
    with pytest.raises(MachineError, match="every user can write it"):
        require_private(cache, "kernel")


def test_a_link_is_refused(cache: Path) -> None:
    (cache / "kernel_b.o").rename(cache.parent / "elsewhere")
    (cache / "kernel_b.o").symlink_to(cache.parent / "elsewhere")
    with pytest.raises(MachineError, match=r"kernel_b\.o: it is no regular file: remove it, or"):
        require_private(cache, "kernel")


@AS_ROOT
@pytest.mark.parametrize("name", [".", "..", "kernel_b.o", "kernel_a.o"])
def test_what_another_user_owns_is_refused(cache: Path, name: str) -> None:
    file = (cache / name).resolve()
    os.chown(file, NOBODY, NOBODY)
    with pytest.raises(MachineError) as refusal:
        require_private(cache, "kernel")
    assert f"{file}: it belongs to {pwd.getpwuid(NOBODY).pw_name}: " in str(refusal.value)


@AS_ROOT
def test_what_another_group_can_write_is_refused(cache: Path) -> None:
    os.chown(cache, 0, NOBODY)
    cache.chmod(0o775)
    with pytest.raises(MachineError, match=r"the group .* can write it"):
        require_private(cache, "kernel")


def test_compiling_a_kernel_refuses_the_directory_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    program = "import torch; from runtime.model.ops import prepare; prepare(torch.float32, codes=False)"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "shared")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert f"MachineError: cache of the CPU kernels: {tmp_path / 'shared'}: every user can write it" in done.stderr
    assert not list((tmp_path / "shared").rglob("*.o"))
