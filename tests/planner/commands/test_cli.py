"""What all commands have in common: usage errors, verbosity, closed pipes, terminals, signals, version."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest

from planner.commands.tables import tables
from plans import codec
from plans.schema import SCHEMA_MAJOR, SCHEMA_MINOR
from tests.planner.commands.built import build, planner
from tests.planner.instances import ROOT


@pytest.mark.parametrize(
    "arguments",
    [
        ("--gap", "1"),
        ("--gap", "nan"),
        ("--gap", "100%"),
        ("--gap", "-0.1"),
        ("--batch", "0"),
        ("--batch", "1000000000000"),
        ("--context", "0"),
        ("--context", "many"),
        ("--context", "-5"),
        ("--dtype", "int8"),
        ("--tree", "depth=65"),
        ("--tree", "depht=3"),
        ("--tree", "total_token=1"),
        ("--tree", "static=0,1.0"),
        ("--tree", "static=0,a"),
        ("--tree", "static="),
        ("--tree", ""),
        ("--prefill-chunk", "0"),
        ("--surprise",),
    ],
)
def test_usage_errors_come_before_any_file_is_read(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = planner("build", "--gpus", tmp_path / "none.yaml", "--out", tmp_path / "p", *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("tree", ["60/7/10", "depht=3", "60,7,10"])
def test_a_tree_that_is_written_otherwise_is_refused_with_how_it_is_written(tmp_path: Path, tree: str) -> None:
    result = planner("build", "--gpus", tmp_path / "none.yaml", "--tree", tree)
    found = tree.partition("=")[0].partition(",")[0]
    how = "total_token=60,depth=7,top_k=10, one or more of these, or static"
    assert f"Invalid value for '--tree': found '{found}', expected {how}\n" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "--gpus", "inventory.yaml", "--out", "a" * 300),
        ("build", "--gpus", "inventory.yaml", "--model", "a" * 300),
        ("compile", "a" * 300),
        ("show", "a" * 300),
        ("diff", "a" * 300, "plans/demo"),
        ("scan", "a" * 300),
    ],
)
def test_a_path_that_the_system_refuses_is_reported_with_its_reason(arguments: tuple[str, ...]) -> None:
    result = planner(*arguments)
    assert result.exit_code == 2
    assert re.fullmatch(r"error: \S*a{300}\S*: (cannot read: )?File name too long\n", result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "--json"),
        ("build", "--gpus", "x", "--kv", "contxt", "--json"),
        ("build", "--gpus", "x", "--strategy", "fast", "--json"),
        ("build", "--gpus", "x", "--strategy", "latency:map.yaml", "--json"),
        ("build", "--gpus", "x", "--surprise", "--json"),
        ("show", "--json"),
        ("buidl", "--json"),
        ("--json",),
    ],
)
def test_a_usage_error_is_a_json_object(arguments: tuple[str, ...]) -> None:
    result = planner(*arguments)
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "UsageError"
    assert error["exit_code"] == 2
    assert error["message"] in result.stderr
    plain = planner(*(argument for argument in arguments if argument != "--json"))
    assert plain.exit_code in (0, 2)  # without --json the command may succeed
    assert "{" not in plain.stdout


def test_verbosity_from_the_environment(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [build(models, tmp_path / "p", "--plan-only", *flags).stderr for flags in ((), ("-v",), ("-vv",))]
    for level, output in enumerate(outputs):
        monkeypatch.setenv("DEBUG", str(level))
        again = build(models, tmp_path / "p", "--plan-only").stderr
        assert len(again.splitlines()) == len(output.splitlines())
    monkeypatch.setenv("DEBUG", "yes")
    assert build(models, tmp_path / "p", "--plan-only").exit_code == 0
    assert len(outputs[0].splitlines()) == 4, "the plan, the layers that its EAGLE head reads, and what it gains"
    assert "Devices found: 3 on 2 hosts\n  c0 on left: cpu, 5.0 MiB of which" in outputs[1]
    assert "Memory" in outputs[1]
    assert (
        "Contents of each device\n  c2: embed, 512 rows; stage 0: layers 0-7 with 4 KV heads, 192 MLP channels"
        in outputs[2]
    )
    assert re.search(r"Objectives, in the order .*\n.* \d+ bound +\d+ ", outputs[2])


def test_every_command_prints_more_with_v_and_vv(models: Path, plan: Path, tmp_path: Path) -> None:
    build(models, tmp_path / "q", "--plan-only", "--context", 500)
    expected: dict[tuple[object, ...], tuple[str, str]] = {
        ("inventory", models / "inventory.yaml"): (
            "\n  memory     5 MiB          given\n  reserve    0 B            catalogue\n",
            "",
        ),
        ("scan", models / "base"): ("model.norm.weight: F32, 64, 256 B", ""),
        ("compile", plan, "--model", models / "base", "--draft", models / "head"): (
            "slots of the model",
            "  layers.0.qkv.weight: F32, ",
        ),
        ("show", plan): ("Devices found: 3 on 2 hosts", "Contents of each device"),
        ("diff", plan, tmp_path / "q"): ("  c2: draft KV ", "  stage 0: "),
        ("check", plan): ("solved again on 3 devices in ", "Objectives, in the order"),
    }
    for arguments, texts in expected.items():
        quiet, once, twice = (planner(*arguments, *flags) for flags in ((), ("-v",), ("-vv",)))
        assert quiet.stdout == once.stdout == twice.stdout
        assert quiet.exit_code == once.exit_code == twice.exit_code
        first, second = texts
        assert first in once.stderr
        assert first not in quiet.stderr
        assert second in twice.stderr
        assert not second or second not in once.stderr


PRINTING = {
    "help": ("--help",),
    "build": ("build", "--gpus", "inventory.yaml", "--no-draft", "--plan-only", "--out", "p"),
    "build -vv": ("build", "--gpus", "inventory.yaml", "--no-draft", "--plan-only", "--out", "p", "-vv", "--json"),
    "compile": ("compile", "p", "--json"),
    "show": ("show", "plans/demo"),
    "show --json": ("show", "plans/demo", "--json"),
    "diff": ("diff", "plans/demo", "plans/llama70b-4gpu"),
    "check": ("check", "plans/demo", "--json"),
    "inventory": ("inventory", "inventory.yaml"),
    "scan": ("scan", "planner/demo/base", "--json"),
    "refusal": ("show", "nothing", "--json"),
    "usage": ("show", "--json"),
}


@pytest.mark.parametrize("arguments", PRINTING.values(), ids=PRINTING)
def test_a_closed_pipe_ends_a_command_quietly(arguments: tuple[str, ...], plan: Path, tmp_path: Path) -> None:
    """Close the reading end of stdout, then of stdout and stderr."""
    for name in ("inventory.yaml", "plans", "planner"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "plans" / "demo", tmp_path / "p")
    for both in (False, True):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "planner", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with tempfile.TemporaryFile() as errors:
            stderr = writing if both else errors
            done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=writing, stderr=stderr, check=False)
            os.close(writing)
            errors.seek(0)
            text = errors.read().decode()
        assert done.returncode >= 0, text
        assert "Traceback" not in text
        assert "Broken pipe" not in text
        assert "BrokenPipe" not in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_colours_unless_no_color_is_set(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = codec.load(plan)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in tables(frozen, Terminal())
    assert "\x1b[" not in tables(frozen, io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in tables(frozen, Terminal())


def test_the_commands_run_as_a_module_and_planning_imports_no_torch(models: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from planner.cli import main\n"
        "try:\n"
        f"    main(['build', '--gpus', {str(models / 'inventory.yaml')!r}, '--model', {str(models / 'base')!r},\n"
        f"          '--plan-only', '--out', {str(tmp_path / 'p')!r}])\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
    shown = subprocess.run(
        [sys.executable, "-m", "planner", "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for command in ("build", "compile", "show", "diff", "check", "scan", "inventory"):
        assert command in shown.stdout


@pytest.mark.parametrize("module", ["click", "planner.errors", "numpy"])
def test_ctrl_c_during_imports_ends_with_130_and_without_traceback(models: Path, module: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "planner", "build", "--gpus", str(models / "inventory.yaml")]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    assert any(line.rstrip().endswith(f" {module}") for line in run.stderr)
    run.send_signal(signal.SIGINT)
    _, text = run.communicate()
    assert run.returncode == 130
    assert "Traceback" not in text
    assert "interrupted\n" in text


@pytest.mark.parametrize("package", ["planner", "runtime"])
def test_the_version_is_that_of_the_package_and_of_its_plans(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", package, "--version"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout == f"eagleplan {metadata.version('eagleplan')}, plans of schema {SCHEMA_MAJOR}.{SCHEMA_MINOR}\n"
