"""Read the head of EAGLE-3 and of what followed from it: EAGLE-3.1 and P-EAGLE.

Hidden states of some layers of the base go through ``fc``; the first layer attends over (embedding, hidden state), each
with its norm, and further layers, if any, are plain ones. What differs between heads, by key:

- norm_before_residual: the residual of the first layer is the normed hidden state. Absent it is false, but true in a
  head of speculators that does not draft in parallel, as vLLM reads it.
- norm_before_fc, also in eagle_config: a norm of the whole target feature before fc, ``input_norm``.
- fc_norm (EAGLE-3.1): a norm of the hidden state of each layer before fc, ``fc_norm.0`` ...
- norm_output: the output is fed back behind the final norm.
- mask_token_id, ptd_token_id, pard_token (P-EAGLE): positions that are not drafted yet have this token, and the feature
  ``mask_hidden``.
- logit_scale: factor of the logits.
- eagle_config: use_aux_hidden_state false (ModelOpt): no layers of the base are read and there is no ``fc``; the first
  layer takes the state behind the base's final norm.

``planner.families.aux_layers`` says which layers of the base are meant.
"""

from typing import Any

from planner.families import aux_layers
from planner.families.aux_layers import AUX_LAYERS, AuxLayers
from planner.families.config import Keys, read_norm_eps, words
from planner.families.eagle_common import (
    CARRIED_OVER,
    HARMLESS,
    check_base,
    drafter_rotary,
    layer_roles,
    read_draft_vocabulary,
    read_drafter_attention,
    read_drafter_mlp,
    refuse_claim,
)
from planner.families.head_layouts import Head
from planner.families.records import DraftFacts, DraftReading, Roles, Source
from planner.families.rope_keys import RopeDefaults, read_rope
from plans.check_model import LOGIT_SCALE, MOST_LAYERS
from plans.format import quote
from plans.schema import Draft, Model

_NO_LAYERS = AuxLayers(layers=(), source=None)
SPECULATORS_VOCABULARY = 32000
"""Drafted tokens of a head of speculators that does not say how many."""

_EAGLE_CONFIG = {
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
    "next_layer_regular": True,
    "parallel_draft_step": 1,
    "parallel_draft_heads_num_layers": 1,
}
"""Keys of ``eagle_config`` with the one value that is computed here, which ModelOpt writes for an ordinary head."""

_HARMLESS = (
    HARMLESS
    | CARRIED_OVER
    # fc has the bias that the tensors have, whatever the key says
    | words("bias auto_map")
    # speculators: version and training of a head, the model that it was trained for, and how many tokens to draft
    | words("speculators_model_type speculators_version speculators_config embed_requires_grad draft_arch")
    | words("has_no_defaults_at_init num_depths down_sample_ratio down_sample_ratio_min")
)


def read(head: Head, base: Model, facts: DraftFacts, asked: AuxLayers | None) -> DraftReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys, layer = head.keys, head.layer
    hidden = layer.integer("hidden_size")
    target = keys.integer("target_hidden_size", hidden)
    wide = keys.has("target_hidden_size")
    check_base((keys, "target_hidden_size", target) if wide else (layer, "hidden_size", target), layer, base)
    attention = read_drafter_attention(layer, facts)
    inner = _eagle_config(keys)
    boundaries = _aux_layers(head, inner, base, asked) if inner.boolean("use_aux_hidden_state", True) else _NO_LAYERS
    if not boundaries.layers:
        _expect_no_layers(head, inner, facts, asked, (hidden, target))
    default = SPECULATORS_VOCABULARY if head.layout == "speculators" else base.vocab_size
    max_positions = layer.integer("max_position_embeddings", 2048)
    rope = read_rope(layer, attention.head_dim, RopeDefaults(max_positions=max_positions))
    draft = Draft(
        kind="eagle3",
        hidden_size=hidden,
        target_hidden_size=target,
        num_layers=layer.integer("num_hidden_layers", most=MOST_LAYERS),
        attention=attention,
        mlp=read_drafter_mlp(layer, facts),
        norm_eps=read_norm_eps(layer, 1e-6),
        fc_bias=facts.fc_bias,
        draft_vocab_size=read_draft_vocabulary(keys, default),
        maps_vocabulary=facts.maps_vocabulary,
        own_embedding=facts.own_embedding,
        aux_layers=boundaries.layers,
        aux_layers_from=boundaries.source,
        layout=head.layout,
        base_head=None if facts.own_head else True,
        norm_before_residual=_norm_before_residual(head, facts),
        fc_norm=_fc_norm(keys, inner, facts),
        norm_output=_norm_output(head, facts),
        logit_scale=_logit_scale(keys),
        mask_token_id=_mask_token(head, base, facts),
        rotary=drafter_rotary(rope, layer.integer("num_hidden_layers", most=MOST_LAYERS)),
    )
    _check_tables(keys, draft, base)
    reading = DraftReading(
        draft=draft,
        ropes=(rope,) * draft.num_layers,
        max_positions=max_positions,
        roles=roles(draft, base),
        # t2d says which tokens are in the draft vocabulary; only training needs it.
        ignored={"t2d": (base.vocab_size,)} | ({} if draft.maps_vocabulary else {"d2t": (base.vocab_size,)}),
    )
    keys.get("auto_map")  # the kind is known by its tensors or its architecture, and its code is never run
    count = len(draft.aux_layers)
    if keys.has("num_aux_hidden_states") and (counted := keys.integer("num_aux_hidden_states")) != count:
        raise keys.fail("num_aux_hidden_states", f"found {counted}, expected {count}: {AUX_LAYERS} names as many")
    keys.finish(_HARMLESS)
    if layer is not keys:
        layer.finish(HARMLESS | CARRIED_OVER)
    return reading


