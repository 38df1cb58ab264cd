"""Executes plans. ``from runtime import Engine`` is the Python interface; see :mod:`runtime.engine`."""

import importlib
from typing import TYPE_CHECKING, Any

from runtime.processes.thread_wait import wait_briefly

if TYPE_CHECKING:
    from runtime.engine import Engine, Generation
    from runtime.request import Piece

__all__ = ["Engine", "Generation", "Piece"]


def __getattr__(name: str) -> Any:
    """What is exported, imported when it is asked for: who needs the errors alone does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    wait_briefly()
    return getattr(importlib.import_module("runtime.request" if name == "Piece" else "runtime.engine"), name)
