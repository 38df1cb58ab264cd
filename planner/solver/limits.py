"""Budgets, ladders and caps of the solver, in one place.

A budget is in units of CP-SAT's deterministic time, which makes the same search on every machine. A unit took 1.7 CPU
seconds on the class model of crowded-16of3 and 1.9 on h100x16:balanced; what comes before a search counts for little,
6 s on the model of all packings of crowded-unlike8. None of these decides which answer is optimal; they decide how far
a search goes before it gives up, what it looks at first, and from which size on something is not tried. Used as
``limits.NAME``, so that a measurement can set one for a run.

Where a docstring has figures without a command, they are CPU seconds of ``solve``, or of what it names, on 29 November
2026 by ``python tools/bench_limits.py --only NAME``, which also says what the instances are, on two shared cores with
noise of about 20 %. Luck of the search adds to that: over seeds 0 to 5, h100x16:balanced takes 0.21 to 0.34 units.
Those of FIRST_LOOK, SETTLE_LIMIT, QUICK_LIMIT, PACK_BITS, and of bounds from MOST_STATES to MOST_PLACEMENTS, were taken
before memory was priced lazily (UNPRICED_LIMIT), which has halved unlike8 since.
Four of them again after it, on unlike8, where all limits as they are take 0.84 s: FIRST_LOOK with three factors 0.73 s,
with one it had not ended after 60 s of wall time; QUICK_LIMIT with 0 and 0.3 0.82 and 1.61 s; CLOSE with 1.01 and 1.3
0.89 and 1.22 s; MOST_LINES with 2 and 32 0.93 and 0.72 s.
"""

# ---- the search for the optimum ----

DETERMINISTIC_LIMIT = 10.0
"""Budget of ``solve`` for the goal and the step time together, and again for ties; past it the refusal has the best
step found and its bound. A unit takes 1 to 2 CPU seconds, so a command ends within about half a minute;
``--solver-limit`` asks for more.
"""

MOST_LIMIT = 600.0
"""Largest budget that can be asked for: at 1.7 s a unit, 17 minutes of one thread."""

VARIABLE_WORK = 2e-4
"""Deterministic time that each variable of a model counts for: building and presolving it, which CP-SAT does not count.

29 November 2026: 10 CPU seconds for a model of 33 510 variables, 70B with its draft on 11 GPUs that are 96 % full, of
which CP-SAT counted 0.03 units.
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
"""Budget of the search on the groups of a greedy packing.

``solve`` with ``--gap 10%``, for 0.02, 0.5 and 5: 0.87, 0.87 and 0.85 s on 16of3, 1.90, 1.41 and 1.38 s on unlike8,
1.67, 2.04 and 2.01 s on 64of4, with the same gap each time: 0.02 is enough there, and nothing is lost with 0.5.
"""

SETTLE_LIMIT = 0.1
"""Budget for breaking ties among share counts, of all of them together.

With 0.01, 0.1 and 1: 0.32, 0.34 and 0.31 s on 16of3, 1.77, 1.87 and 1.44 s on unlike8, with the same answers. It is for
memory that is full to the last bytes, which none of these instances has.
"""

MOST_PRICED = 200
"""Most groups of a problem for which memory is priced before a simple answer is sought among those nearly as fast."""

TIE_LIMIT = 0.2
"""Budget for breaking ties by stages, free memory and step time, and for the order of groups and choices."""

SHORT_TIE_LIMIT = 0.02
"""Budget for breaking these ties, and those among share counts, where the least step of the answers with few runs is
not proven either.
"""

DEVICES_LIMIT = 0.3
"""Budget of the fewest devices in use among the answers that are fast enough; past it, as few as were found.

29 November 2026: on all instances of tools/instances.py and the random ones of bench_bounds counting proves it, or a
search of at most 0.05 s.
"""

FEWEST_RUNS_LIMIT = 0.3
"""Budget of the least step with as few runs of layers as counting allows.

