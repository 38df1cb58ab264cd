"""Read ``config.json`` key by key: each is used, asserted or known to be harmless, and any other is refused by name.

Defaults are transformers' own for an absent key. ``rope_keys`` reads those of the rotary embedding.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from planner.errors import ConfigError
from plans.check_model import MOST_EXPERTS, MOST_HEAD_DIM, MOST_HEADS, MOST_LAYERS, MOST_SIZE, NORM_EPS
from plans.format import quote, shown
from plans.schema import Attention, Mlp, Router

MAX_ALL_EXPERTS = 1 << 16
"""Most experts of all layers together: each has three tensors with names of their own."""
MAX_TOKENS = 256
"""Most token ids of one key."""

NO_WINDOW = "attention over a sliding window is not computed here"

_ASSERTED: Mapping[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "another activation is not computed here"),
    "sliding_window": (None, NO_WINDOW),
    "use_sliding_window": (False, NO_WINDOW),
    "quantization_config": (None, "quantized weights are not read here: give the checkpoint before quantization"),
    "compression_config": (None, "compressed weights are not read here: give the checkpoint before compression"),
    "pretraining_tp": (1, "products in slices are not computed here"),
    "partial_rotary_factor": (1, "rotary embedding of a part of the channels is not computed here"),
    "use_mrope": (False, "rotary embedding in sections is not computed here"),
    "rope_interleaved": (False, "interleaved rotary pairs are not computed here"),
    "chunk_size_feed_forward": (0, "a chunked MLP is not computed here"),
    "is_encoder_decoder": (False, "an encoder is not computed here"),
    "tie_encoder_decoder": (False, "an encoder is not computed here"),
    "add_cross_attention": (False, "cross attention is not computed here"),
    "cross_attention_hidden_size": (None, "cross attention is not computed here"),
    "pruned_heads": ({}, "pruned heads are not computed here"),
}
"""The one value of a key that is computed here, and the reason for which another is refused."""


def saved_dtype(config: Mapping[str, Any]) -> Any:
    """Return the dtype in which a checkpoint was saved, by its config or that of its text part; None if absent."""
    text = config.get("text_config")
    parts = (config, text if isinstance(text, dict) else {})
    return next((part[name] for part in parts for name in ("dtype", "torch_dtype") if part.get(name) is not None), None)


def words(text: str) -> frozenset[str]:
    """Return the names in a text, so that a set of many names can be written as lines."""
    return frozenset(text.split())


_HARMLESS = (
    # Names, training, and the dtype in which the checkpoint was saved.
    words("architectures model_type transformers_version _name_or_path torch_dtype dtype initializer_range use_cache")
    | words("attention_dropout hidden_dropout embd_pdrop resid_pdrop max_window_layers unsloth_fixed unsloth_version")
    | words("_attn_implementation _attn_implementation_autoset attn_implementation torchscript use_bfloat16")
    | words("is_llama_config transformers.js_config _commit_hash _auto_class gradient_checkpointing model_parallel")
    | words("_flash_attn_2_enabled use_flash_attn use_flash_attention use_flash_attention_2 trust_remote_code")
    | words(
        "_attn_implementation_internal _experts_implementation _experts_implementation_internal neftune_noise_alpha"
    )
    # Lengths for which prompts were cut in training; positions are limited by max_position_embeddings alone.
    | words("max_sequence_length model_max_length tokenizer_model_max_length")
    # Tokens that are never inserted by this runtime.
    | words("pad_token_id sep_token_id unk_token_id cls_token_id decoder_start_token_id forced_bos_token_id")
    | words("forced_eos_token_id tokenizer_class prefix padding_side tokenizer_padding_side")
    # Outputs that transformers returns, and the task for which it returns them.
    | words("return_dict return_dict_in_generate output_hidden_states output_attentions output_scores is_decoder")
    | words("id2label label2id num_labels problem_type finetuning_task task_specific_params tf_legacy_loss")
    # Generation settings that older versions wrote into the config: sampling is chosen at run time.
    | words("max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature")
    | words("top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size num_return_sequences")
    | words("encoder_no_repeat_ngram_size bad_words_ids remove_invalid_values exponential_decay_length_penalty")
    | words("suppress_tokens begin_suppress_tokens max_new_tokens min_new_tokens penalty_alpha renormalize_logits")
    | words("forced_decoder_ids use_return_dict")
)
"""Keys that change nothing, whatever their value."""

ROUTER_TRAINING = words("router_aux_loss_coef output_router_logits router_jitter_noise")
"""Keys of a router's loss and noise, which exist in training only."""

