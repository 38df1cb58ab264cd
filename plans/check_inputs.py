"""Checks of options, inventory, model and draft of a plan, each by itself, and the limits of a plan.

Every number from which the runtime computes a shape, an index or the length of a loop has an upper bound: sizes of
dimensions here, shares by these sizes and bytes by the memory of the devices in ``plans.check``.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from plans.artifact import DEVICE_ID, DEVICE_UUID
from plans.schema import (
    SCHEMA_MAJOR,
    Attention,
    Device,
    Draft,
    Inventory,
    Link,
    Mlp,
    Model,
    Options,
    Plan,
    Rotary,
    Router,
    Tree,
)
from plans.step import fed_rows, is_chain, pool_rows

_SHA256 = re.compile(r"[0-9a-f]{64}")
MOST_SHOWN = 16
"""Most entries of a sequence in a message."""
MOST_SIZE = (1 << 31) - 1
"""Largest vocabulary, hidden size, number of channels, and context."""
MOST_HEADS, MOST_HEAD_DIM = 1024, 4096
"""Most query heads of a layer, and largest head: shares are expanded head by head."""
MOST_LAYERS = 1024
"""Most layers of a model, of all classes together, or of a drafter: plans are expanded layer by layer."""
MOST_TABLES = 8
"""Most rotary tables of a model."""
MOST_EXPERTS = 1024
"""Most experts of one layer."""
MOST_BATCH = 1024
"""Most sequences decoded at a time."""
MOST_DEVICES = 4096
"""Most devices of an inventory."""
MOST_MASK_VALUES = 1 << 22
"""Most values of a mask of trees; a few of these are made in a step, and are not counted as buffers."""
ROUNDING_PPM = 100
"""Most by which rounding may make the difference between two predicted step times, in parts per million."""
LOGIT_SCALE = (1e-6, 1e6)
"""Least and largest factor of the logits of a drafter: those of float16 stay finite."""
NORM_EPS = (1e-15, 1.0)
"""Least and largest epsilon of an RMS norm: below, the kernels' unit of 2^-60 rounds it; above, they have no number."""
SCALES = (1e-6, 4.0)
"""Least and largest factor of scores: the kernels have it as a multiple of 2^-60."""
MULTIPLIERS = (1e-6, 1e6)
"""Least and largest factor of embeddings, outputs and logits."""
ALPHAS = (1e-3, 1e3)
"""Least and largest factor of a gate within its sigmoid."""
BETAS = (1e-6, 1e3)
"""Least and largest factor of the logarithm in the scaling of queries."""
SOFTCAPS = (1e-3, 1e6)
"""Least and largest soft cap of scores and logits."""
MOST_STALL_S = 3600
"""Longest stall time-out, in s."""
MOST_AUX_LAYERS = 16
"""Most base layers of an EAGLE-3 head whose hidden states are its target feature."""
MOST_TREE = {"total_token": 1024, "depth": 64, "top_k": 256}
"""Largest trees: larger ones cost more time than accepted tokens save, and their sizes would overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """One datum that contradicts the rest of the plan."""

    path: str
    value: str
    expected: str

    def __str__(self) -> str:
        return f"{self.path}: found {self.value}, expected {self.expected}"


def check_facts(plan: Plan) -> tuple[Violation, ...]:
    """Violations in all that is not the placement: inputs, options, inventory, model, draft."""
    return (
        *_check_head(plan),
        *_check_options(plan.options),
        *_check_custom(plan.options, plan.inventory),
        *_check_inventory(plan.inventory),
        *_check_model(plan),
        *_check_draft(plan),
    )


def bad(path: str, value: object, expected: object) -> Violation:
    """Return the violation of a datum that has another value than is expected."""
    return Violation(path=path, value=show(value), expected=show(expected))


def show(value: object) -> str:
    """Return a datum as messages show it; of a long sequence the beginning."""
    if isinstance(value, tuple):
        more = [f"... of {len(value)}"] if len(value) > MOST_SHOWN else []
        return f"[{', '.join([*map(str, value[:MOST_SHOWN]), *more])}]"
    return "nothing" if value is None else str(value)


def _in_range(path: str, value: float, least: float, most: float) -> Iterator[Violation]:
    if not least <= value <= most:
        yield bad(path, value, f"from {least} to {most}")


def _check_head(plan: Plan) -> Iterator[Violation]:
    if plan.schema.partition(".")[0] != str(SCHEMA_MAJOR):
        yield bad("schema", plan.schema, f"{SCHEMA_MAJOR}.x")
    inputs = plan.inputs
    for name, value in (
        ("base_config_sha256", inputs.base_config_sha256),
        ("base_tensors_sha256", inputs.base_tensors_sha256),
    ):
        if not _SHA256.fullmatch(value):
            yield bad(f"inputs.{name}", value, "64 hexadecimal digits")
    for name, digest in (
        ("draft_config_sha256", inputs.draft_config_sha256),
        ("draft_tensors_sha256", inputs.draft_tensors_sha256),
    ):
        if plan.draft is None and digest is not None:
            yield bad(f"inputs.{name}", digest, "nothing, as there is no draft")
        if plan.draft is not None and (digest is None or not _SHA256.fullmatch(digest)):
            yield bad(f"inputs.{name}", digest, "64 hexadecimal digits")


def _check_options(options: Options) -> Iterator[Violation]:
    yield from _in_range("options.batch", options.batch, 1, MOST_BATCH)
    yield from _in_range("options.context", options.context, 1, MOST_SIZE)
    if not 1 <= options.prefill_chunk <= max(1, options.context):
        yield bad("options.prefill_chunk", options.prefill_chunk, f"from 1 to the context, {options.context}")
    yield from _in_range("options.stall_timeout_s", options.stall_timeout_s, 1, MOST_STALL_S)
    if options.gap_ppm >= 10**6:
        yield bad("options.gap_ppm", options.gap_ppm, "less than 1000000")
    if options.within_ppm is not None and not 0 <= options.within_ppm <= 10**6:
        yield bad("options.within_ppm", options.within_ppm, "from 0 to 1000000, or null")
    yield from _in_range("options.simplify_ppm", options.simplify_ppm, 0, 10**6)
    if options.max_devices is not None and options.max_devices < 1:
        yield bad("options.max_devices", options.max_devices, "at least 1, or null")
    if options.tree is not None:
        yield from _check_tree(options, options.tree)


def _check_tree(options: Options, tree: Tree) -> Iterator[Violation]:
    for name, most in MOST_TREE.items():
        if getattr(tree, name) > most:
            yield bad(f"options.tree.{name}", getattr(tree, name), f"at most {most}")
            return
    if (tree.kind == "static") != (tree.paths is not None):
        yield bad("options.tree.paths", tree.paths, "nodes exactly where the kind is static")
    elif tree.paths is not None:
        yield from _check_paths(tree, tree.paths)
    elif tree.top_k < 1:
        yield bad("options.tree.top_k", tree.top_k, "at least 1")
    elif tree.total_token < 2:
        yield bad("options.tree.total_token", tree.total_token, "at least 2: the root and a drafted token")
    elif tree.total_token - 1 > pool_rows(options):
        pool = f"the root and a pool of {tree.top_k} + {tree.depth} * {tree.top_k}^2 candidates"
        yield bad("options.tree.total_token", tree.total_token, f"at most {pool_rows(options) + 1}: {pool}")
    if 1 <= options.batch <= MOST_BATCH and (values := mask_values(tree, options.batch)) > MOST_MASK_VALUES:
        yield bad("options.tree", f"masks of {values} values", f"at most {MOST_MASK_VALUES}: a smaller tree or batch")


def mask_values(tree: Tree, batch: int) -> int:
    """Return the values of the largest mask of the trees of a batch, verified or growing: a node sees its ancestors."""
    fed = fed_rows(tree)
    return max(batch * tree.total_token**2, batch * max((1, *fed)) * sum(fed), sum(fed) ** 2)


def _check_paths(tree: Tree, paths: tuple[tuple[int, ...], ...]) -> Iterator[Violation]:
    for problem in path_problems(paths):
        yield bad("options.tree.paths", f"{len(paths)} nodes", problem)
        return
    follows = static_tree(paths)
    for name in ("total_token", "depth", "top_k"):
        if getattr(tree, name) != getattr(follows, name):
            expected = f"{getattr(follows, name)}, which follows from the paths"
            yield bad(f"options.tree.{name}", getattr(tree, name), expected)


def path_problems(paths: tuple[tuple[int, ...], ...]) -> Iterator[str]:
    """Yield what is wrong with the nodes of a static tree."""
    if not paths:
        yield "at least one node"
    known: set[tuple[int, ...]] = {()}
    for path in paths:
        name = ".".join(map(str, path))
        if not path or min(path) < 0:
            yield f"{name}: ranks of at least 0"
        elif path in known:
            yield f"{name}: once"
        elif path[:-1] not in known:
            yield f"{name}: its parent before it"
        known.add(path)
    if list(paths) != sorted(paths, key=lambda path: (len(path), path)):
        yield "the shorter first, then in order"


def static_tree(paths: tuple[tuple[int, ...], ...]) -> Tree:
    """Return the static tree of these nodes."""
    return Tree(
        kind="static",
        total_token=1 + len(paths),
        depth=max(map(len, paths)) - 1,
        top_k=1 + max(max(path) for path in paths),
        paths=paths,
    )


class Accelerator(Protocol):
    """Accelerator of a device, as a plan and an inventory file both have it."""

    @property
    def id(self) -> str: ...

    @property
    def host(self) -> str: ...

    @property
    def ordinal(self) -> int: ...

    @property
    def uuid(self) -> str | None: ...


def uuid_conflicts(devices: Sequence[Accelerator]) -> dict[int, str]:
    """Return each device, by index, whose UUID an earlier device has for another accelerator, with that device's id.

    Parts of one GPU have its UUID and ordinal; a MIG slice is one device.
    """
    first: dict[str, Accelerator] = {}
    conflicts = {}
    for i, device in enumerate(devices):
        if device.uuid is None:
            continue
        other = first.setdefault(device.uuid, device)
        same = (other.host, other.ordinal) == (device.host, device.ordinal) and not is_slice(device.uuid)
        if other is not device and not same:
            conflicts[i] = other.id
    return conflicts


def is_slice(uuid: str | None) -> bool:
    """Return True for the UUID of a MIG slice."""
    return uuid is not None and uuid.startswith("MIG-")


def natural_key(text: str) -> tuple[tuple[tuple[str, int, str], ...], str]:
    """Return a sort key in which numbers count as numbers, whatever their length: gpu2 comes before gpu10."""
    parts = [(letters, digits.lstrip("0")) for letters, digits in re.findall(r"([^0-9]*)([0-9]*)", text)]
    return tuple((letters, len(digits), digits) for letters, digits in parts), text


def _check_custom(options: Options, inventory: Inventory) -> Iterator[Violation]:
    if (options.custom is None) == (options.strategy == "custom"):
        expected = "a device map" if options.custom is None else "nothing"
        lines = None if options.custom is None else f"{len(options.custom)} lines"
        yield bad("options.custom", lines, f"{expected}, as the strategy is {options.strategy}")
    modules = tuple(pin.module for pin in options.custom or ())
    if list(modules) != sorted(set(modules)):
        yield bad("options.custom", modules, "distinct modules in order")
    known = {device.id for device in inventory.devices}
    for i, pin in enumerate(options.custom or ()):
        if pin.device not in known:
            yield bad(f"options.custom[{i}].device", pin.device, "a device of the inventory")


def _check_inventory(inventory: Inventory) -> Iterator[Violation]:
    names = tuple(host.name for host in inventory.hosts)
    if list(names) != sorted(set(names)):
        yield bad("inventory.hosts", names, "distinct names in order")
    if len(names) > 1 and inventory.network is None:
        yield bad("inventory.network", None, f"a link, as there are {len(names)} hosts")
    if inventory.network is not None:
        yield from _check_link("inventory.network", inventory.network)
    if len(inventory.devices) > MOST_DEVICES:
        yield bad("inventory.devices", f"{len(inventory.devices)} devices", f"at most {MOST_DEVICES}")
    at = {device.id: device.host for device in inventory.devices}
    for i, host in enumerate(inventory.hosts):
        yield from _check_link(f"inventory.hosts[{i}].link", host.link)
        for j, pair in enumerate(host.pairs):
            path = f"inventory.hosts[{i}].pairs[{j}]"
            yield from _check_link(f"{path}.link", pair.link)
            if pair.a == pair.b or {at.get(pair.a), at.get(pair.b)} != {host.name}:
                yield bad(path, f"{pair.a} and {pair.b}", f"two devices of host {host.name}")
    order = [(device.host, natural_key(device.id)) for device in inventory.devices]
    if order != sorted(order):
        yield bad("inventory.devices", tuple(at), "the order of hosts, then of ids")
    counts = Counter(device.id for device in inventory.devices)
    for i, other in uuid_conflicts(inventory.devices).items():
        yield bad(f"inventory.devices[{i}].uuid", inventory.devices[i].uuid, f"another one: {other} has it")
    for i, device in enumerate(inventory.devices):
        if counts[device.id] > 1:
            expected = f"another id: {counts[device.id]} devices have this one"
            yield bad(f"inventory.devices[{i}].id", device.id, expected)
        yield from _check_device(f"inventory.devices[{i}]", device, names)


def _check_link(path: str, link: Link) -> Iterator[Violation]:
    if link.bandwidth_bytes_per_s < 1:
        yield bad(f"{path}.bandwidth_bytes_per_s", link.bandwidth_bytes_per_s, "at least 1")


def _check_device(path: str, device: Device, hosts: tuple[str, ...]) -> Iterator[Violation]:
    if not DEVICE_ID.fullmatch(device.id):
        yield bad(f"{path}.id", repr(device.id), "at most 64 letters, digits, '.', '_' and '-': it names a file")
    if device.host not in hosts:
        yield bad(f"{path}.host", device.host, f"one of {', '.join(hosts)}")
    if device.reserve_bytes > device.memory_bytes:
        yield bad(f"{path}.reserve_bytes", device.reserve_bytes, f"at most the memory, {device.memory_bytes}")
    if device.kind == "cpu" and device.ordinal != 0:
        yield bad(f"{path}.ordinal", device.ordinal, "0 for a CPU")
    if device.uuid is not None and (device.kind == "cpu" or not DEVICE_UUID.fullmatch(device.uuid)):
        yield bad(f"{path}.uuid", repr(device.uuid), "a UUID of the driver, like GPU-... or MIG-..., of a GPU")
    if device.compute_capability is not None and (device.kind == "cpu" or device.compute_capability < 50):
        expected = "nothing for a CPU" if device.kind == "cpu" else "at least 50, or nothing"
        yield bad(f"{path}.compute_capability", device.compute_capability, expected)
    for name in ("bandwidth_bytes_per_s", "flops_per_s"):
        if getattr(device, name) < 1:
            yield bad(f"{path}.{name}", getattr(device, name), "at least 1")


def _check_model(plan: Plan) -> Iterator[Violation]:
    model = plan.model
    yield from _in_range("model.vocab_size", model.vocab_size, 1, MOST_SIZE)
    yield from _in_range("model.hidden_size", model.hidden_size, 1, MOST_SIZE)
    yield from _in_range("model.norm_eps", model.norm_eps, *NORM_EPS)
    if not model.layers:
        yield bad("model.layers", (), "at least one class of layers")
    for i, layers in enumerate(model.layers):
        yield from _in_range(f"model.layers[{i}].num_layers", layers.num_layers, 1, MOST_LAYERS)
        yield from _check_attention(f"model.layers[{i}].attention", layers.attention)
        yield from _check_same(f"model.layers[{i}].attention", layers.attention, model.layers[0].attention)
        yield from _check_mlp(f"model.layers[{i}].mlp", layers.mlp)
    yield from _check_rotaries(model)
    if (scaling := model.query_scaling) is not None:
        yield from _in_range("model.query_scaling.beta", scaling.beta, *BETAS)
        if not 1 <= scaling.positions < plan.options.context:
            expected = f"from 1 to less than the context, {plan.options.context}: nothing, where all factors are 1"
            yield bad("model.query_scaling.positions", scaling.positions, expected)
    for name in ("embedding_multiplier", "residual_multiplier", "logits_divisor"):
        factor = getattr(model, name)
        if factor is not None:
            yield from _in_range(f"model.{name}", factor, *MULTIPLIERS)
    if model.logit_softcap is not None:
        yield from _in_range("model.logit_softcap", model.logit_softcap, *SOFTCAPS)
    if model.num_layers > MOST_LAYERS:
        yield bad("model.layers", f"{model.num_layers} layers", f"at most {MOST_LAYERS}")
    yield from _check_pattern(model, plan.options.context)
    ids = [("model.bos_token_id", model.bos_token_id)] if model.bos_token_id is not None else []
    for path, token in (*ids, *((f"model.eos_token_ids[{i}]", token) for i, token in enumerate(model.eos_token_ids))):
        if token is not None and token >= model.vocab_size:
            yield bad(path, token, f"less than the vocabulary, {model.vocab_size}")


def _check_pattern(model: Model, context: int) -> Iterator[Violation]:
    """Check the order of the classes, and that a window hides something: one of the whole context is none."""
    for i, layers in enumerate(model.layers):
        window = layers.attention.window
        if window is not None and not 1 <= window < context:
            expected = f"from 1 to less than the context, {context}: nothing, where all positions are seen"
            yield bad(f"model.layers[{i}].attention.window", window, expected)
    if model.pattern is None:
        return
    if not is_pattern(model):
        yield bad("model.pattern", model.pattern, f"from 1 to {model.num_layers} indices of model.layers")
        return
    counts = Counter(model.pattern[layer % len(model.pattern)] for layer in range(min(model.num_layers, MOST_LAYERS)))
    for i, layers in enumerate(model.layers):
        if layers.num_layers != counts[i]:
            yield bad(f"model.layers[{i}].num_layers", layers.num_layers, f"{counts[i]}, as in model.pattern")


def is_pattern(model: Model) -> bool:
    """Return True if a model's pattern is of its classes and no longer than the model."""
    pattern = model.pattern
    if pattern is None or not 1 <= len(pattern) <= model.num_layers:
        return False
    return min(pattern) >= 0 and max(pattern) < len(model.layers)


