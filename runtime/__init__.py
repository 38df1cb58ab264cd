"""The runtime: executes a plan on exactly the devices that it names, and refuses where anything differs from it.

    from runtime import Engine

`Engine` is the Python interface (``runtime.engine``); `Generation` is what it returns, `Piece` a part of a stream. They
are imported when they are first used, so that ``runtime.errors``, the class tree of what they raise, needs no torch.
``python -m runtime`` is the command line (``runtime.cli``).

Packages, from the edge inwards: ``commands`` (the command line's commands), ``processes`` (rank processes and their
supervision), ``decode`` (one EAGLE step), ``model`` (layers and kernels), ``image`` (weights, verified), ``comm``
(groups of ranks). Nothing here plans: the runtime reads what ``plans`` defines and never imports ``planner``.
"""

from typing import TYPE_CHECKING, Any

from plans.exports import imported
from runtime.processes.thread_wait import limit_spinning

if TYPE_CHECKING:
    from runtime.engine import Engine
    from runtime.generation import Generation
    from runtime.request import Piece

_MODULES = {"Engine": "runtime.engine", "Generation": "runtime.generation", "Piece": "runtime.request"}

__all__ = ["Engine", "Generation", "Piece"]


limit_spinning()


def __getattr__(name: str) -> Any:
    """Import and return an exported name when it is first used."""
    return imported(__name__, _MODULES, name)


def __dir__() -> list[str]:
    """Return the exported names, imported or not."""
    return sorted(__all__)
