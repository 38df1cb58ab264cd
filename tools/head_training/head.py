"""A new EAGLE-3 head for a base: config, draft vocabulary, initial weights; and its files."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from eagle_heads import Eagle3Head, HeadShape
from head_training.base import Base
from head_training.errors import TrainingError

INITIAL_EMBEDDING_SCALE = 0.02
"""Standard deviation of the weights that read the embedding, which no layer of the base has."""


def head_config(base: Base, draft_vocab_size: int, max_positions: int, mlp_width: int | None = None) -> dict[str, Any]:
    """Return config.json of a head with the base's sizes, heads and rotary embedding; raise TrainingError.

    ``mlp_width``: width of the MLP, or None for the base's.
    """
    config = base.config
    theta = rope_theta(config)
    heads, hidden = config.num_attention_heads, config.hidden_size
    kv_heads = config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    if head_dim * heads != hidden:  # the reference's heads have no head_dim
        head_dim = next(size for size in (128, 96, 80, 64, 48, 32, 24, 16, hidden) if hidden % size == 0)
        heads = kv_heads = hidden // head_dim
    if draft_vocab_size > config.vocab_size:
        raise TrainingError(
            f"--draft-vocab: found {draft_vocab_size}, expected at most {config.vocab_size}, the base's"
        )
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "draft_vocab_size": draft_vocab_size,
        "hidden_size": hidden,
        "intermediate_size": mlp_width or dense_width(config),
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": theta,
        "rope_scaling": None,
        "bias": False,
        "qkv_bias": False,
        "torch_dtype": "bfloat16",
    }


def rope_theta(config: Any) -> float:
    """Return the base of the rotary frequencies in either spelling of transformers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return float(parameters.get("rope_theta", getattr(config, "rope_theta", None) or 10000.0))


def dense_width(config: Any) -> int:
    """Return the MLP's width: the base's, or its mean where the layers differ."""
    width = config.intermediate_size
    return int(width) if isinstance(width, int) else int(sum(width) / len(width))


def new_head(base: Base, config: dict[str, Any], counts: Tensor) -> Eagle3Head:
    """Return a head that begins as the base's last layer, norm and lm_head, cut to the most frequent ids.

    ``counts``: occurrences of each id [V] in the answers. Weights without a like in the base are random.
    """
    head = Eagle3Head(HeadShape.read(config))
    chosen = frequent_ids(counts, config["draft_vocab_size"])
    set_vocabulary(head, chosen)
    state = dict(head.named_parameters())
    hidden = config["hidden_size"]
    with torch.no_grad():
        for name, source in widest(inherited(base), config["intermediate_size"]).items():
            target: Tensor = state[name]
            if name.startswith("midlayer.self_attn.") and target.shape[1] == 2 * hidden:
                torch.nn.init.normal_(target, std=INITIAL_EMBEDDING_SCALE)
                target = target[:, hidden:]
            if target.shape == source.shape:
                target.copy_(source)
        state["lm_head.weight"].copy_(base.lm_head[chosen])
        # the last of the three features is nearest to the last layer's input
        torch.nn.init.normal_(state["fc.weight"], std=INITIAL_EMBEDDING_SCALE / 4)
        state["fc.weight"][:, 2 * hidden :].add_(torch.eye(hidden))
    return head


def frequent_ids(counts: Tensor, size: int) -> Tensor:
    """Return the most frequent ids [size] by their counts [V], in the order of ids; ties go to the smaller id."""
    order = torch.argsort(counts.double() - torch.arange(len(counts)) * 1e-9, descending=True, stable=True)
    return order[:size].sort().values


def set_vocabulary(head: Eagle3Head, ids: Tensor) -> None:
    """Set the draft vocabulary: the base's id of each draft id, in order."""
    head.d2t.copy_(ids - torch.arange(len(ids)))
    head.t2d.zero_()
    head.t2d[ids] = True


def extended(head: Eagle3Head, base: Base, config: dict[str, Any], counts: Tensor) -> Eagle3Head:
    """Return a head with the draft vocabulary that a config asks for: its own and the most frequent of other ids.

    ``counts``: occurrences of each id [V] in the answers. The rows of new ids are those of the base's lm_head.
    """
    own = head.token_ids()
    if len(own) == config["draft_vocab_size"]:
        return head
    result = Eagle3Head(HeadShape.read(config))
    ids = frequent_ids(counts.double().index_fill(0, own, float("inf")), config["draft_vocab_size"])
    tensors = head.state_dict()
    rows = base.lm_head[ids].float()
    rows[torch.searchsorted(ids, own)] = tensors["lm_head.weight"]
    changed = {name: result.state_dict()[name] for name in ("d2t", "t2d")} | {"lm_head.weight": rows}
    result.load_state_dict(tensors | changed)
    set_vocabulary(result, ids)
    return result


def inherited(base: Base) -> dict[str, Tensor]:
    """Return the base's tensors that a head's tensors begin as, by the head's names."""
    last = base.model.model.layers[-1]
    tensors = {"norm.weight": base.model.model.norm.weight, "midlayer.hidden_norm.weight": last.input_layernorm.weight}
    tensors["midlayer.post_attention_layernorm.weight"] = last.post_attention_layernorm.weight
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        tensors[f"midlayer.self_attn.{name}.weight"] = getattr(last.self_attn, name).weight
    for name in ("gate_proj", "up_proj", "down_proj"):
        projection = getattr(last.mlp, name, None)  # experts have others
        if projection is not None:
            tensors[f"midlayer.mlp.{name}.weight"] = projection.weight
    return {name: tensor.float() for name, tensor in tensors.items()}


