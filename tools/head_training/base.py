"""The base model as transformers runs it, with a cache that is never copied and KV heads that are never repeated."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, Cache

from head_training.errors import TrainingError
from head_training.rows_attention import attend_rows

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A base model and the layers whose inputs are EAGLE-3's features."""

    model: Any
    config: Any
    taps: tuple[int, int, int]

    @property
    def width(self) -> int:
        """Values per position that are kept: three features and the final state, 4 H."""
        return 4 * int(self.config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the base computes, and a head in training too."""
        dtype: torch.dtype = self.lm_head.dtype
        return dtype

    @property
    def embedding(self) -> Tensor:
        """Embedding table [V, H]."""
        table: Tensor = self.model.get_input_embeddings().weight
        return table

    @property
    def lm_head(self) -> Tensor:
        """Rows of the lm_head [V, H]."""
        rows: Tensor = self.model.get_output_embeddings().weight
        return rows

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids of tokens that end an answer."""
        ids = self.config.eos_token_id
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


def load_base(directory: Path, dtype: str) -> Base:
    """Load a checkpoint; raise TrainingError where it has too few layers or is none."""
    if not (directory / "config.json").is_file():
        raise TrainingError(f"{directory}: config.json: missing: expected a checkpoint's directory")
    try:
        config = AutoConfig.from_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=DTYPES[dtype], attn_implementation="grouped")
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"{directory}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    layers = config.num_hidden_layers
    if layers < 7:
        raise TrainingError(
            f"{directory}/config.json: num_hidden_layers: found {layers}, expected at least 7: "
            "layers 2, L // 2 and L - 3 give the features and must differ"
        )
    return Base(model=model.eval().requires_grad_(False), config=config, taps=(2, layers // 2, layers - 3))


class GroupCache(Cache):  # type: ignore[misc] # a class of a library without types
    """Keys and values of rows that decode at one common column, allocated once: [B, K, columns, D].

    Before a row's own columns stand those that all rows share, kept once: [K, shared columns, D].
    """

    def __init__(self, base: Base, rows: int, columns: int) -> None:
        super().__init__(layers=[])
        config = base.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        layers = range(config.num_hidden_layers)
        shape = (rows, config.num_key_value_heads, columns, head_dim)
        dtype = base.lm_head.dtype
        self.keys = [torch.zeros(shape, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype) for _ in layers]
        nothing = torch.zeros(shape[1], 0, head_dim, dtype=dtype)
        self.shared = [(nothing, nothing) for _ in layers]
        self.first = torch.zeros(rows, dtype=torch.int64)
        """First column of each row."""
        self.rows = slice(0, rows)
        self.column = 0

    def share(self, columns: int) -> None:
        """Make the first columns of row 0 those that all rows share; no row has columns of its own then."""
        pairs = zip(self.keys, self.values, strict=True)
        self.shared = [(k[0, :, :columns].clone(), v[0, :, :columns].clone()) for k, v in pairs]
        self.column = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new columns of the current rows; return all columns of these rows so far."""
        end = self.column + key_states.shape[2]
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self.rows, :, self.column : end] = key_states
        values[self.rows, :, self.column : end] = value_states
        return keys[self.rows, :, :end], values[self.rows, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        for i in range(len(self.keys)):
            self.keys[i] = self.keys[i][rows]
            self.values[i] = self.values[i][rows]
        self.first = self.first[rows]
        self.rows = slice(0, len(rows))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns that are filled."""
        return self.column


class GroupAttention:
    """Attention of the rows of a cache, as transformers' interface asks: [B, heads, Q, D] to [B, Q, heads, D]."""

    cache: GroupCache
    """Cache of the group that runs."""

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **_unused: object,
    ) -> tuple[Tensor, None]:
        """Attend; a mask says which columns, the shared ones first, each query of a prompt sees."""
        cache, layer = self.cache, int(module.layer_idx)  # type: ignore[arg-type]
        shared_keys, shared_values = cache.shared[layer]
        rows, heads, queries, dim = query.shape
        if queries == 1 and attention_mask is None:
            grouped = query.view(rows, key.shape[1], -1, dim)
            keys, values = (shared_keys, cache.keys[layer]), (shared_values, cache.values[layer])
            scale = dim**-0.5 if scaling is None else scaling
            out = attend_rows(grouped, keys, values, cache.first, key.shape[2], scale)
            return out.view(rows, 1, heads, dim), None
        key = torch.cat((shared_keys.expand(rows, -1, -1, -1), key), dim=2)
        value = torch.cat((shared_values.expand(rows, -1, -1, -1), value), dim=2)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=heads != key.shape[1]
        )
        return out.transpose(1, 2), None


ATTENTION = GroupAttention()
AttentionInterface.register("grouped", ATTENTION)
