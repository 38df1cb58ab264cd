"""Say what the tensors of a checkpoint mean: one module per model family, and per kind of EAGLE head.

``load_base`` and ``load_draft`` read a checkpoint, or its bare config, and return it in the terms of a plan: sizes and
layers, rotary embedding, and the tensor that plays each role (``layers.3.q.weight``). Every key of a config is used,
must have the one value that is computed here, or is refused by name (ConfigError); every tensor must have the name and
shape that the config implies (CheckpointError). Both end a command with exit code 2.

Called by ``build``, ``compile``, ``show`` and ``scan``. Files are read by ``planner.checkpoints``. The device that gets
a part of a tensor is chosen later, by the solver; ``planner.images.layout`` lays the parts out.

    load           load_base, load_draft, scan; the tables with a row per family and per kind of EAGLE head
    llama, ...     a family each: ``read(keys)``             eagle, eagle3   a kind each: ``read(keys, base, facts)``
    llama_layout   what all families share                   eagle_common    what both kinds share
    config         keys of a config, used or refused         tensors         derived tensors against the headers'
    wrappers       the text part of models of images         refused         models that are known and not computed
    rope           rotary frequencies                        windows         which layers attend over a window
    records        what is returned

README.md in this directory lists what is supported, what is refused and why, and how to add a family.
"""

from planner.families.load import facts_of, load_base, load_draft, scan
from planner.families.records import BaseInput, DraftFacts, DraftInput, Roles, Source
from planner.families.rope import LinearScaling, Llama3Scaling, Rope, inv_freq, inv_freq_bytes
from planner.families.windows import within

__all__ = [
    "BaseInput",
    "DraftFacts",
    "DraftInput",
    "LinearScaling",
    "Llama3Scaling",
    "Roles",
    "Rope",
    "Source",
    "facts_of",
    "inv_freq",
    "inv_freq_bytes",
    "load_base",
    "load_draft",
    "scan",
    "within",
]
