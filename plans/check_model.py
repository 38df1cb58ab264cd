"""Check the model and the drafter of a plan: each number and what must agree among them, whatever the placement."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields

from plans.check_formats import check_formats, check_rounded, check_table_format
from plans.schema import Attention, Draft, Mlp, Model, Options, Plan, Rotary, Router, Tree
from plans.step import is_chain
from plans.violations import Violation, bad, in_range

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
MOST_AUX_LAYERS = 16
"""Most base layers of an EAGLE-3 head whose hidden states are its target feature."""


def trees_of(options: Options) -> Iterator[tuple[str, Tree]]:
    """Yield the draft trees of a plan with their paths."""
    if options.tree is not None:
        yield "options.tree", options.tree
    for i, entry in enumerate(options.schedule or ()):
        if entry.tree is not None:
            yield f"options.schedule[{i}].tree", entry.tree


def check_model(plan: Plan) -> Iterator[Violation]:
    model = plan.model
    yield from in_range("model.vocab_size", model.vocab_size, 1, MOST_SIZE)
    yield from in_range("model.hidden_size", model.hidden_size, 1, MOST_SIZE)
    yield from in_range("model.norm_eps", model.norm_eps, *NORM_EPS)
    if not model.layers:
        yield bad("model.layers", (), "at least one class of layers")
    for i, layers in enumerate(model.layers):
        yield from in_range(f"model.layers[{i}].num_layers", layers.num_layers, 1, MOST_LAYERS)
        yield from _check_attention(f"model.layers[{i}].attention", layers.attention)
        yield from _check_same(f"model.layers[{i}].attention", layers.attention, model.layers[0].attention)
        yield from _check_mlp(f"model.layers[{i}].mlp", layers.mlp)
        yield from check_formats(f"model.layers[{i}]", layers, model.hidden_size)
        if plan.options.weights is not None:
            yield from check_rounded(f"model.layers[{i}]", layers, plan.options.weights)
    yield from check_table_format(model, plan.options.weights)
    yield from _check_rotaries(model)
    if (scaling := model.query_scaling) is not None:
        yield from in_range("model.query_scaling.beta", scaling.beta, *BETAS)
        if not 1 <= scaling.positions < plan.options.context:
            expected = f"from 1 to less than the context, {plan.options.context}: nothing, where all factors are 1"
            yield bad("model.query_scaling.positions", scaling.positions, expected)
    for name in ("embedding_multiplier", "residual_multiplier", "logits_divisor"):
        factor = getattr(model, name)
        if factor is not None:
            yield from in_range(f"model.{name}", factor, *MULTIPLIERS)
    if model.logit_softcap is not None:
        yield from in_range("model.logit_softcap", model.logit_softcap, *SOFTCAPS)
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
    one set of buffers, and differ in their MLPs, windows and formats alone.
    """
    for field in fields(attention):
        value, expected = getattr(attention, field.name), getattr(first, field.name)
        if value != expected and field.name not in ("window", "qkv_format", "o_format", "qkv_formats"):
            reason = "as in model.layers[0]: only MLPs, windows and formats differ"
            yield bad(f"{path}.{field.name}", value, f"{expected}, {reason}")


def _check_attention(path: str, attention: Attention) -> Iterator[Violation]:
    if attention.num_kv_heads < 1:
        yield bad(f"{path}.num_kv_heads", attention.num_kv_heads, "at least 1")
    elif attention.num_heads < 1 or attention.num_heads % attention.num_kv_heads:
        yield bad(f"{path}.num_heads", attention.num_heads, f"a multiple of {attention.num_kv_heads} KV heads")
    elif attention.num_heads > MOST_HEADS:
        yield bad(f"{path}.num_heads", attention.num_heads, f"at most {MOST_HEADS}")
    if attention.scale is not None:
        yield from in_range(f"{path}.scale", attention.scale, *SCALES)
    if attention.qk_norm_whole and not attention.qk_norm:
        yield bad(f"{path}.qk_norm_whole", "true", "nothing, as there is no norm of q and k")
    if attention.head_dim < 2 or attention.head_dim % 2:
        yield bad(f"{path}.head_dim", attention.head_dim, "an even number: rotary pairs")
    elif attention.head_dim > MOST_HEAD_DIM:
        yield bad(f"{path}.head_dim", attention.head_dim, f"at most {MOST_HEAD_DIM}")
    if attention.softcap is not None:
        yield from in_range(f"{path}.softcap", attention.softcap, *SOFTCAPS)


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
    yield from in_range(f"{path}.num_experts", mlp.num_experts, 1, MOST_EXPERTS)
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
    yield from in_range(f"{path}.swiglu_limit", limit, *SOFTCAPS)
    if alpha is not None:
        yield from in_range(f"{path}.swiglu_alpha", alpha, *ALPHAS)


def _check_router(path: str, router: Router, mlp: Mlp) -> Iterator[Violation]:
    experts, groups, picked = mlp.num_experts, router.groups, router.picked_groups
    if not 1 <= groups <= experts or experts % groups or (groups > 1 and experts < 2 * groups):
        yield bad(f"{path}.groups", groups, f"1, or a divisor of the {experts} experts with at least 2 in a group")
    elif not 1 <= picked <= groups:
        yield bad(f"{path}.picked_groups", picked, f"from 1 to the {groups} groups")
    elif mlp.experts_per_token > experts // groups * picked:
        yield bad(f"{path}.picked_groups", picked, f"groups with {mlp.experts_per_token} experts, which a token takes")
    yield from in_range(f"{path}.scale", router.scale, *MULTIPLIERS)


def check_draft(plan: Plan) -> Iterator[Violation]:
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
    yield from in_range("draft.norm_eps", draft.norm_eps, *NORM_EPS)
    yield from in_range("draft.hidden_size", draft.hidden_size, 1, MOST_SIZE)
    yield from in_range("draft.num_layers", draft.num_layers, 1, MOST_LAYERS)
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
        yield from in_range("draft.logit_scale", draft.logit_scale, *LOGIT_SCALE)
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
    token, vocabulary = draft.mask_token_id, plan.model.vocab_size
    if token is not None and token >= vocabulary:
        yield bad("draft.mask_token_id", token, f"less than the vocabulary, {vocabulary}")
    for path, tree in trees_of(plan.options):
        if token is None or is_chain(tree):
            continue
        shape = f"total_token {tree.total_token}, depth {tree.depth}, top_k {tree.top_k}"
        yield bad(path, shape, "a chain, as one pass drafts it: top_k 1, total_token = depth + 2")


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
    for path, tree in trees_of(plan.options):
        if tree.top_k > size:
            yield bad(f"{path}.top_k", tree.top_k, f"at most the draft's vocabulary, {size}")