29 November 2026: on the same instances it ends within 0.05 s of CPU time; 235B on 11 cards that are 99 % full, where
neither 0.3 nor 1 is enough: 0.4 and 1.3 s.
"""

RUNS_LIMIT = 0.05
"""Budget of the least step with each number of runs after it."""

RUNS_TRIES = 2
"""Such questions that may be left open before layers are dealt out as they come."""

MOST_RUNS = 9
"""Numbers of runs that are tried."""

QUICK_LIMIT = 0.03
"""Budget of a first search for the least step, from below: enough where the bounds are exact, as they mostly are.

Without that search ``solve`` took 0.45 to 0.50 instead of 0.20 to 0.23 s on 3x4, 0.39 instead of 0.29 s on 16of3, 0.45
instead of 0.19 s there with ``--strategy balanced``, and 1.8 instead of 1.9 s on unlike8. By bench_limits, which leaves
presolving in place, 0, 0.03 and 0.3 take 0.31, 0.24 and 0.25 s on 3x4, and 1.42, 1.56 and 2.48 s on unlike8.
"""

QUICK_VARIABLES = 10_000
"""Most variables of a model that is searched so: presolving a larger one takes a hundred times that budget."""

PACK_BITS = 55
"""Most bits of one objective that minimises several ordered variables as digits of a number.

With 16, 55 and 62 bits: 0.39, 0.21 and 0.21 s on 3x4, 0.36, 0.30 and 0.34 s on 16of3.
"""

GAPS_PPM = tuple(10_000 * percent for percent in (2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90))
"""Gaps that ``solve_nearly`` may accept, ascending: round figures for people.

``solve_nearly`` within 0.05, with these and with 50 % alone: 1.36 and 0.79 s on h100x16, where 2 % are accepted, 0.64
and 0.51 s on h100x16:balanced, likewise: the small gap costs little. unlike8 is proven optimal. None that accepts more
than 2 % was found, so how fine the upper part should be is not measured.
"""

GAP_FACTOR = 1.1
"""The accepted gap exceeds the one that the search reached by at least this factor: the last of it takes long to find.

``solve_nearly`` within 0.05, with 1, 1.1 and 2: 1.17, 1.23 and 1.25 s on h100x16, 0.65, 0.61 and 0.46 s on
h100x16:balanced; 2 % are accepted each time, as the steps of GAPS_PPM are wider than the factor.
"""

SIGNAL_S = 0.05
"""Seconds for which a search is waited for before signals are looked at: Ctrl-C ends a search within them."""

STOP_S = 1.0
"""Most seconds for which an interrupted search is waited for; the process may end with it still running."""

# ---- numbers of the CP-SAT model ----

# CP-SAT accepts a sum when the maxima of its positive terms, by the domains of their variables alone, add up to less
# than 2^62, and so do those of its negative terms; else ``validate`` reports "Possible integer overflow". These caps
# bound the sums of the model. ``python tools/bench_limits.py --bits`` has the largest sum in the whole model of an
# instance: on the six of ``bench_planner speed`` 2^48 to 2^59; with all bytes multiplied until a device has MOST_BYTES,
# or a placement could put as many on one, 2^53 to 2^59; with all times multiplied until a step could take MOST_PS,
# 2^52 to 2^59.

MOST_BYTES = 1 << 50
"""Most bytes of a device, or of all that a placement may put on one; refused above.

The load of a device has a term for each group, split and choice with the device, so 2^62 / MOST_BYTES = 4096 of them
may be as large as the cap. Most are far smaller than all that a placement puts on a device: 16of3 has 24155 splits.
"""

MOST_NS = 1 << 38
"""Longest step in the model, 275 s: no prediction of use is longer."""

MOST_PS = 10**18
"""Longest step that a request may add up to, in ps; refused above.

A member's time in ps and the quanta that bound it, up to a quantum more, stand on both sides of one constraint, each at
most MOST_PS < 2^60. Sums over groups are in ns, a thousandth: 4600 stages as long as the cap stay below 2^62.
"""

# ---- bounds ----

MARGIN_NS = 1e-3
"""Absolute amount in ns: pieces that take no time are pieces of 1e-12 ns in :mod:`planner.solver.bounds.pieces`."""

MARGIN = 1e-9
"""Relative amount by which bounds computed in double precision are lowered, so that rounding never raises one.

