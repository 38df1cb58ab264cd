"""From inputs to a plan, and from a plan to its directory: what ``build`` and ``check`` share."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from planner.costs import stall
from planner.emit import emit
from planner.errors import InputError
from planner.families import BaseInput, DraftInput, facts_of, load_base, load_draft
from planner.hardware.inventory import parse_inventory
from planner.infeasible import infeasible
from planner.problem import device_map
from planner.problem.formulate import Formulation
from planner.problem.previous_plan import Previous
from planner.request import Request, Wanted, resolve, resolve_dtype
from planner.solver import limits
from planner.solver.minimise import Settings
from planner.solver.problem import Problem
from planner.solver.problem_bounds import most_bytes, most_ps
from planner.solver.solve import Keep, Solved, fits, solve, solve_nearly
from plans.check_inputs import MOST_STALL_S
from plans.schema import (
    DType,
    Inputs,
    Inventory,
    Options,
    Plan,
)

CONTEXT_STEP = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A plan, and how its proof went."""

    plan: Plan
    solved: Solved


def build(request: Request, settings: Settings, *, nearly: bool = False) -> Built:
    """The plan that was asked for; raise InputError, InfeasibleError or NotProvenError.

    ``nearly``: where it is not proven within the limit, that which a larger gap would give, with that gap.
    """
    dtype, inventory, wanted = understand(request)
    if wanted.context == "max":
        longest = longest_context(request.base, request.draft, inventory, wanted, dtype, settings)
        wanted = dataclasses.replace(wanted, context=longest)
    options = resolve(wanted, dtype, request.base, request.draft)
    built = plan(request.base, request.draft, inventory, options, settings, request.previous, nearly=nearly)
    return dataclasses.replace(built, plan=_patient(built.plan, wanted.stall_timeout_s))


def _patient(plan: Plan, asked_s: int | None) -> Plan:
    """The plan with a stall timeout that its devices can keep; raise InputError where one asked for is too short."""
    device, silence_ns = stall.longest_silence(plan)
    if silence_ns > MOST_STALL_S * 10**9:
        raise InputError(
            f"device {device} is predicted to compute {silence_ns / 1e9:.1f} s in one piece, and a run that is silent "
            f"for {MOST_STALL_S} s is taken to hang: leave the device out, or give a smaller --prefill-chunk"
        )
    if asked_s is None:
        stall_timeout_s = min(stall.stall_timeout_s(silence_ns), MOST_STALL_S)
        return dataclasses.replace(plan, options=dataclasses.replace(plan.options, stall_timeout_s=stall_timeout_s))
    if asked_s * 10**9 < silence_ns:
        raise InputError(
            f"--stall-timeout: found {asked_s}, device {device} is predicted to compute {silence_ns / 1e9:.1f} s in "
            f"one piece: give {stall.stall_timeout_s(silence_ns)}, or a smaller --prefill-chunk"
        )
    return plan


def understand(request: Request) -> tuple[DType, Inventory, Wanted]:
    """The dtype of the plan, the devices with their rates at that dtype, and what is wanted of them."""
    listed = parse_inventory(request.inventory, request.inventory_file)
    dtype = resolve_dtype(request.wanted, request.base, listed)
    inventory = parse_inventory(request.inventory, request.inventory_file, dtype)
    if request.device_map is None:
        return dtype, inventory, request.wanted
    if request.wanted.strategy != "custom":
        raise InputError(f"--device-map: the strategy is {request.wanted.strategy}, expected custom")
    draft = request.draft.draft if request.draft else None
    pins = device_map.read(request.device_map, request.device_map_file, request.base.model, draft, inventory)
    return dtype, inventory, dataclasses.replace(request.wanted, custom=pins)


