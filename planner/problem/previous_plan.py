"""Prices an earlier plan in the indices of a problem: bytes of weights that a device would have to load anew."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import groupby, pairwise

from planner.costs.coded import stored_bytes
from planner.integers import ceil_div
from planner.problem.formulate import Formulation
from planner.problem.machine import canonical_machine
from planner.solver.earlier import HeldUnits, Segment
from planner.solver.problem import Group, StageAnswer
from planner.solver.transport import transport
from plans import weights
from plans.dtypes import DTYPE_BYTES
from plans.kv import KvDivision, KvShare, whole_heads
from plans.quantized import draft_embed_format, draft_head_format
from plans.ranges import share_range
from plans.schema import DraftPlacement, Inputs, Plan, Run, Stage, VocabSplit

_TABLES = ("embed", "head")
"""Blocks before the drafter, in the order of the problem's blocks."""

_NOBODY = "anew"
"""Name of a device that held nothing: everything on it is loaded anew."""


def listed_order(plan: Plan) -> tuple[str, ...]:
    """Return ids of devices in an order in which every group of a plan lists its own, as far as there is one.

    Where groups contradict one another, stages count first, then lm_head, drafter and embedding. Of what is left open
    the order of the machine decides.
    """
    groups = [stage.devices for stage in plan.stages] + [plan.head.devices]
    groups += [plan.draft_placement.devices] if plan.draft_placement is not None else []
    pairs = [pair for group in (*groups, plan.embed.devices) for pair in pairwise(group)]
    before: dict[str, set[str]] = {device.id: set() for device in canonical_machine(plan.inventory).inventory.devices}
    for one, other in pairs:
        if other not in _all_before(one, before):
            before[other].add(one)
    order: list[str] = []
    while len(order) < len(before):
        order.append(next(name for name in before if name not in order and before[name] <= set(order)))
    return tuple(order)


def _all_before(name: str, before: Mapping[str, Collection[str]]) -> set[str]:
    """Return the devices that come before one, near or far."""
    reached, left = set[str](), [name]
    while left:
        new = set(before[left.pop()]) - reached
        reached |= new
        left += new
    return reached


