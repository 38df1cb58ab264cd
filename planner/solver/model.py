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
from planner.solver.restriction import Restriction, restricted
from planner.solver.runs import Runs, add_runs
from planner.solver.stages import add_stages
from planner.solver.variables import Builder, Linear


class Model:
    """A problem restricted to some groups and choices as variables and constraints, and the solution found last."""

    def __init__(
        self, whole: Problem, restriction: Restriction, *, elastic: bool = False, placed: bool = False
    ) -> None:
        """Build the model.

        ``elastic``: devices may be short of memory. ``placed``: every stage has its place in the sequence of layers.
        """
        self.values: list[int] = []
        self.runs: Runs | None = None
        """None: stages have layers and units in sum."""
        self.restricted = restricted(whole, restriction)
        self.problem = problem = self.restricted.problem
        builder = Builder()
        self.model = builder.model
        self.stages = add_stages(builder, problem, self.restricted.left_out)
        self.order = add_order(builder, problem, self.stages, placed=placed)
        self.blocks = add_blocks(builder, problem, self.restricted.choices)
        received_ns = tuple(receive_ns(builder, self.restricted, self.order, self.blocks))
        self.use = add_use(builder, problem, self.stages, self.blocks)
        if problem.most_devices is not None:
            self.model.add(sum(self.use.used) <= problem.most_devices)
        load: list[list[Linear]] = [[] for _ in problem.devices]
        for device, nbytes in (*self.stages.costs.load_bytes, *self.blocks.costs.load_bytes):
            load[device].append(nbytes)
        self.memory = add_memory(builder, problem, [sum(terms) for terms in load], self.use.used, elastic=elastic)
        self.step_ns = builder.integer(limits.MOST_NS, "step_ns")
        """Step time; placements that take longer than ``limits.MOST_NS`` are outside the model."""
        costs_ns = (*self.stages.costs.time_ns, *self.blocks.costs.time_ns)
        self.model.add(self.step_ns == sum((*costs_ns, *self.order.time_ns, *received_ns, *self.use.time_ns)))
        self.rounding_ns: Linear = sum((*self.stages.rounding_ns, *self.blocks.rounding_ns))
        """Most by which the step time is above the sum of its terms before they are rounded up."""

    def add_runs(self, most: int, least: int) -> None:
        """Make every layer part of a run, of which there are at most ``most``; no solution has less than ``least``."""
        self.runs = add_runs(self.model, self.problem, self.stages, most, least)

    @property
    def restriction(self) -> Restriction:
        """Groups and choices of the model."""
        return self.restricted.restriction

    def value(self, variable: cp_model.IntVar) -> int:
        """Return the value of a variable in the solution found last."""
        return self.values[variable.index]
