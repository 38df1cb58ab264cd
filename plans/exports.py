"""Names that a package exports without importing their modules before one is used."""

import importlib
from collections.abc import Mapping
from typing import Any


def imported(package: str, modules: Mapping[str, str], name: str) -> Any:
    """Import and return an exported name; raise AttributeError for any other.

    ``modules``: the module of each. For the ``__getattr__`` of a package.
    """
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(modules[name]), name)
