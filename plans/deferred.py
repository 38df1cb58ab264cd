"""Parts of torch that no process of ours uses, imported when somebody uses them after all.

``import torch`` imports them for their names, and one for what it registers. ``importlib.util.LazyLoader`` would import
them as soon as they are looked at, which ``from torch import export`` does.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

UNUSED = frozenset(
    {"torch._meta_registrations", "torch.distributions", "torch.export", "torch.masked", "torchgen.model"}
)
"""Modules that take a third to a half of ``import torch``.

``torch._meta_registrations`` registers the shapes of results for tensors without data, which neither a command nor a
rank has. As nothing asks it for a name, it would never be executed; so nothing is deferred in the process of a user of
the Python interface.
"""


class Deferred(ModuleType):
    """A module that is executed when it is asked for a name that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        """Execute the module and return the name; the names of the import system are there before."""
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]
        loader = self.__dict__["__loader__"]
        loader.inner.exec_module(self)
        return getattr(self, name)


class _Loader(Loader):
    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing yet."""


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in UNUSED else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


@contextmanager
def unused_deferred() -> Iterator[None]:
    """Defer the modules of UNUSED that are imported in this context."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
