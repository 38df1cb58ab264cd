"""What to do where a search reached its limit before its proof: the end of every such refusal."""

from planner.solver.limits import GAP_FACTOR, GAPS_PPM

LONGER = "search longer with --solver-limit"
"""What to do where a search ended without a proof."""


def next_gap_ppm(reached: float, accepted_ppm: int) -> int | None:
    """Return the gap that another search is likely to reach after one that accepted a gap and reached ``reached``."""
    wanted_ppm = max(accepted_ppm, round(GAP_FACTOR * reached * 10**6))
    return min((ppm for ppm in GAPS_PPM if ppm > wanted_ppm), default=None)


def past_limit(gap: float, accepted_ppm: int) -> str:
    """Return what to do where a search that accepted a gap ended with a larger one."""
    gap_ppm = next_gap_ppm(gap, accepted_ppm)
    return LONGER if gap_ppm is None else f"accept one with --gap {gap_ppm // 10**4}%, or {LONGER}"