def _check_rotaries(model: Model) -> Iterator[Violation]:
    """Check that every layer has one rotary table."""
    if model.rotary is None:
        return
    if len(model.rotary) > MOST_TABLES:
        yield bad("model.rotary", f"{len(model.rotary)} tables", f"at most {MOST_TABLES}")
        return
    listed = sorted(layer for table in model.rotary for layer in table.layers)
    if listed != list(range(min(model.num_layers, MOST_LAYERS))):
        yield bad("model.rotary", tuple(listed), "tables with each layer of the model in one of them")
    for i, table in enumerate(model.rotary):
        yield from _check_rotary(f"model.rotary[{i}]", table, model.layers[0].attention if model.layers else None)


def _check_rotary(path: str, table: Rotary, attention: Attention | None) -> Iterator[Violation]:
    if tuple(sorted(set(table.layers))) != table.layers or not table.layers:
        yield bad(f"{path}.layers", table.layers, "different layers, ascending")
    if attention is not None and (table.channels % 2 or table.channels > attention.head_dim):
        yield bad(f"{path}.channels", table.channels, f"an even number of a head's {attention.head_dim} channels")


def _check_draft_rotary(draft: Draft) -> Iterator[Violation]:
    if draft.rotary is not None:
        yield from _check_rotary("draft.rotary", draft.rotary, draft.attention)
        if draft.rotary.layers != tuple(range(min(draft.num_layers, MOST_LAYERS))):
            yield bad("draft.rotary.layers", draft.rotary.layers, f"all {draft.num_layers} layers of the drafter")


