"""Read the head of EAGLE-1 and EAGLE-2: ``fc(cat(embedding, feature))``, then layers, then the base model's lm_head."""

from planner.families.aux_layers import AuxLayers
from planner.families.config import read_norm_eps
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
from plans.check_model import MOST_LAYERS
from plans.schema import Draft, Model


def read(head: Head, base: Model, facts: DraftFacts, asked: AuxLayers | None) -> DraftReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys = head.keys
    if asked is not None:
        raise keys.fail("--aux-layers", "given for a head of EAGLE-1, which reads the last layer alone")
    hidden = keys.integer("hidden_size")
    target = keys.integer("target_hidden_size", hidden)
    if target != hidden:
        raise keys.fail("target_hidden_size", f"found {target}, expected {hidden}, hidden_size: fc joins the two")
    check_base((keys, "hidden_size", hidden), keys, base)
    for name in ("bias", "eagle_fc_bias"):
        refuse_claim(keys, name, present=facts.fc_bias, tensor="fc.bias")
    attention = read_drafter_attention(keys, facts)
    max_positions = keys.integer("max_position_embeddings", 2048)
    rope = read_rope(keys, attention.head_dim, RopeDefaults(max_positions=max_positions))
    num_layers = keys.integer("num_hidden_layers", most=MOST_LAYERS)
    draft = Draft(
        kind="eagle",
        hidden_size=hidden,
        target_hidden_size=hidden,
        num_layers=num_layers,
        attention=attention,
        mlp=read_drafter_mlp(keys, facts),
        norm_eps=read_norm_eps(keys, 1e-6),
        fc_bias=facts.fc_bias,
        draft_vocab_size=read_draft_vocabulary(keys, base.vocab_size),
        maps_vocabulary=False,
        own_embedding=facts.own_embedding,
        aux_layers=(),
        layout=head.layout,
        rotary=drafter_rotary(rope, num_layers),
    )
    if draft.draft_vocab_size != base.vocab_size:
        problem = f"found {draft.draft_vocab_size}, expected {base.vocab_size}: this head uses the base's lm_head"
        raise keys.fail("draft_vocab_size", problem)
    reading = DraftReading(
        draft=draft,
        ropes=(rope,) * draft.num_layers,
        max_positions=max_positions,
        roles=roles(draft, base),
        ignored={},
    )
    keys.finish(HARMLESS | CARRIED_OVER)
    return reading


def roles(draft: Draft, base: Model) -> Roles:
    """Return the tensors that the config implies."""
    hidden = draft.hidden_size
    table: Roles = {}
    if draft.own_embedding:
        table["draft.embed.weight"] = Source(name="embed_tokens.weight", shape=(base.vocab_size, hidden))
    table["draft.fc.weight"] = Source(name="fc.weight", shape=(hidden, 2 * hidden))
    if draft.fc_bias:
        table["draft.fc.bias"] = Source(name="fc.bias", shape=(hidden,))
    for i in range(draft.num_layers):
        table |= layer_roles(draft, i, f"layers.{i}")
    return table
