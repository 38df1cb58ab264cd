"""Invariants of a plan: it is consistent in itself, byte for byte; nothing is solved and no other file is read.

``check`` never raises for a decoded plan, however wrong it is: it reports every violation that it can establish. Memory
and transports, which follow from names and shares, are checked only where those are sound.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

from plans import codec
from plans.buffer import TERMS
from plans.buffers import device_terms
from plans.check_inputs import check_facts
from plans.check_proof import check_proof, classes_of
from plans.kv import KvDivision, kv_division
from plans.places import is_movable, is_padded
from plans.quantized import divides, head_unit
from plans.schema import (
    Attention,
    Draft,
    DraftPlacement,
    Inventory,
    LayerClass,
    Mlp,
    Options,
    Plan,
    PlanError,
    Run,
    Stage,
    Transport,
    VocabSplit,
)
from plans.shared_memory import share_memory
from plans.step import steps
from plans.usable import check_usable
from plans.violations import Violation, bad, show

UNPLANNED = "edited by hand, or built by another version"
"""Reason that a plan contradicts itself, where no more is known: ``build`` writes none that does."""

MOST_VIOLATIONS = 50
"""Most violations in the message of an error."""


class InvalidPlanError(PlanError):
    """A plan that reads well and contradicts itself; ``violations`` has an entry for every wrong datum."""

    def __init__(self, where: str, violations: tuple[Violation, ...], change: str = UNPLANNED) -> None:
        """``change``: how the plan came to contradict itself; it comes first in the message."""
        shown = [f"{where}: {violation}" for violation in violations[:MOST_VIOLATIONS]]
        more = [f"{where}: {len(violations) - len(shown)} more"] if len(violations) > len(shown) else []
        super().__init__("\n".join([f"{where}: {change}, and now:", *shown, *more]))
        self.violations = violations


def require(plan: Plan, where: str) -> None:
    """Raise InvalidPlanError (exit 2) with all violations of ``plan``, one a line, unless there are none."""
    if violations := check(plan):
        raise InvalidPlanError(where, violations)


def load(directory: Path) -> Plan:
    """Return the plan of a directory; raise PlanError (exit 2), also where it contradicts itself."""
    plan = codec.load(directory)
    require(plan, str(directory / codec.PLAN_FILE))
    return plan


def check(plan: Plan) -> tuple[Violation, ...]:
    """Return all violations of a plan, in the order of its fields; none for a plan that may be executed."""
    facts = check_facts(plan)
    placement = (*_check_stages(plan), *_check_vocabulary(plan), *_check_placement(plan))
    placement += (*check_usable(plan, plan.placed),)
    if facts or placement:
        return facts + placement
    return (*_check_schedule(plan), *_check_transports(plan), *_check_memory(plan), *check_proof(plan))


def group_transport(inventory: Inventory, members: Iterable[str]) -> Transport:
    """Return the transport of a group: nccl between distinct GPUs, else shm on one machine, else gloo.

    A host may ask for gloo.
    """
    ids = set(members)
    devices = [device for device in inventory.devices if device.id in ids]
    if len(devices) == 1:
        return "local"
    hosts = {host.name: host for host in inventory.hosts}
    gpus = {(device.host, device.ordinal) for device in devices if device.kind == "cuda"}
    auto = all(hosts[device.host].transport == "auto" for device in devices)
    if auto and len(gpus) == len(devices):
        return "nccl"
    return "shm" if auto and share_memory(inventory, (device.host for device in devices)) else "gloo"


def hop_transport(inventory: Inventory, before: tuple[str, ...], group: tuple[str, ...]) -> Transport:
    """Return the transport from the leader of one group to another; ``local`` to the same devices."""
    return "local" if before == group else group_transport(inventory, (before[0], *group))


def _check_stages(plan: Plan) -> Iterator[Violation]:
    seen: dict[str, int] = {}
    first = 0
    for i, stage in enumerate(plan.stages):
        path = f"stages[{i}]"
        if stage.first_layer != first:
            yield bad(f"{path}.first_layer", stage.first_layer, f"{first}, where the stage before ends")
        yield from _check_group(f"{path}.devices", stage.devices, plan.inventory)
        for j, device in enumerate(stage.devices):
            if seen.setdefault(device, i) != i:
                yield bad(f"{path}.devices[{j}]", device, f"another device: stages[{seen[device]}] has this one")
        yield from _check_subgroups(path, kv_division(stage), len(stage.devices), plan.options)
        yield from _check_axis(path, stage, plan.options)
        if not stage.runs:
            yield bad(f"{path}.runs", (), "at least one run of layers")
        for j, run in enumerate(stage.runs):
            classes = tuple(classes_of(plan.model, first, first + run.num_layers))
            if len({layers.mlp for layers in classes}) > 1:
                yield bad(f"{path}.runs[{j}].num_layers", run.num_layers, "fewer: the layers of a run have one MLP")
            for layers in classes:
                yield from _check_run(f"{path}.runs[{j}]", run, stage, layers.attention, layers.mlp)
                yield from _check_parts(f"{path}.kv_subgroups", kv_division(stage), layers.attention)
                yield from _check_head_unit(f"{path}.runs[{j}].kv_heads", run.kv_heads, kv_division(stage), layers)
            if run.num_layers < 1:
                yield bad(f"{path}.runs[{j}].num_layers", run.num_layers, "at least 1")
            first += run.num_layers
    total = plan.model.num_layers
    if first != total or not plan.stages:
        yield bad("stages", f"{first} layers", f"the model's {total}")


def _check_group(path: str, group: tuple[str, ...], inventory: Inventory) -> Iterator[Violation]:
    known, before = {device.id for device in inventory.devices}, set[str]()
    if not group:
        yield bad(path, (), "at least one device")
    for i, device in enumerate(group):
        if device not in known:
            yield bad(f"{path}[{i}]", device, "a device of the inventory")
        if device in before:
            yield bad(f"{path}[{i}]", device, "another device: the group has this one already")
        before.add(device)


def _check_run(path: str, run: Run, stage: Stage, attention: Attention, mlp: Mlp) -> Iterator[Violation]:
    count = len(stage.devices)
    yield from _check_heads(f"{path}.kv_heads", run.kv_heads, kv_division(stage), count, attention.num_kv_heads)
    yield from _check_shares(f"{path}.mlp_units", run.mlp_units, count, _units(mlp), "MLP units", 0)


def _units(mlp: Mlp) -> int:
    """Return the units of a layer, also where the plan has a unit of no channels, which is a violation of its own."""
    return mlp.units if mlp.unit > 0 else mlp.intermediate_size


def _check_axis(path: str, stage: Stage, options: Options) -> Iterator[Violation]:
    asked = options.kv_axis
    if asked is not None and len(stage.devices) > 1 and stage.kv_axis != asked:
        yield bad(f"{path}.kv_axis", stage.kv_axis, f"{asked}, as options.kv_axis asks for")


def _check_subgroups(path: str, divided: KvDivision, count: int, options: Options) -> Iterator[Violation]:
    sizes, axis = divided.subgroups, divided.axis
    if sum(sizes) != count or min(sizes, default=0) < 1:
        yield bad(f"{path}.kv_subgroups", sizes, f"sizes of at least 1 that add up to {count} devices")
        return
    if axis != "heads" and max(sizes) == 1:
        yield bad(f"{path}.kv_subgroups", sizes, "a subgroup of 2 or more")
    if axis == "batch" and max(sizes) > options.batch:
        yield bad(f"{path}.kv_subgroups", sizes, f"at most {options.batch} in a subgroup, a sequence each")


def _check_parts(path: str, divided: KvDivision, attention: Attention) -> Iterator[Violation]:
    """Check that a KV head is divided into equal parts of whole rotary pairs, or by ``heads`` of whole query heads."""
    pairs, queries = attention.head_dim // 2, attention.num_heads // max(1, attention.num_kv_heads)
    sizes, axis = divided.subgroups, divided.axis
    if axis == "heads" and any(size > 0 and queries % size for size in sizes):
        yield bad(path, sizes, f"divisors of the {queries} query heads of a KV head, as the axis is heads")
    if attention.qk_norm_whole and max(sizes, default=1) > 1:
        yield bad(path, sizes, "subgroups of 1: all heads are normed together, and each is on one device")
    if not all(size < 1 or divides(attention, axis, size) for size in sizes):
        yield bad(path, sizes, "subgroups that cut the columns of o between the groups of its format")
    if axis == "head_dim" and attention.qk_norm:
        yield bad(path, sizes, "subgroups of 1: a norm of q and k is of a whole head")
    if axis == "head_dim" and any(size > 0 and pairs % size for size in sizes):
        yield bad(path, sizes, f"divisors of the {pairs} rotary pairs of a head")


def _check_head_unit(
    path: str, shares: tuple[int, ...], divided: KvDivision, layers: LayerClass
) -> Iterator[Violation]:
    """Check that subgroups begin where a group of columns of o begins."""
    unit, sizes = head_unit(layers.attention), divided.subgroups
    if unit == 1 or sum(sizes) != len(shares) or min(sizes, default=0) < 1:
        return  # nothing to check, or refused before
    firsts = accumulate(shares[i] for i in divided.starts[:-1])
    if any(first % unit for first in firsts):
        yield bad(path, shares, f"all but the last in multiples of {unit} KV heads, with whole groups of o's columns")


def _check_heads(
    path: str, shares: tuple[int, ...], divided: KvDivision, count: int, total: int
) -> Iterator[Violation]:
    """Check that the members of a subgroup hold the same KV heads, and that all are held."""
    sizes = divided.subgroups
    if max(sizes, default=1) == 1 or sum(sizes) != len(shares) or min(sizes) < 1:
        yield from _check_shares(path, shares, count, total, "KV heads", 1)
        return
    same = all(len(set(shares[i : i + size])) == 1 for i, size in zip(divided.starts, sizes, strict=True))
    if not same or sum(shares[i] for i in divided.starts) != total or min(shares) < 1:
        expected = f"shares of {total} KV heads for subgroups of {show(sizes)}, each at least 1 and equal inside one"
        yield bad(path, shares, expected)


def _check_shares(
    path: str, shares: tuple[int, ...], count: int, total: int, what: str, least: int
) -> Iterator[Violation]:
    if len(shares) != count or sum(shares) != total or min(shares, default=least) < least:
        minimum = f", each at least {least}" if least else ""
        yield bad(path, shares, f"{count} shares of {total} {what}{minimum}")


def _check_vocabulary(plan: Plan) -> Iterator[Violation]:
    for path, split in (("embed", plan.embed), ("head", plan.head)):
        yield from _check_group(f"{path}.devices", split.devices, plan.inventory)
        yield from _check_shares(f"{path}.rows", split.rows, len(split.devices), plan.model.vocab_size, "rows", 0)


def _check_placement(plan: Plan) -> Iterator[Violation]:
    placement, draft = plan.draft_placement, plan.draft
    if placement is None or draft is None:
        return
    path, count = "draft_placement", len(placement.devices)
    yield from _check_group(f"{path}.devices", placement.devices, plan.inventory)
    yield from _check_draft_heads(plan, placement, draft)
    yield from _check_shares(f"{path}.mlp_units", placement.mlp_units, count, _units(draft.mlp), "MLP units", 0)
    yield from _check_draft_embedding(plan, placement, draft)
    yield from _check_draft_head(plan, placement, draft)


def _check_draft_heads(plan: Plan, placement: DraftPlacement, draft: Draft) -> Iterator[Violation]:
    path, count, divided = "draft_placement", len(placement.devices), kv_division(placement)
    if placement.kv_axis is None and placement.kv_subgroups is not None:
        yield bad(f"{path}.kv_axis", None, "one, as there are kv_subgroups")
    elif placement.kv_axis is not None and max(divided.subgroups, default=2) == 1:
        yield bad(f"{path}.kv_axis", placement.kv_axis, "nothing, as no KV head is on more than one device")
    else:
        yield from _check_subgroups(path, divided, count, plan.options)
        yield from _check_parts(f"{path}.kv_subgroups", divided, draft.attention)
    yield from _check_heads(f"{path}.kv_heads", placement.kv_heads, divided, count, draft.attention.num_kv_heads)


def _check_draft_embedding(plan: Plan, placement: DraftPlacement, draft: Draft) -> Iterator[Violation]:
    path, first = "draft_placement.embed_rows", plan.embed.devices
    if placement.embed_rows is not None and placement.devices == first and not draft.own_embedding:
        yield bad(path, placement.embed_rows, "nothing, as the base's are on the same devices")
    elif placement.embed_rows is not None:
        rows = plan.model.vocab_size
        yield from _check_shares(path, placement.embed_rows, len(placement.devices), rows, "rows", 0)
    elif draft.own_embedding:
        yield bad(path, None, "shares, as the drafter has its own embedding")
    elif placement.devices != first:
        yield bad(path, None, f"shares, as the base's are on {show(first)}")


def _check_draft_head(plan: Plan, placement: DraftPlacement, draft: Draft) -> Iterator[Violation]:
    path, last = "draft_placement.head_rows", plan.head.devices
    if placement.head_rows is not None and placement.devices == last and not draft.own_head:
        yield bad(path, placement.head_rows, "nothing, as the base's are on the same devices")
    elif placement.head_rows is not None:
        rows = draft.draft_vocab_size
        yield from _check_shares(path, placement.head_rows, len(placement.devices), rows, "rows", 0)
    elif draft.own_head:
        yield bad(path, None, "shares, as the drafter has its own lm_head")
    elif placement.devices != last:
        yield bad(path, None, f"shares, as the base's are on {show(last)}")


def _check_transports(plan: Plan) -> Iterator[Violation]:
    placement, inventory = plan.draft_placement, plan.inventory
    chain: list[tuple[str, tuple[str, ...], Stage | VocabSplit]] = [("embed", plan.embed.devices, plan.embed)]
    chain += [(f"stages[{i}]", stage.devices, stage) for i, stage in enumerate(plan.stages)]
    chain.append(("head", plan.head.devices, plan.head))
    befores = [plan.embed.devices, *(devices for _, devices, _ in chain)]
    for (path, devices, link), before in zip(chain, befores, strict=False):
        yield from _check_transport(f"{path}.transport", link.transport, inventory, (), devices)
        yield from _check_transport(f"{path}.hop_transport", link.hop_transport, inventory, before, devices)
    if placement is not None:
        path = "draft_placement"
        yield from _check_transport(f"{path}.transport", placement.transport, inventory, (), placement.devices)
        features = f"{path}.feature_transport"
        yield from _check_transport(
            features, placement.feature_transport, inventory, plan.head.devices, placement.devices
        )
    yield from _check_transport("message_transport", plan.message_transport, inventory, (), plan.placed)


def _check_transport(
    path: str, transport: Transport, inventory: Inventory, before: tuple[str, ...], group: tuple[str, ...]
) -> Iterator[Violation]:
    """Check the transport of a group, or of the hop from the group ``before`` to it."""
    expected = hop_transport(inventory, before, group) if before else group_transport(inventory, group)
    if transport == expected:
        return
    if before == group:
        yield bad(path, transport, f"local: nothing is sent to the same devices, {show(group)}")
    else:
        yield bad(path, transport, f"{expected} between {show(tuple(dict.fromkeys((*before[:1], *group))))}")


def _check_schedule(plan: Plan) -> Iterator[Violation]:
    """Check that a step of few sequences can leave out the places of the others, as its buffers are counted."""
    path = "options.schedule"
    if plan.options.schedule is None:
        return
    if not is_movable(plan):
        yield bad(path, "trees by number of sequences", "nothing: a KV cache is divided by batch, so none is left out")
    elif is_padded(plan):
        for i, (most, _) in enumerate(steps(plan.options)[:-1], 1):
            if most & (most - 1):
                expected = "one more than a power of two: with a GPU, steps have so many places"
                yield bad(f"{path}[{i}].sequences", most + 1, expected)


def _check_memory(plan: Plan) -> Iterator[Violation]:
    listed = tuple(entry.device for entry in plan.memory)
    if listed != plan.placed:
        yield bad("memory", listed, f"the devices in use, {show(plan.placed)}")
        return
    drafting = plan.draft_placement.devices if plan.draft_placement is not None else ()
    serving = {*(device for stage in plan.stages for device in stage.devices), *plan.head.devices}
    serving.update(device for device, rows in zip(plan.embed.devices, plan.embed.rows, strict=True) if rows)
    for i, entry in enumerate(plan.memory):
        path, device = f"memory[{i}]", plan.device(entry.device)
        terms = device_terms(plan, entry.device)
        for term in TERMS:
            name = f"{term}_bytes"
            if getattr(entry, name) != terms[term]:
                yield bad(f"{path}.{name}", getattr(entry, name), f"{terms[term]}, as its buffers take")
        for name, group in (("weights_bytes", serving), ("draft_weights_bytes", drafting)):
            if (getattr(entry, name) > 0) != (entry.device in group):
                role = "more than 0" if entry.device in group else "0"
                yield bad(f"{path}.{name}", getattr(entry, name), f"{role} for the part that {entry.device} has")
        room = device.capacity_bytes
        if entry.planned_bytes > room:
            yield bad(path, f"{entry.planned_bytes} bytes planned", f"at most {room}: memory less reserve")