def _check_same(path: str, attention: Attention, first: Attention) -> Iterator[Violation]:
    """Check that a class of layers has the attention of the first: all layers of a stage share one rotary table and
    one set of buffers, and differ in their MLPs and windows alone.
    """
    for field in fields(attention):
        value, expected = getattr(attention, field.name), getattr(first, field.name)
        if value != expected and field.name != "window":
            yield bad(f"{path}.{field.name}", value, f"{expected}, as in model.layers[0]: only MLPs and windows differ")


def _check_attention(path: str, attention: Attention) -> Iterator[Violation]:
    if attention.num_kv_heads < 1:
        yield bad(f"{path}.num_kv_heads", attention.num_kv_heads, "at least 1")
    elif attention.num_heads < 1 or attention.num_heads % attention.num_kv_heads:
        yield bad(f"{path}.num_heads", attention.num_heads, f"a multiple of {attention.num_kv_heads} KV heads")
    elif attention.num_heads > MOST_HEADS:
        yield bad(f"{path}.num_heads", attention.num_heads, f"at most {MOST_HEADS}")
    if attention.scale is not None:
        yield from _in_range(f"{path}.scale", attention.scale, *SCALES)
    if attention.qk_norm_whole and not attention.qk_norm:
        yield bad(f"{path}.qk_norm_whole", "true", "nothing, as there is no norm of q and k")
    if attention.head_dim < 2 or attention.head_dim % 2:
        yield bad(f"{path}.head_dim", attention.head_dim, "an even number: rotary pairs")
    elif attention.head_dim > MOST_HEAD_DIM:
        yield bad(f"{path}.head_dim", attention.head_dim, f"at most {MOST_HEAD_DIM}")
    if attention.softcap is not None:
        yield from _in_range(f"{path}.softcap", attention.softcap, *SOFTCAPS)


