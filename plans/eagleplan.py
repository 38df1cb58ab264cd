"""Console script ``eagleplan``: the commands of both packages under one name.

    eagleplan build … ─► planner.cli, as ``python -m planner build …``
    eagleplan run …   ─► runtime.cli, as ``python -m runtime run …``

The packages are named as data and imported when one of their commands runs, so that planner and runtime still know
nothing of each other, and planning imports no torch. It lives in the contract because neither may import the other.
"""

from plans.process import ended_at_once, importing  # first, as it says

with importing():
    import sys
    from collections.abc import Iterator, Mapping
    from importlib import import_module
    from typing import NoReturn

    from plans.command_names import PACKAGES, package_of, unknown
    from plans.console import USAGE, Refusal, refusals_reported, usage_data

PURPOSES: Mapping[str, str] = {"planner": "Make and read plans", "runtime": "Run a plan"}
"""Heading of the commands of each package."""

GROUPS: Mapping[str, str] = {"planner": "main", "runtime": "commands"}
"""Name of the click group in the ``cli`` module of each package."""


def main() -> NoReturn:
    """Run the command line of the package that has the command; ``--help`` lists the commands of both."""
    first = next(iter(sys.argv[1:]), "--help")
    package = package_of(first)
    with ended_at_once():
        if first in ("-h", "--help"):
            with refusals_reported(lambda error: None, as_json=False):
                text = "\n".join(help_lines())
                if sys.stdout is not None:  # it is None where stdout is closed
                    sys.stdout.write(f"{text}\n")
                    sys.stdout.flush()
        elif package or first == "--version":
            with importing():
                cli = import_module(f"{package or 'planner'}.cli")
            cli.main()
        else:
            with refusals_reported(refused, as_json="--json" in sys.argv, indent=2):
                raise LookupError(unknown(first))
        sys.exit(0)


def refused(error: BaseException) -> Refusal | None:
    """Return the refusal of an unknown command."""
    text = f"Error: {error.args[0]}\nTry 'eagleplan --help' for help."
    return Refusal(exit_code=USAGE, text=text, data=usage_data(error.args[0]))


def help_lines() -> Iterator[str]:
    """Yield the help: the commands of each package with their summaries."""
    yield "Usage: eagleplan COMMAND [ARGS]..."
    yield ""
    yield "  Place a model and its EAGLE head on your devices, freeze the placement, and decode with exactly that."
    for package, names in PACKAGES.items():
        with importing():
            group = getattr(import_module(f"{package}.cli"), GROUPS[package])
        yield ""
        yield f"{PURPOSES[package]} (also as python -m {package} COMMAND):"
        yield from (f"  {name:<10} {group.get_command(None, name).get_short_help_str(limit=400)}" for name in names)
    yield ""
    yield "eagleplan COMMAND --help describes a command, with examples."
    yield f"Exit codes: {' and '.join(f'python -m {package} --help' for package in PACKAGES)} list them."


if __name__ == "__main__":
    main()
