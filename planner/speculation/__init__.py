"""The draft tree of a plan: which one, or none, gives the most expected tokens per second, with proof.

    profiles      the acceptance profile of a request: from a file, or the shipped one of a kind of drafter
    grid          the trees that are considered
    draft_bound   the least time of a drafter's passes, over all placements
    step_bound    the least time of a whole step, without a solver
    choose        the search over trees: each is solved, or its step is bounded from below
    compare       the choice as a plan records it; a plan whose tree was asked for, beside plain decoding
    placed        the same without a solver: plain decoding on the plan's own placement

Called by ``planner.build``. The objective is batch * E(tree) / step(tree), with E from ``planner.costs.acceptance`` and
the step of the best placement for that tree, which ``planner.solver`` proves. Not here: placements, for a given tree
(``planner.problem``, ``planner.solver``), and figures as text (``planner.report``).
"""
