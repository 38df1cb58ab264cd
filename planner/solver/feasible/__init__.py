"""Memory alone: whether anything fits, and how many bytes are missing where nothing does.

The theorem: memory is a relaxation of the whole problem, so where no counts of equal devices fit, nothing fits; and the
least bytes that are missing by count are missing in every placement. From the other side, a greedy packing of actual
groups is a placement, so what it misses is enough. Where the two agree the shortage is exact.

    load_patterns  groups and choices by the bytes they take from each class of equal devices
    class_model    lower bound: equal devices counted, in a small CP-SAT model; proposes groups and choices
    greedy         upper bound: a packing of given groups and choices
    roomy          groups and choices on which a packing is found that misses nothing
    shortage       both bounds, and a search of all packings where they disagree: what a refusal says

:mod:`planner.solver.solve` and :mod:`planner.solver.exact_step` ask ``roomy.roomy`` whether a problem fits, and for a
first answer; ``planner.infeasible`` asks ``shortage.shortage`` for the message of a refusal.

Not here: time, which plays no part in any of this (:mod:`planner.solver.bounds` bounds it); which change would make a
problem fit (``planner.remedies``); the words of a refusal (``planner.infeasible``).
"""
