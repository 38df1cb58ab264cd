"""Opening images: each kind of damage has its own error, and slots are views of one memory."""

import dataclasses
import faulthandler
import json
import multiprocessing
import os
import random
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3

from planner.families import load_base, load_draft
from planner.images.compile import compile_plan
from plans import codec, paging
from plans.artifact import IMAGES_FILE, Images, abi_of, dump_images, load_images
from plans.check import require
from plans.safetensors_header import TensorEntry, encode_header
from plans.schema import Inputs, Plan, PlanError
from runtime.errors import ImageDamaged, ImageError, ImageForeign, ImageMissing, ImageTruncated
from runtime.image import slots, transfer
from runtime.image import verify as checking
from runtime.image.slots import host_of, open_image
from runtime.image.transfer import Host
from runtime.image.verify import check_images
from tests.plan_factory import group, make_plan, split_draft, write_base, write_draft
from tests.planner.quantized.checkpoints import quantized
from tests.planner.tiny_checkpoints import saved

CPU = torch.device("cpu")
FORK = multiprocessing.get_context("fork")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A compiled plan of two devices, with an EAGLE head on the second, and the tensors of the checkpoint."""

    plan: Plan
    directory: Path
    base: dict[str, torch.Tensor]


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    tensors = write_base(tmp_path / "base", num_layers=8)
    write_draft(tmp_path / "head")
    base = load_base(tmp_path / "base")
    draft = load_draft(tmp_path / "head", base)
    inputs = Inputs(
        base_config_sha256=base.config_sha256,
        base_tensors_sha256=base.tensors_sha256,
        draft_config_sha256=draft.config_sha256,
        draft_tensors_sha256=draft.tensors_sha256,
    )
    plan = make_plan(
        base.model,
        [group(base.model, ["a", "b"], 8)],
        draft=draft.draft,
        placement=split_draft(base.model, draft.draft, ("b",)),
        inputs=inputs,
    )
    directory = tmp_path / "plan"
    directory.mkdir()
    (directory / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(directory, tmp_path / "base", tmp_path / "head")
    return Artifact(plan=plan, directory=directory, base=tensors)


def refusal(kind: type[ImageError], artifact: Artifact, *, verify: bool = False) -> str:
    """Return the message with which the images are refused."""
    with pytest.raises(kind) as caught:
        check_images(artifact.plan, artifact.directory, verify=verify)
    assert type(caught.value) is kind
    assert caught.value.exit_code == 4
    return str(caught.value)


def seal(directory: Path, record: Images) -> None:
    (directory / IMAGES_FILE).write_text(dump_images(record))


def replaced(record: Images, device: str, **changes: Any) -> Images:
    changed = tuple(dataclasses.replace(i, **changes) if i.device == device else i for i in record.images)
    return dataclasses.replace(record, images=changed)


# ---- weights ----


def test_slots_are_views_of_the_mapping(artifact: Artifact) -> None:
    record = check_images(artifact.plan, artifact.directory, verify=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = open_image(artifact.plan, artifact.directory, "a", CPU, record, verify=True)
    down = image.tensor("layers.3.down.weight", (32, 32), torch.float32)
    assert torch.equal(down, artifact.base["model.layers.3.mlp.down_proj.weight"][:, :32])
    start, stop = image.memory.data_ptr(), image.memory.data_ptr() + image.nbytes
    for name, slot in image.slots.items():
        tensor = image[name]
        assert start <= tensor.data_ptr() < stop
        assert tensor.data_ptr() % 256 == 0
        assert tensor.is_contiguous()
        assert tuple(tensor.shape) == slot.shape
    line = artifact.plan.memory[0]
    assert image.nbytes == line.weights_bytes + line.draft_weights_bytes
    assert not any(name.startswith("_pad.") for name in image.slots)


def test_pages_stay_where_the_images_of_a_host_take_half_of_what_is_free(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = check_images(artifact.plan, artifact.directory, verify=False)
    total = sum(image.size_bytes for image in record.images)
    for available, keeps_pages in ((2 * total, True), (2 * total - 1, False), (None, True)):
        monkeypatch.setattr(paging, "available_bytes", lambda free=available: free)
        assert host_of(artifact.plan, "a", record) == Host(processes=2, keeps_pages=keeps_pages)


def test_the_system_says_how_much_memory_is_free() -> None:
    available = paging.available_bytes()
    assert available is not None
    assert 0 < available < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_slot_outlives_its_image(artifact: Artifact) -> None:
    tensor = open_image(artifact.plan, artifact.directory, "b", CPU, verify=False)["draft.d2t"]
    assert tensor.dtype == torch.int64
    assert tensor.numel() == 30
    assert int(tensor.min()) >= 0


def forked(action: Callable[[Artifact, Connection], None], artifact: Artifact) -> tuple[ForkProcess, Connection]:
    """Fork a process that runs ``action`` and reports its progress through a pipe; torch is imported already."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=action, args=(artifact, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def write_to_the_mapping(artifact: Artifact, channel: Connection) -> None:
    faulthandler.disable()
    open_image(artifact.plan, artifact.directory, "a", CPU, verify=False)["norm.weight"].fill_(0)


