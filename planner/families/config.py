"""``config.json`` read key by key: each is used, asserted or known to be harmless, and any other is refused by name.

Both spellings are read: ``rope_theta`` + ``rope_scaling``, and ``rope_parameters`` of transformers 5. Defaults are
transformers' own for an absent key.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from planner.errors import ConfigError
from planner.families.rope import LinearScaling, Llama3Scaling, Rope
from plans.schema import Attention, Mlp

MAX_SIZE = 1 << 31
MAX_LAYERS = 1024
MAX_HEAD_DIM = 4096

_ASSERTED: Mapping[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "another activation is not computed here"),
    "sliding_window": (None, "attention over a sliding window is not computed here"),
    "use_sliding_window": (False, "attention over a sliding window is not computed here"),
    "quantization_config": (None, "quantized weights are not read here: give the checkpoint before quantization"),
    "compression_config": (None, "compressed weights are not read here: give the checkpoint before compression"),
    "pretraining_tp": (1, "products in slices are not computed here"),
    "partial_rotary_factor": (1, "rotary embedding of a part of the channels is not computed here"),
    "rope_interleaved": (False, "interleaved rotary pairs are not computed here"),
    "chunk_size_feed_forward": (0, "a chunked MLP is not computed here"),
    "is_encoder_decoder": (False, "an encoder is not computed here"),
    "tie_encoder_decoder": (False, "an encoder is not computed here"),
    "add_cross_attention": (False, "cross attention is not computed here"),
    "cross_attention_hidden_size": (None, "cross attention is not computed here"),
    "pruned_heads": ({}, "pruned heads are not computed here"),
    "auto_map": (None, "code that comes with a checkpoint is never run"),
}
"""Keys with the one value that is computed, and why another is refused."""


def words(text: str) -> frozenset[str]:
    """The names in a text: a table of names that reads as lines."""
    return frozenset(text.split())


_HARMLESS = (
    # What the checkpoint is called, was trained with and was saved in.
    words("architectures model_type transformers_version _name_or_path torch_dtype dtype initializer_range use_cache")
    | words("attention_dropout hidden_dropout embd_pdrop resid_pdrop max_window_layers unsloth_fixed unsloth_version")
    | words("_attn_implementation _attn_implementation_autoset attn_implementation torchscript use_bfloat16")
    | words("is_llama_config transformers.js_config")
    # Tokens that decoding here never inserts.
    | words("pad_token_id sep_token_id unk_token_id cls_token_id decoder_start_token_id forced_bos_token_id")
    | words("forced_eos_token_id tokenizer_class prefix")
    # Which outputs transformers returns, and for which task.
    | words("return_dict return_dict_in_generate output_hidden_states output_attentions output_scores is_decoder")
    | words(
        "id2label label2id num_labels problem_type finetuning_task task_specific_params tf_legacy_loss use_bfloat16"
    )
    # Generation settings that older versions wrote here: sampling is asked for at run time.
    | words("max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature")
    | words("top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size num_return_sequences")
    | words("encoder_no_repeat_ngram_size bad_words_ids remove_invalid_values exponential_decay_length_penalty")
    | words("suppress_tokens begin_suppress_tokens")
)
"""Keys whose value changes nothing that is computed here."""

_REQUIRED: Final = object()


class Keys:
    """The keys of one config: remembers which were read, so that the rest can be judged."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._config = config
        self._read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key as it is; a null is an absent key."""
        self._read.add(name)
        value = self._config.get(name)
        return default if value is None else value

    def has(self, name: str) -> bool:
        return self._config.get(name) is not None

    def spells(self, name: str) -> bool:
        """Whether the key is there at all, even as null."""
        return name in self._config

    def fail(self, name: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.where}: {name}: {problem}")

    def integer(self, name: str, default: Any = _REQUIRED, *, most: int = MAX_SIZE - 1) -> int:
        """A size: an integer from 1 to ``most``."""
        value = self._value(name, default, "an integer")
        if type(value) is not int or not 1 <= value <= most:
            raise self.fail(name, f"found {_show(value)}, expected an integer from 1 to {most}")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A positive finite number."""
        value = self._value(name, default, "a number")
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise self.fail(name, f"found {_show(value)}, expected a positive number")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if type(value) is not bool:
            raise self.fail(name, f"found {_show(value)}, expected true or false")
        return value

    def expect(self, name: str, allowed: Any, reason: str) -> None:
        """The key is absent or has the one value that is computed here."""
        value = self.get(name, allowed)
        if (type(value) is bool and type(allowed) is not bool) or value != allowed:
            expected = "null" if allowed is None else _show(allowed)
            raise self.fail(name, f"found {_show(value)}, expected {expected}: {reason}")

    def finish(self, harmless: frozenset[str] = frozenset()) -> None:
        """Judge every key that was not read."""
        for name, (allowed, reason) in _ASSERTED.items():
            self.expect(name, allowed, reason)
        layer_types = self.get("layer_types", [])
        if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
            raise self.fail("layer_types", f"found {_show(layer_types)}, expected full_attention in every layer")
        for name in self._config:
            if name not in self._read and name not in _HARMLESS and name not in harmless:
                raise self.fail(
                    name, "unknown key: it may change what is computed; if it does not, remove it from the config"
                )

    def _value(self, name: str, default: Any, kind: str) -> Any:
        value = self.get(name, None if default is _REQUIRED else default)
        if value is None:
            raise self.fail(name, f"missing, expected {kind}")
        return value


