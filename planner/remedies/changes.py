"""Changes of a refused request that may make it fit: of one option, or more devices of one type.

A quantity is changed no more than it must be: bytes only grow with it, so the largest value that fits is found by
bisection.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import get_args

from planner.enough_hosts import needed_bytes, short_bytes
from planner.errors import ConfigError
from planner.families import rounded
from planner.hardware import units
from planner.hardware.catalog import CPU, catalog
from planner.hardware.records import ListedDevice
from planner.integers import ceil_div
from planner.longest_context import CONTEXT_STEP, largest, least_step
from planner.remedies.probe import Candidate, Probe
from planner.request import DEFAULT_TREE, Request, Wanted, resolve_dtype, tree_text
from plans.check_inputs import MOST_DEVICES
from plans.dtypes import DTYPE_BYTES, KV_DTYPE_BYTES
from plans.format import format_bytes
from plans.schema import DType, Host, KvAxis, KvDType, RoundedWeights

HOST_BANDWIDTH_BYTES_PER_S = 40 * 10**9
HOST_FLOPS_PER_S = 500 * 10**9
"""Rates assumed for a host CPU that the inventory does not list, and named in the change: two channels of DDR4, eight
cores with AVX2."""

MOST_MORE = 64
"""Most devices of one type that are suggested beside those that are listed."""

FEWER_BITS: tuple[tuple[RoundedWeights, ...], ...] = (("int8",), ("int4-g128", "int4-g32"))
"""Formats of 8 and 4 bits that are suggested: of each the first whose groups divide the model's columns."""

MIB = 1 << 20
GIB = 1 << 30

Candidates = Callable[[Probe], Iterator[Candidate]]


def kinds_of_change(request: Request) -> Iterator[tuple[str, Candidates]]:
    """Yield each kind of change with its candidates; its name is what a refusal calls it where it is not decided."""
    options: dict[str, Callable[[Request, Probe], Iterator[Candidate]]] = {
        "a smaller context": _context,
        "another dtype of the KV cache": _kv_dtypes,
        "another dtype of the weights": _dtypes,
        "fewer bits of the weights": _fewer_bits,
        "a smaller batch": _batch,
        "no draft": _no_draft,
        "a smaller tree": _tree,
        "a smaller prefill chunk": _prefill_chunk,
        "another KV axis": _axes,
        "the fastest placement": _strategy,
        "more devices in use": _more_in_use,
    }
    for name, candidates in options.items():
        yield name, partial(candidates, request)
    if request.wanted.strategy == "custom":
        return  # the device map says which devices are used
    for host, devices in _unlike_hosts(request):
        if not any(device.kind == "cpu" for device in devices):
            yield f"the host CPU of {host.name}", partial(_host_cpu, request, host)
    for host, device, last in _unlike_devices(request):
        yield f"more {device.type} on {host.name}", partial(_more_devices, request, host, device, last)


def _with(request: Request, wanted: Wanted) -> Request:
    return replace(request, wanted=wanted)


def _asking(request: Request, wanted: Wanted, words: str, *args: str) -> Candidate:
    """Return the candidate that asks for other options."""
    return Candidate(words=words, request=_with(request, wanted), args=args)


# Options


def _largest(least: int, most: int, changed: Callable[[int], Request], probe: Probe) -> int | None:
    """Return the largest value of a quantity with which a placement is known; one question where the least has none."""
    if least > most or not probe.fits(changed(least)):
        return None
    return largest(least, most, lambda n: n == least or probe.fits(changed(n)))


