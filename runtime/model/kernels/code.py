"""Machine code of the kernels: a file for each kernel, dtype and processor, loaded with LLVM alone.

    address ─► the file is there ────────────────────────────────► LLVM links it ─► address
           └─► compiled.object_code (imports Numba: 10 s a dtype) ─► file ─┘

To load what was compiled takes a hundredth of a second; Numba alone takes a tenth to be imported. Of several processes
that lack a file one compiles; the others wait for its lock, then load what it has written. A file begins with a line of
its digest and the kernel's symbol, behind which is an ELF object. Its name holds all that the code depends on: kernel,
dtype, processor, versions of compiler and LLVM, and a checksum of every source file of this package. Code of other
sources is never loaded; it stays on disk until the directory is deleted.
"""

import ctypes
import fcntl
import hashlib
import importlib
import os
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import llvmlite
import torch
from llvmlite import binding

from runtime.model.kernels.cache_owner import require_private
from runtime.model.kernels.processor import multiplies_tiles, target

KERNELS: Mapping[str, str] = {
    "product": "products",
    "coded": "coded",
    "grouped": "products",
    "norm": "rowwise",
    "gated": "rowwise",
    "highest": "logits",
    "top": "logits",
    "merged": "logits",
    "attend": "attention",
    "attend_int8": "attention",
    "attend_float8": "attention",
    "exchange": "exchange",
    "layer": "layer",
}
"""Module of each kernel."""
VARIABLE = "NUMBA_CACHE_DIR"
PACKAGE = "runtime.model.kernels"
NUMBAS = (
    *("NRT_Free", "numba_do_raise", "numba_gil_ensure", "numba_gil_release"),
    *("numba_runtime_build_excinfo_struct", "numba_unpickle"),
)
"""Functions of Numba's run time that the code of a kernel names, for errors that no kernel raises."""
LOCK_S = 120.0
"""Seconds that a process waits for another one that compiles the same kernel, which takes a few but may be stopped.
Whoever waited so long compiles it as well: both files are the same."""
LOOK_S = 0.05
"""Seconds between two tries to get the lock."""

_ONE = threading.Lock()
"""Held while code is loaded or compiled: several threads may open engines."""
_ENGINES: list[binding.ExecutionEngine] = []
"""LLVM's engines, which keep the code of this process: one for each object, as names are unique in an object only."""


@cache
def address(kernel: str, dtype: torch.dtype) -> int:
    """Return the address of a kernel's code for a dtype: loaded, or compiled now and kept.

    Raise MachineError where another user can write the directory, before anything in it is read, and OSError where
    nothing can be kept.
    """
    name = _name(kernel, dtype)
    with _ONE:
        return _link(*(_read(name) or _compiled(kernel, dtype, name)))


def is_kept(kernel: str, dtype: torch.dtype) -> bool:
    """Return True where a file has a kernel's code for a dtype."""
    name = _name(kernel, dtype)
    return any((directory / name).is_file() for directory in _directories())


def _name(kernel: str, dtype: torch.dtype) -> str:
    """Return the name of the file of a kernel's code."""
    return f"{kernel}_{str(dtype).removeprefix('torch.')}_{_key()}.o"


def _read(name: str) -> tuple[str, bytes] | None:
    """Return symbol and object of a file; None where there is none, or it is not as it was written."""
    for directory in _directories():
        if (directory / name).is_file():
            require_private(directory, name)
            line, end, content = (directory / name).read_bytes().partition(b"\n")
            symbol = line.decode(errors="replace").partition(" ")[2]
            return (symbol, content) if line + end == _head(symbol, content) else None
    return None


def _compiled(kernel: str, dtype: torch.dtype, name: str) -> tuple[str, bytes]:
    """Compile a kernel and keep its code, or read it once another process has; return symbol and object."""
    directory = _writable()
    require_private(directory, name)
    with _alone(directory / f".{name}.lock"):
        return _read(name) or _kept(kernel, dtype, directory, name)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock of all processes, or wait for LOCK_S for the one that holds it.

    The lock's file is removed at the end: whoever waited gets the lock of the removed file, and who comes later that of
    a new one; what it was for is there by then. A process that is killed leaves the file, and no lock.
    """
    with lock.open("ab") as file:
        deadline = time.monotonic() + LOCK_S
        while not _locked(file) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            fcntl.flock(file, fcntl.LOCK_UN)  # a process that was forked meanwhile has the file open, too


def _locked(file: BinaryIO) -> bool:
    """Return True where this process has a file's lock now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _kept(kernel: str, dtype: torch.dtype, directory: Path, name: str) -> tuple[str, bytes]:
    """Compile a kernel and write its code; return symbol and object. Raise OSError with the file, which is removed."""
    symbol, content = importlib.import_module(f"{PACKAGE}.compiled").object_code(kernel, dtype)
    new = directory / f".{name}.{os.getpid()}"
    try:
        new.write_bytes(_head(symbol, content) + content)
        new.replace(directory / name)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(directory / name)) from error
    return symbol, content


def _head(symbol: str, content: bytes) -> bytes:
    """Return the first line of a file."""
    return f"{hashlib.sha256(symbol.encode() + content).hexdigest()} {symbol}\n".encode()


def _directories() -> Iterator[Path]:
    """Yield where code may be, in the order in which it is looked for: VARIABLE's, or the source's, then the user's."""
    if named := os.environ.get(VARIABLE):
        yield Path(named)
        return
    yield Path(__file__).parent / "__pycache__"
    home = os.environ.get("XDG_CACHE_HOME", "")
    yield (Path(home) if home.startswith("/") else Path.home() / ".cache") / "eagleplan" / "kernels"


def _writable() -> Path:
    """Return the first directory that can be written, made if need be; raise OSError where there is none."""
    reason = None
    for directory in _directories():
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            reason = error
            continue
        if os.access(directory, os.W_OK | os.X_OK):
            return directory
        reason = PermissionError(f"{directory} cannot be written")
    assert reason is not None
    raise reason


# ---- what the code depends on ----


@cache
def _key() -> str:
    """Return a checksum of the processor and the compiler, and one of all sources."""
    sources = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    return f"{zlib.crc32(compiler().encode()):08x}_{zlib.crc32(sources):08x}"


def compiler() -> str:
    """Return the processor, whether its tiles may be used, and the versions of Numba and LLVM."""
    amx = multiplies_tiles(torch.bfloat16)  # which the system may refuse
    return f"{target()} {amx=} numba {version('numba')} llvmlite {llvmlite.__version__}"


# ---- loading ----


@cache
def _machine() -> binding.TargetMachine:
    """Return LLVM's description of this machine; names of Numba's run time are known from now on."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    stop = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    for name in NUMBAS:
        if binding.address_of_symbol(name) is None:  # Numba, where it is imported later, puts its own in place
            binding.add_symbol(name, stop)
    return binding.Target.from_default_triple().create_target_machine()


def _link(symbol: str, content: bytes) -> int:
    """Return the address of a symbol of an object, which is linked to this process."""
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(content))
    engine.finalize_object()
    _ENGINES.append(engine)
    return int(engine.get_function_address(symbol))
