"""Verification of images: what is missing, truncated, foreign or damaged, or changes meanwhile, is refused by name."""

import dataclasses
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plans import codec
from plans.artifact import IMAGES_FILE, load_images
from plans.check import require
from plans.schema import PlanError
from runtime.errors import ImageDamaged, ImageError, ImageForeign, ImageMissing, ImageTruncated
from runtime.image import verify as checking
from runtime.image.slots import open_image
from runtime.image.verify import check_images
from tests.runtime.image.artifact import CPU, Artifact, Table, first, flip, refusal, replaced, rewrite, seal

# ---- changes of the content, and of the inode alone, while a file is verified ----


def test_hard_links_modes_and_names_are_no_change_of_content(artifact: Artifact) -> None:
    """Backups make hard links: they change the inode's ctime, and nothing that is verified."""
    file, copy, done = artifact.directory / "a.safetensors", artifact.directory / "backup", threading.Event()
    rounds = 0

    def back_up() -> None:
        nonlocal rounds
        while not done.is_set():
            os.link(file, copy)
            file.chmod(0o600)
            copy.unlink()
            file.chmod(0o644)
            rounds += 1

    thread = threading.Thread(target=back_up)
    thread.start()
    try:
        for _ in range(20):
            check_images(artifact.plan, artifact.directory, verify=True)
    finally:
        done.set()
        thread.join()
    assert rounds > 20


def append(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"x")


def write_the_same(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.write(stream.read(1))


def replace_by_a_copy(file: Path) -> None:
    other = file.with_name("other")
    shutil.copy2(file, other)
    other.rename(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (append, "changed while it was verified"),
        (write_the_same, "changed while it was verified"),
        (lambda file: os.truncate(file, 8192), "changed while it was verified"),
        (replace_by_a_copy, "changed while it was verified"),
        (Path.unlink, "vanished while it was verified"),
    ],
)
def test_a_write_or_another_file_is_a_change(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], Any], message: str
) -> None:
    """Each happens behind the last byte that is hashed, where no lease holds the writer back."""
    original = checking.hash_file

    def late(descriptor: int, size_bytes: int, file: Path) -> str:
        digest = original(descriptor, size_bytes, file)
        if file.name == "b.safetensors":
            time.sleep(0.01)  # the clock of a file system ticks every few ms
            change(file)
        return digest

    monkeypatch.setattr(checking, "guard", lambda descriptor, file: False)
    monkeypatch.setattr(checking, "hash_file", late)
    with pytest.raises(ImageDamaged, match=rf"b\.safetensors: {message}: copy or compile it again"):
        check_images(artifact.plan, artifact.directory, verify=True)