def roles(draft: Draft, base: Model) -> Roles:
    """Return the tensors that the config implies, by the names of the authors of EAGLE and, where theirs has no such
    tensor, of speculators.
    """
    hidden, target = draft.hidden_size, draft.target_hidden_size
    table: Roles = {}
    if draft.own_embedding:
        table["draft.embed.weight"] = Source(name="embed_tokens.weight", shape=(base.vocab_size, hidden))
    if draft.fc_norm == "joint":
        table["draft.fc_norm.weight"] = Source(name="input_norm.weight", shape=(draft.fc_width,))
    if draft.fc_norm == "each":
        for i in range(len(draft.aux_layers)):
            table[f"draft.fc_norm.{i}.weight"] = Source(name=f"fc_norm.{i}.weight", shape=(target,))
    if draft.mask_token_id is not None:
        table["draft.mask_hidden"] = Source(name="mask_hidden", shape=(draft.fc_width,))
    if draft.fc_width:
        table["draft.fc.weight"] = Source(name="fc.weight", shape=(hidden, draft.fc_width))
    if draft.fc_bias:
        table["draft.fc.bias"] = Source(name="fc.bias", shape=(hidden,))
    for i in range(draft.num_layers):
        table |= layer_roles(draft, i, f"layers.{i}" if i else "midlayer")
    table["draft.norm.weight"] = Source(name="norm.weight", shape=(hidden,))
    if draft.own_head:
        table["draft.head.weight"] = Source(name="lm_head.weight", shape=(draft.draft_vocab_size, hidden))
    if draft.maps_vocabulary:
        table["draft.d2t"] = Source(name="d2t", shape=(draft.draft_vocab_size,))
    return table


def _eagle_config(keys: Keys) -> Keys:
    fields = keys.get("eagle_config", {})
    if not isinstance(fields, dict):
        raise keys.fail("eagle_config", f"found {quote(fields)}, expected an object")
    inner = Keys(fields, f"{keys.where}: eagle_config")
    for name, value in _EAGLE_CONFIG.items():
        inner.expect(name, value, "another form of head is not computed here")
    for name in (AUX_LAYERS, "norm_before_fc", "use_aux_hidden_state"):
        inner.get(name)
    inner.finish()
    return inner


def _aux_layers(head: Head, inner: Keys, base: Model, asked: AuxLayers | None) -> AuxLayers:
    """Return the boundaries.

    A producer that names none and trains on the default is recognised by what it writes: speculators by its config, the
    authors of EAGLE, SpecForge and AngelSlim by ``t2d``, which ModelOpt leaves out.
    """
    by_authors = head.layout in (None, "layers") and head.has("t2d")
    writer = aux_layers.Writer(
        modelopt=head.layout == "modelopt",
        default=by_authors or head.layout == "speculators" or (head.tensors is None and head.layout is None),
    )
    ids: Any = head.keys.get(AUX_LAYERS)
    return aux_layers.resolve(head.keys, ids, inner.get(AUX_LAYERS), base, writer, asked)


