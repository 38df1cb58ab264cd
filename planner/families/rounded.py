"""Round the weights of a model: all linear layers inside its decoder layers, experts too, and the lm_head.

Plain, in the plan's dtype, stay the embedding of a model that is not tied, norms, biases, routers, and the EAGLE head.
"""

from dataclasses import replace
from functools import cache
from math import prod

from planner.errors import ConfigError
from planner.families.coded import coded_notes, replaced
from planner.families.records import BaseInput, Source
from planner.families.tensors import FLOATS
from planner.quantized import Expected, Rounded, RoundedColumns, Stored, check
from plans.quantized import ROUNDED, rounded_table
from plans.schema import RoundedWeights, WeightFormat


def rounded(base: BaseInput, weights: RoundedWeights) -> BaseInput:
    """Return a model of plain weights with those of its layers rounded; raise ConfigError.

    The digest of its tensors stays: the checkpoint is the same.
    """
    config = base.checkpoint.config_file
    where = f"--weights {weights}: {config}"
    if any(source.stored is not None for source in base.roles.values()):
        raise ConfigError(
            f"{where}: the weights are quantized already: leave --weights out, or give the checkpoint before"
        )

    @cache
    def stored_of(source: Source) -> Stored:
        return check(_stored(source, ROUNDED[weights]), where)

    table = rounded_table(weights)
    head = None if table is None else check(_stored(base.roles["head.weight"], table), where)
    roles, model = replaced(base.roles, base.model, stored_of, head, where)
    return replace(base, roles=roles, model=model, plain=base, notes=(*base.notes, note(weights), *coded_notes(model)))


def note(weights: RoundedWeights) -> str:
    """Return what a person should know of weights that are rounded."""
    return (
        f"weights are rounded to the nearest {weights} when images are compiled: a checkpoint that was calibrated "
        "(AWQ, GPTQ, compressed-tensors) is more accurate at as many bits"
    )


def _stored(source: Source, form: WeightFormat) -> Stored:
    """Return a layer whose weights are rounded, of whole tensors where rows are rows."""
    tensor = Expected(name=source.name, dtypes=FLOATS, shapes=(source.shape,))
    module, turned = source.name.removesuffix(".weight"), source.columns
    if turned is None:
        out, columns = prod(source.shape[:-1]), source.shape[-1]
        return Stored(
            module=module, out=out, columns=columns, form=form, layout=Rounded(),
            tensors={"codes": tensor, "scales": tensor}, ignored={},
        )  # fmt: skip
    layout = RoundedColumns(row=source.first, first=turned.first, step=turned.step)
    return Stored(
        module=f"{module}[{source.first // turned.width}, {turned.first}::{turned.step}]",
        out=len(range(turned.first, source.shape[-1], turned.step)), columns=turned.width, form=form, layout=layout,
        tensors={"codes": tensor, "scales": tensor}, ignored={},
    )  # fmt: skip
