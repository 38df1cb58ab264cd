"""An earlier plan in terms of a problem: what of it the problem still offers."""

from collections.abc import Sequence

from planner.formulate import Formulation
from planner.problem import Axis, Block, BlockAnswer, Earlier, Problem, StageAnswer
from plans.schema import Plan, Run, Stage


def earlier(formulation: Formulation, plan: Plan) -> Earlier:
    """The stages, tables and draft of ``plan`` as far as the problem has their devices, groups and divisions."""
    problem = formulation.problem
    number = {name: index for index, name in enumerate(problem.devices)}
    kinds = [kind for kind, count in problem.sequence for _ in range(count)]
    stages = [_stage(formulation, stage, number, kinds) for stage in plan.stages]
    draft = plan.draft_placement
    blocks: list[BlockAnswer | None] = [
        _block(problem.first, _devices(plan.embed.devices, number), None, (_bundles(formulation, plan.embed.rows),)),
        _block(problem.last, _devices(plan.head.devices, number), None, (_bundles(formulation, plan.head.rows),)),
    ]
    if problem.tail is not None:
        blocks.append(None)
    if problem.tail is not None and draft is not None:
        rows = (_bundles(formulation, each) for each in (draft.embed_rows, draft.head_rows))
        shares = (draft.mlp_units, *rows)
        blocks[-1] = _block(problem.tail, _devices(draft.devices, number), draft.kv_heads, shares)
    return Earlier(
        stages=tuple(stage for stage in stages if stage is not None),
        first=stages[0].group if stages[0] else None,
        last=stages[-1].group if stages[-1] else None,
        blocks=tuple(blocks),
    )


def _devices(names: Sequence[str], number: dict[str, int]) -> tuple[int, ...]:
    """Indices; of a device that is no longer there none, which no group has."""
    return tuple(number.get(name, -1) for name in names)


def _bundles(formulation: Formulation, rows: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if rows is None else tuple(count // formulation.row_unit for count in rows)


def _stage(formulation: Formulation, stage: Stage, number: dict[str, int], kinds: Sequence[int]) -> StageAnswer | None:
    problem = formulation.problem
    devices = _devices(stage.devices, number)
    pairs = enumerate(zip(problem.groups, formulation.ways, strict=True))
    alike = ((stage.kv_axis, stage.kv_subgroups, devices) == (w.axis, w.subgroups, g.devices) for _, (g, w) in pairs)
    group = next((index for index, same in enumerate(alike) if same), None)
    if group is None:
        return None
    layers = [[0] * len(columns) for columns in problem.groups[group].columns]
    units = [[0] * len(devices) for _ in problem.kinds]
    layer = stage.first_layer
    for run in stage.runs:
        if layer < len(kinds):
            _count(problem, group, kinds[layer], run, layers, units)
        layer += run.num_layers
    return StageAnswer(group=group, layers=tuple(map(tuple, layers)), units=tuple(map(tuple, units)))


def _count(problem: Problem, group: int, kind: int, run: Run, layers: list[list[int]], units: list[list[int]]) -> None:
    columns = problem.groups[group].columns[kind]
    for index, column in enumerate(columns):
        if column.shares == run.kv_heads:
            layers[kind][index] += run.num_layers
    for member, count in enumerate(run.mlp_units):
        units[kind][member] += run.num_layers * count


def _block(
    block: Block,
    devices: tuple[int, ...],
    kv_heads: tuple[int, ...] | None,
    shares: tuple[tuple[int, ...] | None, ...],
) -> BlockAnswer | None:
    for o, option in enumerate(block.options):
        if option.devices != devices:
            continue
        for c, column in enumerate(option.columns):
            if kv_heads is None or column.shares == kv_heads:
                return BlockAnswer(option=o, column=c, shares=_of_axes(block.axes, shares))
    return None


def _of_axes(axes: Sequence[Axis], shares: tuple[tuple[int, ...] | None, ...]) -> tuple[tuple[int, ...] | None, ...]:
    assert len(axes) == len(shares)
    return shares
