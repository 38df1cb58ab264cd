"""Models of text and images of which the text part is planned: its config, and the names of its tensors.

A wrapper's config has the text part's keys in ``text_config`` (older ones of Qwen2-VL: among its own). The text part is
a model of a family here, computed alike for a prompt of text alone:

- Qwen's ``mrope`` turns each pair of channels by one of three positions (time, height, width), which are equal for
  tokens of text: it is then the plain rotary embedding, so its sections are left out.
- What an image adds (embeddings, the deep features of qwen3_vl) is added at the positions of its tokens alone.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from planner.families.config import Keys, words
from planner.families.records import BaseReading, Roles, Source
from planner.families.spellings import Spelling
from plans.format import quote

TEXT = "text_config"
QUANTIZER_KEYS = ("quantization_config", "compression_config")
"""Keys that are read before, of the whole config."""
VISION_KEYS = words("vision_config image_token_id image_token_index video_token_id video_token_index vision_token_id")
"""Keys of a wrapper that are about its images in all families."""
_TOKENS = words("vision_start_token_id vision_end_token_id boi_token_index eoi_token_index boi_token_id eoi_token_id")
_PROJECTOR = words("projector_hidden_act multimodal_projector_bias spatial_merge_size vision_feature_layer") | words(
    "vision_feature_select_strategy image_seq_length image_grid_pinpoints mm_tokens_per_image"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wrapper:
    """A kind of model with a text part that is planned."""

    architecture: str
    families: Mapping[str, str]
    """Family of the text part, by the ``model_type`` of ``text_config``; the first is that of a config without it."""
    prefixes: tuple[tuple[str, str], ...]
    """Each way in which the text part's tensors are named: what stands for ``model.``, and for ``lm_head.``."""
    vision: tuple[str, ...]
    """Prefixes of the names of the other tensors."""
    harmless: frozenset[str]
    """Keys that are about images alone."""
    spelled: tuple[str, ...] = ()
    """Keys whose default for an absent key is not that of the family, so that they must be there."""
    defaults: tuple[tuple[str, int], ...] = ()
    """Values that transformers assumes for absent keys of the text part that its family demands."""


_LLAVA_PREFIXES = (
    ("language_model.model.", "language_model.lm_head."),
    ("model.language_model.", "lm_head."),
)
_LLAVA_VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_QWEN2_PREFIXES = (("model.", "lm_head."), ("model.language_model.", "lm_head."))
_QWEN2_VISION = ("visual.", "model.visual.")
_QWEN_SPELLED = ("rms_norm_eps", "num_key_value_heads")

