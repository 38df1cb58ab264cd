"""Lower bounds of the step time, with which the search leaves out most of a problem and still proves its optimum.

The theorem: let LB(g) be a lower bound of every answer that uses group g (or choice g of a block), and v the time of an
answer at hand. If LB(g) > v, no optimal answer uses g, so the search over the groups and choices with LB <= v finds the
optimum of the whole problem. LB comes from a relaxation that is solved exactly: stages by linear programming, their
groups by a dynamic programme over the devices of each host, messages by a shortest path, memory by Lagrangian prices:

    min over a superset of the answers of  cost + λ·(load - capacity)   <=   cost of every answer,   for any λ >= 0

``few_devices.few_devices_bounds`` is the way in, and asks ``step.lower_bounds``. :mod:`planner.solver.solve` calls it,
searches within ``Bounds.within(limit)``, and asks for ``Bounds.tightened()`` where that does not close. Bounds decide
what is searched, never what is optimal: with all of them off the answers are the same, only later. README.md has the
figures, part by part.

    step             which bounds there are, and their intersection
    hosts            stages: all sets of disjoint groups, over all hosts
    sites            hosts put together: each entered once, one of them with the first stage
    site_table       one host: dynamic programme over its devices
    combine          adding stages up under Σ layers = L, exactly or with a price of a layer
    stage_cache      bounds of stages, each once
    stage            one stage: an envelope of Lagrangian lines over the number of layers
    kind_on_group    layers of one kind on one group, as doubles
    stage_programme  the linear programme whose duals are good prices for these lines
    block_choices    one block by itself
    pieces           equal pieces divided over members
    memory_prices    λ: duals of a linear programme over whole placements
    chain            messages from link to link: shortest paths
    whole_layers     where nothing is divided: placement by placement of the blocks
    in_use           by the numbers of hosts and devices in use, for machines of which only a part is searched
    few_devices      where not all devices may be in use: set by set of those that may
    excess           what all but these two return

Not here: the model, its search and its proofs (:mod:`planner.solver`), bounds of missing memory
(:mod:`planner.solver.feasible`), and sums over a problem's quantities that bound any answer
(:mod:`planner.solver.problem_bounds`).
"""
