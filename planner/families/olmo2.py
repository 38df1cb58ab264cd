"""OLMo 2: outputs of attention and MLP are normed instead of inputs, and all heads of q and of k are normed together.

| key | what it does |
|---|---|
| attention_bias | biases of q, k, v and o |
| head_dim | default: hidden_size / num_attention_heads |
| sliding_window | must be null |
| mlp_bias | must be false |
"""

from planner.families.config import Keys, read_attention, read_mlps
from planner.families.llama_layout import Defaults, Layout, base_reading
from planner.families.records import BaseReading

DEFAULTS = Defaults(max_positions=2048, bos_token_id=None, eos_token_id=50279, norm_eps=1e-5)


def read(keys: Keys) -> BaseReading:
    """Read a config; raise ConfigError with the key that is missing, wrong or not computed here."""
    keys.expect("mlp_bias", False, "the MLP of olmo2 has no biases")
    bias = keys.boolean("attention_bias", False)
    attention = read_attention(keys, qkv_bias=bias, o_bias=bias, qk_norm=True, qk_norm_whole=True)
    return base_reading("olmo2", keys, attention, read_mlps(keys, bias=False), DEFAULTS, layout=Layout(norms="after"))
