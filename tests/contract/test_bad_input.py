"""Bad input from end to end: typed error, exit code, path to the datum, and no partial output."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from planner.cli import main as planner_main
from plans import codec
from runtime import cli as runtime_cli
from tests.plan_factory import write_base, write_draft

SIZES = {"hidden_size": 64, "num_heads": 8, "head_dim": 8, "intermediate_size": 192, "vocab_size": 256}
INVENTORY: dict[str, Any] = {
    "hosts": [
        {
            "name": "box",
            "links": {"class": "shm"},
            "devices": [
                {"id": "c0", "type": "cpu", "memory": "3 MiB", "bandwidth": "10 GB/s"},
                {"id": "c1", "type": "cpu", "memory": "2.5 MiB", "bandwidth": "10 GB/s"},
            ],
        }
    ]
}


@dataclass(frozen=True)
class Bench:
    """Directory with a valid base, EAGLE head and inventory, and the path of the output."""

    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def head(self) -> Path:
        return self.root / "head"

    @property
    def inventory(self) -> Path:
        return self.root / "inventory.yaml"

    @property
    def out(self) -> Path:
        return self.root / "out"

    def arguments(self) -> list[str]:
        chosen = ["--model", self.base, "--draft", self.head, "--gpus", self.inventory, "--out", self.out]
        return ["build", *map(str, chosen), "--context", "128", "--tree", "total_token=20,depth=3,top_k=4"]

    def write_inventory(self, change: Callable[[Any], object]) -> None:
        data = json.loads(json.dumps(INVENTORY))
        change(data)
        self.inventory.write_text(yaml.safe_dump(data))

    def configure(self, model: Path, **changes: Any) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | changes))

    def retensor(self, model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        tensors = load_file(model / "model.safetensors")
        change(tensors)
        save_file(tensors, model / "model.safetensors")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    write_base(root / "base", num_layers=8, num_kv_heads=4, **SIZES)
    write_draft(root / "head", draft_vocab_size=128, **SIZES)
    (root / "inventory.yaml").write_text(yaml.safe_dump(INVENTORY))
    return root


@pytest.fixture
def bench(template: Path, tmp_path: Path) -> Bench:
    shutil.copytree(template, tmp_path / "bench")
    return Bench(root=tmp_path / "bench")


def snapshot(directory: Path) -> dict[str, bytes | None] | None:
    """Return the content of every file below, or None if the path does not exist."""
    if not directory.exists():
        return None
    if directory.is_file():
        return {".": directory.read_bytes()}
    below = sorted(directory.rglob("*"))
    return {str(file.relative_to(directory)): file.read_bytes() if file.is_file() else None for file in below}


def refused(bench: Bench, arguments: list[str], *, error: str, exit_code: int, message: str) -> dict[str, Any]:
    """Assert that the planner refuses with this error, as text and as JSON, and leaves the output unchanged."""
    before = snapshot(bench.out)
    result = CliRunner().invoke(planner_main, [*arguments, "--json"])
    assert isinstance(result.exception, SystemExit), result.exception
    error_object = json.loads(result.stdout)["error"]
    codes = (error_object["exit_code"], result.exit_code)
    assert (error_object["type"], *codes) == (error, exit_code, exit_code), error_object
    assert message.format(root=bench.root) in error_object["message"]
    assert f"error: {error_object['message']}" in result.stderr
    assert snapshot(bench.out) == before
    assert not list(bench.root.rglob(".*.new"))
    return dict(error_object)


def device(data: Any, index: int = 0) -> Any:
    return data["hosts"][0]["devices"][index]


# ---- inventories ----

INVENTORIES: dict[str, tuple[Callable[[Any], object], str]] = {
    "misspelt field": (
        lambda data: device(data).update(memroy="5 MiB"),
        "inventory.yaml: hosts[0].devices[0].memroy: unknown field, did you mean memory?",
    ),
    "unknown field": (
        lambda data: data.update(colour="red"),
        "inventory.yaml: colour: unknown field, expected one of hosts, network",
    ),
    "wrong unit": (
        lambda data: device(data, 1).update(memory="5 GHz"),
        "inventory.yaml: hosts[0].devices[1].memory: found",
    ),
    "no unit": (
        lambda data: device(data).update(bandwidth=10),
        "inventory.yaml: hosts[0].devices[0].bandwidth: found 10 without a unit",
    ),
    "duplicate id": (
        lambda data: device(data, 1).update(id="c0"),
        "inventory.yaml: hosts[0].devices[1].id: 'c0' is already the id of a device",
    ),
    "no devices": (
        lambda data: data["hosts"][0].update(devices=[]),
        "inventory.yaml: hosts[0].devices: no device, expected at least one",
    ),
    "no hosts": (lambda data: data.update(hosts=[]), "inventory.yaml: hosts: no host, expected at least one"),
    "unknown type": (lambda data: device(data).update(type="a1000"), "hosts[0].devices[0].type: 'a1000' is not in"),
    "a path for a name": (lambda data: device(data).update(id="../c0"), "hosts[0].devices[0].id: found '../c0'"),
    "no network": (
        lambda data: data["hosts"].append({"name": "b", "devices": [device(data) | {"id": "c9"}]}),
        "inventory.yaml: network: missing, expected the link between the 2 hosts",
    ),
    "uncountable": (
        lambda data: device(data).update(memory="9000 TiB"),
        "hosts[0].devices[0].memory: found 9000 TiB, expected",
    ),
}


@pytest.mark.parametrize("name", INVENTORIES)
def test_inventories(bench: Bench, name: str) -> None:
    change, message = INVENTORIES[name]
    bench.write_inventory(change)
    refused(bench, bench.arguments(), error="InventoryError", exit_code=2, message=message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "inventory.yaml: found nothing, expected a mapping with hosts and network"),
        (b"# only words\n", "inventory.yaml: found nothing"),
        (b"hosts:\n\t- name: box\n", "inventory.yaml: line 2"),
        (b"[1, 2]", "inventory.yaml: found a sequence"),
        (b'{"hosts": []', "inventory.yaml: line"),
        (b"hosts: [\n", "inventory.yaml: line"),
        (b"\xff\xfe\x00", "inventory.yaml: not valid UTF-8"),
        (b"a: &x [*x]\n", "inventory.yaml: line 1"),
        (b"hosts: []\nhosts: []\n", "inventory.yaml: line 2"),
    ],
    ids=["empty", "comment", "tabs", "sequence", "json", "yaml", "binary", "alias", "twice"],
)
def test_documents_that_are_no_inventory(bench: Bench, content: bytes, message: str) -> None:
    bench.inventory.write_bytes(content)
    refused(bench, bench.arguments(), error="InventoryError", exit_code=2, message=message)


def test_inventory_files_that_are_not_there(bench: Bench) -> None:
    bench.inventory.unlink()
    message = "{root}/inventory.yaml: no such file"
    refused(bench, bench.arguments(), error="InventoryError", exit_code=2, message=message)
    bench.inventory.mkdir()
    message = "{root}/inventory.yaml: a directory"
    refused(bench, bench.arguments(), error="InventoryError", exit_code=2, message=message)


def test_json_is_yaml(bench: Bench) -> None:
    bench.inventory.write_text(json.dumps(INVENTORY))
    assert CliRunner().invoke(planner_main, [*bench.arguments(), "--plan-only"]).exit_code == 0


# ---- checkpoints ----


def truncate(bench: Bench) -> None:
    file = bench.base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def truncate_header(bench: Bench) -> None:
    (bench.base / "model.safetensors").write_bytes(b"\x10\x00\x00")


def claim_header(bench: Bench) -> None:
    (bench.base / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def escape(bench: Bench) -> None:
    tensors = load_file(bench.base / "model.safetensors")
    (bench.base / "model.safetensors").rename(bench.root / "outside.safetensors")
    weight_map = dict.fromkeys(tensors, "../outside.safetensors")
    (bench.base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def pickled(bench: Bench) -> None:
    tensors = load_file(bench.base / "model.safetensors")
    (bench.base / "model.safetensors").unlink()
    torch.save(tensors, bench.base / "pytorch_model.bin")


def disguised(bench: Bench) -> None:
    pickled(bench)
    (bench.base / "pytorch_model.bin").rename(bench.base / "model.safetensors")


@dataclass(frozen=True)
class _Evil:
    """Object whose unpickling creates a file."""

    mark: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def evil(bench: Bench) -> None:
    (bench.head / "model.safetensors").unlink()
    torch.save({"fc.weight": _Evil(mark=bench.root / "mark")}, bench.head / "pytorch_model.bin")


CHECKPOINTS: dict[str, tuple[Callable[[Bench], object], str, str]] = {
    "missing tensor": (
        lambda bench: bench.retensor(bench.base, lambda t: t.__delitem__("model.layers.3.mlp.up_proj.weight")),
        "CheckpointError",
        "{root}/base: model.layers.3.mlp.up_proj.weight: missing, expected shape [192, 64]",
    ),
    "surplus tensor": (
        lambda bench: bench.retensor(bench.base, lambda t: t.update(extra=torch.zeros(3))),
        "CheckpointError",
        "{root}/base: extra: surplus, of shape [3]",
    ),
    "misshapen tensor": (
        lambda bench: bench.retensor(bench.base, lambda t: t.update({"model.norm.weight": torch.zeros(63)})),
        "CheckpointError",
        "{root}/base: model.norm.weight: found shape [63], expected [64] by config.json",
    ),
    "dtype": (
        lambda bench: bench.retensor(
            bench.base, lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)})
        ),
        "CheckpointError",
        "{root}/base: model.norm.weight: found dtype I8",
    ),
    "truncated file": (truncate, "CheckpointError", "{root}/base/model.safetensors: header: truncated"),
    "truncated header": (
        truncate_header,
        "CheckpointError",
        "{root}/base/model.safetensors: header: truncated: 3 bytes",
    ),
    "immense header": (claim_header, "CheckpointError", f"model.safetensors: header: claims {1 << 60} bytes"),
    "index to elsewhere": (
        escape,
        "CheckpointError",
        "model.safetensors.index.json: weight_map: '../outside.safetensors' is outside the checkpoint's directory",
    ),
    "pickle": (
        pickled,
        "CheckpointError",
        "{root}/base: found pytorch_model.bin, a pickle, expected model.safetensors",
    ),
    "pickle by another name": (disguised, "CheckpointError", "{root}/base/model.safetensors: found a pickle"),
    "pickle that runs code": (evil, "CheckpointError", "{root}/head/pytorch_model.bin: cannot be read"),
    "sliding window": (
        lambda bench: bench.configure(bench.base, sliding_window=4096),
        "ConfigError",
        "{root}/base/config.json: sliding_window: found 4096, expected null",
    ),
    "activation": (
        lambda bench: bench.configure(bench.base, hidden_act="gelu"),
        "ConfigError",
        "{root}/base/config.json: hidden_act: found 'gelu', expected 'silu'",
    ),
    "quantization": (
        lambda bench: bench.configure(bench.base, quantization_config={"bits": 4}),
        "ConfigError",
        "{root}/base/config.json: quantization_config: found",
    ),
    "unknown key": (
        lambda bench: bench.configure(bench.base, logit_scale=2.0),
        "ConfigError",
        "{root}/base/config.json: logit_scale",
    ),
    "family": (
        lambda bench: bench.configure(bench.base, model_type="mamba"),
        "ConfigError",
        "{root}/base/config.json: model_type: found 'mamba'",
    ),
    "head of another width": (
        lambda bench: bench.configure(bench.head, hidden_size=128),
        "ConfigError",
        "{root}/head/config.json: hidden_size: found 128, expected 64, the base model's hidden_size",
    ),
    "head of another vocabulary": (
        lambda bench: bench.configure(bench.head, vocab_size=300),
        "ConfigError",
        "{root}/head/config.json: vocab_size: found 300, expected 256, the base model's",
    ),
    "no config": (
        lambda bench: (bench.base / "config.json").unlink(),
        "CheckpointError",
        "{root}/base/config.json: no such file",
    ),
    "config that is no JSON": (
        lambda bench: (bench.base / "config.json").write_text("{"),
        "CheckpointError",
        "{root}/base/config.json: not valid JSON",
    ),
    "config that is a directory": (
        lambda bench: ((bench.base / "config.json").unlink(), (bench.base / "config.json").mkdir()),
        "CheckpointError",
        "{root}/base/config.json",
    ),
    "no checkpoint": (
        lambda bench: shutil.rmtree(bench.base),
        "CheckpointError",
        "{root}/base: found nothing, expected a checkpoint's directory or its config.json",
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(bench: Bench, name: str) -> None:
    change, error, message = CHECKPOINTS[name]
    change(bench)
    refused(bench, bench.arguments(), error=error, exit_code=2, message=message)
    assert not (bench.root / "mark").exists()


def test_a_base_without_weights_is_only_planned(bench: Bench) -> None:
    (bench.base / "model.safetensors").unlink()
    result = CliRunner().invoke(planner_main, bench.arguments())
    assert result.exit_code == 0, result.stderr
    assert f"{bench.out}: no images: there are no tensors beside " in result.stderr
    assert not list(bench.out.glob("*.safetensors"))
    assert codec.load(bench.out).model.num_layers == 8


def test_base_and_eagle_head_exchanged(bench: Bench) -> None:
    inventory = ["--gpus", str(bench.inventory), "--out", str(bench.out)]
    head_first = ["build", "--model", str(bench.head), *inventory]
    refused(bench, head_first, error="CheckpointError", exit_code=2, message="an EAGLE head, expected a base model")
    (bench.head / "model.safetensors").unlink()
    refused(bench, head_first, error="CheckpointError", exit_code=2, message="an EAGLE head, expected a base model")
    base_last = ["build", "--model", str(bench.base), "--draft", str(bench.base), *inventory]
    refused(bench, base_last, error="CheckpointError", exit_code=2, message="{root}/base: not an EAGLE head")


# ---- options and output ----


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--context", "513"], "--context: found 513, the model has 512 positions"),
        (["--tree", "total_token=60,depth=1,top_k=2"], "--tree: total_token=60 wants 59 drafted nodes"),
        (["--prefill-chunk", "129"], "--prefill-chunk: found 129, expected at most the context of 128"),
    ],
)
def test_options(bench: Bench, more: list[str], message: str) -> None:
    refused(bench, [*bench.arguments(), *more], error="InputError", exit_code=2, message=message)


def test_a_number_out_of_range_is_a_wrong_use(bench: Bench) -> None:
    result = CliRunner().invoke(planner_main, [*bench.arguments(), "--tree", "depth=1000000", "--json"])
    error = json.loads(result.stdout)["error"]
    assert (error["type"], error["exit_code"], result.exit_code) == ("UsageError", 2, 2)
    assert "'--tree': depth: found '1000000', expected a whole number from 0 to 64" in error["message"]


def test_infeasible_reports_missing_bytes_per_device(bench: Bench) -> None:
    bench.write_inventory(lambda data: [device(data, i).update(memory="1 MiB") for i in range(2)])
    error_object = refused(bench, bench.arguments(), error="InfeasibleError", exit_code=3, message="no placement fits")
    assert error_object["short_bytes"] == sum(entry["short_bytes"] for entry in error_object["devices"]) > 0
    assert all(entry["id"] in error_object["message"] for entry in error_object["devices"])


@pytest.mark.parametrize("kind", ["other files", "a file", "a link to nowhere", "inside a file"])
def test_the_output_is_taken(bench: Bench, kind: str) -> None:
    arguments = bench.arguments()
    match kind:
        case "other files":
            bench.out.mkdir()
            (bench.out / "thesis.tex").write_text("years of work")
        case "a file" | "inside a file":
            bench.out.write_text("years of work")
        case _:
            bench.out.symlink_to(bench.root / "nowhere")
    if kind == "inside a file":
        arguments = [str(bench.out / "p") if value == str(bench.out) else value for value in arguments]
    refused(bench, arguments, error="OutputError", exit_code=2, message="{root}/out")


def test_a_refusal_leaves_an_older_plan_as_it_is(bench: Bench) -> None:
    assert CliRunner().invoke(planner_main, bench.arguments()).exit_code == 0
    assert (bench.out / "images.yaml").is_file()
    truncate(bench)
    refused(bench, bench.arguments(), error="CheckpointError", exit_code=2, message="truncated")
    small = [*bench.arguments(), "--context", "513"]
    refused(bench, small, error="CheckpointError", exit_code=2, message="truncated")


# ---- plans and images, in both programs ----


@pytest.fixture(scope="module")
def compiled(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compiled")
    shutil.copytree(template, root, dirs_exist_ok=True)
    assert CliRunner().invoke(planner_main, Bench(root=root).arguments()).exit_code == 0
    return root


@pytest.fixture
def ready(compiled: Path, tmp_path: Path) -> Bench:
    """Return a bench with a plan and its images."""
    shutil.copytree(compiled, tmp_path / "bench")
    return Bench(root=tmp_path / "bench")


def runtime(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    *,
    error: str,
    exit_code: int,
    message: str,
) -> None:
    """Assert that ``python -m runtime`` refuses with this error, as text and as JSON."""
    as_json = ["--json"] if arguments[0] != "verify" else []
    monkeypatch.setattr("sys.argv", ["runtime", *map(str, arguments), *as_json])
    with pytest.raises(SystemExit) as ended:
        runtime_cli.main()
    captured = capsys.readouterr()
    assert ended.value.code == exit_code, captured.err
    assert captured.err.startswith("error: ")
    assert message in captured.err
    if as_json:
        error_object = json.loads(captured.out)["error"]
        assert (error_object["type"], error_object["exit_code"]) == (error, exit_code)
        assert message in error_object["message"]


PLANS: dict[str, tuple[Callable[[str], str], str, str]] = {
    "edited against itself": (
        lambda text: text.replace("first_layer: 0", "first_layer: 1", 1),
        "InvalidPlanError",
        "plan.yaml: stages[0].first_layer: found 1, expected 0",
    ),
    "more memory than there is": (
        lambda text: re.sub(r"memory_bytes: [0-9]+", "memory_bytes: 2097152", text, count=1),
        "InvalidPlanError",
        "plan.yaml: memory[0]",
    ),
    "misspelt": (lambda text: text.replace("first_layer:", "first_lager:", 1), "PlanError", "first_lager"),
    "a text for a number": (lambda text: text.replace("batch: 1", "batch: one", 1), "PlanError", "options.batch"),
    "newer": (lambda text: re.sub(r"schema: .*", "schema: '5.0'", text), "NewerSchemaError", "5.0"),
    "cut off": (lambda text: text[: len(text) // 2], "PlanError", "plan.yaml"),
    "empty": (lambda text: "", "PlanError", "plan.yaml"),
}


@pytest.mark.parametrize("name", PLANS)
def test_plans_edited_by_hand(
    ready: Bench, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, error, message = PLANS[name]
    file = ready.out / "plan.yaml"
    old = file.read_text()
    file.write_text(change(old))
    assert file.read_text() != old
    for command in ("show", "check", "compile"):
        models = ["--model", str(ready.base), "--draft", str(ready.head)] if command == "compile" else []
        refused(ready, [command, str(ready.out), *models], error=error, exit_code=2, message=message)
    command = ["run", ready.out, "--prompt-ids", "1,2,3"]
    runtime(monkeypatch, capsys, command, error=error, exit_code=2, message=message)


def test_a_consistent_edit_is_found_by_check_and_by_the_images(
    ready: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = codec.load(ready.out)
    text = (ready.out / "plan.yaml").read_text()
    ns = plan.stages[0].predicted_ns
    (ready.out / "plan.yaml").write_text(text.replace(f"predicted_ns: {ns}", f"predicted_ns: {ns + 1}", 1))
    result = CliRunner().invoke(planner_main, ["check", str(ready.out), "--json"])
    assert result.exit_code == 1
    assert "stages[0].predicted_ns" in str(json.loads(result.stdout)["plans"][0]["differences"])
    command = ["run", ready.out, "--prompt-ids", "1,2,3"]
    runtime(monkeypatch, capsys, command, error="ImageForeign", exit_code=4, message="images.yaml")


def unrecord(ready: Bench) -> None:
    (ready.out / "images.yaml").unlink()


def swap(ready: Bench, image: Path) -> None:
    other = next(file for file in sorted(ready.out.glob("*.safetensors")) if file != image)
    shutil.copy(other, image)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-300] ^= 1
    file.write_bytes(content)


IMAGES: dict[str, tuple[Callable[[Bench, Path], object], str, str, str]] = {
    "missing": (lambda ready, image: image.unlink(), "run", "ImageMissing", "python -m planner compile"),
    "no record": (
        lambda ready, image: (ready.out / "images.yaml").unlink(),
        "run",
        "ImageMissing",
        "python -m planner compile",
    ),
    "truncated": (
        lambda ready, image: image.write_bytes(image.read_bytes()[:-256]),
        "run",
        "ImageTruncated",
        "bytes",
    ),
    "damaged": (lambda ready, image: flip(image), "verify", "ImageDamaged", "BLAKE3"),
    "foreign": (swap, "run", "ImageTruncated", "bytes"),
    "edited record": (
        lambda ready, image: (ready.out / "images.yaml").write_text(
            (ready.out / "images.yaml").read_text().replace("blake3: ", "blake3: 0", 1)
        ),
        "run",
        "ImageDamaged",
        "images.yaml",
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(ready: Bench, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    change, command, error, message = IMAGES[name]
    image = ready.out / f"{codec.load(ready.out).devices[0].id}.safetensors"
    change(ready, image)
    arguments = [command, ready.out, *(["--prompt-ids", "1,2,3"] if command == "run" else [])]
    runtime(monkeypatch, capsys, arguments, error=error, exit_code=4, message=message)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompt-ids", "1,2,3", "--max-new-tokens", "126"], "context of 128"),
        (["--prompt-ids", ",".join(["1"] * 128)], "context of 128"),
        (["--prompt-ids", "1,256"], "prompt_ids[1]: found 256, expected 0 to 255"),
        (["--prompt-ids", "1,-1"], "--prompt-ids: found '1,-1', expected numbers like 1,2,3"),
        (["--prompt-ids", "one"], "--prompt-ids: found 'one'"),
        (["--prompt-ids", ""], "prompt: empty"),
        (["--prompt-ids", "1", "--max-new-tokens", "0"], "max_new_tokens: found 0"),
        (["--prompt", "def"], "tokenizer"),
        ([], "tokenizer"),
    ],
)
def test_prompts(
    ready: Bench,
    more: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runtime(monkeypatch, capsys, ["run", ready.out, *more], error="RequestError", exit_code=2, message=message)


@pytest.mark.parametrize("command", ["run", "verify", "bench"])
def test_no_plan(
    bench: Bench, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"{bench.root}/nowhere: no plan.yaml here"
    runtime(monkeypatch, capsys, [command, bench.root / "nowhere"], error="PlanError", exit_code=2, message=message)