def plan(
    base: BaseInput,
    draft: DraftInput | None,
    inventory: Inventory,
    options: Options,
    settings: Settings,
    previous: Plan | None = None,
    *,
    nearly: bool = False,
) -> Built:
    """Solve; raise InfeasibleError or NotProvenError."""
    formulation = formulate(base, draft, inventory, options)
    inputs = Inputs(
        base_config_sha256=base.config_sha256,
        base_tensors_sha256=base.tensors_sha256,
        draft_config_sha256=draft.config_sha256 if draft else None,
        draft_tensors_sha256=draft.tensors_sha256 if draft else None,
    )
    earlier = keep = None
    if options.within_ppm is not None:
        assert previous is not None, "an earlier plan is what is kept"
        if previous.model != base.model:
            raise InputError("--previous: a plan of another model: give one of this model")
        earlier = Previous(formulation, inputs, previous)
        keep = Keep(earlier=earlier, within_ppm=options.within_ppm)
    if nearly and keep is None:
        solved = solve_nearly(formulation.problem, settings)
    else:
        solved = solve(formulation.problem, settings, keep)
    if solved is None:
        raise infeasible(formulation.problem, settings)
    return Built(plan=emit(formulation, inputs, solved, earlier), solved=solved)


def formulate(base: BaseInput, draft: DraftInput | None, inventory: Inventory, options: Options) -> Formulation:
    """What the solver is given; raise InputError for what cannot be counted."""
    formulation = Formulation(
        model=base.model, draft=draft.draft if draft else None, options=options, inventory=inventory
    )
    _refuse_immense(formulation.problem)
    return formulation


def _refuse_immense(problem: Problem) -> None:
    """Raise InputError where sums would leave 64 bits: some figure is off by many orders of magnitude."""
    for name, nbytes in zip(problem.devices, problem.capacity_bytes, strict=True):
        if nbytes > limits.MOST_BYTES:
            raise InputError(f"device {name}: memory of {nbytes} bytes, expected at most 1024 TiB")
    if most_bytes(problem) > limits.MOST_BYTES:
        raise InputError("model, --batch and --context together take more than 1024 TiB: one of them is out of range")
    if most_ps(problem) > limits.MOST_PS:
        unit_ps = [max(times) for times in zip(*(kind.unit_ps for kind in problem.kinds), strict=True)]
        slowest = problem.devices[unit_ps.index(max(unit_ps))]
        raise InputError(
            "a step could take more than 11 days: a bandwidth, flops, overhead or latency of the inventory is in the "
            f"wrong unit; the slowest device is {slowest}"
        )


def longest_context(
    base: BaseInput, draft: DraftInput | None, inventory: Inventory, wanted: Wanted, dtype: DType, settings: Settings
) -> int:
    """The largest context that fits: the model's own, or a multiple of 256 of which the next one is proven not to fit.

    Bytes only grow with the context, so it is found by bisection. Raises InfeasibleError where not even the least fits.
    """
    longest = resolve(wanted, dtype, base, draft).context

    def problem(context: int) -> Problem:
        options = resolve(dataclasses.replace(wanted, context=context), dtype, base, draft)
        return formulate(base, draft, inventory, options).problem

    if fits(problem(longest), settings):
        return longest
    least = least_step(wanted)
    steps = largest(least, -(-longest // CONTEXT_STEP) - 1, lambda n: fits(problem(n * CONTEXT_STEP), settings))
    if steps is None:
        raise infeasible(problem(min(least * CONTEXT_STEP, longest)), settings)
    return steps * CONTEXT_STEP


def least_step(wanted: Wanted) -> int:
    """The least context that ``max`` tries, in steps of 256: a prefill chunk is at most the context."""
    return -(-(wanted.prefill_chunk or 1) // CONTEXT_STEP)


def largest(least: int, most: int, works: Callable[[int], bool]) -> int | None:
    """The largest n in ``least`` … ``most`` that works, where all below one that works do; None: none does."""
    low, high = least - 1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return low if low >= least else None


def replan(directory: Path, frozen: Plan, settings: Settings) -> Plan:
    """Return the plan that the inputs recorded in ``directory`` lead to; see :func:`rebuild`."""
    return rebuild(directory, frozen, settings).plan


def rebuild(directory: Path, frozen: Plan, settings: Settings) -> Built:
    """Solve the problem of the plan ``frozen`` again from the inputs recorded in ``directory``; no weights are needed.

    A plan that kept weights of an earlier one is solved with itself as the earlier one, of which all is to be kept.
    """
    base = load_base(directory / "config.json")
    draft = None
    if frozen.draft is not None:
        draft = load_draft(directory / "draft" / "config.json", base, facts_of(frozen.draft))
    return plan(base, draft, frozen.inventory, frozen.options, settings, frozen)
