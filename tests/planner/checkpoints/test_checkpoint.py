"""Reading checkpoints: every claim of a file is checked; complete messages are asserted."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from planner.checkpoints import checkpoint as checkpoint_module
from planner.checkpoints import pickle_to_safetensors
from planner.checkpoints.checkpoint import INDEX, PICKLE, SINGLE, Checkpoint, read_checkpoint
from planner.checkpoints.header import read_header
from planner.checkpoints.summary import describe, fold
from planner.errors import CheckpointError


def directory(path: Path, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text('{"model_type": "llama"}')
    if tensors is not None:
        save_file(tensors, path / SINGLE)
    return path


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        action()
    assert caught.value.exit_code == 2
    return str(caught.value)


# Directories


def test_a_bare_config_has_no_tensors(tmp_path: Path) -> None:
    where = directory(tmp_path / "model")
    for path in (where, where / "config.json"):
        checkpoint = read_checkpoint(path)
        assert checkpoint == Checkpoint(
            directory=where,
            config_file=where / "config.json",
            config={"model_type": "llama"},
            config_bytes=b'{"model_type": "llama"}',
            tensors=None,
            files={},
        )


def test_an_invalid_checkpoint_directory_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert refused(lambda: read_checkpoint(missing)) == (
        f"{missing}: found nothing, expected a checkpoint's directory or its config.json"
    )
    weights = tmp_path / "x.safetensors"
    weights.touch()
    assert refused(lambda: read_checkpoint(weights)) == (
        f"{weights}: found a file, expected a checkpoint's directory or its config.json"
    )
    assert refused(lambda: read_checkpoint(Path("/dev/zero"))) == (
        "/dev/zero: found a device, expected a checkpoint's directory or its config.json"
    )
    assert refused(lambda: read_checkpoint(tmp_path)) == f"{tmp_path / 'config.json'}: no such file"
    config = tmp_path / "config.json"
    for text, message in (
        ("[]", "expected a JSON object"),
        ("{", "not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ('{"a": 1, "a": 1}', "a: the name occurs twice"),
    ):
        config.write_text(text)
        assert refused(lambda: read_checkpoint(config)) == f"{config}: {message}"
    config.write_text("{}")
    assert refused(lambda: read_checkpoint(tmp_path)) == (
        f"{tmp_path}: found x.safetensors without {INDEX}, expected {SINGLE}, or an index that names the files"
    )


def indexed(path: Path, weight_map: Any) -> Path:
    where = directory(path)
    save_file({"a": torch.zeros(2), "b": torch.zeros(3)}, where / "one.safetensors")
    save_file({"c": torch.zeros(4)}, where / "two.safetensors")
    (where / INDEX).write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": weight_map}))
    return where


GOOD_MAP = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}


def test_an_index_joins_its_shards(tmp_path: Path) -> None:
    tensors = read_checkpoint(indexed(tmp_path, GOOD_MAP)).tensors
    assert tensors is not None
    assert {name: info.file for name, info in tensors.items()} == GOOD_MAP


MAPS: list[tuple[str, Any, str]] = [
    ("no map", [], "{index}: weight_map: expected an object from tensor names to file names"),
    ("numbers", {"a": 1}, "{index}: weight_map: expected an object from tensor names to file names"),
    (
        "missing shard",
        GOOD_MAP | {"c": "three.safetensors"},
        "{index}: weight_map: three.safetensors: no such file in {where}",
    ),
    (
        "missing tensor",
        GOOD_MAP | {"d": "two.safetensors"},
        "{index}: weight_map: d: not in two.safetensors, where the index places it",
    ),
    (
        "surplus tensor",
        {"a": "one.safetensors", "c": "two.safetensors"},
        "{where}/one.safetensors: b: in the file, but model.safetensors.index.json does not place it there",
    ),
    (
        "wrong shard",
        GOOD_MAP | {"b": "two.safetensors"},
        "{where}/one.safetensors: b: in the file, but model.safetensors.index.json does not place it there",
    ),
    (
        "parent",
        GOOD_MAP | {"c": "../two.safetensors"},
        "{index}: weight_map: '../two.safetensors' is outside the checkpoint's directory, expected a file in it",
    ),
    (
        "absolute",
        GOOD_MAP | {"c": "/two.safetensors"},
        "{index}: weight_map: '/two.safetensors' is outside the checkpoint's directory, expected a file in it",
    ),
    (
        "empty",
        GOOD_MAP | {"c": ""},
        "{index}: weight_map: '' is outside the checkpoint's directory, expected a file in it",
    ),
    (
        "inner parent",
        GOOD_MAP | {"c": "x/../../two.safetensors"},
        "{index}: weight_map: 'x/../../two.safetensors' is outside the checkpoint's directory, expected a file in it",
    ),
]


@pytest.mark.parametrize(("weight_map", "message"), [row[1:] for row in MAPS], ids=[row[0] for row in MAPS])
def test_an_index_and_its_shards_agree(tmp_path: Path, weight_map: Any, message: str) -> None:
    where = indexed(tmp_path / "model", weight_map)
    assert refused(lambda: read_checkpoint(where)) == message.format(index=where / INDEX, where=where)


def test_an_index_names_a_file_once(tmp_path: Path) -> None:
    where = indexed(tmp_path, GOOD_MAP)
    (where / INDEX).write_text('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}')
    assert refused(lambda: read_checkpoint(where)) == f"{where / INDEX}: a: the name occurs twice"


def test_a_shard_that_the_index_does_not_name_is_surplus(tmp_path: Path) -> None:
    where = indexed(tmp_path, GOOD_MAP)
    shutil.copy(where / "two.safetensors", where / "consolidated.safetensors")
    assert set(read_checkpoint(where).files) == {"one.safetensors", "two.safetensors"}
    shutil.copy(where / "two.safetensors", where / "model-00003-of-00003.safetensors")
    assert refused(lambda: read_checkpoint(where)) == (
        f"{where / INDEX}: weight_map: does not name model-00003-of-00003.safetensors, which is beside it: "
        "take away what is of another checkpoint"
    )


def test_a_large_index_of_brackets_is_refused(tmp_path: Path) -> None:
    where = indexed(tmp_path, GOOD_MAP)
    (where / INDEX).write_bytes(b'{"weight_map":[' + b"[]," * 1_000_000 + b"[]]}")
    assert "1000003 brackets and escapes" in refused(lambda: read_checkpoint(where))
    with (where / INDEX).open("wb") as file:
        file.truncate(1 << 40)
    assert "1099511627776 bytes, expected at most" in refused(lambda: read_checkpoint(where))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": 1}, "'a': found int, expected a dense tensor with a name"),
        ({"a": {"x": 1}}, "'a': found dict, expected a dense tensor with a name"),
        ({1: torch.zeros(1)}, "1: found Tensor, expected a dense tensor with a name"),
        ([torch.zeros(1)], "found list, expected a dictionary of tensors"),
        ({"a": torch.zeros(1).expand(10**12)}, "'a': (1000000000000,) in 4 bytes: it repeats its elements"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "'a': found Tensor, expected a dense tensor with a name"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, "'a': found a tensor of torch.complex64, expected one of"),
    ],
)
def test_a_pickle_of_other_objects_is_refused(
    tmp_path: Path, data: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(data, tmp_path / PICKLE)
    with pytest.raises(SystemExit) as ended:
        pickle_to_safetensors.convert(tmp_path / PICKLE, tmp_path / SINGLE)
    assert str(ended.value).startswith(message)
    assert not list(tmp_path.glob("*safetensors*"))


def test_a_pickle_that_expands_one_storage_many_times_is_refused(tmp_path: Path) -> None:
    values = torch.zeros(1000, 100)
    torch.save({f"a{number}": values for number in range(5)}, tmp_path / PICKLE)
    with pytest.raises(SystemExit, match="tensors of 2000000 bytes in a file of"):
        pickle_to_safetensors.convert(tmp_path / PICKLE, tmp_path / SINGLE)


@pytest.mark.parametrize("zipped", [True, False])
def test_converted_tensors_are_those_of_the_pickle(tmp_path: Path, zipped: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = {
        "half": torch.randn(3, 5, generator=generator, dtype=torch.float32).bfloat16(),
        "turned": torch.randn(7, 2, generator=generator).t(),
        "whole": torch.arange(5),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
    }
    torch.save(values, tmp_path / PICKLE, _use_new_zipfile_serialization=zipped)
    pickle_to_safetensors.convert(tmp_path / PICKLE, tmp_path / SINGLE)
    loaded = load_file(tmp_path / SINGLE)
    assert loaded.keys() == values.keys()
    assert all(torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype for name, value in values.items())
    header, file = read_header(tmp_path / SINGLE)
    assert header.keys() == values.keys()
    pickle_to_safetensors.convert(tmp_path / PICKLE, tmp_path / "header", header_only=True)
    again, same = read_header(tmp_path / "header", SINGLE)
    assert (again, same.header_sha256) == (header, file.header_sha256)


def test_a_link_may_not_leave_the_directory(tmp_path: Path) -> None:
    where = indexed(tmp_path / "model", GOOD_MAP)
    outside = tmp_path / "outside.safetensors"
    (where / "two.safetensors").rename(outside)
    (where / "two.safetensors").symlink_to(outside)
    assert refused(lambda: read_checkpoint(where)) == (
        f"{where / INDEX}: weight_map: two.safetensors: cannot read: a link to {outside.resolve()}, "
        f"outside of {where}, expected a file in it"
    )


def test_the_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    where = tmp_path / "models--x" / "snapshots" / "1234"
    where.parent.mkdir(parents=True)
    indexed(where, GOOD_MAP)
    blobs = tmp_path / "models--x" / "blobs"
    blobs.mkdir()
    for name in ("one.safetensors", "two.safetensors"):
        (where / name).rename(blobs / name)
        (where / name).symlink_to(Path("../../blobs") / name)
    tensors = read_checkpoint(where).tensors
    assert tensors is not None
    assert set(tensors) == {"a", "b", "c"}


def test_two_sets_of_weights_are_refused_as_ambiguous(tmp_path: Path) -> None:
    where = indexed(tmp_path, GOOD_MAP)
    save_file({"a": torch.zeros(1)}, where / SINGLE)
    assert refused(lambda: read_checkpoint(where)) == (
        f"{where}: found both {SINGLE} and {INDEX}, expected one of them: remove the other"
    )


# Pickles

CONVERT = "load it where you trust it and save it with safetensors (model.save_pretrained of transformers)"


def test_a_pickle_is_refused_where_safetensors_is_expected(tmp_path: Path) -> None:
    where = directory(tmp_path / "model")
    torch.save({"a": torch.zeros(1)}, where / PICKLE)
    assert refused(lambda: read_checkpoint(where)) == (
        f"{where}: found {PICKLE}, a pickle, expected {SINGLE} or {INDEX}: {CONVERT}"
    )
    (where / PICKLE).rename(where / SINGLE)
    assert refused(lambda: read_checkpoint(where)) == (
        f"{where / SINGLE}: found a pickle, expected a safetensors file: {CONVERT}"
    )
    torch.save({"a": torch.zeros(1)}, where / SINGLE, _use_new_zipfile_serialization=False)
    assert "found a pickle" in refused(lambda: read_checkpoint(where))


def test_the_pickle_of_a_head_is_read_by_another_process(tmp_path: Path) -> None:
    where = directory(tmp_path / "head")
    shared = torch.arange(12, dtype=torch.float16).reshape(3, 4)
    values = {"a": shared, "b": shared.t(), "d2t": torch.arange(5)}
    torch.save(values, where / PICKLE)
    before = {file.name for file in where.iterdir()}
    checkpoint = read_checkpoint(where, pickles=True)
    assert (checkpoint.directory, checkpoint.config_file) == (where, where / "config.json")
    assert checkpoint.tensors is not None
    assert {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()} == {
        "a": ("F16", (3, 4)),
        "b": ("F16", (4, 3)),
        "d2t": ("I64", (5,)),
    }
    assert {file.name for file in where.iterdir()} == before


def test_a_killed_scan_of_a_pickle_leaves_no_file(tmp_path: Path) -> None:
    where = directory(tmp_path / "head")
    torch.save({"a": torch.zeros(1)}, where / PICKLE)
    (tmp_path / "room").mkdir()
    command = [sys.executable, "-m", "planner", "scan", str(where)]
    with subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path / "room")}) as process:
        while not (children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
            assert process.poll() is None
        process.kill()
    assert not list((tmp_path / "room").iterdir())
    os.kill(int(children[0]), signal.SIGKILL)


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil"),))


def test_a_pickle_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    where = directory(tmp_path / "head")
    (where / PICKLE).write_bytes(pickle.dumps({"a": Evil()}))
    assert refused(lambda: read_checkpoint(where, pickles=True)) == (
        f"{where / PICKLE}: cannot be read as a dictionary of tensors: "
        "it is no pickle, or holds something else than tensors, which is never loaded"
    )
    assert not (tmp_path / "evil").exists()


def test_a_pickle_that_claims_a_large_storage_is_refused(tmp_path: Path) -> None:
    where = directory(tmp_path / "head")
    torch.save({"a": torch.zeros(77)}, where / PICKLE, _use_new_zipfile_serialization=False)
    claimed = (where / PICKLE).read_bytes().replace(b"K\x4d", b"\x8a\x05" + (1 << 36).to_bytes(5, "little"))
    (where / PICKLE).write_bytes(claimed)
    assert re.fullmatch(
        re.escape(f"{where / PICKLE}: cannot be read as a dictionary of tensors: ")
        + r"takes more memory than a dictionary of tensors in a file of its size, of which its reader has \d+ bytes",
        refused(lambda: read_checkpoint(where, pickles=True)),
    )


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_pickle_that_never_ends_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    where = directory(tmp_path / "head")
    if kind == "fifo":
        os.mkfifo(where / PICKLE)
    else:
        (where / PICKLE).symlink_to("/dev/zero")
    assert refused(lambda: read_checkpoint(where, pickles=True)) == (
        f"{where / PICKLE}: cannot read: a pipe, a socket or a device, expected a regular file"
    )


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    where = directory(tmp_path / "head")
    torch.save({"a": torch.zeros(3)}, tmp_path / "stored")
    with zipfile.ZipFile(tmp_path / "stored") as stored, zipfile.ZipFile(where / PICKLE, "w", 8) as deflated:
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    assert refused(lambda: read_checkpoint(where, pickles=True)) == (
        f"{where / PICKLE}: cannot be read as a dictionary of tensors: "
        "'stored/data.pkl': compressed, expected an archive as torch writes it"
    )


@pytest.mark.parametrize(
    ("work", "code"),
    [
        ("bytearray(p.SPARE_BYTES + (1 << 20))", 1),
        ("p.SPARE_CPU_S = 0; p.limit(file)\nwhile True: pass", -signal.SIGXCPU),
    ],
    ids=["memory", "time"],
)
def test_the_process_that_reads_a_pickle_has_limits(tmp_path: Path, work: str, code: int) -> None:
    (tmp_path / PICKLE).write_bytes(b"x")
    program = (
        "from pathlib import Path; from planner.checkpoints import pickle_to_safetensors as p\n"
        f"file = Path({str(tmp_path / PICKLE)!r}); p.limit(file); bytearray(p.SPARE_BYTES // 2)\n{work}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, "MemoryError" in done.stderr) == (code, code == 1)


def test_a_conversion_that_takes_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = directory(tmp_path / "head")
    torch.save({"a": torch.zeros(1)}, where / PICKLE)
    monkeypatch.setattr(checkpoint_module, "CONVERSION_S", 0)
    assert refused(lambda: read_checkpoint(where, pickles=True)) == (
        f"{where / PICKLE}: cannot be read as a dictionary of tensors in 0 s"
    )


# Scan


def test_a_summary_has_blocks_in_the_order_of_execution() -> None:
    table = {
        "lm_head.weight": ("BF16", (10, 4)),
        "model.norm.weight": ("BF16", (4,)),
        "model.layers.10.mlp.up_proj.weight": ("BF16", (8, 4)),
        "model.layers.9.mlp.up_proj.weight": ("F32", (8, 4)),
        "model.embed_tokens.weight": ("BF16", (10, 4)),
    }
    summary = describe(table)
    assert [(block.block, block.num_tensors, block.nbytes) for block in summary.blocks] == [
        ("embed", 1, 80),
        ("layer 9", 1, 128),
        ("layer 10", 1, 64),
        ("head", 2, 88),
    ]
    assert (summary.num_tensors, summary.nbytes, summary.dtypes) == (5, 360, ("BF16", "F32"))
    heads = describe({"midlayer.hidden_norm.weight": ("F16", (4,)), "d2t": ("I64", (3,)), "x": ("BOOL", (1,))})
    assert [block.block for block in heads.blocks] == ["draft", "other"]


def layer(number: int, dtype: str = "BF16", width: int = 4) -> dict[str, tuple[str, tuple[int, ...]]]:
    prefix = f"model.layers.{number}"
    return {f"{prefix}.mlp.up_proj.weight": (dtype, (8, width)), f"{prefix}.input_layernorm.weight": ("F32", (4,))}


def test_equal_layers_are_folded() -> None:
    table = {"model.embed_tokens.weight": ("BF16", (10, 4)), "lm_head.weight": ("BF16", (10, 4))}
    for number in range(12):
        table |= layer(number)
    summary = describe(table)
    assert len(summary.blocks) == 14, "the summary itself lists every layer"
    assert [(run.label, run.num_blocks, run.num_tensors, run.nbytes) for run in fold(summary)] == [
        ("embed", 1, 1, 80),
        ("layers 0-11", 12, 2, 80),
        ("head", 1, 1, 80),
    ]


@pytest.mark.parametrize(
    "change",
    [
        layer(2, dtype="F16"),
        layer(2, width=2) | {"model.layers.2.pad": ("BF16", (8, 2))},
        layer(2) | {"model.layers.2.mlp.up_proj.bias": ("BF16", (8,))},
    ],
    ids=["dtype", "shape", "surplus tensor"],
)
def test_only_equal_layers_are_folded(change: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    table = {name: entry for number in range(4) for name, entry in layer(number).items()} | change
    assert [run.label for run in fold(describe(table))] == ["layers 0-1", "layer 2", "layer 3"]
    gap = {name: entry for number in (0, 1, 3, 4) for name, entry in layer(number).items()}
    assert [run.label for run in fold(describe(gap))] == ["layers 0-1", "layers 3-4"]


def test_reading_a_checkpoint_imports_no_torch() -> None:
    program = "import sys, planner.families; sys.exit(sum(m in sys.modules for m in ('torch', 'numpy', 'safetensors')))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
