"""Name drafters that are not computed here, by their configs and tensors, so that each is refused for what it is."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Drafter:
    """A kind of drafter: how it is recognised, and what computing it would take."""

    name: str
    needed: str
    architectures: tuple[str, ...] = ()
    """Parts of names of architectures."""
    kinds: tuple[str, ...] = ()
    """Values of ``model_type``, and of ``speculators_model_type`` behind the word speculators."""
    keys: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    """Parts of names of tensors, behind a dot or at the beginning."""


DRAFTERS = (
    Drafter(
        name="DFlash2",
        needed="its convolutions and its selector of candidate pairs",
        architectures=("DFlash2",),
        tensors=("candidate_selector.",),
    ),
    Drafter(
        name="DSpark",
        needed="drafting of a block in both directions, and its Markov and confidence heads",
        architectures=("DSpark",),
        kinds=("speculators dspark",),
        keys=("markov_rank", "dspark_target_layer_ids", "dspark_noise_token_id"),
        tensors=("markov_head.",),
    ),
    Drafter(
        name="Domino",
        needed="drafting of a block in both directions, and a GRU over its tokens",
        architectures=("Domino",),
        keys=("gru_hidden_dim", "pure_draft_prefix_len"),
        tensors=("prefix_gru.",),
    ),
    Drafter(
        name="DFlash",
        needed="attention in both directions within a block, over keys and values of the target's features",
        architectures=("DFlash",),
        kinds=("speculators dflash",),
        keys=("dflash_config",),
    ),
    Drafter(
        name="Medusa",
        needed="one head for each of the next tokens, on the base's last hidden state",
        architectures=("Medusa",),
        kinds=("medusa",),
        keys=("medusa_num_heads", "medusa_num_layers"),
        tensors=("medusa_head.",),
    ),
    Drafter(
        name="an MTP layer (multi-token prediction)",
        needed="the base's own kind of layer behind a norm of the embedding and one of the hidden state",
        architectures=("MTP", "NextN"),
        kinds=("speculators mtp",),
        tensors=("eh_proj.", "mtp.", "mtp_layers."),
    ),
    Drafter(
        name="a Gemma-4 assistant",
        needed="attention over the keys and values of the base's cache",
        architectures=("AssistantForCausalLM",),
        kinds=("gemma4_assistant",),
    ),
    Drafter(
        name="an EAGLE-3 head with latent attention (MLA)",
        needed="a cache of latent vectors and the projections from them",
        architectures=("Eagle3Deepseek", "Eagle3MLA"),
        keys=("kv_lora_rank",),
        tensors=("self_attn.kv_a_proj_with_mqa.", "self_attn.kv_b_proj."),
    ),
    Drafter(
        name="an MLP speculator",
        needed="a chain of small MLPs on the base's last hidden state",
        architectures=("MLPSpeculator",),
        kinds=("mlp_speculator", "speculators mlp"),
    ),
    Drafter(
        name="speculators' EAGLE-1",
        needed="its norms of the embedding and before the lm_head; give the head in the layout of SafeAILab/EAGLE",
        architectures=("EagleSpeculator",),
        kinds=("speculators eagle",),
        tensors=("fusion_fc.", "embedding_layernorm.", "pre_lm_head_layernorm."),
    ),
)
"""More special kinds first: a DSpark drafter has the marks of DFlash too."""


def other_drafter(config: Mapping[str, Any], tensors: Collection[str]) -> Drafter | None:
    """Return the kind of drafter that is not computed here; None for an EAGLE head, or what has no such marks."""
    architectures = config.get("architectures")
    named = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    layer = config.get("transformer_layer_config")
    kinds = {str(config.get("model_type")), f"speculators {config.get('speculators_model_type')}"}
    keys = {name for inner in (config, layer) if isinstance(inner, dict) for name in inner if inner[name] is not None}
    for drafter in DRAFTERS:
        by_config = any(part in name for part in drafter.architectures for name in named)
        by_config = by_config or bool(kinds.intersection(drafter.kinds) or keys.intersection(drafter.keys))
        if by_config or any(_part_of(part, name) for part in drafter.tensors for name in tensors):
            return drafter
    return None


def _part_of(part: str, name: str) -> bool:
    return name.startswith(part) or f".{part}" in name