def test_the_mapping_is_read_only(artifact: Artifact) -> None:
    process, _ = forked(write_to_the_mapping, artifact)
    process.join()
    assert process.exitcode == -11, "a write faults instead of changing the weights of every reader"
    check_images(artifact.plan, artifact.directory, verify=True)


def test_a_slot_of_another_shape_or_name_is_foreign(artifact: Artifact) -> None:
    image = open_image(artifact.plan, artifact.directory, "a", CPU, verify=False)
    with pytest.raises(ImageForeign, match=r"norm\.weight: found torch\.float32 \(32,\), expected .*\(33,\)"):
        image.tensor("norm.weight", (33,), torch.float32)
    with pytest.raises(ImageForeign, match=r"expected torch\.bfloat16"):
        image.tensor("norm.weight", (32,), torch.bfloat16)
    with pytest.raises(ImageForeign, match=r"draft\.fc\.weight: no such slot"):
        image.tensor("draft.fc.weight", (32, 96), torch.float32)
    assert "norm.weight" in image
    assert "draft.fc.weight" not in image


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("chunk", [4096, 1 << 24])
def test_one_allocation_on_a_gpu(artifact: Artifact, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "COPY_BYTES", chunk)
    on_cpu = open_image(artifact.plan, artifact.directory, "b", CPU, verify=False)
    on_gpu = open_image(artifact.plan, artifact.directory, "b", torch.device("cuda:0"), verify=True)
    assert torch.equal(on_gpu.memory.cpu(), on_cpu.memory)
    assert on_gpu["draft.d2t"].is_cuda
    flip(artifact.directory / "b.safetensors", -300)
    with pytest.raises(ImageDamaged, match="BLAKE3"):
        open_image(artifact.plan, artifact.directory, "b", torch.device("cuda:0"), verify=True)


def read_on(artifact: Artifact, channel: Connection) -> None:
    try:
        weight = open_image(artifact.plan, artifact.directory, "a", CPU, verify=True)["layers.7.down.weight"]
        channel.send("ready")
        while True:
            weight.sum()
    except ImageError as error:
        channel.send(f"{type(error).__name__}: {error}")


def test_a_file_that_is_truncated_under_a_running_process(artifact: Artifact) -> None:
    file = artifact.directory / "a.safetensors"
    process, channel = forked(read_on, artifact)
    assert channel.recv() == "ready"
    os.truncate(file, 4096)
    assert channel.recv().startswith(f"ImageTruncated: {file}: another program writes to it"), "an error, not a fault"
    process.join()
    assert process.exitcode == 0


def test_a_file_that_is_replaced_under_a_running_process(artifact: Artifact) -> None:
    """Put a new file in its place, which has no effect: the mapping is of the verified file."""
    process, channel = forked(read_on, artifact)
    assert channel.recv() == "ready"
    (artifact.directory / "other").write_bytes(b"")
    (artifact.directory / "other").rename(artifact.directory / "a.safetensors")
    assert not channel.poll(0.3)
    assert process.is_alive()
    process.kill()
    process.join()


def verify_slowly(artifact: Artifact, channel: Connection) -> None:
    def slow(descriptor: int, start: int, nbytes: int) -> None:
        if start == 3 * 4096:
            channel.send("hashing")
            time.sleep(30)

    transfer.SLICE_BYTES, transfer.paging.will_read = 4096, slow
    try:
        check_images(artifact.plan, artifact.directory, verify=True)
    except ImageError as error:
        channel.send(f"{type(error).__name__}: {error}")