class Previous:
    """The earlier plan as :class:`planner.solver.earlier.Earlier`; it must be of the same model."""

    def __init__(self, formulation: Formulation, inputs: Inputs, plan: Plan) -> None:
        self.formulation = formulation
        self.problem = formulation.problem
        self.plan = plan
        self.held = weights.held_before(plan, formulation.model, formulation.draft, formulation.options.dtype, inputs)
        self.names = self.problem.devices
        self.order = formulation.candidates.order
        self.split_bytes = cache(self._split_bytes)
        self._member_bytes = cache(self._new_member_bytes)
        self._held_draft = any(item.draft for item in self.held.values())

    def _new_bytes(self, items: Iterable[weights.Held]) -> int:
        """Return the bytes of tensor parts that their devices did not hold."""
        return sum(item.more(self.held.get((item.device, item.tensor))) for item in items)

    # ---- layers ----

    @cached_property
    def stage_of(self) -> tuple[int | None, ...]:
        """Earlier stage of every device, None where it had none."""
        numbers = {name: number for number, stage in enumerate(self.plan.stages) for name in stage.devices}
        return tuple(numbers.get(name) for name in self.names)

    @cached_property
    def _kinds(self) -> list[int]:
        """Kind of every layer, in the order of execution."""
        return list(self.problem.layer_kinds)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Runs of layers of one kind that the plan has in one stage and divides as one split."""
        places = [
            (number, run.kv_heads)
            for number, stage in enumerate(self.plan.stages)
            for run in stage.runs
            for _ in range(run.num_layers)
        ]
        segments, first = [], 0
        for (kind, (stage, _)), layers in groupby(zip(self._kinds, places, strict=True)):
            count = len(list(layers))
            segments.append(Segment(kind=kind, first=first, count=count, stage=stage))
            first += count
        return tuple(segments)

    def stage_bytes(self, group: Group) -> int:
        """Return the new bytes of having a stage at all."""
        model = self.formulation.model
        return sum(self._new_bytes(weights.stage_table(model, self.names[device])) for device in group.devices)

    def _split_bytes(self, group: int, kind: int, split: int, segment: Segment | None) -> int:
        """Return the new bytes of one layer of a segment, without its MLP units."""
        listed = self.problem.groups[group]
        division, heads = self.formulation.kv_divisions[group], listed.splits[kind][split].shares
        layer = self._kinds.index(kind) if segment is None else segment.first
        total = member = first = 0
        for size in division.subgroups:
            for part in range(size):
                share = KvShare(heads=heads[member], axis=division.axis, parts=size, part=part)
                known = segment is not None and self.stage_of[listed.devices[member]] == segment.stage
                name = self.names[listed.devices[member]] if known else _NOBODY
                total += self._member_bytes(name, layer, first, share, member == 0)
                member += 1
            first += heads[member - 1]
        return total

    def _new_member_bytes(self, device: str, layer: int, first: int, share: KvShare, leader: bool) -> int:
        model, dtype = self.formulation.model, self.formulation.options.dtype
        return self._new_bytes(weights.layer_share(model, layer, device, first, share, (0, 0), leader, dtype))

    def unit_bytes(self, kind: int) -> int:
        """Return the bytes of one MLP unit of one layer."""
        model, dtype = self.formulation.model, self.formulation.options.dtype
        layer, share = self._kinds.index(kind), whole_heads(0)
        none, one = (
            sum(item.nbytes for item in weights.layer_share(model, layer, _NOBODY, 0, share, units, False, dtype))
            for units in ((0, 0), (0, 1))
        )
        return one - none

    def units(self, device: int, kind: int) -> HeldUnits | None:
        """Return the MLP units that a device held over all layers of a kind in its stage, None for none."""
        number = self.stage_of[device]
        if number is None or not self.held:
            return None
        stage = self.plan.stages[number]
        member = stage.devices.index(self.names[device])
        layers = start = stop = 0
        for first, run in _numbered(stage):
            count = self._kinds[first : first + run.num_layers].count(kind)
            layers += count
            start += count * sum(run.mlp_units[:member])
            stop += count * sum(run.mlp_units[: member + 1])
        return HeldUnits(layers=layers, start=start, stop=stop) if stop > start else None

    def in_order(self, placed: StageAnswer, first_layer: int) -> list[list[int]]:
        """Return the split of every layer of a stage, by kind, such that the fewest bytes move."""
        listed = zip(range(len(self.problem.kinds)), placed.layers, strict=True)
        return [self._in_order(placed.group, kind, counts, first_layer, placed.num_layers) for kind, counts in listed]

    def _in_order(self, group: int, kind: int, counts: Sequence[int], first: int, size: int) -> list[int]:
        """Assign the splits of one kind to the segments that the stage covers: a transport problem.

        ``counts``: layers with each split; the stage has ``size`` layers from ``first`` on.
        """
        stop = first + size
        covered = [s for s in self.segments if s.kind == kind and s.first < stop and first < s.first + s.count]
        layers = [min(stop, s.first + s.count) - max(first, s.first) for s in covered]
        splits = [split for split, count in enumerate(counts) if count]
        costs = [[self.split_bytes(group, kind, split, segment) for segment in covered] for split in splits]
        sent = transport([counts[split] for split in splits], layers, costs)
        return [split for s in range(len(covered)) for row, split in enumerate(splits) for _ in range(sent[row][s])]

    # ---- blocks ----

    def choice_bytes(self, block: int, option: int, split: int) -> int:
        """Return the new bytes of a block on an option, without its axes."""
        formulation = self.formulation
        listed = tuple(self.problem.blocks)[block].options[option]
        names, none = tuple(self.names[device] for device in listed.devices), (0,) * len(listed.devices)
        if block < len(_TABLES):
            vocab = VocabSplit(devices=names, transport="local", hop_transport="local", rows=none, predicted_ns=0)
            return self._new_bytes(weights.table(_TABLES[block], formulation.model, vocab, formulation.options.dtype))
        division = formulation.draft_kv_divisions[option][split]
        return self._new_bytes(self._draft(names, division, listed.splits[split].shares, none))

    def _draft(
        self, names: tuple[str, ...], division: KvDivision, heads: tuple[int, ...], units: tuple[int, ...]
    ) -> Iterator[weights.Held]:
        """Yield the tensor parts of a drafter without vocabulary rows on these devices."""
        formulation, none = self.formulation, (0,) * len(names)
        assert formulation.draft is not None
        placement = DraftPlacement(
            devices=names,
            transport="local",
            feature_transport="local",
            kv_axis=division.axis,
            kv_subgroups=division.subgroups,
            kv_heads=heads,
            mlp_units=units,
            embed_rows=none,
            head_rows=none,
            predicted_ns=0,
        )
        return weights.drafter_share(formulation.model, formulation.draft, placement, formulation.options.dtype)

    def piece_bytes(self, block: int, axis: int) -> int:
        """Return the bytes of one piece of a block's axis: an MLP unit of all layers, or a bundle of rows."""
        formulation = self.formulation
        if block == len(_TABLES) and axis == 0:
            alone = KvDivision(axis="heads", subgroups=(1,))
            none, one = (
                sum(item.nbytes for item in self._draft((_NOBODY,), alone, (0,), units)) for units in ((0,), (1,))
            )
            return one - none
        model, draft, unit = formulation.model, formulation.draft, formulation.row_unit
        if block < len(_TABLES):
            form, hidden = (model.embed_format, model.head_format)[block], model.hidden_size
        else:
            assert draft is not None, "a third block is the drafter"
            of_axis = draft_embed_format if axis == 1 else draft_head_format
            form, hidden = of_axis(model, draft), draft.hidden_size
        return stored_bytes(form, unit, hidden, DTYPE_BYTES[formulation.options.dtype])

    def pieces(self, block: int, axis: int, device: int) -> tuple[int, int] | None:
        """Return start and stop of the pieces of a block's axis that a device held, None for none."""
        if not (self._held_draft if block == len(_TABLES) else self.held):
            return None
        shared, unit = self._shares(block, axis)
        if shared is None or self.names[device] not in shared[0]:
            return None
        start, stop = share_range(shared[1], shared[0].index(self.names[device]))
        return ceil_div(start, unit), stop // unit

    def _shares(self, block: int, axis: int) -> tuple[tuple[tuple[str, ...], tuple[int, ...]] | None, int]:
        """Return devices with their shares of an axis, None where it is shared, and the units of one piece."""
        unit, draft = self.formulation.row_unit, self.plan.draft_placement
        if block < len(_TABLES):
            vocab = (self.plan.embed, self.plan.head)[block]
            return (vocab.devices, vocab.rows), unit
        assert draft is not None, "a device that held the drafter has a placement of it"
        shares = (draft.mlp_units, draft.embed_rows, draft.head_rows)[axis]
        return (None if shares is None else (draft.devices, shares)), 1 if axis == 0 else unit


def _numbered(stage: Stage) -> Iterator[tuple[int, Run]]:
    """Yield the runs of a stage with their first layers."""
    layer = stage.first_layer
    for run in stage.runs:
        yield layer, run
        layer += run.num_layers
