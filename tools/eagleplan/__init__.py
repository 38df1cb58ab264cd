"""From files to text in one call: plan a model on the devices at hand, compile it once, and decode.

    import eagleplan

    with eagleplan.open(model="Qwen3-8B/", draft="Qwen3-8B-eagle3/") as engine:
        print(engine.generate("def f(", max_new_tokens=100).text)

    print(eagleplan.run(model="Qwen3-8B/", prompt="Why is the sky blue?", chat=True).text)

The only package above both :mod:`planner` and :mod:`runtime`, which know nothing of each other: it calls their Python
interfaces and nothing else of them. Plans and images are kept in the user's cache, by a digest of all that determines
them (``kept``), so that a second call only opens them. For plans that are reviewed and deployed, use the two packages.

Each name is imported when it is first used: planning needs no torch, and opening a kept plan no solver.
"""

from typing import TYPE_CHECKING, Any

from plans.exports import imported

if TYPE_CHECKING:
    from eagleplan.calls import PlanOptions, RunOptions, open, run, tree  # noqa: A004 (eagleplan.open is its name)
    from plans.schema import Tree
    from runtime import Engine, Generation

__all__ = ["Engine", "Generation", "PlanOptions", "RunOptions", "Tree", "open", "run", "tree"]

_MODULES = {
    "Engine": "runtime",
    "Generation": "runtime",
    "PlanOptions": "eagleplan.calls",
    "RunOptions": "eagleplan.calls",
    "Tree": "plans.schema",
    "open": "eagleplan.calls",
    "run": "eagleplan.calls",
    "tree": "eagleplan.calls",
}
"""Module of each exported name."""


def __getattr__(name: str) -> Any:
    """Return an exported name, importing its module; raise AttributeError for any other name."""
    return imported(__name__, _MODULES, name)


def __dir__() -> list[str]:
    """Return the exported names."""
    return sorted(__all__)