def test_bytes_that_were_changed_before_they_are_hashed_have_another_digest(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setting the time of the last write back hides nothing: what is hashed decides."""
    original = checking.hash_file

    def early(descriptor: int, size_bytes: int, file: Path) -> str:
        status = file.stat()
        flip(file, -300)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        return original(descriptor, size_bytes, file)

    monkeypatch.setattr(checking, "guard", lambda descriptor, file: False)
    monkeypatch.setattr(checking, "hash_file", early)
    with pytest.raises(ImageDamaged, match=r"a\.safetensors: BLAKE3"):
        check_images(artifact.plan, artifact.directory, verify=True)


# ---- missing, truncated, foreign ----


def test_no_images_at_all_names_them_and_the_command(artifact: Artifact) -> None:
    for file in [*artifact.directory.glob("*.safetensors"), artifact.directory / IMAGES_FILE]:
        file.unlink()
    command = f"python -m planner compile {artifact.directory} --model <DIR> --draft <DIR>"
    assert refusal(ImageMissing, artifact) == (
        f"{artifact.directory}: no images.yaml, so no images: expected a.safetensors, b.safetensors; "
        f"compile with: {command}"
    )


def test_a_missing_image_is_named(artifact: Artifact) -> None:
    (artifact.directory / "b.safetensors").unlink()
    message = refusal(ImageMissing, artifact)
    assert "no image b.safetensors; compile with: python -m planner compile" in message
    with pytest.raises(ImageMissing):
        open_image(artifact.plan, artifact.directory, "b", CPU, verify=False)


def test_a_short_image(artifact: Artifact) -> None:
    file = artifact.directory / "a.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    assert f"a.safetensors: {size - 1} bytes, expected {size}" in refusal(ImageTruncated, artifact)
    file.write_bytes(b"")
    assert f"a.safetensors: 0 bytes, expected {size}" in refusal(ImageTruncated, artifact)


def test_a_plan_edited_after_compiling_is_foreign(artifact: Artifact) -> None:
    options = dataclasses.replace(artifact.plan.options, context=63)
    edited = dataclasses.replace(artifact, plan=dataclasses.replace(artifact.plan, options=options))
    message = refusal(ImageForeign, edited)
    change = "it was changed after its images were compiled, by hand or by another build: its digest is "
    assert message.startswith(f"{artifact.directory / 'plan.yaml'}: {change}")
    assert "compile with: python -m planner compile" in message


def test_plan_text_that_is_not_canonical_is_foreign_to_verify(artifact: Artifact) -> None:
    file = artifact.directory / "plan.yaml"
    file.write_text(file.read_text() + "# only a comment\n")
    assert codec.load(artifact.directory) == artifact.plan
    assert "plan.yaml: it was edited by hand (it is not the canonical text of its plan): " in refusal(
        ImageForeign, artifact, verify=True
    )


def test_another_devices_image_is_foreign(artifact: Artifact) -> None:
    raw = (artifact.directory / "b.safetensors").read_bytes()
    (artifact.directory / "a.safetensors").write_bytes(raw)
    record = load_images(artifact.directory)
    of_b = record.find("b")
    assert of_b is not None
    changes = {"size_bytes": of_b.size_bytes, "blake3": of_b.blake3, "abi": of_b.abi}
    seal(artifact.directory, replaced(record, "a", **changes))
    assert "__metadata__: found {'abi': '1', 'device': 'b'}" in refusal(ImageForeign, artifact)


def test_another_abi_is_foreign(artifact: Artifact) -> None:
    record = load_images(artifact.directory)
    abi = record.images[0].abi
    seal(artifact.directory, replaced(record, "a", abi=dataclasses.replace(abi, slots_sha256="0" * 64)))
    assert "slot table: SHA-256" in refusal(ImageForeign, artifact)
    seal(artifact.directory, replaced(record, "a", abi=dataclasses.replace(abi, layout_version=2)))
    assert "layout_version: found 2, this program uses 1" in refusal(ImageForeign, artifact)


# ---- damaged ----


def verify(directory: Path) -> None:
    """Verify a directory as the command does."""
    plan = codec.load(directory)
    require(plan, str(directory / "plan.yaml"))
    check_images(plan, directory, verify=True)


def test_any_flipped_bit_is_refused(artifact: Artifact, pytestconfig: pytest.Config) -> None:
    generator = random.Random(0)
    flips = pytestconfig.getoption("--flips") // 4
    for name in ["a.safetensors", "b.safetensors", IMAGES_FILE, "plan.yaml"]:
        file = artifact.directory / name
        raw = file.read_bytes()
        header = 8 + int.from_bytes(raw[:8], "little") if name.endswith(".safetensors") else 0
        for turn in range(flips):
            stop = min(len(raw), header) if header and turn % 2 else len(raw)
            flip(file, generator.randrange(stop), generator.randrange(8))
            with pytest.raises((ImageError, PlanError)) as caught:
                verify(artifact.directory)
            assert caught.value.exit_code in (2, 4)
            file.write_bytes(raw)
    check_images(artifact.plan, artifact.directory, verify=True)


def test_a_damaged_weight_is_found_by_verify(artifact: Artifact) -> None:
    flip(artifact.directory / "b.safetensors", -300)
    check_images(artifact.plan, artifact.directory, verify=False)
    assert "b.safetensors: BLAKE3" in refusal(ImageDamaged, artifact, verify=True)
    with pytest.raises(ImageDamaged):
        open_image(artifact.plan, artifact.directory, "b", CPU, verify=True)


def test_images_yaml_edited_by_hand_is_damaged(artifact: Artifact) -> None:
    file = artifact.directory / IMAGES_FILE
    text = file.read_text()
    file.write_text(text.replace("device: a", "device: b"))
    assert "sha256: the file was changed after the images were compiled" in refusal(ImageDamaged, artifact)
    file.write_text("- 1\n")
    assert "found a sequence, expected a mapping" in refusal(ImageDamaged, artifact)
    file.write_bytes(b"\xff\xfe\x00")
    refusal(ImageDamaged, artifact)


def grow(table: Table) -> None:
    table["embed.weight"]["shape"] = [1 << 62, 1 << 62]


BROKEN: dict[str, Callable[[Table], Any]] = {
    "unknown dtype": lambda table: first(table).update(dtype="F8"),
    "dtype not a string": lambda table: first(table).update(dtype=[]),
    "negative offset": lambda table: first(table).update(data_offsets=[-1, 5]),
    "float offset": lambda table: first(table).update(data_offsets=[0.0, 5.0]),
    "one offset": lambda table: first(table).update(data_offsets=[5]),
    "offsets backwards": lambda table: first(table).update(data_offsets=[512, 256]),
    "true as a size": lambda table: first(table).update(shape=[True, 32]),
    "shape overflow": grow,
    "shape of rank 9": lambda table: first(table).update(shape=[1] * 9),
    "no shape": lambda table: first(table).pop("shape"),
    "surplus key": lambda table: first(table).update(extra=1),
    "entry not a mapping": lambda table: table.update({"embed.weight": 3}),
    "a hole": lambda table: table.pop("_pad.0"),
    "a slot too many": lambda table: table.update(
        x={"data_offsets": [1 << 40, (1 << 40) + 1], "dtype": "U8", "shape": [1]}
    ),
    "no metadata": lambda table: table.pop("__metadata__"),
    "metadata not a mapping": lambda table: table.update(__metadata__=1),
}


@pytest.mark.parametrize("change", list(BROKEN))
def test_a_malformed_header_is_damaged(artifact: Artifact, change: str) -> None:
    file = artifact.directory / "a.safetensors"
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8:start])
    BROKEN[change](table)
    rewrite(artifact, json.dumps(table, separators=(",", ":")).encode(), raw[start:])
    assert "a.safetensors: header" in refusal(ImageDamaged, artifact)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b"\xff\xff",
        b"[" * 100_000,
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_a_header_that_is_no_table_is_damaged(artifact: Artifact, header: bytes) -> None:
    rewrite(artifact, header, b"")
    assert "a.safetensors: header" in refusal(ImageDamaged, artifact)


@pytest.mark.parametrize("length", [0, 1, 100, 4096, (1 << 64) - 1, (1 << 63), 1 << 33])
def test_a_header_length_is_distrusted(artifact: Artifact, length: int) -> None:
    rewrite(artifact, b"{}", b"", length)
    assert f"a.safetensors: header: claims {length} bytes" in refusal(ImageDamaged, artifact)


def test_a_device_id_that_is_a_path_is_refused(artifact: Artifact) -> None:
    record = load_images(artifact.directory)
    plan = artifact.plan
    lines = tuple(dataclasses.replace(line, device="../" + line.device) for line in plan.memory)
    devices = tuple(dataclasses.replace(device, id="../" + device.id) for device in plan.inventory.devices)
    inventory = dataclasses.replace(plan.inventory, devices=devices)
    odd = dataclasses.replace(plan, memory=lines, inventory=inventory)
    seal(artifact.directory, dataclasses.replace(record, plan_sha256=codec.digest(odd)))
    with pytest.raises(PlanError, match=r"device '\.\./a': not a file name"):
        check_images(odd, artifact.directory, verify=False)
