"""An earlier plan in terms of a problem: what each device had, and what it would have to get."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from itertools import groupby

import networkx as nx

from planner.problem.formulate import Formulation
from planner.solver.problem import Group, HeldUnits, Segment, StageAnswer
from plans import weights
from plans.kv import KvDivision, KvShare, whole_heads
from plans.ranges import share_range
from plans.schema import DTYPE_BYTES, DraftPlacement, Inputs, Plan, Run, Stage, VocabSplit

_TABLES = ("embed", "head")
"""The blocks before the draft."""

_NOBODY = "anew"
"""No device is called so: what it has is nothing."""


class Previous:
    """What :class:`planner.problem.Earlier` asks for; the plan must be of the same model."""

    def __init__(self, formulation: Formulation, inputs: Inputs, plan: Plan) -> None:
        self.formulation = formulation
        self.problem = formulation.problem
        self.plan = plan
        self.had = weights.had(plan, formulation.model, formulation.draft, formulation.options.dtype, inputs)
        self.names = self.problem.devices
        self.order = sorted(range(len(self.names)), key=lambda device: (self.problem.alike[device], device))
        self.split_bytes = cache(self._split_bytes)
        self._member_bytes = cache(self._new_member_bytes)
        self._had_draft = any(item.draft for item in self.had.values())

    def _anew(self, items: Iterable[weights.Held]) -> int:
        return sum(item.more(self.had.get((item.device, item.tensor))) for item in items)

    # ---- layers ----

    @cached_property
    def stage_of(self) -> tuple[int | None, ...]:
        found = {name: number for number, stage in enumerate(self.plan.stages) for name in stage.devices}
        return tuple(found.get(name) for name in self.names)

    @cached_property
    def _kinds(self) -> list[int]:
        return [kind for kind, count in self.problem.sequence for _ in range(count)]

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        told = [
            (number, run.kv_heads)
            for number, stage in enumerate(self.plan.stages)
            for run in stage.runs
            for _ in range(run.num_layers)
        ]
        found, first = [], 0
        for (kind, (stage, _)), layers in groupby(zip(self._kinds, told, strict=True)):
            count = len(list(layers))
            found.append(Segment(kind=kind, first=first, count=count, stage=stage))
            first += count
        return tuple(found)

    def stage_bytes(self, group: Group) -> int:
        model = self.formulation.model
        return self._anew(weights.stage_table(model, self.names[device]) for device in group.devices)

    def _split_bytes(self, group: int, kind: int, split: int, segment: Segment | None) -> int:
        listed = self.problem.groups[group]
        way, heads = self.formulation.ways[group], listed.splits[kind][split].shares
        layer = self._kinds.index(kind) if segment is None else segment.first
        total = member = first = 0
        for size in way.subgroups:
            for part in range(size):
                share = KvShare(heads=heads[member], axis=way.axis, parts=size, part=part)
                known = segment is not None and self.stage_of[listed.devices[member]] == segment.stage
                name = self.names[listed.devices[member]] if known else _NOBODY
                total += self._member_bytes(name, layer, first, share, member == 0)
                member += 1
            first += heads[member - 1]
        return total

    def _new_member_bytes(self, device: str, layer: int, first: int, share: KvShare, leader: bool) -> int:
        model, dtype = self.formulation.model, self.formulation.options.dtype
        return self._anew(weights.layer_share(model, layer, device, first, share, (0, 0), leader, dtype))

    def unit_bytes(self, kind: int) -> int:
        model, dtype = self.formulation.model, self.formulation.options.dtype
        layer, share = self._kinds.index(kind), whole_heads(0)
        none, one = (
            sum(item.nbytes for item in weights.layer_share(model, layer, _NOBODY, 0, share, units, False, dtype))
            for units in ((0, 0), (0, 1))
        )
        return one - none

    def units(self, device: int, kind: int) -> HeldUnits | None:
        number = self.stage_of[device]
        if number is None or not self.had:
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
        """Of each kind, the split of each layer of a stage, such that the fewest bytes move."""
        listed = zip(range(len(self.problem.kinds)), placed.layers, strict=True)
        return [self._in_order(placed.group, kind, counts, first_layer, placed.num_layers) for kind, counts in listed]

    def _in_order(self, group: int, kind: int, counts: Sequence[int], first: int, size: int) -> list[int]:
        """A transport problem: splits to segments."""
        flow: nx.DiGraph[tuple[str, int]] = nx.DiGraph()
        here = [s for s in self.segments if s.kind == kind and s.first < first + size and first < s.first + s.count]
        for c, count in enumerate(counts):
            if count:
                flow.add_node(("split", c), demand=-count)
        splits = list(flow)
        for s, segment in enumerate(here):
            layers = min(first + size, segment.first + segment.count) - max(first, segment.first)
            flow.add_node(("segment", s), demand=layers)
            for _, c in splits:
                flow.add_edge(("split", c), ("segment", s), weight=self.split_bytes(group, kind, c, segment))
        _, sent = nx.network_simplex(flow)
        return [c for s in range(len(here)) for _, c in splits for _ in range(sent["split", c]["segment", s])]

    # ---- blocks ----

    def choice_bytes(self, block: int, option: int, split: int) -> int:
        formulation = self.formulation
        listed = tuple(self.problem.blocks)[block].options[option]
        names, none = tuple(self.names[device] for device in listed.devices), (0,) * len(listed.devices)
        if block < len(_TABLES):
            vocab = VocabSplit(devices=names, transport="local", hop_transport="local", rows=none, predicted_ns=0)
            return self._anew(weights.table(_TABLES[block], formulation.model, vocab, formulation.options.dtype))
        way = formulation.draft_ways[option][split]
        return self._anew(self._draft(names, way, listed.splits[split].shares, none))

    def _draft(
        self, names: tuple[str, ...], way: KvDivision, heads: tuple[int, ...], units: tuple[int, ...]
    ) -> Iterator[weights.Held]:
        formulation, none = self.formulation, (0,) * len(names)
        assert formulation.draft is not None
        place = DraftPlacement(
            devices=names,
            transport="local",
            feature_transport="local",
            kv_axis=way.axis,
            kv_subgroups=way.subgroups,
            kv_heads=heads,
            mlp_units=units,
            embed_rows=none,
            head_rows=none,
            predicted_ns=0,
        )
        return weights.draft_head(formulation.model, formulation.draft, place, formulation.options.dtype)

    def piece_bytes(self, block: int, axis: int) -> int:
        formulation = self.formulation
        if block == len(_TABLES) and axis == 0:
            alone = KvDivision(axis="heads", subgroups=(1,))
            none, one = (
                sum(item.nbytes for item in self._draft((_NOBODY,), alone, (0,), units)) for units in ((0,), (1,))
            )
            return one - none
        draft = formulation.draft if block == len(_TABLES) else None
        hidden = draft.hidden_size if draft else formulation.model.hidden_size
        return formulation.row_unit * hidden * DTYPE_BYTES[formulation.options.dtype]

    def pieces(self, block: int, axis: int, device: int) -> tuple[int, int] | None:
        if not (self._had_draft if block == len(_TABLES) else self.had):
            return None
        vocab, unit = self._dealt(block, axis)
        if vocab is None or self.names[device] not in vocab[0]:
            return None
        start, stop = share_range(vocab[1], vocab[0].index(self.names[device]))
        return -(-start // unit), stop // unit

    def _dealt(self, block: int, axis: int) -> tuple[tuple[tuple[str, ...], tuple[int, ...]] | None, int]:
        """Devices and their shares, and how many of these are one piece."""
        unit, draft = self.formulation.row_unit, self.plan.draft_placement
        if block < len(_TABLES):
            vocab = (self.plan.embed, self.plan.head)[block]
            return (vocab.devices, vocab.rows), unit
        assert draft is not None, "what had the head has a place for it"
        shares = (draft.mlp_units, draft.embed_rows, draft.head_rows)[axis]
        return (None if shares is None else (draft.devices, shares)), 1 if axis == 0 else unit


def _numbered(stage: Stage) -> Iterator[tuple[int, Run]]:
    """Runs with their first layers."""
    layer = stage.first_layer
    for run in stage.runs:
        yield layer, run
        layer += run.num_layers
