"""The help of every command: fast, complete summaries, valid examples, exit codes."""

import shlex
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from inspect import signature
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from planner.api.options import BuildOptions
from planner.cli import EXIT_CODES, main
from planner.commands.build import Arguments
from planner.commands.declarations import COMMANDS
from planner.errors import PlannerError

ROOT = Path(__file__).parents[3]
HEAVY = ("ortools", "torch", "numpy", "rich", "jinja2", "safetensors", "blake3")
INVOCATIONS = [("--help",), ("--version",), *((name, "--help") for name in COMMANDS)]


@pytest.mark.parametrize("arguments", INVOCATIONS, ids=" ".join)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    program = (
        "import sys\n"
        "from planner.cli import main\n"
        f"try: main({arguments!r})\n"
        f"finally: assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def shown(*arguments: str) -> str:
    return CliRunner().invoke(main, arguments, prog_name="prog", terminal_width=80).output


def test_no_summary_is_cut_off() -> None:
    text = " ".join(shown("--help").split())
    assert "..." not in text.replace("[ARGS]...", "")
    for command in COMMANDS.values():
        assert command.short_help is not None
        assert command.short_help in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_a_command_line_that_parses(name: str) -> None:
    command = COMMANDS[name]
    text = shown(name, "--help")
    assert command.examples
    for example in command.examples:
        assert f"prog {name} {example}\n" in text
        command.make_context(name, shlex.split(example))


def taken(name: str) -> set[str]:
    """Return the names of what the implementation of a command takes: arguments, or fields of two records."""
    if name == "build":
        return {field.name for record in (Arguments, BuildOptions) for field in fields(record)}
    return set(signature(import_module(f"planner.commands.{name}").run).parameters)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help_and_a_parameter_of_the_implementation(name: str) -> None:
    command = COMMANDS[name]
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.hidden or parameter.help, parameter.name
    assert {parameter.name for parameter in command.params} == taken(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_verbosity_and_documents_debug(name: str) -> None:
    text = " ".join(shown(name, "--help").split())
    assert " -v " in text
    assert "DEBUG=1" in text


def subclasses(error: type[PlannerError]) -> set[type[PlannerError]]:
    return {error}.union(*map(subclasses, error.__subclasses__()))


def test_the_exit_codes_are_those_of_the_errors() -> None:
    text = shown("--help")
    ends = {"0", "1", "130"}  # no error; plans differ; Ctrl-C
    assert {str(error.exit_code) for error in subclasses(PlannerError)} | ends == {code for code, _ in EXIT_CODES}
    for code, meaning in EXIT_CODES:
        assert f"  {code:<4} {meaning}\n" in text