A sum of n positive doubles is off by at most n · 2^-53 of it: the margin covers n = 9 million operations in a row.
With it an exact bound stays within 0.5 ns of the optimum, and is exact when rounded up, for steps up to 0.5 s.

With 0, 1e-9 and 1e-6 the bound of 3x4 is 0, 1.0e-10 and 1.0e-7 below the optimum, and bound and ``solve`` take 0.24,
0.24 and 1.83 s; of 16of3 0, 1.3e-10 and 1.3e-7, and 0.39, 0.42 and 0.74 s; unlike8 and 64of4 take equally long.
"""

SPLIT_MARGIN_NS = 1.0
"""Time by which a split must exceed a limit to be left out: more than what doubles lose in steps of up to MOST_NS."""

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

MOST_DEVICE_SETS = 100
"""Most sets of devices that are bounded one by one where not all devices may be in use."""

MOST_WIDE_SETS = 100
"""Most sets of groups over several hosts that are bounded one by one, so that no two of them have one device.

29 November 2026, CPU time of the bounds with 0, 100 and 400, and what of the optimum they leave open: 235B on 11 cards
of 2 hosts that are 95 % full, 0.28, 0.22 and 0.24 s, 23, 1.4 and 1.4 %; helix10 0.34, 0.27 and 1.60 s; 16of3 and
h100x16, where nothing is left open with any, 0.47, 0.44 and 0.85 s, 0.07, 0.10 and 0.20 s.
"""

# ---- feasibility ----

MOST_COLUMNS = 5000
"""Most loads of the class model; above it hardly any devices are equal.

``shortage`` of crowded-h100x16 with 0, which does without the model: 574.8 to 1265.7 GB in 4.9 s; with 5000: exactly
594.3 GB in 0.1 s. With 50000, crowded-unlike8, which has more than 5000, had not ended after 60 s of wall
time on a busy machine, in which 5000 takes 14 s of CPU time.
"""

COUNT_LIMIT = 1.0
"""Budget of the class model, for the least missing memory.

``shortage`` of crowded-16of3 uses up all of it, 1.7 s of 24 s; with 0.1 it finds the same bound and packing, in 22.4 s.
crowded-h100x16 ends after 0.1 s.
"""

ROOM_LIMIT = 0.25
"""Budget of the class model, for the groups that leave most memory.

``fits`` with 0.02, 0.25 and 2: 4.89, 0.63 and 0.93 s on 64of4, 0.49, 0.50 and 0.52 s on 16of3, 1.05, 1.99 and 3.02 s on
full:0, 0.11, 0.41 and 0.49 s on full:1. With too little, 64of4 needs the search that this is to save.
"""

SHORTAGE_LIMIT = 1.0
"""Budget of the search over packings for a refusal's shortage.

``shortage`` of crowded-unlike8 with 0.1 and 1: 13.0 and 13.8 s, and no packing is found with either: nearly all of that
is spent before the search, which no budget ends. So a smaller one saves nothing there. On crowded-16of3, 0.1 finds no
packing in 19.1 s, and 1 finds one in 21.6 s.
"""

# ---- explanations of a refusal ----

CHANGE_LIMIT = 2.0
"""Budget of each objective of one suggested change; halved when a kind of change exhausts it.

The refusal of crowded-3x4 with 0.5 and 2: 12.4 and 16.2 s, with the same changes; with 8 it had not ended after 60 s of
wall time on a busy machine.
"""

LEAST_CHANGE_LIMIT = 0.25
"""Least of such budgets.

The refusal of crowded-3x4 with 0.05 instead takes 15.0 instead of 16.2 s and lists the same.
"""

BRIEF_LIMIT = 0.25
"""Budget of each question how little memory of a host is enough.

The refusal of crowded-3x4 with 0.05 instead takes 14.9 instead of 16.2 s and lists the same.
"""

FEW_DEVICES = 16
"""Most devices on which that question is asked of the solver, and not only of the class model.

The refusal of crowded-3x4, 12 devices, with 0 instead takes 15.0 instead of 16.2 s and lists the same. On more than 16
devices it is not measured.
"""
