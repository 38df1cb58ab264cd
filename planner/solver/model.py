"""The placement as a CP-SAT model, put together from its parts, each of which documents its variables:

    stages    which groups run a stage, with how many layers
    order     which stage is first and last, and where sites are entered
    blocks    where the parts beside the layers are
    use       which devices are in use                          (:mod:`planner.solver.messages`)
    memory    how much is free

What a solution of it stands for is read in :mod:`planner.solver.solution`.
"""

from ortools.sat.python import cp_model

from planner.solver import limits
from planner.solver.blocks import add_blocks
from planner.solver.memory import add_memory
from planner.solver.messages import add_use, receive_ns
from planner.solver.order import add_order
from planner.solver.problem import Problem
from planner.solver.restriction import Restriction, everything, restricted
from planner.solver.stages import add_stages
from planner.solver.variables import Builder, Linear


def most_step_ns(problem: Problem) -> int:
    """Return the longest step in the model; placements that take longer are outside it."""
    return min(limits.MOST_NS, limits.MOST_RANKED // _ranks(problem))


def _ranks(problem: Problem) -> int:
    """Return how many ranks there are for each step time: more than any sum of stages, groups and choices."""
    return (len(problem.devices) + 1) * _stage_rank(problem)


def _stage_rank(problem: Problem) -> int:
    """Return what a stage adds to the rank: more than all groups and choices of a placement together."""
    choices = sum(len(option.splits) for block in problem.blocks for option in block.options)
    return 1 + choices + len(problem.devices) * len(problem.groups)


class Model:
    """A problem restricted to some groups and choices as variables and constraints, and the solution found last."""

    def __init__(
        self, whole: Problem, restriction: Restriction, *, elastic: bool = False, placed: bool = False
    ) -> None:
        """Build the model.

        ``elastic``: devices may be short of memory. ``placed``: every stage has its place in the sequence of layers.
        """
        self.values: list[int] = []
        self.restricted = restricted(whole, restriction)
        self.problem = problem = self.restricted.problem
        builder = Builder()
        self.model = builder.model
        self.stages = add_stages(builder, problem)
        self.order = add_order(builder, problem, self.stages, placed=placed)
        self.blocks = add_blocks(builder, problem, self.restricted.choices)
        received_ns = tuple(receive_ns(builder, self.restricted, self.order, self.blocks))
        self.use = add_use(builder, problem, self.stages, self.blocks)
        load: list[list[Linear]] = [[] for _ in problem.devices]
        for device, nbytes in (*self.stages.costs.load_bytes, *self.blocks.costs.load_bytes):
            load[device].append(nbytes)
        self.memory = add_memory(builder, problem, [sum(terms) for terms in load], self.use.used, elastic=elastic)
        self.step_ns = builder.integer(most_step_ns(whole), "step_ns")
        costs_ns = (*self.stages.costs.time_ns, *self.blocks.costs.time_ns)
        self.model.add(self.step_ns == sum((*costs_ns, *self.order.time_ns, *received_ns, *self.use.time_ns)))
        self.ranks = _ranks(whole)
        self.ranked_step: Linear = self.step_ns * self.ranks + self._rank()
        """Step time first, then the rank: an objective whose optimum is unique but for the order of stages and the
        quantities. ``ranks`` times the step time, plus a rank below ``ranks``."""

    @property
    def restriction(self) -> Restriction:
        """Groups and choices of the model."""
        return self.restricted.restriction

    def _rank(self) -> Linear:
        """Return the number of stages, then the sum of the positions of groups and choices in the whole problem."""
        whole = self.restricted.whole
        rank: Linear = 0
        for g, runs in zip(self.restriction.groups, self.stages.runs, strict=True):
            rank += (_stage_rank(whole) + g) * runs
        for all_choices, choices, on in zip(
            everything(whole).choices, self.restricted.choices, self.blocks.on, strict=True
        ):
            position = {key: number for number, key in enumerate(all_choices)}
            rank += sum(position[choice.index] * variable for choice, variable in zip(choices, on, strict=True))
        return rank

    def value(self, variable: cp_model.IntVar) -> int:
        """Return the value of a variable in the solution found last."""
        return self.values[variable.index]
