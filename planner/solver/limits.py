"""Budgets, ladders and caps of the solver, in one place.

A budget is in CP-SAT's deterministic time, about a second of one thread each: the same search on every machine. None of
these decides which answer is optimal; they decide how far a search goes before it gives up, what it looks at first, and
from which size on something is not tried. Used as ``limits.NAME``, so that a measurement can set one for a run.
"""

# ---- the search for the optimum ----

DETERMINISTIC_LIMIT = 600.0
"""Budget of each objective of ``solve``; past it the refusal has the best step found and its bound."""

FIRST_LOOK = (1.000001, 1.0001, 1.0005, 1.001, 1.002, 1.003, 1.005, 1.0075, 1.01, 1.015, 1.02, 1.03, 1.05, 1.1)
"""The search is restricted to groups and choices whose bound is within these factors of the least, in turn."""

UNPRICED_LIMIT = 0.002
"""Budget of all searches under bounds that ignore memory, for each group of the problem: past it, or where nothing is
found, memory is priced. It is of the order of what pricing costs, so that at most as much again is spent in vain.

29 November 2026, CPU time of ``solve`` with half as much and with this: 6.0 and 3.5 s, 3.4 and 2.4 s on two of the
random machines of ``bench_bounds``; on the other instances the difference is less than 0.3 s.
"""

PACKED_LIMIT = 0.5
"""Budget of the search on the groups of a greedy packing."""

SETTLE_LIMIT = 0.1
"""Budget for breaking ties among share counts, of all of them together."""

QUICK_LIMIT = 0.03
"""Budget of a first search for the least step, from below: enough where the bounds are exact, as they mostly are.

29 November 2026, CPU time of ``solve`` with and without it: 0.23 and 0.48 s on ``bench_planner speed --only 3x4``, 0.29
and 0.39 s on ``16of3``, 0.17 and 0.45 s there with ``--strategy balanced``; on the others there is no difference.
"""

PACK_BITS = 55
"""Most bits of one objective that minimises several ordered variables as digits of a number."""

GAPS_PPM = tuple(10_000 * percent for percent in (2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90))
"""Gaps that ``solve_nearly`` may accept, ascending."""

GAP_FACTOR = 1.1
"""The accepted gap exceeds the one that the search reached by at least this factor."""

SIGNAL_S = 0.05
"""Seconds for which a search is waited for before signals are looked at: Ctrl-C ends a search within them."""

STOP_S = 1.0
"""Most seconds for which an interrupted search is waited for; the process may end with it still running."""

# ---- numbers of the CP-SAT model ----

MOST_BYTES = 1 << 50
"""Most bytes of a device, or of all that a placement may put on one."""

MOST_NS = 1 << 38
"""Longest step in the model, 275 s; :func:`planner.solver.model.most_step_ns` says how it falls with many groups."""

MOST_RANKED = 1 << 61
"""Largest objective: the step time and the rank of a structure together."""

MOST_PS = 10**18
"""Longest step that a request may add up to, so that sums of times stay within 64 bits."""

# ---- bounds ----

MOST_STATES = 5000
"""Most states of the dynamic programme of one site; there are no bounds above."""

CLOSE = 1.05
"""Groups whose relaxed bound is within this factor of the least are bounded again by the exact dynamic programme."""

FAR = 1.03
"""Groups over several hosts whose coarse bound exceeds the least by this factor keep it."""

MOST_NEAR = 200
"""Most groups over several hosts whose coarse bound is refined, but for ties."""

MOST_GROUPS = 60
"""Most groups in the linear programme whose duals are the prices of memory."""

MOST_CHOICES = 200
"""Most choices of each block in the same programme."""

MOST_LINES = 8
"""Most lines of the envelope that bounds a stage."""

MOST_PLACEMENTS = 64
"""Most placements of the blocks for which whole layers are bounded one by one."""

# ---- feasibility ----

MOST_COLUMNS = 5000
"""Most loads of the class model; above it hardly any devices are equal."""

COUNT_LIMIT = 1.0
"""Budget of the class model, for the least missing memory."""

ROOM_LIMIT = 0.25
"""Budget of the class model, for the groups that leave most memory."""

SHORTAGE_LIMIT = 1.0
"""Budget of the search over packings for a refusal's shortage."""

# ---- explanations of a refusal ----

CHANGE_LIMIT = 2.0
"""Budget of each objective of one suggested change; halved when a kind of change exhausts it."""

LEAST_CHANGE_LIMIT = 0.25
"""Least of such budgets."""

BRIEF_LIMIT = 0.25
"""Budget of each question how little memory of a host is enough."""

FEW_DEVICES = 16
"""Most devices on which that question is asked of the solver, and not only of the class model."""
