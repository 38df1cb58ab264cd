"""Checks what the documents say against what there is: links, inventories, options of commands."""

import re
from pathlib import Path

import click
import pytest
import yaml

from planner.cli import main as planner_cli
from planner.hardware.inventory import parse_inventory
from runtime.cli import commands as runtime_cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "planner/README.md",
    "runtime/README.md",
    "planner/families/README.md",
    "planner/solver/bounds/README.md",
    "plans/FORMAT.md",
    "tools/README.md",
    "tools/RESULTS.md",
]
README_LINES = 150
EXAMPLE = re.compile(r"(?:^    .*\n|^\n)+", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"(?:python -m (?:planner|runtime)|eagleplan) ([a-z]+)([^\n`|#]*)")


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def options() -> dict[str, set[str]]:
    """Options of every command of both programs."""
    known: dict[str, set[str]] = {}
    for group in (planner_cli, runtime_cli):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            known[name] = {option for parameter in command.params for option in parameter.opts}
    return known


def test_the_readme_is_read_once() -> None:
    assert len(text_of("README.md").splitlines()) <= README_LINES


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text_of(document))
    assert [target for target in targets if not ((ROOT / document).parent / target).exists()] == []


@pytest.mark.parametrize("document", ["README.md", "planner/README.md"])
def test_its_inventories_are_read(document: str) -> None:
    examples = [block for block in EXAMPLE.findall(text_of(document)) if block.lstrip().startswith("hosts:")]
    assert examples
    for example in examples:
        assert parse_inventory(yaml.safe_load(example), document)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_have_the_options_that_are_named(document: str) -> None:
    known = options()
    for name, arguments in COMMAND.findall(text_of(document)):
        if name in known:
            assert set(OPTION.findall(arguments)) <= known[name] | {"--help"}, f"{name}{arguments}"
