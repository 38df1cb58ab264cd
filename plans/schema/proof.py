"""What is proven of a placement and its step time, and how the draft tree was chosen."""

from dataclasses import dataclass
from typing import Literal

from plans.schema.options import Tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Simplicity:
    """Proven of the simplest of the candidate placements within ``Options.simplify_ppm`` of the least step.

    These are settled in turn, each within a budget of work: where a bound is not the plan's own number, nothing simpler
    was found within it, and what is between the two is not excluded.
    """

    devices_bound: int
    """No placement has fewer devices in use."""
    runs_bound: int | None
    """None on as few devices as the plan has fewer different runs of layers; None where an earlier plan is kept."""
    step_bound_ns: int
    """None with as few devices and runs as the plan takes less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """Proof of the solver, over the candidate placements of the problem (``plans/FORMAT.md`` names them)."""

    status: Literal["OPTIMAL", "FEASIBLE"]
    objective_ns: int
    """Predicted time of one step."""
    least_ns: int
    """Predicted step time of the fastest candidate placement that was found; the least, as the bound shows, when
    OPTIMAL. The plan takes longer where that makes it simpler, keeps weights in place, or is within the rounding."""
    bound_ns: int
    """Lower bound: no candidate placement has a smaller objective."""
    simplicity: Simplicity | None
    """None where no simpler placement was asked for, or a gap was accepted; and in plans of version 3.0."""
    min_free_bytes: int
    """Least free memory among the devices in use, the second objective."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerUp:
    """The best choice of a draft tree but one."""

    tree: Tree | None
    """None: no draft."""
    acceptance_ppm: int
    """Expected tokens of a step, in parts per million."""
    least_ns: int
    """Predicted step time of the fastest candidate placement with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduledStep:
    """Prediction for a range of the schedule, at its first number of sequences."""

    acceptance_ppm: int
    """Expected tokens of a step and sequence, in parts per million; 1000000 in plain decoding."""
    predicted_ns: int
    """Predicted time of a step on the plan's placement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speculation:
    """Choice of the draft tree, or of none, by expected tokens per second: batch * acceptance / step."""

    profile_sha256: str
    """Digest of the acceptance profile, ``acceptance.yaml`` beside the plan."""
    profile_source: str
    """Source that the profile names: what was decoded, or whose published figures it is derived from."""
    acceptance_ppm: int
    """Expected tokens of a step with ``Options.tree``, in parts per million; 1000000 without a draft."""
    plain_ns: int
    """Predicted step time of the fastest candidate placement without a draft."""
    trees: int
    """Trees that were compared, one of which or none is the best."""
    runner_up: RunnerUp | None
    """The best of the others whose placement was solved for the proof; None: there is none."""
    schedule: tuple[ScheduledStep, ...] | None = None
    """Of each range of ``Options.schedule``, in its order; None exactly where that is."""
