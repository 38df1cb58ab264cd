"""The console script: the commands of both packages under one name."""

import json
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from plans import eagleplan
from plans.command_names import PACKAGES

ROOT = Path(__file__).parents[2]
SCRIPT = "import sys; from plans.eagleplan import main; sys.argv[0] = '/usr/bin/eagleplan'; sys.exit(main())"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run ``main`` as the installed script does."""
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_entry_point_is_this_module() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {"eagleplan"}
    module, _, function = scripts["eagleplan"].partition(":")
    assert getattr(import_module(module), function) is eagleplan.main


@pytest.mark.parametrize("package", PACKAGES)
def test_it_has_every_command_of_both_packages(package: str) -> None:
    group = getattr(import_module(f"{package}.cli"), eagleplan.GROUPS[package])
    assert set(group.list_commands(None)) == set(PACKAGES[package])


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (("--help",), "Usage: eagleplan COMMAND"),
        ((), "Usage: eagleplan COMMAND"),
        (("build", "--help"), "Usage: eagleplan build "),
        (("run", "--help"), "Usage: eagleplan run "),
        (("verify", "--help"), "Usage: eagleplan verify "),
    ],
)
def test_help_has_the_name_that_was_typed(arguments: tuple[str, ...], first: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(first)
    if not arguments or arguments == ("--help",):
        for name in (*PACKAGES["planner"], *PACKAGES["runtime"]):
            assert f"\n  {name} " in done.stdout
        assert "..." not in done.stdout.replace("[ARGS]...", "")


@pytest.mark.parametrize("name", ["build", "run", "bench", "serve", "verify", "calibrate"])
def test_examples_have_the_name_that_was_typed(name: str) -> None:
    _, _, examples = run(name, "--help").stdout.partition("\nExample")
    assert f" eagleplan {name} " in examples
    assert "python -m" not in examples


@pytest.mark.parametrize("package", PACKAGES)
def test_help_of_the_packages_has_their_own_names(package: str) -> None:
    for arguments in ((), (PACKAGES[package][0],)):
        command = [sys.executable, "-m", package, *arguments, "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(" ".join(["Usage: python -m", package, *arguments, "["]))


def test_output_and_exit_codes_are_those_of_the_command() -> None:
    shown = run("show", "plans/demo", "--json")
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["plan"] == "plans/demo"
    differ = run("diff", "plans/demo", "plans/llama70b-4gpu")
    assert (differ.returncode, differ.stdout.startswith("step ")) == (1, True)
    missing = run("verify", "plans/none", "--json")
    assert missing.returncode == json.loads(missing.stdout)["error"]["exit_code"] == 2


@pytest.mark.parametrize(
    ("package", "name", "meant"),
    [
        ("planner", "verify", "python -m runtime verify"),
        ("runtime", "build", "python -m planner build"),
        ("planner", "chek", "check"),
        ("runtime", "sevre", "serve"),
        ("runtime", "explain", ""),
    ],
)
def test_of_a_command_that_a_package_does_not_have_the_one_that_is_meant_is_named(
    package: str, name: str, meant: str
) -> None:
    done = subprocess.run([sys.executable, "-m", package, name], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    expected = f"No such command {name!r}.{f' Did you mean {meant!r}?' if meant else ''}"
    assert done.stderr.splitlines()[-1] == f"Error: {expected}"


def test_an_unknown_command_is_refused_as_text_and_as_json() -> None:
    plain, data = run("buidl"), run("buidl", "--json")
    assert plain.returncode == data.returncode == 2
    assert plain.stdout == ""
    assert plain.stderr.startswith("Error: No such command 'buidl'. Did you mean 'build'?\n")
    error = {"type": "UsageError", "message": "No such command 'buidl'. Did you mean 'build'?", "exit_code": 2}
    assert json.loads(data.stdout) == {"error": error}


def test_planning_by_the_script_imports_no_torch() -> None:
    program = (
        "import sys\nfrom plans.eagleplan import main\nsys.argv = ['eagleplan', 'show', 'plans/demo']\n"
        "import os; os._exit = lambda code: None\n"
        "try: main()\nexcept SystemExit: pass\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'torch', 'runtime', 'ortools'}, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version").stdout.startswith("eagleplan ")


NOTE = "plans/demo: no images are compiled, so no weights of this plan were seen here\n"
"""Line that ``show`` writes beside the tables, where it comes that far."""

OUTPUTS = (
    ("help", "--help"),
    ("of a command", "show --help"),
    ("tables", "show plans/demo"),
    ("data", "show plans/demo --json"),
)


@pytest.mark.parametrize("arguments", [arguments for _, arguments in OUTPUTS], ids=[name for name, _ in OUTPUTS])
@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        ("| true; exit ${PIPESTATUS[0]}", {0, 1}, ""),
        (">&-", {1}, "error: stdout: cannot write: it is closed: open it, or send it to a file\n"),
        (">/dev/full", {1}, "error: stdout: cannot write: No space left on device\n"),
    ],
    ids=["nobody reads", "closed", "full"],
)
def test_output_that_goes_nowhere_ends_a_command_without_a_traceback(
    arguments: str, redirection: str, code: set[int], message: str
) -> None:
    if "--help" in arguments and redirection == ">&-":  # click's own writer says nothing
        code, message = {0}, ""
    command = f"{sys.executable} -m plans.eagleplan {arguments} {redirection}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode in code
    assert done.stderr in {message, NOTE + message}