def _check_mlp(path: str, mlp: Mlp) -> Iterator[Violation]:
    if mlp.unit < 1:
        yield bad(f"{path}.unit", mlp.unit, "at least 1")
    elif mlp.intermediate_size < 1 or mlp.intermediate_size % mlp.unit:
        yield bad(f"{path}.intermediate_size", mlp.intermediate_size, f"a multiple of the unit, {mlp.unit}")
    elif mlp.intermediate_size > MOST_SIZE:
        yield bad(f"{path}.intermediate_size", mlp.intermediate_size, f"at most {MOST_SIZE}")
    yield from _check_shared(path, mlp)
    yield from _check_swiglu(path, mlp)
    if mlp.kind == "gated":
        if mlp.router is not None:
            yield bad(f"{path}.router", "one", "nothing, as a gated MLP has no experts")
        for name, value, only in (
            ("num_experts", mlp.num_experts, 1),
            ("experts_per_token", mlp.experts_per_token, 1),
            ("norm_topk_prob", mlp.norm_topk_prob, False),
        ):
            if value != only:
                yield bad(f"{path}.{name}", value, f"{only}, as a gated MLP has no experts")
        return
    yield from _in_range(f"{path}.num_experts", mlp.num_experts, 1, MOST_EXPERTS)
    if not 1 <= mlp.experts_per_token <= max(1, mlp.num_experts):
        yield bad(f"{path}.experts_per_token", mlp.experts_per_token, f"from 1 to the {mlp.num_experts} experts")
    if mlp.router is not None:
        yield from _check_router(f"{path}.router", mlp.router, mlp)


