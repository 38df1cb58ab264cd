"""Say what the tensors of a checkpoint mean: one module per model family, and per kind of EAGLE head.

``load_base`` and ``load_draft`` read a checkpoint, or its bare config, and return it in the terms of a plan: sizes and
layers, rotary embedding, and the tensor that plays each role (``layers.3.q.weight``). Every key of a config is used,
must have the one value that is computed here, or is refused by name (ConfigError); every tensor must have the name and
shape that the config implies (CheckpointError). Both end a command with exit code 2.

Called by ``build``, ``compile``, ``show`` and ``scan``. Files are read by ``planner.checkpoints``. The device that gets
a part of a tensor is chosen later, by the solver; ``planner.images.layout`` lays the parts out.

    load           load_base, scan; the table of families    heads           load_draft; the table of kinds of heads
    llama, ...     a family each: ``read(keys)``             eagle, eagle3   a kind each
    llama_layout   what all families share                   eagle_common    what both kinds share
    config         keys of a config, used or refused         head_layouts    layouts of heads, brought to one
    rope           rotary frequencies                        aux_layers      layers of the base that a head reads
    windows        which layers attend over a window         other_drafters  drafters that are refused, by name
    wrappers       the text part of models of images         refused         models that are known and not computed
    coded          weights in codes, of quantized models     tensors         derived tensors against the headers'
    rounded        plain weights, rounded to codes           records        what is returned

README.md in this directory lists what is supported, what is refused and why, and how to add a family.
"""

from planner.families.aux_layers import AuxLayers, parse_aux_layers
from planner.families.heads import facts_of, load_draft, load_planned_draft
from planner.families.load import load_base, scan
from planner.families.records import BaseInput, Columns, DraftFacts, DraftInput, Roles, Source, inputs_of
from planner.families.rope import LinearScaling, Llama3Scaling, Rope, inv_freq, rope_bytes
from planner.families.rounded import rounded
from planner.families.windows import within

__all__ = [
    "AuxLayers",
    "BaseInput",
    "Columns",
    "DraftFacts",
    "DraftInput",
    "LinearScaling",
    "Llama3Scaling",
    "Roles",
    "Rope",
    "Source",
    "facts_of",
    "inputs_of",
    "inv_freq",
    "load_base",
    "load_draft",
    "load_planned_draft",
    "parse_aux_layers",
    "rope_bytes",
    "rounded",
    "scan",
    "within",
]
