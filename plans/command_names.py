"""Names of the commands of both packages, for what is said of an unknown one.

They are named here as data, so that planner and runtime still know nothing of each other.
"""

import difflib
from collections.abc import Mapping

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "planner": ("inventory", "scan", "build", "compile", "show", "diff", "check"),
    "runtime": ("run", "serve", "verify", "bench", "calibrate"),
}
"""Packages with a ``cli`` module, and the commands of each."""


def package_of(name: str) -> str | None:
    """Return the package that has a command."""
    return next((package for package, names in PACKAGES.items() if name in names), None)


def unknown(name: str, package: str | None = None) -> str:
    """Return what there is to say of a command that neither package has, or that ``package`` does not have."""
    text = f"No such command {name!r}."
    other = package_of(name)
    if other is not None:
        return f"{text} Did you mean 'python -m {other} {name}'?"
    known = PACKAGES[package] if package else [own for names in PACKAGES.values() for own in names]
    near = difflib.get_close_matches(name, known, n=1)
    return text + "".join(f" Did you mean {own!r}?" for own in near)
