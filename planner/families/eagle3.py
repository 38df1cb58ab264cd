"""Read the head of EAGLE-3: features of three base layers, one layer with attention of double width, its own lm_head.

The features are the inputs of base layers 2, L // 2 and L - 3 (0-based; ``hidden_states[i]`` of transformers), as in
the reference implementation. A config may name others, in either convention in which such heads are published:

- ``eagle_aux_hidden_state_layer_ids`` at the top of the config (vLLM, speculators): i means the *input* of layer i;
- the same key inside ``eagle_config`` (ModelOpt, SGLang): i means the *output* of layer i, the input of layer i + 1.
"""

from typing import Any

from planner.families.config import Keys, read_mlp, read_norm_eps, read_rope
from planner.families.eagle_common import CARRIED_OVER, HARMLESS, check_base, layer_roles, read_drafter_attention
from planner.families.records import DraftFacts, DraftReading, Roles, Source
from plans.format import quote
from plans.schema import Draft, Model

AUX_LAYERS = "eagle_aux_hidden_state_layer_ids"

_EAGLE_CONFIG = {
    "use_aux_hidden_state": True,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
}
"""Keys of ``eagle_config`` with the one value that is computed here."""


def read(keys: Keys, base: Model, facts: DraftFacts) -> DraftReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    hidden = keys.integer("hidden_size")
    target = keys.integer("target_hidden_size", hidden)
    check_base(keys, base, target, "target_hidden_size" if keys.has("target_hidden_size") else "hidden_size")
    _check_form(keys)
    attention = read_drafter_attention(keys, facts)
    draft = Draft(
        kind="eagle3",
        hidden_size=hidden,
        target_hidden_size=target,
        num_layers=1,
        attention=attention,
        mlp=read_mlp(keys, bias=False),
        norm_eps=read_norm_eps(keys, 1e-6),
        fc_bias=False,
        draft_vocab_size=keys.integer("draft_vocab_size", base.vocab_size),
        maps_vocabulary=facts.maps_vocabulary,
        own_embedding=facts.own_embedding,
        aux_layers=_aux_layers(keys, base.num_layers),
    )
    _check_tables(keys, draft, base)
    reading = DraftReading(
        draft=draft,
        rope=read_rope(keys, attention.head_dim),
        max_positions=keys.integer("max_position_embeddings", 2048),
        roles=roles(draft, base),
        # t2d says which tokens are in the draft vocabulary; only training needs it.
        ignored={"t2d": (base.vocab_size,)} | ({} if draft.maps_vocabulary else {"d2t": (base.vocab_size,)}),
    )
    keys.finish(HARMLESS | CARRIED_OVER | {"bias"})  # fc of an EAGLE-3 head never has a bias, whatever the key says
    return reading


def roles(draft: Draft, base: Model) -> Roles:
    """Return the tensors that the config implies."""
    hidden = draft.hidden_size
    table: Roles = {}
    if draft.own_embedding:
        table["draft.embed.weight"] = Source(name="embed_tokens.weight", shape=(base.vocab_size, hidden))
    table["draft.fc.weight"] = Source(name="fc.weight", shape=(hidden, 3 * draft.target_hidden_size))
    for role, name in (("input_norm", "input_layernorm"), ("hidden_norm", "hidden_norm")):
        table[f"draft.layers.0.{role}.weight"] = Source(name=f"midlayer.{name}.weight", shape=(hidden,))
    table |= layer_roles(draft, 0, "midlayer", 2 * hidden)
    table["draft.norm.weight"] = Source(name="norm.weight", shape=(hidden,))
    table["draft.head.weight"] = Source(name="lm_head.weight", shape=(draft.draft_vocab_size, hidden))
    if draft.maps_vocabulary:
        table["draft.d2t"] = Source(name="d2t", shape=(draft.draft_vocab_size,))
    return table


def _check_form(keys: Keys) -> None:
    keys.expect("num_hidden_layers", 1, "an EAGLE-3 head has one layer")
    keys.expect("norm_before_residual", False, "the residual is the hidden state before its norm")


def _check_tables(keys: Keys, draft: Draft, base: Model) -> None:
    """Raise ConfigError unless embedding and map between vocabularies are present exactly when they are needed."""
    vocab, own = base.vocab_size, draft.draft_vocab_size
    if own > vocab:
        raise keys.fail("draft_vocab_size", f"found {own}, expected at most {vocab}, the base model's vocab_size")
    if draft.maps_vocabulary and own == vocab:
        raise keys.fail("draft_vocab_size", f"found {own}, the whole vocabulary, expected no d2t: ids are direct")
    if not draft.maps_vocabulary and own != vocab:
        raise keys.fail("draft_vocab_size", f"found {own} of {vocab} tokens, expected d2t: the map between the two")
    if draft.hidden_size != draft.target_hidden_size and not draft.own_embedding:
        raise keys.fail(
            "target_hidden_size",
            f"found {draft.target_hidden_size} with hidden_size {draft.hidden_size}, "
            "expected embed_tokens.weight: the base's embedding has another width",
        )


def _aux_layers(keys: Keys, num_layers: int) -> tuple[int, ...]:
    """Return the three base layers, 0-based, whose inputs are the features."""
    outer = keys.get(AUX_LAYERS)
    inner = _read_eagle_config(keys)
    if outer is not None and inner is not None:
        raise keys.fail(AUX_LAYERS, "found here and in eagle_config, expected one of the two")
    if outer is not None:
        return _checked(keys, AUX_LAYERS, outer, 0, num_layers)
    if inner is not None:
        return _checked(keys, f"eagle_config: {AUX_LAYERS}", inner, 1, num_layers)
    if num_layers < 7:
        raise keys.fail(
            AUX_LAYERS,
            f"missing, and layers 2, L // 2 and L - 3 of a base model with L = {num_layers} layers are not three "
            "different ones in order: expected at least 7 layers, or three layers named",
        )
    return 2, num_layers // 2, num_layers - 3


def _read_eagle_config(keys: Keys) -> Any:
    fields = keys.get("eagle_config", {})
    if not isinstance(fields, dict):
        raise keys.fail("eagle_config", f"found {quote(fields)}, expected an object")
    inner = Keys(fields, f"{keys.where}: eagle_config")
    for name, value in _EAGLE_CONFIG.items():
        inner.expect(name, value, "another form of head is not computed here")
    layers = inner.get(AUX_LAYERS)
    inner.finish()
    return layers


def _checked(keys: Keys, name: str, ids: Any, shift: int, num_layers: int) -> tuple[int, ...]:
    """Return ``ids`` as layers whose inputs are meant; raise ConfigError unless they are three, different, in order.

    ``shift``: 1 where ids name layers by their outputs, 0 where by their inputs.
    """
    if not isinstance(ids, list) or len(ids) != 3 or not all(type(i) is int for i in ids):
        raise keys.fail(name, f"found {quote(ids)}, expected three layers")
    layers = tuple(i + shift for i in ids)
    if not 0 <= layers[0] < layers[1] < layers[2] < num_layers:
        side = "outputs" if shift else "inputs"
        last = num_layers - 1 - shift
        raise keys.fail(name, f"found {quote(ids)}, expected three different {side} of layers 0 to {last}, in order")
    return layers
