"""Budgets, ladders and caps of the solver, in one place.

A budget is in CP-SAT's deterministic time, about a second of one thread each: the same search on every machine. None of
these decides which answer is optimal; they decide how far a search goes before it gives up, what it looks at first, and
from which size on something is not tried. Used as ``limits.NAME``, so that a measurement can set one for a run.

Where a docstring has figures without a command, they are CPU seconds of ``solve`` on 29 November 2026 by
``python tools/bench_limits.py --only NAME``, on two shared cores with noise of about 20 %, for instances of
``bench_planner speed``; before memory was priced lazily (UNPRICED_LIMIT), which has halved unlike8 since. "Not
measured" is said of values that are assumptions.
"""

# ---- the search for the optimum ----

DETERMINISTIC_LIMIT = 600.0
"""Budget of each objective of ``solve``; past it the refusal has the best step found and its bound.

Not measured: about ten minutes, as long as somebody may wait for a plan.
"""

FIRST_LOOK = (1.000001, 1.0001, 1.0005, 1.001, 1.002, 1.003, 1.005, 1.0075, 1.01, 1.015, 1.02, 1.03, 1.05, 1.1)
"""The search is restricted to groups and choices whose bound is within these factors of the least, in turn.

The first alone decides whether a search is small: with 1.1 alone none of 16of3, unlike8, h100x16 and 64of4 ends within
20 s. Against 1.001, 1.01, 1.1 the ladder takes 0.33 and 0.32 s, 1.46 and 1.78, 0.77 and 0.31, 1.10 and 1.29.
"""

UNPRICED_LIMIT = 0.002
"""Budget of all searches under bounds that ignore memory, for each group of the problem: past it, or where nothing is
found, memory is priced. It is of the order of what pricing costs, so that at most as much again is spent in vain.

29 November 2026, CPU time of ``solve`` with half as much and with this: 6.0 and 3.5 s, 3.4 and 2.4 s on two machines of
8 unlike GPUs that were 97 % full; on 17 other instances the difference was less than 0.3 s.
"""

PACKED_LIMIT = 0.5
"""Budget of the search on the groups of a greedy packing. Not measured."""

SETTLE_LIMIT = 0.1
"""Budget for breaking ties among share counts, of all of them together.

With 0.01, 0.1 and 1: 0.32, 0.34 and 0.31 s on 16of3, 1.77, 1.87 and 1.44 s on unlike8, with the same answers. It is for
memory that is full to the last bytes, which none of these instances has.
"""

QUICK_LIMIT = 0.03
"""Budget of a first search for the least step, from below: enough where the bounds are exact, as they mostly are.

Without that search ``solve`` took 0.45 to 0.50 instead of 0.20 to 0.23 s on 3x4, 0.39 instead of 0.29 s on 16of3, 0.45
instead of 0.19 s there with ``--strategy balanced``, and 1.8 instead of 1.9 s on unlike8. By bench_limits, which leaves
presolving in place, 0, 0.03 and 0.3 take 0.31, 0.24 and 0.25 s on 3x4, and 1.42, 1.56 and 2.48 s on unlike8.
"""

PACK_BITS = 55
"""Most bits of one objective that minimises several ordered variables as digits of a number.

With 16, 55 and 62 bits: 0.39, 0.21 and 0.21 s on 3x4, 0.36, 0.30 and 0.34 s on 16of3.
"""

GAPS_PPM = tuple(10_000 * percent for percent in (2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90))
"""Gaps that ``solve_nearly`` may accept, ascending: round figures for people. Not measured."""

GAP_FACTOR = 1.1
"""The accepted gap exceeds the one that the search reached by at least this factor: the last of it takes long to find.

Not measured.
"""

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

MARGIN = 1e-9
"""Relative amount by which bounds computed in double precision are lowered: a thousand times their rounding error."""

MOST_STATES = 5000
"""Most states of the dynamic programme of one site; there are no bounds above.

With 50, unlike8 (256 states) does not end within 20 s instead of 1.6 s; 5000 and 50000 take the same.
"""

CLOSE = 1.05
"""Groups whose relaxed bound is within this factor of the least are bounded again by the exact dynamic programme.

With 1.01, 1.05 and 1.3: 1.48, 1.57 and 1.98 s on unlike8, 0.79, 1.17 and 1.23 s on 64of4, 0.73 s thrice on h100x16.
"""

FAR = 1.03
"""Groups over several hosts whose coarse bound exceeds the least by this factor keep it.

With 1.005, 1.03 and 1.2: 0.85, 1.09 and 1.66 s on 64of4; the same on 16of3, h100x16 and 3x4 but for noise.
"""

MOST_NEAR = 200
"""Most groups over several hosts whose coarse bound is refined, but for ties.

With 20, 200 and 2000: 1.53, 1.09 and 1.17 s on 64of4, 0.32, 0.24 and 0.23 s on 3x4.
"""

MOST_GROUPS = 60
"""Most groups in the linear programme whose duals are the prices of memory.

With 15, 60 and 240: 1.12, 1.13 and 1.43 s on 64of4, 0.31, 0.33 and 0.42 s on 16of3.
"""

MOST_CHOICES = 200
"""Most choices of each block in the same programme.

With 50, 200 and 800: 1.29, 1.07 and 1.13 s on 64of4, 0.27, 0.23 and 0.22 s on 3x4.
"""

MOST_LINES = 8
"""Most lines of the envelope that bounds a stage.

With 2, 8 and 32: 1.42, 1.59 and 1.68 s on unlike8, 1.18, 1.13 and 1.28 s on 64of4: no difference beyond noise.
"""

MOST_PLACEMENTS = 64
"""Most placements of the blocks for which whole layers are bounded one by one.

With 0, 64 and 1000, strategy ``balanced``: more than 20, 1.01 and 0.95 s on h100x16; 0.12, 0.12 and 1.35 s on 16of3.
"""

# ---- feasibility ----

MOST_COLUMNS = 5000
"""Most loads of the class model; above it hardly any devices are equal. Not measured."""

COUNT_LIMIT = 1.0
"""Budget of the class model, for the least missing memory. Not measured."""

ROOM_LIMIT = 0.25
"""Budget of the class model, for the groups that leave most memory. Not measured."""

SHORTAGE_LIMIT = 1.0
"""Budget of the search over packings for a refusal's shortage. Not measured."""

# ---- explanations of a refusal ----

CHANGE_LIMIT = 2.0
"""Budget of each objective of one suggested change; halved when a kind of change exhausts it. Not measured."""

LEAST_CHANGE_LIMIT = 0.25
"""Least of such budgets. Not measured."""

BRIEF_LIMIT = 0.25
"""Budget of each question how little memory of a host is enough. Not measured."""

FEW_DEVICES = 16
"""Most devices on which that question is asked of the solver, and not only of the class model. Not measured."""
