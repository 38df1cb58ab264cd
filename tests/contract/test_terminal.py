"""Commands on a terminal: nothing that a file has reaches it as a control character, nor does generated text."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from planner.checkpoints.header import read_header
from plans.codec import load
from tests.runtime.small import compiled_plan, write_tokenizer

ROOT = Path(__file__).parents[2]
EVIL = "\x1b]0;pwned\x07\u202e"
SEEN = "x1b]0;pwned"
INVENTORY = {"hosts": [{"name": "a", "devices": [{"id": "g", "type": "rtx-4090"}]}]}


def on_terminal(*arguments: object) -> tuple[int, str]:
    """Run a command whose stdin, stdout and stderr are a terminal; return its exit code and what the terminal got."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", *map(str, arguments)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        received = b""
        while True:
            try:
                piece = os.read(master, 1 << 16)
            except OSError:  # EIO: the other end is closed
                break
            if not piece:
                break
            received += piece
    os.close(master)
    return process.returncode, received.decode()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, _ = compiled_plan(tmp_path_factory.mktemp("terminal"))
    write_tokenizer(directory)
    return directory


def a_key_of_the_config(base: Path, compiled: Path, where: Path) -> tuple[object, ...]:
    config = json.loads((base / "config.json").read_text()) | {EVIL: 1}
    (where / "config.json").write_text(json.dumps(config))
    return "planner", "scan", where / "config.json"


def a_key_of_the_inventory(base: Path, compiled: Path, where: Path) -> tuple[object, ...]:
    (where / "i.yaml").write_text(yaml.safe_dump(INVENTORY | {EVIL: 1}))
    return "planner", "inventory", where / "i.yaml"


def a_key_of_the_plan(base: Path, compiled: Path, where: Path) -> tuple[object, ...]:
    (where / "plan.yaml").write_text((compiled / "plan.yaml").read_text() + f"{json.dumps(EVIL)}: 1\n")
    return "planner", "show", where


def a_tensor_of_the_index(base: Path, compiled: Path, where: Path) -> tuple[object, ...]:
    shutil.copy(base / "config.json", where)
    shutil.copy(base / "model.safetensors", where / "a.safetensors")
    names = [*read_header(where / "a.safetensors")[0], EVIL]
    index = {"weight_map": dict.fromkeys(names, "a.safetensors")}
    (where / "model.safetensors.index.json").write_text(json.dumps(index))
    return "planner", "scan", where


def a_file_of_the_checkpoint(base: Path, compiled: Path, where: Path) -> tuple[object, ...]:
    shutil.copy(base / "config.json", where)
    (where / f"{EVIL}.safetensors").touch()
    return "planner", "scan", where


def a_slot_of_an_image(base: Path, compiled: Path, where: Path) -> tuple[object, ...]:
    shutil.copytree(compiled, where, dirs_exist_ok=True)
    image = where / "a.safetensors"
    header = int.from_bytes(image.read_bytes()[:8], "little")
    table = json.loads(image.read_bytes()[8 : 8 + header])
    name = next(name for name in table if name.startswith("layers.0.") and len(name) > len(EVIL) + 4)
    table = {EVIL.ljust(len(name)) if key == name else key: value for key, value in table.items()}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(text) <= header
    with image.open("r+b") as stream:
        stream.seek(8)
        stream.write(text.ljust(header))
    return "runtime", "verify", where


def a_message_of_a_template(base: Path, compiled: Path, where: Path) -> tuple[object, ...]:
    shutil.copytree(compiled, where, dirs_exist_ok=True)
    (where / "chat_template.jinja").write_text(f"{{{{ raise_exception({json.dumps(EVIL)}) }}}}")
    return "runtime", "run", where, "--chat", "--prompt", "a", "-q"


def an_argument(base: Path, compiled: Path, where: Path) -> tuple[object, ...]:
    return "planner", "show", f"--{EVIL.replace(chr(0), '')}"


def a_directory(base: Path, compiled: Path, where: Path) -> tuple[object, ...]:
    return "planner", "scan", where / EVIL


PLACES = (
    *(a_key_of_the_config, a_key_of_the_inventory, a_key_of_the_plan, a_tensor_of_the_index, a_file_of_the_checkpoint),
    *(a_slot_of_an_image, a_message_of_a_template, an_argument, a_directory),
)


@pytest.mark.parametrize("place", PLACES, ids=[place.__name__ for place in PLACES])
def test_a_refusal_shows_escapes(place: Callable[..., tuple[object, ...]], compiled: Path, tmp_path: Path) -> None:
    code, shown = on_terminal(*place(compiled.parent / "base", compiled, tmp_path))
    assert code in (2, 4), shown
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert SEEN in shown, shown
    assert "Traceback" not in shown


def test_generated_text_shows_escapes_on_a_terminal_and_is_as_it_is_in_a_pipe(compiled: Path, tmp_path: Path) -> None:
    shutil.copytree(compiled, tmp_path, dirs_exist_ok=True)
    evil = "\x1b[2J\x07\u202e\r\x9b"
    size = load(tmp_path).model.vocab_size
    vocabulary = {f"{evil}{number}": number for number in range(size)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=f"{evil}0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    run = ("runtime", "run", tmp_path, "--prompt-ids", "1,2", "--max-new-tokens", "5", "-q", "--ignore-eos")
    code, shown = on_terminal(*run)
    assert code == 0, shown
    assert shown.count(r"\x1b[2J\x07\u202e\x0d\x9b") == 5
    assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(shown)
    command = [sys.executable, "-m", *map(str, run)]
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    assert piped.count(evil) == 5