def test_a_file_that_is_truncated_while_its_mapping_is_hashed(artifact: Artifact) -> None:
    file = artifact.directory / "a.safetensors"
    process, channel = forked(verify_slowly, artifact)
    assert channel.recv() == "hashing"
    os.truncate(file, 8192)
    assert channel.recv().startswith(f"ImageTruncated: {file}: another program writes to it"), "an error, not a fault"
    process.join()
    assert process.exitcode == 0


def test_a_file_that_is_truncated_while_it_is_verified(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    file = artifact.directory / "a.safetensors"
    original = slots.read_slots

    def late(*arguments: Any) -> Any:
        slots = original(*arguments)
        os.truncate(file, 8192)
        return slots

    monkeypatch.setattr(slots, "read_slots", late)
    with pytest.raises(ImageTruncated, match="ends at byte 8192: it was truncated while it was read"):
        open_image(artifact.plan, artifact.directory, "a", CPU, verify=True)
    with pytest.raises(ImageTruncated, match="8192 bytes"):
        open_image(artifact.plan, artifact.directory, "a", CPU, verify=False)


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


def flip(file: Path, position: int, bit: int = 0) -> None:
    raw = bytearray(file.read_bytes())
    raw[position] ^= 1 << bit
    file.write_bytes(raw)


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


Table = dict[str, Any]


def first(table: Table) -> Table:
    entry: Table = table["embed.weight"]
    return entry


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


def rewrite(artifact: Artifact, header: bytes, data: bytes, length: int | None = None) -> None:
    """Replace the header of an image, and record the new size and digest."""
    header += b" " * (-(8 + len(header)) % 4096)
    raw = (len(header) if length is None else length).to_bytes(8, "little") + header + data
    (artifact.directory / "a.safetensors").write_bytes(raw)
    record = load_images(artifact.directory)
    seal(artifact.directory, replaced(record, "a", size_bytes=len(raw), blake3=blake3(raw).hexdigest()))


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


# ---- images that are forged to fit their record, but not their plan ----


def forge(artifact: Artifact, device: str, change: Callable[[Table, bytearray], Any]) -> str:
    """Change header and data of an image, make all digests again, and return the message of its refusal."""
    file = artifact.directory / f"{device}.safetensors"
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    table, data = json.loads(raw[8:start]), bytearray(raw[start:])
    change(table, data)
    entries = [
        TensorEntry(
            name=name,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            offset=entry["data_offsets"][0],
            nbytes=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in table.items()
        if name != "__metadata__"
    ]
    raw = encode_header(entries, table["__metadata__"], 4096) + data
    file.write_bytes(raw)
    record = load_images(artifact.directory)
    abi = abi_of(entries, artifact.plan.options.dtype)
    forged = replaced(record, device, size_bytes=len(raw), blake3=blake3(raw).hexdigest(), abi=abi)
    seal(artifact.directory, forged)
    messages = []
    for verifies in (False, True):
        with pytest.raises(ImageError) as caught:
            check_images(artifact.plan, artifact.directory, verify=verifies)
        messages.append(str(caught.value))
    with pytest.raises(ImageError) as caught:
        open_image(artifact.plan, artifact.directory, device, CPU, verify=False)
    messages.append(str(caught.value))
    assert len(set(messages)) == 1
    return messages[0]


@pytest.mark.parametrize(
    ("number", "value", "token"), [(0, -1, -1), (29, 21, 50), (7, (1 << 63) - 1, (1 << 63) + 6), (3, -4, -1)]
)
def test_a_drafted_token_out_of_the_vocabulary(artifact: Artifact, number: int, value: int, token: int) -> None:
    def change(table: Table, data: bytearray) -> None:
        at = table["draft.d2t"]["data_offsets"][0] + 8 * number
        data[at : at + 8] = value.to_bytes(8, "little", signed=True)

    assert forge(artifact, "b", change) == (
        f"{artifact.directory}/b.safetensors: draft.d2t[{number}]: found {value}, which makes drafted token {number} "
        f"token {token} of the model, expected one of 0 to 49: compile it again"
    )


@pytest.mark.parametrize(
    ("slot", "value", "most"), [("qkv", 64, 63), ("qkv", -2, 63), ("o", 32, 31), ("o", 1 << 30, 31)]
)
def test_a_column_out_of_the_input(tmp_path: Path, slot: str, value: int, most: int) -> None:
    """An order of columns is where a product reads; a device of two has half of the columns of o."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    coded, _ = quantized(saved(tmp_path / "base", **sizes), tmp_path, "sorted-gptq")
    base = load_base(coded)
    inputs = Inputs(
        base_config_sha256=base.config_sha256, base_tensors_sha256=base.tensors_sha256, draft_config_sha256=None,
        draft_tensors_sha256=None,
    )  # fmt: skip
    plan, directory = make_plan(base.model, [group(base.model, ["a", "b"], 1)], inputs=inputs), tmp_path / "plan"
    directory.mkdir()
    (directory / "plan.yaml").write_text(codec.dumps(plan))
    compile_plan(directory, coded, None)

    def change(table: Table, data: bytearray) -> None:
        at = table[f"layers.0.{slot}.order"]["data_offsets"][0] + 4 * 3
        data[at : at + 4] = value.to_bytes(4, "little", signed=True)

    assert forge(Artifact(plan=plan, directory=directory, base={}), "b", change) == (
        f"{directory}/b.safetensors: layers.0.{slot}.order[3]: found column {value}, expected one of 0 to {most}, "
        "or -1: compile it again"
    )


def test_a_slot_of_another_shape_than_planned(artifact: Artifact) -> None:
    def change(table: Table, data: bytearray) -> None:
        table["norm.weight"]["shape"] = [4, 8]

    assert "header: found slot norm.weight, F32 [4, 8], expected slot norm.weight, F32 [32] as plan.yaml has it" in (
        forge(artifact, "b", change)
    )


def test_a_slot_too_many(artifact: Artifact) -> None:
    def change(table: Table, data: bytearray) -> None:
        table["surplus"] = {"dtype": "F32", "shape": [64], "data_offsets": [len(data), len(data) + 256]}
        data += bytes(256)

    assert "header: found slot surplus, F32 [64], expected no more slots as plan.yaml has it" in (
        forge(artifact, "b", change)
    )


def test_a_slot_too_few(artifact: Artifact) -> None:
    def change(table: Table, data: bytearray) -> None:
        table["_pad.99"] = table.pop("norm.weight") | {"dtype": "U8", "shape": [128]}
        names = sorted((name for name in table if name != "__metadata__"), key=lambda n: table[n]["data_offsets"])
        for name in names:
            table[name] = table.pop(name)

    assert "expected slot norm.weight, F32 [32] as plan.yaml has it" in forge(artifact, "b", change)


def test_more_bytes_than_the_plan_counts(artifact: Artifact) -> None:
    def change(table: Table, data: bytearray) -> None:
        table["_pad.99"] = {"dtype": "U8", "shape": [4096], "data_offsets": [len(data), len(data) + 4096]}
        data += bytes(4096)

    line = artifact.plan.memory[1]
    counted = line.weights_bytes + line.draft_weights_bytes
    assert f"{counted + 4096} bytes of weights, expected {counted} as plan.yaml counts for b" in (
        forge(artifact, "b", change)
    )


# ---- a directory with a stranger's links and pipes ----


@pytest.mark.parametrize("name", ["a.safetensors", "images.yaml", "plan.yaml"])
@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_no_file_outside_of_the_directory_is_read_or_waited_for(artifact: Artifact, name: str, kind: str) -> None:
    file, elsewhere = artifact.directory / name, artifact.directory.parent / "elsewhere"
    file.rename(elsewhere)
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(elsewhere if kind == "link" else "/dev/zero")
    reason = "a link to .* outside of" if kind == "link" else "a pipe, a socket or a device"
    with pytest.raises((ImageError, PlanError), match=reason):
        check_images(codec.load(artifact.directory), artifact.directory, verify=True)


def test_images_may_be_links_within_the_directory(artifact: Artifact) -> None:
    (artifact.directory / "store").mkdir()
    for device in ("a", "b"):
        file = artifact.directory / f"{device}.safetensors"
        file.rename(artifact.directory / "store" / file.name)
        file.symlink_to(Path("store") / file.name)
    check_images(artifact.plan, artifact.directory, verify=True)
