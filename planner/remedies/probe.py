"""Asks the solver about single changes of a refused request, under one budget, and remembers what it left open."""

from dataclasses import dataclass, field, replace

from planner.build import build
from planner.enough_hosts import counted_on_enough, fits_on_enough
from planner.errors import Change, InfeasibleError, InputError, NotProvenError
from planner.formulations import Formulations
from planner.hardware.inventory_text import dump_inventory
from planner.longest_context import CONTEXT_STEP, least_step
from planner.problem.formulate import Formulation
from planner.request import Request, inventory_for, resolve, resolve_dtype
from planner.solver import limits
from planner.solver.minimise import Settings
from plans.schema import Options


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A change of a refused request that is yet to be solved."""

    words: str
    request: Request
    """The changed request."""
    args: tuple[str, ...] = ()
    """Options of ``build`` that make the change."""
    changes_inventory: bool = False
    """The changed inventory, and no option, makes the change."""
    known: bool = False
    """A placement is known to exist."""


@dataclass(kw_only=True, slots=True)
class Probe:
    """Questions to the solver about one kind of change."""

    settings: Settings
    formulations: Formulations = field(default_factory=Formulations)
    undecided: bool = False
    """Some question whether a placement exists was not decided within the limit."""
    untimed: bool = False
    """Some placement exists whose step time was not decided within the limit."""
    near: bool = False
    """Some step time is known only within a gap."""

    def options(self, request: Request) -> Options:
        """Return the options of a request, with the least context where ``max`` is asked for."""
        dtype = resolve_dtype(request.wanted, request.base, request.inventory)
        options = resolve(request.wanted, dtype, request.base, request.draft)
        if request.wanted.context != "max":
            return options
        context = min(options.context, least_step(request.wanted) * CONTEXT_STEP)
        return resolve(replace(request.wanted, context=context), dtype, request.base, request.draft)

    def formulation(self, request: Request) -> Formulation:
        """Return the formulation of a request."""
        options = self.options(request)
        inventory = inventory_for(request, options)
        return self.formulations.of(request.base, request.draft, inventory, options)

    def known(self, request: Request, *, briefly: bool = False) -> bool | None:
        """Return whether a placement exists, None where that is not decided; a request that is refused has none.

        ``briefly``: within ``limits.BRIEF_LIMIT``, and for many devices by counting alone.
        """
        try:
            formulation = self.formulation(request)
            if briefly and len(formulation.usable.devices) > limits.FEW_DEVICES:
                return counted_on_enough(formulation)
            limit = min(self.settings.limit, limits.BRIEF_LIMIT) if briefly else self.settings.limit
            return fits_on_enough(formulation, replace(self.settings, limit=limit))
        except InputError:
            return False
        except NotProvenError:
            return None

    def fits(self, request: Request) -> bool:
        """Return whether a placement is known to exist, and note where that is not decided."""
        known = self.known(request)
        self.undecided |= known is None
        return bool(known)

    def solve(self, candidate: Candidate) -> Change | None:
        """Build the plan of a candidate and return the change; None where there is no plan, or none is timed."""
        if not (candidate.known or self.fits(candidate.request)):
            return None
        try:
            built = build(candidate.request, self.settings, nearly=True, formulations=self.formulations)
        except (InputError, InfeasibleError):
            return None
        except NotProvenError:
            self.untimed = True
            return None
        plan, asked_ppm = built.plan, candidate.request.wanted.gap_ppm
        gap = ("--gap", f"{plan.options.gap_ppm / 10**4:g}%") if plan.options.gap_ppm > asked_ppm else ()
        self.near |= bool(gap)
        return Change(
            change=candidate.words,
            objective_ns=plan.proof.objective_ns,
            args=(*candidate.args, *gap),
            inventory=dump_inventory(candidate.request.inventory) if candidate.changes_inventory else None,
            bound_ns=None if plan.proof.status == "OPTIMAL" else plan.proof.bound_ns,
        )
