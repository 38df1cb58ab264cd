"""Images that are forged to fit their record, but not their plan, and a directory with a stranger's links and pipes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from planner.families import inputs_of, load_base
from planner.images.compile import compile_plan
from plans import codec
from plans.artifact import abi_of, load_images
from plans.safetensors_header import TensorEntry, encode_header
from plans.schema import PlanError
from runtime.errors import ImageError
from runtime.image.slots import open_image
from runtime.image.verify import check_images
from tests.plan_factory import group, make_plan
from tests.planner.quantized.checkpoints import quantized
from tests.planner.tiny_checkpoints import saved
from tests.runtime.image.artifact import CPU, Artifact, Table, replaced, seal

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
    inputs = inputs_of(base, None)
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
