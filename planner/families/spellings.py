"""Ways in which the text part of a model of text and images is named in checkpoints and configs.

A family derives ``model.layers.0.mlp.up_proj.weight`` and ``lm_head.weight``; a wrapper's checkpoint has a prefix of
its own in place of ``model`` and of ``lm_head``, which differs by the version of the program that wrote it.
"""

import re
from dataclasses import dataclass

_FIRST = re.compile(r"(model|lm_head)(?=[.:]|$)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spelling:
    """What stands for ``model`` and for ``lm_head`` at the beginning of names."""

    model: str = "model"
    lm_head: str = "lm_head"

    def of(self, name: str) -> str:
        """Return the name in a checkpoint of what a family derives."""
        first = _FIRST.match(name)
        return name if first is None else (self.model if first[1] == "model" else self.lm_head) + name[first.end() :]

    def derived(self, name: str) -> str:
        """Return what a family derives of a name of its text part in a checkpoint; that of another part as it is."""
        for prefix, plain in sorted(((self.model, "model"), (self.lm_head, "lm_head")), reverse=True):
            if re.match(rf"{re.escape(prefix)}(?=[.:]|$)", name):
                return plain + name[len(prefix) :]
        return name


OWN = Spelling()
"""The names of a model that is no part of another."""