def _expect_no_layers(
    head: Head, inner: Keys, facts: DraftFacts, asked: AuxLayers | None, widths: tuple[int, int]
) -> None:
    """Raise ConfigError for what only a head with ``fc`` has."""
    reason = "use_aux_hidden_state is false, so that no layers of the base are read"
    for keys in (head.keys, inner):
        if ids := keys.get(AUX_LAYERS):
            raise keys.fail(AUX_LAYERS, f"found {quote(ids)}, expected none: {reason}")
    if asked is not None and asked.source == "option":
        raise inner.fail("use_aux_hidden_state", "found False with --aux-layers, expected one of the two")
    if facts.fc_norm is not None or facts.masked or facts.fc_bias:
        raise inner.fail("use_aux_hidden_state", "found False in a head with a norm before fc, a bias of it or masks")
    if widths[0] != widths[1]:
        found, expected = widths[1], widths[0]
        raise head.keys.fail("target_hidden_size", f"found {found}, expected {expected}: {reason}, nor is there fc")


def _norm_before_residual(head: Head, facts: DraftFacts) -> bool | None:
    default = head.layout == "speculators" and not facts.masked
    return head.keys.boolean("norm_before_residual", default) or None


def _fc_norm(keys: Keys, inner: Keys, facts: DraftFacts) -> Any:
    for claims in (keys, inner):
        refuse_claim(claims, "norm_before_fc", present=facts.fc_norm == "joint", tensor="input_norm.weight")
    refuse_claim(keys, "fc_norm", present=facts.fc_norm == "each", tensor="fc_norm.0.weight")
    return facts.fc_norm


def _norm_output(head: Head, facts: DraftFacts) -> bool | None:
    """Return True where the output is fed back behind the final norm.

    SpecForge, which has the layout of the authors, means by ``norm_output`` that the lm_head reads behind the final
    norm, as it does in every head; only beside ``fc_norm`` it means what others do.
    """
    keys = head.keys
    fed_back = keys.boolean("norm_output", False)
    if head.layout is None and facts.fc_norm != "each":
        if keys.has("norm_output") and not fed_back:
            raise keys.fail(
                "norm_output",
                "found False, expected True or nothing: by it SpecForge means a head without a norm before the "
                "lm_head, which is not computed here",
            )
        return None
    return fed_back or None


def _logit_scale(keys: Keys) -> float | None:
    scale = keys.number("logit_scale", 1.0, least=LOGIT_SCALE[0], most=LOGIT_SCALE[1])
    return None if scale == 1.0 else scale


def _mask_token(head: Head, base: Model, facts: DraftFacts) -> int | None:
    """Return the token of positions that are drafted in parallel; None for a head that drafts one after the other."""
    keys, names = head.keys, ("mask_token_id", "ptd_token_id", "pard_token")
    given = {name: keys.get(name) for name in names if keys.has(name)}
    refuse_claim(keys, "parallel_drafting", present=facts.masked, tensor="mask_hidden")
    if not facts.masked:
        if given:
            raise keys.fail(next(iter(given)), "found in a head without mask_hidden, expected it in P-EAGLE alone")
        return None
    if not given:
        raise keys.fail("mask_token_id", "missing, expected the token of masks: the head has mask_hidden (P-EAGLE)")
    name, token = next(iter(given.items()))
    if len({str(value) for value in given.values()}) > 1:
        raise keys.fail(name, f"found {quote(given)}, expected one token")
    if type(token) is not int or not 0 <= token < base.vocab_size:
        raise keys.fail(name, f"found {quote(token)}, expected a token id from 0 to {base.vocab_size - 1}")
    return token


def _check_tables(keys: Keys, draft: Draft, base: Model) -> None:
    """Raise ConfigError unless the tables and the map between vocabularies are present where they are needed."""
    vocab, own = base.vocab_size, draft.draft_vocab_size
    if own > vocab:
        raise keys.fail("draft_vocab_size", f"found {own}, expected at most {vocab}, the base model's vocab_size")
    if draft.maps_vocabulary and own == vocab:
        raise keys.fail("draft_vocab_size", f"found {own}, the whole vocabulary, expected no d2t: ids are direct")
    if not draft.own_head and own != vocab:
        raise keys.fail("draft_vocab_size", f"found {own} of {vocab} tokens, expected lm_head.weight with as many rows")
    if not draft.maps_vocabulary and own != vocab:
        raise keys.fail("draft_vocab_size", f"found {own} of {vocab} tokens, expected d2t: the map between the two")
    if draft.hidden_size != draft.target_hidden_size and not (draft.own_embedding and draft.own_head):
        tensor, table = ("lm_head", "lm_head") if draft.own_embedding else ("embed_tokens", "embedding")
        raise keys.fail(
            "target_hidden_size",
            f"found {draft.target_hidden_size} with hidden_size {draft.hidden_size}, "
            f"expected {tensor}.weight: the base's {table} has another width",
        )