def read_attention(keys: Keys, *, default_kv_heads: int | None, qkv_bias: bool, o_bias: bool) -> Attention:
    """Heads and their size: ``head_dim`` or hidden_size / num_attention_heads; kv heads default to the heads."""
    hidden = keys.integer("hidden_size")
    num_heads = keys.integer("num_attention_heads")
    num_kv_heads = keys.integer("num_key_value_heads", default_kv_heads or num_heads)
    if num_heads % num_kv_heads:
        raise keys.fail("num_key_value_heads", f"found {num_kv_heads}, expected a divisor of {num_heads} heads")
    if not keys.has("head_dim") and hidden % num_heads:
        raise keys.fail("num_attention_heads", f"found {num_heads}, expected a divisor of hidden_size, {hidden}")
    head_dim = keys.integer("head_dim", hidden // num_heads, most=MAX_HEAD_DIM)
    if head_dim % 2:
        raise keys.fail("head_dim", f"found {head_dim}, expected an even number: rotary embedding works on pairs")
    return Attention(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, qkv_bias=qkv_bias, o_bias=o_bias
    )


def read_mlp(keys: Keys, *, bias: bool) -> Mlp:
    """The gated MLP; ``hidden_act`` is asserted with the rest."""
    size = keys.integer("intermediate_size")
    return Mlp(kind="gated", intermediate_size=size, unit=mlp_unit(size), activation="silu", bias=bias)


def mlp_unit(intermediate_size: int) -> int:
    """Channels of one unit: the finest grain in which the MLP is dealt out to devices.

    The largest power of two up to 128 that divides the size and leaves at least 8 units, so that slices stay aligned
    and shares stay fine; 256 where 128 would make more than 512 units.
    """
    most = 256 if intermediate_size > 512 * 128 else 128
    unit = 1
    while unit < most and intermediate_size % (2 * unit) == 0 and intermediate_size >= 8 * 2 * unit:
        unit *= 2
    return unit


def read_tokens(keys: Keys, name: str, default: int) -> tuple[int, ...]:
    """Token ids given as one id, a list, or null: none. An absent key has transformers' default."""
    value = keys.get(name, default if not keys.spells(name) else [])
    values = value if isinstance(value, list) else [value]
    if not all(type(token) is int and 0 <= token < MAX_SIZE for token in values):
        raise keys.fail(name, f"found {_show(value)}, expected a token id or a list of them")
    return tuple(sorted(set(values)))


def read_rope(keys: Keys, head_dim: int) -> Rope:
    """Both spellings of the rotary embedding; types other than default, linear and llama3 are refused by name."""
    new = keys.has("rope_parameters")
    if new and keys.has("rope_scaling"):
        raise keys.fail("rope_parameters", "found beside rope_scaling, expected one of the two spellings")
    name = "rope_parameters" if new else "rope_scaling"
    scaling = keys.get(name, {})
    keys.get("rope_scaling")
    if not isinstance(scaling, dict):
        raise keys.fail(name, f"found {_show(scaling)}, expected an object")
    fields = Keys(scaling, f"{keys.where}: {name}")
    theta = keys.number("rope_theta", fields.number("rope_theta", 10000.0))
    if fields.has("rope_theta") and theta != fields.number("rope_theta"):
        raise keys.fail("rope_theta", f"found {theta}, expected {fields.number('rope_theta')} as in {name}")
    return Rope(theta=theta, dim=head_dim, scaling=_read_scaling(fields))


def _read_scaling(fields: Keys) -> LinearScaling | Llama3Scaling | None:
    kind = fields.get("rope_type", fields.get("type", "default"))
    fields.expect("type", kind, "rope_type and type must agree")
    scaling: LinearScaling | Llama3Scaling | None = None
    if kind == "linear":
        scaling = LinearScaling(factor=fields.number("factor"))
    elif kind == "llama3":
        scaling = Llama3Scaling(
            factor=fields.number("factor"),
            low_freq_factor=fields.number("low_freq_factor"),
            high_freq_factor=fields.number("high_freq_factor"),
            original_max_position_embeddings=fields.integer("original_max_position_embeddings"),
        )
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise fields.fail(
                "high_freq_factor", f"found {scaling.high_freq_factor}, expected more than low_freq_factor"
            )
    elif kind != "default":
        raise fields.fail("rope_type", f"found {_show(kind)}, expected one of default, linear, llama3")
    fields.finish()
    return scaling


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
