"""Bytes that move against an earlier answer, as an objective of the CP-SAT model: weights that a device newly needs.

Stages must have places in the sequence (``Model(placed=True)``). What a stage keeps of an earlier one follows from how
many of its layers lie in each segment, and which splits these have; the splits of a stage are free to lie where they
move least, its units are dealt out evenly over all its layers. So units are counted by their mean over the layers of a
stage, now and before: exact but for the rounding of a unit in a layer.

Kept bytes are bounded from above only: the objective is minimised, which makes them exact.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from planner.solver.earlier import Earlier, Segment
from planner.solver.model import Model
from planner.solver.variables import Linear


def moved_bytes(model: Model, earlier: Earlier) -> Linear:
    """Return the bytes that move in a solution of ``model``; adds variables to it."""
    moves = _Moves(model=model, earlier=earlier)
    stages = (term for i in range(len(model.stages.runs)) for term in moves.stage(i))
    blocks = (term for b in range(len(model.blocks.on)) for term in moves.block(b))
    return sum([*stages, *blocks])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Moves:
    model: Model
    earlier: Earlier

    def stage(self, i: int) -> Iterator[Linear]:
        """Yield the terms of a group's stage."""
        model, group = self.model, self.model.problem.groups[i]
        yield self.earlier.stage_bytes(group) * model.stages.runs[i]
        for k, splits in enumerate(group.splits):
            if splits:
                stages = {self.earlier.stage_of[device] for device in group.devices}
                segments = [s for s in self.earlier.segments if s.kind == k and s.stage in stages]
                inside = [self._inside(i, segment) for segment in segments]
                yield from self._splits(i, k, segments, inside)
                yield from self._units(i, k, segments, inside)

    def _inside(self, i: int, segment: Segment) -> cp_model.IntVar:
        """Add a variable of at most as many layers as a stage has of a segment."""
        model, name = self.model.model, f"inside{i}_{segment.first}"
        inside, touches = model.new_int_var(0, segment.count, name), model.new_bool_var(name + "?")
        start, size = self.model.order.start[i], self.model.stages.size[i]
        model.add(inside <= segment.count * touches)
        model.add(inside <= size)
        model.add(inside <= start + size - segment.first).only_enforce_if(touches)
        model.add(inside <= segment.first + segment.count - start).only_enforce_if(touches)
        return inside

    def _splits(self, i: int, k: int, segments: Sequence[Segment], inside: Sequence[Linear]) -> Iterator[Linear]:
        """Yield the terms of layers without their units.

        kept[c, segment]: layers of split c that lie in the segment: no more than the stage has of either.
        """
        model, g = self.model, self.model.restriction.groups[i]
        in_segment: list[list[Linear]] = [[] for _ in segments]
        for c, layers in enumerate(model.stages.layers[i][k]):
            new_bytes = self.earlier.split_bytes(g, k, c, None)
            yield new_bytes * layers
            of_split = []
            for segment, kept in zip(segments, in_segment, strict=True):
                saved = new_bytes - self.earlier.split_bytes(g, k, c, segment)
                if saved:
                    count = model.model.new_int_var(0, segment.count, f"kept{i}_{k}_{c}_{segment.first}")
                    of_split.append(count)
                    kept.append(count)
                    yield -saved * count
            model.model.add(sum(of_split) <= layers)
        for kept, most in zip(in_segment, inside, strict=True):
            model.model.add(sum(kept) <= most)

    def _units(self, i: int, k: int, segments: Sequence[Segment], inside: Sequence[Linear]) -> Iterator[Linear]:
        """Yield the terms of the units of a kind, member by member."""
        model, group, counts = self.model, self.model.problem.groups[i], self.model.stages.units[i][k]
        most = model.problem.layers_of(k)
        size = model.model.new_int_var(0, most, f"size{i}_{k}")
        model.model.add(size == sum(model.stages.layers[i][k]))
        for j, (device, count) in enumerate(zip(group.devices, counts, strict=True)):
            yield self.earlier.unit_bytes(k) * count
            before = self.earlier.units(device, k)
            if before is None:
                continue
            stage = self.earlier.stage_of[device]
            # overlap: layers of the stage that the device had in its earlier stage.
            overlap = model.model.new_int_var(0, before.layers, f"overlap{i}_{k}_{j}")
            model.model.add(
                overlap == sum(n for n, segment in zip(inside, segments, strict=True) if segment.stage == stage)
            )
            kept = model.model.new_int_var(0, before.stop - before.start, f"kept_units{i}_{k}_{j}")
            model.model.add(kept <= count)
            model.model.add(before.layers * kept <= (before.stop - before.start) * overlap)
            if len(counts) > 1:
                # Of the units that now and before have in common in a mean layer, those of the overlapping layers.
                both = self._common(sum(counts[:j]), count, size, before.start, before.stop, before.layers)
                model.model.add(self._product(size, kept) <= self._product(overlap, both))
            yield -self.earlier.unit_bytes(k) * kept

    def _common(
        self, start: Linear, count: cp_model.IntVar, size: Linear, first: int, last: int, layers: int
    ) -> cp_model.IntVar:
        """Add a variable of at most the pieces that two ranges have in common.

        They are ``start`` … ``start + count``, summed over ``size`` layers, and ``first`` … ``last``, summed over
        ``layers``; the result is summed over ``size`` layers, were all of these layers the same.
        """
        model = self.model.model
        most = max(count.proto.domain)
        both, touches = model.new_int_var(0, most, "both"), model.new_bool_var("touches")
        model.add(both <= most * touches)
        model.add(both <= count)
        model.add(layers * both <= layers * (start + count) - first * size).only_enforce_if(touches)
        model.add(layers * both <= last * size - layers * start).only_enforce_if(touches)
        return both

    def _product(self, a: cp_model.IntVar, b: cp_model.IntVar) -> cp_model.IntVar:
        most = max(a.proto.domain) * max(b.proto.domain)
        product = self.model.model.new_int_var(0, most, "product")
        self.model.model.add_multiplication_equality(product, [a, b])
        return product

    def block(self, b: int) -> Iterator[Linear]:
        """Yield the terms of a block: of its choice, and of the pieces of its axes."""
        model, earlier = self.model, self.earlier
        for on, choice in zip(model.blocks.on[b], model.restricted.choices[b], strict=True):
            yield earlier.choice_bytes(b, *choice.index) * on
        for a, counts in enumerate(model.blocks.shares[b]):
            piece_bytes = earlier.piece_bytes(b, a)
            start: Linear = 0
            for device in earlier.order:
                yield piece_bytes * counts[device]
                before = earlier.pieces(b, a, device)
                if before is not None:
                    yield -piece_bytes * self._common(start, counts[device], 1, *before, 1)
                start += counts[device]