def _check_shared(path: str, mlp: Mlp) -> Iterator[Violation]:
    if mlp.shared_size is not None and (mlp.kind == "gated" or not 1 <= mlp.shared_size <= MOST_SIZE):
        yield bad(f"{path}.shared_size", mlp.shared_size, f"from 1 to {MOST_SIZE}, and that only beside experts")
    elif mlp.shared_size is not None and mlp.unit > 0 and mlp.shared_size % max(1, mlp.units):
        yield bad(f"{path}.shared_size", mlp.shared_size, f"a multiple of the {mlp.units} units")
    if mlp.shared_gate and mlp.shared_size is None:
        yield bad(f"{path}.shared_gate", "true", "nothing, as there is no shared expert")


def _check_swiglu(path: str, mlp: Mlp) -> Iterator[Violation]:
    limit, alpha = mlp.swiglu_limit, mlp.swiglu_alpha
    if limit is None:
        if alpha is not None:
            yield bad(f"{path}.swiglu_alpha", alpha, "nothing, as there is no swiglu_limit")
        return
    if mlp.kind == "gated" or mlp.activation != "silu":
        yield bad(f"{path}.swiglu_limit", limit, "nothing, but in experts that are gated by silu")
    yield from _in_range(f"{path}.swiglu_limit", limit, *SOFTCAPS)
    if alpha is not None:
        yield from _in_range(f"{path}.swiglu_alpha", alpha, *ALPHAS)


