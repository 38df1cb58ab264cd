"""Settles what the goal of a problem puts before the step time."""

from planner.solver.model import Model
from planner.solver.problem import Problem
from planner.solver.restriction import everything
from planner.solver.search import Goal, Progress
from planner.solver.solution import Ranged
from planner.solver.ties import minimise_in_order


def settle_goal(progress: Progress, problem: Problem) -> Goal:
    """Settle the goal over all groups and choices; raise Infeasible where nothing fits."""
    match problem.goal:
        case "time":
            return Goal()
        case "balance":
            return _balance(progress, problem)
        case "fill":
            return _fill(progress, problem)


def _balance(progress: Progress, problem: Problem) -> Goal:
    """Put as little as can be on the spare device; then leave as much free as can be on the fullest of the others."""
    goal = Goal()
    if problem.spare is not None:
        model = Model(problem, everything(problem))
        goal = Goal(spare=progress.minimise(model, model.memory.spare, what="spared device").value)
    model = Model(problem, everything(problem))
    goal.add_to(model)
    balance = -progress.minimise(model, -model.memory.balance, what="balance").value
    return Goal(spare=goal.spare, balance=balance)


def _fill(progress: Progress, problem: Problem) -> Goal:
    """Put as many layers as fit into the first group, then into the second, …"""
    model = Model(problem, everything(problem))
    least = minimise_in_order(
        progress, model, (Ranged(-size, -problem.layers, 0) for size in model.stages.size), what="order"
    )
    return Goal(layers=tuple(-layers for layers in least))