def _context(request: Request, probe: Probe) -> Iterator[Candidate]:
    """Yield the largest multiple of 256, as ``--context max`` finds it, or if none fits the largest number below."""
    asked = probe.options(request).context
    least = request.wanted.prefill_chunk or 1

    def changed(context: int) -> Request:
        return _with(request, replace(request.wanted, context=context))

    first_step = least_step(request.wanted)
    steps = _largest(first_step, (asked - 1) // CONTEXT_STEP, lambda n: changed(n * CONTEXT_STEP), probe)
    below = None if steps else _largest(least, min(asked, CONTEXT_STEP) - 1, changed, probe)
    context = steps * CONTEXT_STEP if steps else below
    if context is not None:
        yield Candidate(
            words=f"context down to {context}", request=changed(context), args=("--context", str(context)), known=True
        )


def _kv_dtypes(request: Request, probe: Probe) -> Iterator[Candidate]:
    asked: KvDType = probe.options(request).kv_dtype
    name: KvDType
    for name in get_args(KvDType):
        if KV_DTYPE_BYTES[name] < KV_DTYPE_BYTES[asked]:
            yield _asking(request, replace(request.wanted, kv_dtype=name), f"KV in {name}", "--kv-dtype", name)


def _dtypes(request: Request, probe: Probe) -> Iterator[Candidate]:
    asked: DType = probe.options(request).dtype
    name: DType
    for name in get_args(DType):
        if DTYPE_BYTES[name] < DTYPE_BYTES[asked]:
            yield _asking(request, replace(request.wanted, dtype=name), f"weights in {name}", "--dtype", name)


def _fewer_bits(request: Request, probe: Probe) -> Iterator[Candidate]:
    """Yield the weights rounded to 8 and to 4 bits, where the checkpoint has them plain, if they need fewer bytes."""
    plain = request.base.plain or request.base
    if any(source.stored is not None for source in plain.roles.values()):
        return
    needed = needed_bytes(probe.formulation(request))
    for choices in FEWER_BITS:
        for name in choices:
            try:
                base = rounded(plain, name)
            except ConfigError:  # groups that do not divide its columns
                continue
            changed = replace(_with(request, replace(request.wanted, weights=name)), base=base)
            fewer = needed_bytes(probe.formulation(changed))
            if fewer >= needed:
                break
            words = f"weights in {name}: {format_bytes(fewer)} in all instead of {format_bytes(needed)}"
            yield Candidate(words=words, request=changed, args=("--weights", name))
            break


def _batch(request: Request, probe: Probe) -> Iterator[Candidate]:
    def changed(batch: int) -> Request:
        return _with(request, replace(request.wanted, batch=batch))

    batch = _largest(1, request.wanted.batch - 1, changed, probe)
    if batch is not None:
        yield Candidate(
            words=f"batch down to {batch}", request=changed(batch), args=("--batch", str(batch)), known=True
        )


def _more_in_use(request: Request, probe: Probe) -> Iterator[Candidate]:
    """Yield the fewest devices with which a placement is known, where fewer are asked for."""
    asked, listed = request.wanted.max_devices, len(request.inventory.devices)
    if asked is None or asked >= listed:
        return

    def changed(count: int) -> Request:
        return _with(request, replace(request.wanted, max_devices=count))

    count = _least(asked + 1, listed, changed, probe)
    if count is not None:
        args = ("--max-devices", str(count))
        yield Candidate(words=f"{count} devices in use", request=changed(count), args=args, known=True)


def _no_draft(request: Request, probe: Probe) -> Iterator[Candidate]:
    """Yield plain decoding, unless the device map places the drafter and would then be refused."""
    pins = request.wanted.custom or ()
    if request.draft is not None and not any(pin.module == "draft" for pin in pins):
        plain = replace(_with(request, replace(request.wanted, tree=None)), draft=None)
        yield Candidate(words="no draft: a step is then one token", request=plain, args=("--no-draft",))


def _tree(request: Request, probe: Probe) -> Iterator[Candidate]:
    """Yield the largest tree of the same depth and width."""
    tree = request.wanted.tree or DEFAULT_TREE
    if request.draft is None or tree.paths is not None or request.draft.draft.mask_token_id is not None:
        return  # a chain has one depth for each number of nodes

    def changed(nodes: int) -> Request:
        return _with(request, replace(request.wanted, tree=replace(tree, total_token=nodes)))

    nodes = _largest(2, tree.total_token - 1, changed, probe)
    if nodes is not None:
        args = ("--tree", tree_text(replace(tree, total_token=nodes)))
        yield Candidate(words=f"tree down to {nodes} nodes", request=changed(nodes), args=args, known=True)


def _prefill_chunk(request: Request, probe: Probe) -> Iterator[Candidate]:
    def changed(chunk: int) -> Request:
        return _with(request, replace(request.wanted, prefill_chunk=chunk))

    chunk = _largest(1, probe.options(request).prefill_chunk - 1, changed, probe)
    if chunk is not None:
        words = f"prefill in chunks of {chunk}"
        yield Candidate(words=words, request=changed(chunk), args=("--prefill-chunk", str(chunk)), known=True)


def _axes(request: Request, probe: Probe) -> Iterator[Candidate]:
    """Yield the other axes along which the KV cache may be divided, where one was asked for."""
    name: KvAxis
    for name in get_args(KvAxis):
        if request.wanted.kv_axis not in (None, name):
            yield _asking(request, replace(request.wanted, kv_axis=name), f"KV divided by {name}", "--kv", name)


def _strategy(request: Request, probe: Probe) -> Iterator[Candidate]:
    """Yield the strategy ``latency``; a device map is an argument of its own, which no further option takes back."""
    if request.wanted.strategy not in ("latency", "custom"):
        free = replace(request.wanted, strategy="latency")
        yield _asking(request, free, "the fastest placement", "--strategy", "latency")


# Devices


def _host_cpu(request: Request, host: Host, probe: Probe) -> Iterator[Candidate]:
    """Yield the CPU of a host that does not list it, at assumed rates and with a power of two of memory.

    With the least memory that is enough, proofs take long.
    """
    formulation = probe.formulation(request)
    needed, short = needed_bytes(formulation), short_bytes(formulation)
    granule = min(4 * GIB, max(MIB, 1 << max(0, short // 16).bit_length()))

    def changed(granules: int) -> Request:
        cpu = _assumed_cpu(request, host, granules * granule)
        return replace(request, inventory=request.inventory.with_device(cpu))

    enough = _least(short // granule + 1, 2 * needed // granule, changed, probe)
    if enough is None:
        return
    roomy = 1 << (enough - 1).bit_length()
    less = f" ({units.render(units.SIZE, enough * granule)} are enough)" if enough < roomy else ""
    bandwidth = units.render(units.BANDWIDTH, HOST_BANDWIDTH_BYTES_PER_S)
    flops = units.render(units.RATE, HOST_FLOPS_PER_S)
    words = f"the host CPU of {host.name} as a device, if {units.render(units.SIZE, roomy * granule)} are free{less}"
    yield Candidate(
        words=f"{words}, at {bandwidth} and {flops}", request=changed(roomy), changes_inventory=True, known=True
    )


def _assumed_cpu(request: Request, host: Host, memory_bytes: int) -> ListedDevice:
    row = catalog().devices[CPU]
    return ListedDevice(
        id=_free_id(CPU, request),
        host=host.name,
        type=CPU,
        kind="cpu",
        ordinal=0,
        uuid=None,
        reported_name=row.reported_name,
        memory_bytes=memory_bytes,
        reserve_bytes=row.reserve_bytes,
        bandwidth_bytes_per_s=HOST_BANDWIDTH_BYTES_PER_S,
        flops_per_s=dict.fromkeys(DTYPE_BYTES, HOST_FLOPS_PER_S),
        overhead_ns=row.overhead_ns,
        compute_capability=row.compute_capability,
    )


def _least(start: int, most: int, changed: Callable[[int], Request], probe: Probe) -> int | None:
    """Return the least number from ``start`` on with which a placement is known, None where none is known to ``most``.

    Powers of two are asked first, in rising order; then the interval below the first that fits is bisected.
    """
    roomy = 1 << (start - 1).bit_length()
    while not (known := probe.known(changed(roomy), briefly=roomy <= most)):
        if roomy > most:
            probe.undecided = known is None
            return None
        start, roomy = (start if known is None else roomy + 1), 2 * roomy
    low, high = start - 1, roomy
    while high - low > 1:
        middle = (low + high) // 2
        known = probe.known(changed(middle), briefly=True)
        if known is None:
            break
        low, high = (low, middle) if known else (middle, high)
    return high


def _unlike_devices(request: Request) -> Iterator[tuple[Host, ListedDevice, int]]:
    """Yield each device that is unlike the others of its host, with the host and the host's last ordinal."""
    for host, devices in _unlike_hosts(request):
        last = max((device.ordinal for device in devices if device.kind == "cuda"), default=-1)
        unlike = {_figures(device, request): device for device in reversed(devices)}
        yield from ((host, device, last) for device in devices if device in unlike.values())


def _more_devices(
    request: Request, host: Host, like: ListedDevice, last_ordinal: int, probe: Probe
) -> Iterator[Candidate]:
    """Yield the fewest more of a device with which a placement is known; the others keep their ordinals."""
    short = short_bytes(probe.formulation(request))
    start = max(1, ceil_div(short, max(1, like.memory_bytes - like.reserve_bytes)))
    listed = len(request.inventory.devices)
    most = 1 if like.kind == "cpu" else min(MOST_MORE, MOST_DEVICES - listed)  # a host has one CPU, rarely two
    if start > most:
        return

    def changed(count: int) -> Request:
        return _with_more(request, like, count, last_ordinal)

    enough = probe.fits(changed(start))
    more = min(2 * start + 2, most)
    count = start if enough else _least(start + 1, more, changed, probe) if start < more else None
    if count is not None:
        memory = units.render(units.SIZE, like.memory_bytes)
        number = "one" if count == 1 else count
        yield Candidate(
            words=f"{number} more {like.type} of {memory} on {host.name}, like {like.id}",
            request=changed(count),
            changes_inventory=True,
            known=True,
        )


def _with_more(request: Request, like: ListedDevice, count: int, last_ordinal: int) -> Request:
    """Return the request with so many more of a device, which follow the last accelerator of the host."""
    for number in range(1, count + 1):
        ordinal = 0 if like.kind == "cpu" else last_ordinal + number
        another = replace(like, id=_free_id(like.id, request), ordinal=ordinal, uuid=None)
        request = replace(request, inventory=request.inventory.with_device(another))
    return request


def _unlike_hosts(request: Request) -> Iterator[tuple[Host, list[ListedDevice]]]:
    """Yield hosts with their devices; of hosts that differ only in names, the first."""
    seen = set()
    for host in request.inventory.hosts:
        devices = [device for device in request.inventory.devices if device.host == host.name]
        links = (host.link, host.transport, host.name if host.pairs else "")
        likeness = (links, tuple(sorted(_figures(device, request) for device in devices)))
        if likeness not in seen:
            seen.add(likeness)
            yield host, devices


def _figures(device: ListedDevice, request: Request) -> tuple[str | int, ...]:
    """Return everything about a device on which a placement may depend but its name and host."""
    dtype = resolve_dtype(request.wanted, request.base, request.inventory)
    rates = (
        device.bandwidth_bytes_per_s,
        device.flops_per_s[dtype],
        device.overhead_ns,
        device.compute_capability or 0,
    )
    return (device.type, device.memory_bytes, device.reserve_bytes, *rates)


def _free_id(like: str, request: Request) -> str:
    """Return an id that no device has: ``like`` itself, or its letters with the next number."""
    ids = {device.id for device in request.inventory.devices}
    if like not in ids:
        return like
    letters = like.rstrip("0123456789")
    tails = [name.removeprefix(letters) for name in ids if name.startswith(letters)]
    return f"{letters}{max((int(tail) for tail in tails if tail.isdecimal()), default=0) + 1}"
