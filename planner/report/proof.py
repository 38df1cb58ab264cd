"""What is proven of a plan, in words: of its step, of how simple it is, and over which placements."""

from plans.check_inputs import ROUNDING_PPM
from plans.check_proof import different_runs
from plans.format import format_ns
from plans.schema import Plan


def verdict_line(plan: Plan) -> str:
    proof, strategy = plan.proof, plan.options.strategy
    step, least, bound = (format_ns(ns) for ns in (proof.objective_ns, proof.least_ns, proof.bound_ns))
    placement = "candidate placement" if strategy == "latency" else f"{strategy} placement"
    if proof.status == "OPTIMAL" and is_least(plan):
        return f"one step takes {step}, and no other {placement} takes less"
    more = "" if is_least(plan) else f", {given_up(plan):.2%} more than the fastest found, {simpler(plan)}"
    if proof.status == "OPTIMAL":
        lost = f"{given_up(plan):.2%} is given up {simpler(plan)}"
        return f"one step takes {step}; the least of any {placement}, proven, is {least}: {lost}"
    gap = (proof.least_ns - proof.bound_ns) / max(1, proof.least_ns)
    return f"one step takes {step}{more}; no {placement} takes less than {bound}, {gap:.1%} below"


def simplicity_line(plan: Plan) -> str:
    """Return what is proven of the number of devices, of the runs of layers, and of the step with as few, in words."""
    bounds = plan.proof.simplicity
    if bounds is None:
        return ""
    used, runs, step_ns = len(plan.memory), different_runs(plan), plan.proof.objective_ns
    words = [f"fewest devices ({_proven(str(used), str(bounds.devices_bound))})"]
    if bounds.runs_bound is not None:
        words.append(f"fewest different runs of layers ({_proven(str(runs), str(bounds.runs_bound))})")
    is_least_step = (step_ns - bounds.step_bound_ns) * 10**6 <= ROUNDING_PPM * max(1, step_ns)
    step, bound = format_ns(step_ns), format_ns(bounds.step_bound_ns)
    words.append(f"shortest step ({step if is_least_step else _proven(step, bound)})")
    return f"{simplest(plan)} of the least step: {', then '.join(words)}"


def _proven(number: str, bound: str) -> str:
    """Return a number, and where it is not proven the least, what is."""
    return number if number == bound else f"{number}; proven: at least {bound}"


def simplest(plan: Plan) -> str:
    """Return in few words whether a plan is proven the simplest of those that were allowed, or found to be so."""
    bounds = plan.proof.simplicity
    if bounds is None:
        return ""
    proven = len(plan.memory) == bounds.devices_bound and bounds.runs_bound in (None, different_runs(plan))
    return f"simplest {'' if proven else 'found '}within {plan.options.simplify_ppm / 10**4:g} %"


def family_line(plan: Plan) -> str:
    """Return the placements that the proof is about, in short; the section Proof of plans/FORMAT.md has all of it."""
    match plan.options.strategy:
        case "latency":
            return (
                "Proven over candidate placements: stages, tables and EAGLE head each on one group of devices of a "
                "host (any set of unlike ones, any number of equal ones), or on the same part of several hosts; KV "
                "heads in bundles, or shared by subgroups of one size; any MLP units, vocabulary rows and numbers of "
                f"layers (plans/FORMAT.md, Proof){_of_slowest_links(plan)}"
            )
        case "custom":
            return "Proven over placements in which every module is on the device that the device map names"
        case _:
            return "Proven over placements of whole layers, each on one device, and of tables and EAGLE head likewise"


def _of_slowest_links(plan: Plan) -> str:
    """Return what the proof takes for granted where links of a host differ; nothing where they do not."""
    if not any(host.pairs for host in plan.inventory.hosts):
        return ""
    return "; small messages inside a host whose links differ take as long as over its slowest link, in use or not"


def is_least(plan: Plan) -> bool:
    """Return whether no faster placement was found, but for what rounding may have made of their times."""
    return given_up(plan) * 10**6 <= ROUNDING_PPM


def given_up(plan: Plan) -> float:
    """Return by which part of it the step of a plan exceeds the least that was found."""
    return (plan.proof.objective_ns - plan.proof.least_ns) / max(1, plan.proof.least_ns)


def simpler(plan: Plan) -> str:
    """Return what a plan that is not the fastest gains, in words."""
    if plan.options.within_ppm is not None:
        return "to keep weights where the earlier plan has them"
    return "for fewer devices or fewer runs of layers"
