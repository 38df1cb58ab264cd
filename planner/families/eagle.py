"""Read the head of EAGLE-1 and EAGLE-2: ``fc(cat(embedding, feature))``, then layers, then the base model's lm_head."""

from planner.families.config import Keys, read_mlp, read_norm_eps, read_rope
from planner.families.eagle_common import CARRIED_OVER, HARMLESS, check_base, layer_roles, read_drafter_attention
from planner.families.records import DraftFacts, DraftReading, Roles, Source
from plans.check_inputs import MOST_LAYERS
from plans.schema import Draft, Model


def read(keys: Keys, base: Model, facts: DraftFacts) -> DraftReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    hidden = keys.integer("hidden_size")
    target = keys.integer("target_hidden_size", hidden)
    if target != hidden:
        raise keys.fail("target_hidden_size", f"found {target}, expected {hidden}, hidden_size: fc joins the two")
    check_base(keys, base, hidden, "hidden_size")
    attention = read_drafter_attention(keys, facts)
    draft = Draft(
        kind="eagle",
        hidden_size=hidden,
        target_hidden_size=hidden,
        num_layers=keys.integer("num_hidden_layers", most=MOST_LAYERS),
        attention=attention,
        mlp=read_mlp(keys, bias=False),
        norm_eps=read_norm_eps(keys, 1e-6),
        fc_bias=keys.boolean("bias", True),
        draft_vocab_size=keys.integer("draft_vocab_size", base.vocab_size),
        maps_vocabulary=False,
        own_embedding=facts.own_embedding,
        aux_layers=(),
    )
    if draft.draft_vocab_size != base.vocab_size:
        problem = f"found {draft.draft_vocab_size}, expected {base.vocab_size}: this head uses the base's lm_head"
        raise keys.fail("draft_vocab_size", problem)
    reading = DraftReading(
        draft=draft,
        rope=read_rope(keys, attention.head_dim),
        max_positions=keys.integer("max_position_embeddings", 2048),
        roles=roles(draft, base),
        ignored={},
    )
    keys.finish(HARMLESS | CARRIED_OVER)
    return reading


def roles(draft: Draft, base: Model) -> Roles:
    """Return the tensors that the config implies; the first layer has no norm before its attention."""
    hidden = draft.hidden_size
    table: Roles = {}
    if draft.own_embedding:
        table["draft.embed.weight"] = Source(name="embed_tokens.weight", shape=(base.vocab_size, hidden))
    table["draft.fc.weight"] = Source(name="fc.weight", shape=(hidden, 2 * hidden))
    if draft.fc_bias:
        table["draft.fc.bias"] = Source(name="fc.bias", shape=(hidden,))
    for i in range(draft.num_layers):
        if i > 0:
            name = f"layers.{i}.input_layernorm.weight"
            table[f"draft.layers.{i}.attention_norm.weight"] = Source(name=name, shape=(hidden,))
        table |= layer_roles(draft, i, f"layers.{i}", hidden)
    return table