def _check_router(path: str, router: Router, mlp: Mlp) -> Iterator[Violation]:
    experts, groups, picked = mlp.num_experts, router.groups, router.picked_groups
    if not 1 <= groups <= experts or experts % groups or (groups > 1 and experts < 2 * groups):
        yield bad(f"{path}.groups", groups, f"1, or a divisor of the {experts} experts with at least 2 in a group")
    elif not 1 <= picked <= groups:
        yield bad(f"{path}.picked_groups", picked, f"from 1 to the {groups} groups")
    elif mlp.experts_per_token > experts // groups * picked:
        yield bad(f"{path}.picked_groups", picked, f"groups with {mlp.experts_per_token} experts, which a token takes")
    yield from _in_range(f"{path}.scale", router.scale, *MULTIPLIERS)


def _check_draft(plan: Plan) -> Iterator[Violation]:
    draft = plan.draft
    for path, part in (("options.tree", plan.options.tree), ("draft_placement", plan.draft_placement)):
        if (part is None) != (draft is None):
            expected = "nothing, as there is no draft" if draft is None else "one, as there is a draft"
            yield bad(path, None if part is None else "one", expected)
    if draft is None:
        return
    yield from _check_attention("draft.attention", draft.attention)
    yield from _check_absent("draft.attention", draft.attention)
    yield from _check_mlp("draft.mlp", draft.mlp)
    if draft.mlp.kind != "gated":
        yield bad("draft.mlp.kind", draft.mlp.kind, "gated: an EAGLE head has no experts")
    yield from _check_draft_rotary(draft)
    yield from _check_draft_vocabulary(plan, draft)
    yield from _in_range("draft.norm_eps", draft.norm_eps, *NORM_EPS)
    yield from _in_range("draft.hidden_size", draft.hidden_size, 1, MOST_SIZE)
    yield from _in_range("draft.num_layers", draft.num_layers, 1, MOST_LAYERS)
    if draft.target_hidden_size != plan.model.hidden_size:
        yield bad("draft.target_hidden_size", draft.target_hidden_size, f"the model's, {plan.model.hidden_size}")
    if draft.kind == "eagle" and draft.hidden_size != plan.model.hidden_size:
        yield bad("draft.hidden_size", draft.hidden_size, f"the model's, {plan.model.hidden_size}")
    if not draft.own_embedding and draft.hidden_size != plan.model.hidden_size:
        yield bad("draft.own_embedding", "false", f"true, as the model's is {plan.model.hidden_size} wide")
    yield from _check_form(plan, draft)


