"""The base model and the drafter of a plan, in words."""

from collections.abc import Sequence

from plans.schema import Attention, AuxSource, Draft, Mlp, Model, Plan, Rotary, WeightFormat


def model_line(plan: Plan) -> str:
    """Return the base model: sizes, layers, and what its rotary frequencies depend on."""
    lm_head = "tied lm_head" if plan.model.tied_head else "untied lm_head"
    lm_head += "" if plan.model.head_format is None else f" in {_format(plan.model.head_format)}"
    return (
        f"{plan.model.family}: hidden {plan.model.hidden_size}, vocabulary {plan.model.vocab_size} ({lm_head}), "
        f"{_layers_line(plan.model)}{_context_line(plan, plan.model.rotary or ())}"
    )


def _context_line(plan: Plan, tables: Sequence[Rotary]) -> str:
    """Return in words that rotary frequencies are those of the planned context, where they depend on one."""
    if not any(table.by_context for table in tables):
        return ""
    return f"; rotary frequencies of a context of {plan.options.context} positions, from the first on"


def _layers_line(model: Model) -> str:
    """Return the shape of a layer; where layers have several shapes, each with the number of its layers."""
    counts: dict[str, int] = {}
    for layers in model.layers:
        shape = _shape_line(layers.attention, layers.mlp)
        counts[shape] = counts.get(shape, 0) + layers.num_layers
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{count} layers of {shape}" for shape, count in counts.items())


def _shape_line(attention: Attention, mlp: Mlp) -> str:
    experts = f"{mlp.num_experts} experts, {mlp.experts_per_token} for a token, of " if mlp.kind == "moe" else ""
    window = "" if attention.window is None else f", window {attention.window}"
    return (
        f"{attention.num_heads} heads of {attention.head_dim} over {attention.num_kv_heads} KV heads{window}, "
        f"{experts}MLP {mlp.intermediate_size}{_formats(attention, mlp)}"
    )


def _formats(attention: Attention, mlp: Mlp) -> str:
    """Return the formats of quantized weights, each once."""
    forms = tuple((attention.formats | mlp.formats).values())
    named = dict.fromkeys(_format(form) for form in forms if form is not None)
    plain = " and plain weights" if named and None in forms else ""
    return f", weights in {', '.join(named)}{plain}" if named else ""


def _format(form: WeightFormat) -> str:
    groups = "a scale for each row" if form.group is None else f"groups of {form.group}"
    return f"{form.code} with {groups}{' and zero points' if form.zeros else ''}"


def draft_line(plan: Plan) -> str:
    """Return the drafter: kind, sizes, and what it reads of the base."""
    draft, tree = plan.draft, plan.options.tree
    if draft is None or tree is None:
        return "none: plain decoding"
    name = {"eagle": "EAGLE-1/2", "eagle3": "EAGLE-3" if draft.mask_token_id is None else "P-EAGLE"}[draft.kind]
    line = (
        f"{name}: hidden {draft.hidden_size}, vocabulary {draft.draft_vocab_size}, "
        f"{_shape_line(draft.attention, draft.mlp)}"
    )
    line += f", {draft.num_layers} layers" if draft.num_layers > 1 else ""
    line += _context_line(plan, () if draft.rotary is None else (draft.rotary,))
    if draft.kind == "eagle3":
        line += f"; reads {aux_line(draft, plan.model.num_layers)}"
    return line + (f"; layout of {draft.layout}" if draft.layout else "")


def aux_line(draft: Draft, num_layers: int) -> str:
    """Return the hidden states of the base that an EAGLE-3 head reads, in words, with where they are from."""
    if not draft.aux_layers:
        return "the state behind the final norm (its config says so)"
    inputs = ", ".join(str(k) for k in draft.aux_layers if k < num_layers)
    last = ["the output of the last"] if draft.aux_layers[-1] == num_layers else []
    layers = " and ".join([*([f"inputs of layers {inputs}"] if inputs else []), *last])
    return f"{layers} ({_AUX_SOURCES[draft.aux_layers_from]})"


_AUX_SOURCES: dict[AuxSource | None, str] = {
    "inputs": "its config names them",
    "outputs": "its config names them by outputs",
    "option": "as --aux-layers says",
    None: "the default",
}