WRAPPERS: Mapping[str, Wrapper] = {
    "llava": Wrapper(
        architecture="LlavaForConditionalGeneration",
        families={"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3"},
        prefixes=_LLAVA_PREFIXES,
        vision=_LLAVA_VISION,
        harmless=_PROJECTOR,
    ),
    "gemma3": Wrapper(
        architecture="Gemma3ForConditionalGeneration",
        families={"gemma3_text": "gemma3_text"},
        prefixes=_LLAVA_PREFIXES,
        vision=_LLAVA_VISION,
        harmless=_PROJECTOR | _TOKENS,
        defaults=(("vocab_size", 262208), ("num_attention_heads", 8)),
    ),
    "mistral3": Wrapper(
        architecture="Mistral3ForConditionalGeneration",
        families={"mistral": "mistral", "ministral3": "ministral3"},
        prefixes=_LLAVA_PREFIXES,
        vision=_LLAVA_VISION,
        harmless=_PROJECTOR,
    ),
    "qwen2_vl": Wrapper(
        architecture="Qwen2VLForConditionalGeneration",
        families={"qwen2_vl_text": "qwen2"},
        prefixes=_QWEN2_PREFIXES,
        vision=_QWEN2_VISION,
        harmless=_TOKENS,
        spelled=_QWEN_SPELLED,
    ),
    "qwen2_5_vl": Wrapper(
        architecture="Qwen2_5_VLForConditionalGeneration",
        families={"qwen2_5_vl_text": "qwen2"},
        prefixes=_QWEN2_PREFIXES,
        vision=_QWEN2_VISION,
        harmless=_TOKENS,
        spelled=_QWEN_SPELLED,
    ),
    "qwen3_vl": Wrapper(
        architecture="Qwen3VLForConditionalGeneration",
        families={"qwen3_vl_text": "qwen3"},
        prefixes=(("model.language_model.", "lm_head."),),
        vision=("model.visual.",),
        harmless=_TOKENS,
        spelled=_QWEN_SPELLED,
    ),
    "qwen3_vl_moe": Wrapper(
        architecture="Qwen3VLMoeForConditionalGeneration",
        families={"qwen3_vl_moe_text": "qwen3_vl_moe_text"},
        prefixes=(("model.language_model.", "lm_head."),),
        vision=("model.visual.",),
        harmless=_TOKENS,
    ),
}
"""Wrappers by ``model_type``. Names of tensors are those of published checkpoints and of transformers' own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPart:
    """The text part of a wrapper, to be read by its family."""

    family: str
    keys: Keys
    note: str
    """Words that say what is planned and what is not."""


def text_part(wrapper: Wrapper, keys: Keys, config: Mapping[str, Any]) -> TextPart:
    """Return the text part of a wrapper's config, of which all other keys are judged; raise ConfigError."""
    outer = VISION_KEYS | wrapper.harmless
    nested = keys.has(TEXT)
    inner = keys.get(TEXT, {name: value for name, value in config.items() if name not in outer})
    if not isinstance(inner, dict):
        raise keys.fail(TEXT, f"found {quote(inner)}, expected an object")
    kind = inner.get("model_type", next(iter(wrapper.families))) if nested else next(iter(wrapper.families))
    if kind not in tuple(wrapper.families):
        raise keys.fail(TEXT, f"model_type: found {quote(kind)}, expected one of {', '.join(wrapper.families)}")
    family = wrapper.families[kind]
    text: dict[str, Any] = {**dict(wrapper.defaults), **inner}
    for name in ("model_type", "architectures", "vision_config", *(() if nested else QUANTIZER_KEYS)):
        text.pop(name, None)
    if keys.has("tie_word_embeddings"):  # a wrapper's own counts
        text["tie_word_embeddings"] = keys.get("tie_word_embeddings")
    text |= {name: keys.get(name) for name in ("bos_token_id", "eos_token_id") if keys.has(name) and name not in text}
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(text.get(name), dict):
            text[name] = _of_text(text[name])
    part = Keys(text, f"{keys.where}: {TEXT}" if nested else keys.where)
    for name in wrapper.spelled:
        if not part.has(name):
            raise part.fail(name, f"missing, expected it here: its default is not that of {family}")
    if nested:
        _refuse_others(keys, config, outer, inner)
    return TextPart(family=family, keys=part, note=f"planned as its text part, {family}: images are not read")


def spellings(wrapper: Wrapper, roles: Roles, tensors: Collection[str]) -> list[Spelling]:
    """Return the ways in which the text part is named; first that of a checkpoint's tensors, of none the first way."""
    ways = [Spelling(model=model.rstrip("."), lm_head=head.rstrip(".")) for model, head in wrapper.prefixes]
    names = {source.name for source in roles.values()}
    return sorted(ways, key=lambda way: -len({way.of(name) for name in names}.intersection(tensors)))


def as_wrapped(wrapper: Wrapper, reading: BaseReading, spelling: Spelling) -> BaseReading:
    """Return a reading with the names that the tensors of the text part have in a checkpoint.

    The tensors of the other parts are ignored.
    """
    roles = {role: _spelled(source, spelling) for role, source in reading.roles.items()}
    return dataclasses.replace(reading, roles=roles, ignored_prefixes=wrapper.vision)


def _spelled(source: Source, spelling: Spelling) -> Source:
    """Return a source by its name in a checkpoint."""
    return dataclasses.replace(
        source,
        name=spelling.of(source.name),
        stored=None if source.stored is None else source.stored.renamed(spelling.of),
        sorted_as=None if source.sorted_as is None else source.sorted_as.renamed(spelling.of),
    )


def _of_text(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a rotary embedding without those of ``mrope``, which change nothing for text."""
    left = {name: value for name, value in rope.items() if name not in ("mrope_section", "mrope_interleaved")}
    return {name: "default" if value == "mrope" else value for name, value in left.items()}


def _refuse_others(keys: Keys, config: Mapping[str, Any], outer: frozenset[str], inner: Mapping[str, Any]) -> None:
    """Raise ConfigError for a key beside ``text_config`` that is not known, and is not repeated from it."""
    for name, value in config.items():
        if name in inner and value == inner[name]:
            keys.get(name)  # known, and judged where it counts
    keys.finish(outer)