def _check_form(plan: Plan, draft: Draft) -> Iterator[Violation]:
    """Check the aux layers, and what an EAGLE-3 head may compute besides; absent in an EAGLE-1 head."""
    aux, last = draft.aux_layers, plan.model.num_layers
    if draft.kind == "eagle":
        if aux:
            yield bad("draft.aux_layers", aux, "none, as the drafter is of kind eagle")
        for name in _EAGLE3_FORM:
            if (value := getattr(draft, name)) is not None:
                yield bad(f"draft.{name}", value, "nothing, as the drafter is of kind eagle")
        return
    if not aux:
        yield from _check_without_fc(draft)
    elif len(aux) > MOST_AUX_LAYERS or list(aux) != sorted(set(aux)) or aux[-1] > last:
        yield bad("draft.aux_layers", aux, f"at most {MOST_AUX_LAYERS} different ones from 0 to {last}, in order")
    for name in ("base_head", "norm_before_residual", "norm_output"):
        if getattr(draft, name) is False:
            yield bad(f"draft.{name}", "false", "true, or nothing")
    if draft.logit_scale is not None:
        yield from _in_range("draft.logit_scale", draft.logit_scale, *LOGIT_SCALE)
    if draft.base_head and draft.hidden_size != plan.model.hidden_size:
        yield bad("draft.base_head", "true", f"nothing, as the model's lm_head is {plan.model.hidden_size} wide")
    yield from _check_masks(plan, draft)