def widest(tensors: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """Return a head's first tensors with an MLP of at most this width: the hidden units of the largest weights.

    A unit's weight is the product of the norms of its rows of gate_proj and up_proj and its column of down_proj.
    """
    gate, up, down = (f"midlayer.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
    if gate not in tensors or width >= len(tensors[gate]):
        return tensors
    weights = tensors[gate].norm(dim=1) * tensors[up].norm(dim=1) * tensors[down].norm(dim=0)
    units = weights.argsort(descending=True, stable=True)[:width].sort().values
    return tensors | {gate: tensors[gate][units], up: tensors[up][units], down: tensors[down][:, units]}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    """A head to go on from."""

    head: Eagle3Head
    config: dict[str, Any]
    """Its config, but with the draft vocabulary's size that it shall have."""
    digest: str
    """Digest of config and weights."""


def read_head(directory: Path, base: Base, draft_vocab_size: int | None) -> Beginning:
    """Read an EAGLE-3 head of this base in the layout of SafeAILab/EAGLE; raise TrainingError.

    ``draft_vocab_size``: the one that it shall have, or None for its own.
    """
    config_file, weights_file = directory / "config.json", directory / "model.safetensors"
    try:
        text, weights = config_file.read_bytes(), weights_file.read_bytes()
        config, tensors = json.loads(text), load(weights)
    except OSError as error:
        raise TrainingError(f"{error.filename}: {error.strerror}: expected a file of the head to go on from") from error
    except (ValueError, RecursionError, SafetensorError) as error:
        raise TrainingError(f"{directory}: cannot be read as a head: {error}") from error
    if not isinstance(config, dict):
        raise TrainingError(f"{config_file}: found {type(config).__name__}, expected a mapping")
    check_config(config_file, config, base)
    least, most = config["draft_vocab_size"], config["vocab_size"]
    if draft_vocab_size is not None and not least <= draft_vocab_size <= most:
        raise TrainingError(
            f"--draft-vocab: found {draft_vocab_size}, expected {least} to {most}: the head in {directory} "
            "keeps the tokens that it has"
        )
    head = Eagle3Head(HeadShape.read(config))
    expected = head.state_dict()
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise TrainingError(f"{weights_file}: {name}: {'missing' if name in expected else 'not known'}")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            found = list(tensors[name].shape)
            raise TrainingError(f"{weights_file}: {name}: found shape {found}, expected {list(tensor.shape)}")
    head.load_state_dict(tensors)
    ids = head.token_ids()
    if not torch.equal(ids, head.t2d.nonzero()[:, 0]):
        raise TrainingError(
            f"{weights_file}: d2t: found other tokens than t2d marks, expected the same, in their order"
        )
    config["draft_vocab_size"] = draft_vocab_size or least
    return Beginning(head=head, config=config, digest=hashlib.sha256(text + weights).hexdigest()[:16])


FIXED = {"num_hidden_layers": 1, "hidden_act": "silu", "rope_scaling": None, "bias": False, "qkv_bias": False}
"""Entries of a head's config that have this value here, and in a config without them."""
COUNTS = ("draft_vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


def check_config(file: Path, config: dict[str, Any], base: Base) -> None:
    """Raise TrainingError unless a config describes a head of this base as ``Eagle3Head`` computes one."""
    sizes = {name: getattr(base.config, name) for name in ("hidden_size", "vocab_size")}
    for name, value in (sizes | FIXED).items():
        found = config.get(name, FIXED.get(name))
        if found != value:
            whose = ", the base's" if name in sizes else ""
            raise TrainingError(f"{file}: {name}: found {found}, expected {value}{whose}")
    for name in COUNTS:
        found = config.get(name)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise TrainingError(f"{file}: {name}: found {found}, expected a positive integer")
    for name in ("rms_norm_eps", "rope_theta"):
        found = config.get(name)
        if not isinstance(found, float | int) or isinstance(found, bool) or found <= 0:
            raise TrainingError(f"{file}: {name}: found {found}, expected a positive number")
    heads, kv_heads, hidden = config["num_attention_heads"], config["num_key_value_heads"], config["hidden_size"]
    if hidden % heads or heads % kv_heads or config.get("head_dim") not in (None, hidden // heads):
        raise TrainingError(
            f"{file}: num_attention_heads: found {heads} over {kv_heads} KV heads, head_dim {config.get('head_dim')}, "
            f"expected heads that divide {hidden} evenly, and KV heads that divide them"
        )


def write_head(directory: Path, head: Eagle3Head, config: dict[str, Any]) -> int:
    """Write config.json and model.safetensors in bfloat16; return the bytes of the latter."""
    directory.mkdir(parents=True, exist_ok=True)
    stored = {
        name: (t.to(torch.bfloat16) if t.is_floating_point() else t).contiguous()
        for name, t in head.state_dict().items()
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    file = directory / "model.safetensors"
    save_file(stored, file, metadata={"format": "pt"})
    file.chmod(0o644)
    return file.stat().st_size
