"""Solver: a closed library that finds the placement of least step time with CP-SAT, and proves that it is the one.

What is proven: no answer of a :class:`planner.solver.problem.Problem` (of its groups and options) takes less, or by
more than an accepted gap; or none fits, with the least memory that is missing. Ties are broken by a total order, so a
problem has one answer, whatever the settings, the listing order and the machine.

    problem     the waist: a problem and its answer in integers; nothing here knows of models, plans or inventories
    solve       the entry: solve, solve_nearly, fits        certify     checks and prices an answer without the solver
    search, goal, exact_step, near_step, ties               one search, from the goal to the last tie
    model, stages, order, blocks, messages, memory          the CP-SAT model and its parts; variables has its builder
    solution    reads solutions of the model                restriction groups and choices that a model is made of
    symmetry    equal hosts in the model                    moved_bytes distance to an earlier answer, as an objective
    earlier     the protocol of an earlier answer, which planner.problem fills in
    minimise    the only place where CP-SAT is run          limits      every budget and cap, with its measurement
    past_limit  what to do where a search ended without a proof
    problem_bounds  largest and least sums of a problem     transport   the transport problem, for the order of layers
    bounds/     lower bounds that leave most of a problem out; feasible/ proofs and packings that ignore time

It imports of the product only ``planner.errors`` and ``planner.integers``, and it is the only place that imports
ortools. Problems come from ``planner.problem``; ``planner.build``, ``planner.remedies`` and ``planner.infeasible`` call
it, ``planner.emit`` turns answers into plans.
"""
