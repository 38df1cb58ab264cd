"""What would help where nothing fits: every single change of what was given with which a placement exists.

A change is a request of its own and is solved like one, so what is listed is what ``build`` answers. A quantity is
changed no more than it must be: bytes only grow with it, and the largest that fits is found by bisection. Where the
fastest placement is not proven within a part of the solver's limit, the change is listed with the gap that is.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

from planner.build import CONTEXT_STEP, build, formulate, largest, least_step, understand
from planner.errors import Change, InfeasibleError, InputError, NotProvenError
from planner.hardware import units
from planner.hardware.catalog import CPU
from planner.request import DEFAULT_TREE, Request, Wanted, resolve
from planner.solver import limits
from planner.solver.minimise import Settings
from planner.solver.problem import Problem
from planner.solver.problem_bounds import least_bytes
from planner.solver.solve import fits, fits_counted
from plans.check_inputs import natural_key
from plans.codec import dump_yaml
from plans.schema import DTYPE_BYTES, KV_DTYPE_BYTES, Device, DType, Inventory, KvAxis, KvDType, Options

HOST_BANDWIDTH = "40 GB/s"
HOST_FLOPS = "500 GFLOP/s"
"""Assumed of a host CPU that the inventory does not list, and said so: two channels of DDR4, eight cores with AVX2."""

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """A change that is yet to be solved."""

    words: str
    request: Request
    args: tuple[str, ...] = ()
    inventory: bool = False
    """The inventory is what changes."""
    known: bool = False
    """A placement is known to exist."""


@dataclass(kw_only=True, slots=True)
class _Questions:
    """What is asked of the solver about one kind of change."""

    settings: Settings
    undecided: bool = False
    """Whether anything fits was not decided within the limit."""
    untimed: bool = False
    """Something fits, and how fast it is was not decided within the limit."""
    near: bool = False
    """Of something it is known how fast it is within a gap alone."""

    @staticmethod
    def problem(request: Request) -> Problem:
        """What the solver is given."""
        options, inventory = _options(request)
        return formulate(request.base, request.draft, inventory, options).problem

    def known(self, request: Request, *, briefly: bool = False) -> bool | None:
        """Whether a placement exists; None: not decided within the limit, or by counting. One refused is none."""
        try:
            problem = self.problem(request)
            if briefly and len(problem.devices) > limits.FEW_DEVICES:
                return fits_counted(problem)
            limit = min(self.settings.limit, limits.BRIEF_LIMIT) if briefly else self.settings.limit
            return fits(problem, replace(self.settings, limit=limit))
        except InputError:
            return False
        except NotProvenError:
            return None

    def fits(self, request: Request) -> bool:
        """Whether a placement is known to exist."""
        known = self.known(request)
        self.undecided |= known is None
        return bool(known)

    def solved(self, candidate: _Candidate) -> Change | None:
        """The change, where it works."""
        if not (candidate.known or self.fits(candidate.request)):
            return None
        asked = candidate.request.wanted
        try:
            plan = build(candidate.request, self.settings, nearly=True).plan
        except (InputError, InfeasibleError):
            return None
        except NotProvenError:
            self.untimed = True
            return None
        gap = ("--gap", f"{plan.options.gap_ppm / 10**4:g}%") if plan.options.gap_ppm > asked.gap_ppm else ()
        self.near |= bool(gap)
        return Change(
            change=candidate.words,
            objective_ns=plan.proof.objective_ns,
            args=(*candidate.args, *gap),
            inventory=dump_yaml(candidate.request.inventory) if candidate.inventory else None,
            bound_ns=None if plan.proof.status == "OPTIMAL" else plan.proof.bound_ns,
        )


_Candidates = Callable[[Request, _Questions], Iterator[_Candidate]]


def explain(
    request: Request, refused: InfeasibleError, settings: Settings, trying: Callable[[str], None]
) -> InfeasibleError:
    """The refusal of ``request``, with the changes that would help; ``trying`` is told of each before it is solved."""
    limit = min(settings.limit, limits.CHANGE_LIMIT)
    changes: list[Change] = []
    undecided: list[str] = []
    untimed: list[str] = []
    for kind, candidates in _kinds(request):
        ask = _Questions(settings=replace(settings, limit=limit))
        found: list[Change] = []
        trying(kind)
        for candidate in candidates(request, ask):
            trying(candidate.words)
            if change := ask.solved(candidate):
                found.append(change)
        if ask.undecided or ask.untimed or ask.near:
            limit = min(limit, max(limits.LEAST_CHANGE_LIMIT, limit / 2))
        changes += found
        if not found and ask.untimed:
            untimed.append(kind)
        elif not found and ask.undecided:
            undecided.append(kind)
    return InfeasibleError(
        str(refused), refused.short_bytes, refused.least_bytes, tuple(changes), tuple(undecided), tuple(untimed)
    )


def _kinds(request: Request) -> Iterator[tuple[str, _Candidates]]:
    """Kinds of changes, and what they are called where it is not decided whether one helps."""
    yield from (
        ("a smaller context", _context),
        ("another dtype of the KV cache", _kv_dtypes),
        ("another dtype of the weights", _dtypes),
        ("a smaller batch", _batch),
        ("no draft", _no_draft),
        ("a smaller tree", _tree),
        ("a smaller prefill chunk", _prefill_chunk),
        ("another KV axis", _axes),
        ("the fastest placement", _strategy),
    )
    if request.wanted.strategy == "custom":
        return  # the map says which devices are used
    for position, name, devices in _unlike_hosts(request):
        if not any(device.kind == "cpu" for device in devices):
            yield f"the host CPU of {name}", partial(_host_cpu, position, name)
    yield "one more device", _more_devices


def _options(request: Request) -> tuple[Options, Inventory]:
    """The options, with the least context where the longest is wanted."""
    dtype, inventory, wanted = understand(request)
    if wanted.context == "max":
        longest = resolve(wanted, dtype, request.base, request.draft).context
        wanted = replace(wanted, context=min(longest, least_step(wanted) * CONTEXT_STEP))
    return resolve(wanted, dtype, request.base, request.draft), inventory


def _asked(request: Request) -> Options:
    return _options(request)[0]


def _with(request: Request, wanted: Wanted) -> Request:
    return replace(request, wanted=wanted)


def _asking(request: Request, wanted: Wanted, words: str, *args: str) -> _Candidate:
    """What else may be wanted, by options."""
    return _Candidate(words=words, request=_with(request, wanted), args=args)


# Options


def _largest(least: int, most: int, make: Callable[[int], Request], ask: _Questions) -> int | None:
    """The largest n of a quantity with which a placement is found; one question where not even the least helps."""
    if least > most or not ask.fits(make(least)):
        return None
    return largest(least, most, lambda n: n == least or ask.fits(make(n)))


def _context(request: Request, ask: _Questions) -> Iterator[_Candidate]:
    """The largest multiple of 256, as ``--context max`` finds it, or where none fits the largest number below 256."""
    asked = _asked(request).context
    least = request.wanted.prefill_chunk or 1

    def of(context: int) -> Request:
        return _with(request, replace(request.wanted, context=context))

    steps = _largest(least_step(request.wanted), (asked - 1) // CONTEXT_STEP, lambda n: of(n * CONTEXT_STEP), ask)
    found = _largest(least, min(asked, CONTEXT_STEP) - 1, of, ask) if steps is None else steps * CONTEXT_STEP
    if found is not None:
        yield _Candidate(
            words=f"context down to {found}", request=of(found), args=("--context", str(found)), known=True
        )


def _kv_dtypes(request: Request, ask: _Questions) -> Iterator[_Candidate]:
    name: KvDType
    for name in get_args(KvDType):
        if KV_DTYPE_BYTES[name] < KV_DTYPE_BYTES[_asked(request).kv_dtype]:
            yield _asking(request, replace(request.wanted, kv_dtype=name), f"KV in {name}", "--kv-dtype", name)


def _dtypes(request: Request, ask: _Questions) -> Iterator[_Candidate]:
    name: DType
    for name in get_args(DType):
        if DTYPE_BYTES[name] < DTYPE_BYTES[_asked(request).dtype]:
            yield _asking(request, replace(request.wanted, dtype=name), f"weights in {name}", "--dtype", name)


def _batch(request: Request, ask: _Questions) -> Iterator[_Candidate]:
    def of(batch: int) -> Request:
        return _with(request, replace(request.wanted, batch=batch))

    found = _largest(1, request.wanted.batch - 1, of, ask)
    if found is not None:
        yield _Candidate(words=f"batch down to {found}", request=of(found), args=("--batch", str(found)), known=True)


def _no_draft(request: Request, ask: _Questions) -> Iterator[_Candidate]:
    if request.draft is not None:
        plain = replace(_with(request, replace(request.wanted, tree=None)), draft=None)
        yield _Candidate(words="no draft: a step is then one token", request=plain, args=("--no-draft",))


def _tree(request: Request, ask: _Questions) -> Iterator[_Candidate]:
    """The largest tree of the same depth and width."""
    tree = request.wanted.tree or DEFAULT_TREE
    if request.draft is None or tree.paths is not None:
        return

    def of(nodes: int) -> Request:
        return _with(request, replace(request.wanted, tree=replace(tree, total_token=nodes)))

    found = _largest(2, tree.total_token - 1, of, ask)
    if found is not None:
        text = f"total_token={found},depth={tree.depth},top_k={tree.top_k}"
        yield _Candidate(words=f"tree down to {found} nodes", request=of(found), args=("--tree", text), known=True)


def _prefill_chunk(request: Request, ask: _Questions) -> Iterator[_Candidate]:
    def of(chunk: int) -> Request:
        return _with(request, replace(request.wanted, prefill_chunk=chunk))

    found = _largest(1, _asked(request).prefill_chunk - 1, of, ask)
    if found is not None:
        words = f"prefill in chunks of {found}"
        yield _Candidate(words=words, request=of(found), args=("--prefill-chunk", str(found)), known=True)


def _axes(request: Request, ask: _Questions) -> Iterator[_Candidate]:
    """Another division of the KV cache than the one that was asked for."""
    name: KvAxis
    for name in get_args(KvAxis):
        if request.wanted.kv_axis not in (None, name):
            yield _asking(request, replace(request.wanted, kv_axis=name), f"KV divided by {name}", "--kv", name)


def _strategy(request: Request, ask: _Questions) -> Iterator[_Candidate]:
    """Without the order of a strategy; a device map is an argument of its own, which no option takes back."""
    if request.wanted.strategy not in ("latency", "custom"):
        free = replace(request.wanted, strategy="latency")
        yield _asking(request, free, "the fastest placement", "--strategy", "latency")


# Devices


def _host_cpu(position: int, name: str, request: Request, ask: _Questions) -> Iterator[_Candidate]:
    """The CPU of a host that does not list it, at rates that are assumed, with as much memory as hosts have: with the
    least that does, proofs take long.
    """
    problem = ask.problem(request)
    most = least_bytes(problem)
    short = max(0, most - sum(problem.capacity_bytes))
    granule = min(4 * GIB, max(MIB, 1 << max(0, short // 16).bit_length()))

    def size(granules: int) -> str:
        return units.render(units.SIZE, granules * granule)

    def of(granules: int) -> Request:
        entry = {"type": CPU, "memory": size(granules), "bandwidth": HOST_BANDWIDTH, "flops": HOST_FLOPS}
        return _with_device(request, position, "cpu", entry)

    found = _least(short // granule + 1, 2 * most // granule, of, ask)
    if found is None:
        return
    roomy = 1 << (found - 1).bit_length()
    enough = f" ({size(found)} are enough)" if found < roomy else ""
    words = f"the host CPU of {name} as a device, if {size(roomy)} are free{enough}, at {HOST_BANDWIDTH} and "
    yield _Candidate(words=words + HOST_FLOPS, request=of(roomy), inventory=True, known=True)


def _least(start: int, most: int, make: Callable[[int], Request], ask: _Questions) -> int | None:
    """The least number from ``start`` on with which a placement is known to exist. None: none is known of any below
    ``most``. Powers of two are asked first.
    """
    roomy = 1 << (start - 1).bit_length()
    while not (known := ask.known(make(roomy), briefly=roomy <= most)):
        if roomy > most:
            ask.undecided = known is None
            return None
        start, roomy = (start if known is None else roomy + 1), 2 * roomy
    low, high = start - 1, roomy
    while high - low > 1:
        middle = (low + high) // 2
        known = ask.known(make(middle), briefly=True)
        if known is None:
            break
        low, high = (low, middle) if known else (middle, high)
    return high


def _more_devices(request: Request, ask: _Questions) -> Iterator[_Candidate]:
    """One more of each device that is unlike the others of its host."""
    for position, name, devices in _unlike_hosts(request):
        entries = {entry["id"]: entry for entry in request.inventory["hosts"][position]["devices"]}
        seen = set()
        for device in devices:
            if _figures(device) in seen:
                continue
            seen.add(_figures(device))
            entry = {key: value for key, value in entries[device.id].items() if key not in ("id", "ordinal")}
            memory = units.render(units.SIZE, device.memory_bytes)
            yield _Candidate(
                words=f"one more {device.type} of {memory} on {name}, like {device.id}",
                request=_with_device(request, position, device.id, entry),
                inventory=True,
            )


def _unlike_hosts(request: Request) -> Iterator[tuple[int, str, list[Device]]]:
    """Hosts as the file lists them, with their devices; of those that nothing tells apart the first in order."""
    _, inventory = _options(request)
    positions = {entry["name"]: position for position, entry in enumerate(request.inventory["hosts"])}
    seen = set()
    for host in inventory.hosts:
        devices = [device for device in inventory.devices if device.host == host.name]
        links = (host.link, host.transport, host.name if host.pairs else "")
        likeness = (links, tuple(sorted(map(_figures, devices))))
        if likeness not in seen:
            seen.add(likeness)
            yield positions[host.name], host.name, devices


def _figures(device: Device) -> tuple[str | int, ...]:
    """What a placement can tell of a device."""
    rates = (device.bandwidth_bytes_per_s, device.flops_per_s, device.overhead_ns)
    return (device.type, device.memory_bytes, device.reserve_bytes, *rates)


def _with_device(request: Request, position: int, like: str, entry: Mapping[str, Any]) -> Request:
    """The request with one more device on a host, under a free id after ``like``; the others keep their ordinals."""
    _, inventory = _options(request)
    data = copy.deepcopy(request.inventory)
    listed = data["hosts"][position]["devices"]
    here = [device for device in inventory.devices if device.host == data["hosts"][position]["name"]]
    added = {"id": _free_id(like, {device.id for device in inventory.devices}), **entry}
    if entry["type"] != CPU:
        ordinals = {device.id: device.ordinal for device in here if device.kind != "cpu"}
        added["ordinal"] = max(ordinals.values(), default=-1) + 1
        if natural_key(added["id"]) < max(map(natural_key, ordinals), default=natural_key("")):
            for other in listed:  # numbered by position, which would be another one now
                if other["id"] in ordinals:
                    other["ordinal"] = ordinals[other["id"]]
    listed.append(added)
    return replace(request, inventory=data)


def _free_id(like: str, taken: set[str]) -> str:
    """``like`` itself, or its letters with the next number."""
    if like not in taken:
        return like
    letters = like.rstrip("0123456789")
    tails = [name.removeprefix(letters) for name in taken if name.startswith(letters)]
    return f"{letters}{max((int(tail) for tail in tails if tail.isdecimal()), default=0) + 1}"