_REQUIRED: Final = object()


class Keys:
    """The keys of one config. It records which were read, so that ``finish`` can judge the rest.

    Methods raise ConfigError with the path of the file and the key.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.where = where
        self.notes: list[str] = []
        """Words for a person about keys that are no reason to refuse."""
        self._config = config
        self._read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a key, unchecked; a null counts as an absent key."""
        self._read.add(name)
        value = self._config.get(name)
        return default if value is None else value

    def has(self, name: str) -> bool:
        """Return True if the key has a value other than null."""
        return self._config.get(name) is not None

    def spells(self, name: str) -> bool:
        """Return True if the key is present, even as null."""
        return name in self._config

    def fail(self, name: str, problem: str) -> ConfigError:
        """Return the error of a key, to be raised."""
        return ConfigError(f"{self.where}: {shown(name)}: {problem}")

    def integer(self, name: str, default: Any = _REQUIRED, *, most: int = MOST_SIZE) -> int:
        """Return a size: an integer from 1 to ``most``."""
        value = self._value(name, default, "an integer")
        if type(value) is not int or not 1 <= value <= most:
            raise self.fail(name, f"found {quote(value)}, expected an integer from 1 to {most}")
        return value

    def number(self, name: str, default: Any = _REQUIRED, *, least: float, most: float) -> float:
        """Return a number from ``least`` to ``most``, as they are written in a config: integers are numbers too."""
        value = self._value(name, default, "a number")
        if type(value) not in (int, float) or not least <= value <= most:
            raise self.fail(name, f"found {quote(value)}, expected a number from {least:g} to {most:g}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self.get(name, default)
        if type(value) is not bool:
            raise self.fail(name, f"found {quote(value)}, expected true or false")
        return value

    def expect(self, name: str, allowed: Any, reason: str) -> None:
        """Raise ConfigError unless the key is absent or has the one value that is computed here."""
        value = self.get(name, allowed)
        if (type(value) is bool and type(allowed) is not bool) or value != allowed:
            expected = "null" if allowed is None else quote(allowed)
            raise self.fail(name, f"found {quote(value)}, expected {expected}: {reason}")

    def finish(self, harmless: frozenset[str] = frozenset()) -> None:
        """Raise ConfigError for a key that was not read, unless it has its asserted value or is harmless."""
        if "auto_map" not in self._read:
            self._judge_auto_map()
        for name, (allowed, reason) in _ASSERTED.items():
            if name not in self._read:
                self.expect(name, allowed, reason)
        layer_types = self._config.get("layer_types") or []
        full = isinstance(layer_types, list) and all(layer == "full_attention" for layer in layer_types)
        if not full and "layer_types" not in self._read:
            raise self.fail("layer_types", f"found {quote(layer_types)}, expected full_attention in every layer")
        self._read.add("layer_types")
        for name in self._config:
            if name not in self._read and name not in _HARMLESS and name not in harmless:
                raise self.fail(name, "unknown key: not known here, and it may change what is computed")

    def _judge_auto_map(self) -> None:
        """Note ``auto_map`` where its model is the architecture, by name; raise ConfigError for another model's code.

        Old checkpoints of architectures that transformers has by now still name their own files.
        """
        classes, architectures = self.get("auto_map", {}), self._config.get("architectures")
        models = [
            str(name).rpartition(".")[2]
            for auto, name in (classes.items() if isinstance(classes, dict) else [("", classes)])
            if auto not in ("AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoModel", "AutoImageProcessor")
        ]
        if any(not isinstance(architectures, list) or name not in architectures for name in models):
            raise self.fail(
                "auto_map", f"found {quote(classes)}, expected null: code that comes with a checkpoint is never run"
            )
        if classes:
            computed = (
                f"computed as {architectures[0]} of transformers" if architectures else "the config alone is read"
            )
            self.notes.append(f"auto_map: code that comes with the checkpoint is not run: {computed}")

    def _value(self, name: str, default: Any, expected: str) -> Any:
        value = self.get(name, None if default is _REQUIRED else default)
        if value is None:
            inner = next(
                (key for key, value in self._config.items() if isinstance(value, dict) and name in value), None
            )
            hint = f" here: a config with its keys inside {inner} is of a layout that is not read" if inner else ""
            raise self.fail(name, f"missing, expected {expected}{hint}")
        return value


def read_attention(
    keys: Keys,
    *,
    default_kv_heads: int | None = None,
    default_head_dim: int | None = None,
    qkv_bias: bool,
    o_bias: bool,
    qk_norm: bool = False,
    qk_norm_whole: bool = False,
) -> Attention:
    """Read numbers of query and KV heads and their size.

    Absent ``head_dim``: ``default_head_dim``, or hidden_size / num_attention_heads. Absent ``num_key_value_heads``:
    ``default_kv_heads``, or as many as query heads; null: as many as query heads.
    """
    hidden = keys.integer("hidden_size")
    num_heads = keys.integer("num_attention_heads", most=MOST_HEADS)
    absent = None if keys.spells("num_key_value_heads") else default_kv_heads
    num_kv_heads = keys.integer("num_key_value_heads", absent or num_heads)
    if num_heads % num_kv_heads:
        raise keys.fail("num_key_value_heads", f"found {num_kv_heads}, expected a divisor of {num_heads} heads")
    if default_head_dim is None and not keys.has("head_dim") and hidden % num_heads:
        raise keys.fail("num_attention_heads", f"found {num_heads}, expected a divisor of hidden_size, {hidden}")
    head_dim = keys.integer("head_dim", default_head_dim or hidden // num_heads, most=MOST_HEAD_DIM)
    if head_dim % 2:
        raise keys.fail("head_dim", f"found {head_dim}, expected an even number: rotary embedding works on pairs")
    return Attention(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm=qk_norm,
        qk_norm_whole=qk_norm_whole or None,
    )


def read_mlp(keys: Keys, *, bias: bool) -> Mlp:
    """Read the one gated MLP of all layers; ``hidden_act`` is asserted by ``Keys.finish``."""
    return gated_mlp(keys.integer("intermediate_size"), bias=bias)


def gated_mlp(size: int, *, bias: bool) -> Mlp:
    """Return a gated MLP of ``size`` channels."""
    return Mlp(
        kind="gated",
        intermediate_size=size,
        unit=mlp_unit(size),
        activation="silu",
        bias=bias,
        num_experts=1,
        experts_per_token=1,
        norm_topk_prob=False,
    )


def read_norm_eps(keys: Keys, default: float) -> float:
    """Read the epsilon of the RMS norms, ``rms_norm_eps``."""
    return keys.number("rms_norm_eps", default, least=NORM_EPS[0], most=NORM_EPS[1])


def read_layers(keys: Keys) -> int:
    """Read ``num_hidden_layers``."""
    return keys.integer("num_hidden_layers", most=MOST_LAYERS)


def read_mlps(keys: Keys, *, bias: bool) -> tuple[Mlp, ...]:
    """Read the gated MLP of each layer: ``intermediate_size`` is one size, or a list of one per layer."""
    count, sizes = read_layers(keys), keys.get("intermediate_size")
    if not isinstance(sizes, list):
        return (read_mlp(keys, bias=bias),) * count
    if len(sizes) != count:
        problem = f"found a list of {len(sizes)}, expected {count}: one for each of num_hidden_layers"
        raise keys.fail("intermediate_size", problem)
    for i, size in enumerate(sizes):
        if type(size) is not int or not 1 <= size <= MOST_SIZE:
            problem = f"found {quote(size)}, expected an integer from 1 to {MOST_SIZE}"
            raise keys.fail(f"intermediate_size[{i}]", problem)
    return tuple(gated_mlp(size, bias=bias) for size in sizes)


def read_experts(
    keys: Keys,
    *,
    size: str,
    default_experts: int | None,
    default_per_token: int | None,
    norm_topk_prob: bool,
    default_size: int | None = None,
    shared_size: int | None = None,
    shared_gate: bool = False,
    bias: bool = False,
    router: Router | None = None,
    names: tuple[str, str] = ("num_experts", "num_experts_per_tok"),
) -> Mlp:
    """Read a mixture of gated experts, of which the router picks some for each token.

    ``size``: name of the key that has the channels of one expert. transformers 5 writes ``num_local_experts`` for what
    Qwen's configs call ``num_experts``; if both are present they must agree. ``names``: of the keys with the number
    of experts, and of those that are picked. A default of None: the key is needed.
    """
    channels = keys.integer(size, default_size)
    number, per_token = names
    local = keys.integer("num_local_experts", most=MOST_EXPERTS) if keys.has("num_local_experts") else default_experts
    experts = keys.integer(number, local, most=MOST_EXPERTS)
    if keys.has("num_local_experts") and local != experts:
        raise keys.fail("num_local_experts", f"found {local}, expected {experts} as in {number}")
    if experts * (layers := read_layers(keys)) > MAX_ALL_EXPERTS:
        problem = f"found {experts} in each of {layers} layers, expected at most {MAX_ALL_EXPERTS} in all"
        raise keys.fail("num_local_experts" if keys.has("num_local_experts") else number, problem)
    picked = keys.integer(per_token, default_per_token)
    if picked > experts:
        raise keys.fail(per_token, f"found {picked}, expected at most {experts}, the number of experts")
    return Mlp(
        kind="moe",
        intermediate_size=channels,
        unit=mlp_unit(channels) if shared_size is None else _shared_unit(channels, shared_size),
        activation="silu",
        bias=bias,
        num_experts=experts,
        experts_per_token=picked,
        norm_topk_prob=norm_topk_prob,
        shared_size=shared_size,
        shared_gate=shared_gate or None,
        router=router,
    )


def _shared_unit(channels: int, shared: int) -> int:
    """Return the channels of each expert in one unit, which has as large a part of the shared expert too."""
    both = math.gcd(channels, shared)
    return channels // (both // mlp_unit(both))


def mlp_unit(intermediate_size: int) -> int:
    """Return the channels of one unit, the smallest share of an MLP that a device can have.

    The largest power of two up to 128 that divides the size and leaves at least 8 units, so that slices stay aligned
    and shares stay fine; 256 where 128 would make more than 512 units.
    """
    most = 256 if intermediate_size > 512 * 128 else 128
    unit = 1
    while unit < most and intermediate_size % (2 * unit) == 0 and intermediate_size >= 8 * 2 * unit:
        unit *= 2
    return unit


def read_tokens(keys: Keys, name: str, default: int | tuple[int, ...] | None, vocab_size: int) -> tuple[int, ...]:
    """Read token ids written as one id, a list, or null for none; an absent key has transformers' default."""
    assumed = list(default) if isinstance(default, tuple) else default
    value = keys.get(name, [] if assumed is None or keys.spells(name) else assumed)
    values = value if isinstance(value, list) else [value]
    expected = f"a token id from 0 to {vocab_size - 1} (vocab_size {vocab_size}), or a list of them"
    if not all(type(token) is int and 0 <= token < vocab_size for token in values):
        absent = "" if keys.has(name) else "absent, which means "
        raise keys.fail(name, f"{absent or 'found '}{quote(value)}, expected {expected}")
    if len(values) > MAX_TOKENS:
        raise keys.fail(name, f"found {len(values)} token ids, expected at most {MAX_TOKENS}")
    return tuple(sorted(set(values)))