def _check_without_fc(draft: Draft) -> Iterator[Violation]:
    """Check a head that takes the base's last state as it is."""
    for name in ("aux_layers_from", "fc_norm", "mask_token_id"):
        if (value := getattr(draft, name)) is not None:
            yield bad(f"draft.{name}", value, "nothing, as there are no aux_layers")
    if draft.fc_bias:
        yield bad("draft.fc_bias", "true", "false, as there are no aux_layers and no fc")
    if draft.target_hidden_size != draft.hidden_size:
        expected = f"{draft.hidden_size}, as there are no aux_layers and no fc"
        yield bad("draft.target_hidden_size", draft.target_hidden_size, expected)


def _check_masks(plan: Plan, draft: Draft) -> Iterator[Violation]:
    """Check the token and the tree of a drafter that drafts all levels at once."""
    token, vocabulary, tree = draft.mask_token_id, plan.model.vocab_size, plan.options.tree
    if token is not None and token >= vocabulary:
        yield bad("draft.mask_token_id", token, f"less than the vocabulary, {vocabulary}")
    if token is not None and tree is not None and not is_chain(tree):
        shape = f"total_token {tree.total_token}, depth {tree.depth}, top_k {tree.top_k}"
        yield bad("options.tree", shape, "a chain, as one pass drafts it: top_k 1, total_token = depth + 2")


_EAGLE3_FORM = (
    "aux_layers_from",
    "base_head",
    "norm_before_residual",
    "fc_norm",
    "norm_output",
    "logit_scale",
    "mask_token_id",
)


def _check_absent(path: str, attention: Attention) -> Iterator[Violation]:
    """Check that a drafter has nothing that only layers of a base have."""
    for name in ("window", "softcap", "sinks"):
        if (value := getattr(attention, name)) is not None:
            yield bad(f"{path}.{name}", value, "nothing: no EAGLE head has it")


def _check_draft_vocabulary(plan: Plan, draft: Draft) -> Iterator[Violation]:
    size, base = draft.draft_vocab_size, plan.model.vocab_size
    if not draft.own_head and size != base:
        yield bad("draft.draft_vocab_size", size, f"the model's vocabulary, {base}")
    if not 1 <= size <= base:
        yield bad("draft.draft_vocab_size", size, f"from 1 to the model's vocabulary, {base}")
    elif size != base and not draft.maps_vocabulary:
        yield bad("draft.maps_vocabulary", "false", f"true, as {size} of {base} tokens are drafted")
    tree = plan.options.tree
    if tree is not None and tree.top_k > size:
        yield bad("options.tree.top_k", tree.top_k, f"at most the draft's vocabulary, {size}")
