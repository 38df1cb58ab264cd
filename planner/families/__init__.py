"""Model families and EAGLE heads: from a checkpoint, or its bare config, to the closed vocabulary of blocks.

A new family is one file here and one row in the table; its module is imported when a config names it.
"""

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from planner.checkpoints.checkpoint import Checkpoint, read_checkpoint
from planner.checkpoints.header import TensorInfo
from planner.checkpoints.summary import Summary, describe
from planner.errors import CheckpointError
from planner.families.config import Keys
from planner.families.records import (
    BaseInput,
    BaseReading,
    DraftFacts,
    DraftInput,
    DraftReading,
    Reading,
    Roles,
    Source,
)
from planner.families.rope import LinearScaling, Llama3Scaling, Rope, inv_freq, inv_freq_bytes
from plans.schema import Draft

__all__ = [
    "BaseInput",
    "DraftFacts",
    "DraftInput",
    "LinearScaling",
    "Llama3Scaling",
    "Roles",
    "Rope",
    "Source",
    "facts_of",
    "inv_freq",
    "inv_freq_bytes",
    "load_base",
    "load_draft",
    "scan",
]

_FAMILIES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""``model_type`` of a base model, which is also its module here, with ``read(keys)``; and its architecture."""

_HEADS: Mapping[str, str] = {
    "eagle": "planner.families.eagle",
    "eagle3": "planner.families.eagle3",
}
"""Kind of an EAGLE head to the module with its ``read(keys, base, facts)``."""

_FLOATS = frozenset({"BF16", "F16", "F32"})
_CONFIG_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def load_base(path: Path) -> BaseInput:
    """Read a base model: a directory or a bare config; raise ConfigError or CheckpointError."""
    checkpoint = read_checkpoint(path)
    _refuse_head(checkpoint)
    keys = Keys(checkpoint.config, str(checkpoint.config_file))
    family = _family(keys)
    reading: BaseReading = importlib.import_module(f"planner.families.{family}").read(keys)
    if checkpoint.tensors is not None:
        _check_tensors(checkpoint, checkpoint.tensors, reading)
    return BaseInput(
        model=reading.model,
        rope=reading.rope,
        roles=reading.roles,
        checkpoint=checkpoint,
        max_positions=reading.max_positions,
        config_sha256=hashlib.sha256(checkpoint.config_bytes).hexdigest(),
        tensors_sha256=_table_sha256(reading.roles),
    )


def load_draft(path: Path, base: BaseInput, facts: DraftFacts | None = None) -> DraftInput:
    """Read an EAGLE head for ``base``: a directory or a bare config; raise ConfigError or CheckpointError.

    ``facts``: what a plan says that the bare config does not; with tensors, the two must agree.
    """
    checkpoint = read_checkpoint(path, pickles=True)
    keys = Keys(checkpoint.config, str(checkpoint.config_file))
    if keys.get("model_type", "llama") not in _FAMILIES:
        raise keys.fail("model_type", f"found {keys.get('model_type')!r}, expected one of {', '.join(_FAMILIES)}")
    facts = _facts(checkpoint, keys, base, facts)
    reading: DraftReading = importlib.import_module(_HEADS[facts.kind]).read(keys, base.model, facts)
    if checkpoint.tensors is not None:
        _check_tensors(checkpoint, checkpoint.tensors, reading)
    return DraftInput(
        draft=reading.draft,
        rope=reading.rope,
        roles=reading.roles,
        checkpoint=checkpoint,
        max_positions=reading.max_positions,
        config_sha256=hashlib.sha256(checkpoint.config_bytes).hexdigest(),
        tensors_sha256=_table_sha256(reading.roles),
    )


def facts_of(draft: Draft) -> DraftFacts:
    """The facts that a plan has recorded."""
    return DraftFacts(
        kind=draft.kind,
        own_embedding=draft.own_embedding,
        maps_vocabulary=draft.maps_vocabulary,
        qkv_bias=draft.attention.qkv_bias,
    )


def scan(path: Path) -> Summary:
    """What a checkpoint holds: its headers, or for a bare config of a base model the tensors that it implies."""
    checkpoint = read_checkpoint(path, pickles=True)
    if checkpoint.tensors is not None:
        return describe({name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()})
    base = load_base(path)
    config = checkpoint.config
    dtype = _CONFIG_DTYPES.get(str(config.get("dtype", config.get("torch_dtype"))), "F32")
    return describe({source.name: (dtype, source.shape) for source in base.roles.values()})


def _refuse_head(checkpoint: Checkpoint) -> None:
    """A head given as the base would be refused for a key or a tensor that says nothing of what is wrong."""
    of_head = "fc.weight" in checkpoint.tensors if checkpoint.tensors else "draft_vocab_size" in checkpoint.config
    if of_head:
        raise CheckpointError(
            f"{checkpoint.config_file}: an EAGLE head, expected a base model: give it as --draft, and as --model the "
            "model that it was trained for"
        )


def _family(keys: Keys) -> str:
    architectures = keys.get("architectures", [])
    named = next((name for name, architecture in _FAMILIES.items() if architectures == [architecture]), "")
    family = keys.get("model_type", named)
    if not isinstance(family, str) or family not in _FAMILIES:
        found = keys.get("model_type", architectures)
        raise keys.fail("model_type", f"found {found!r}, expected one of {', '.join(_FAMILIES)}")
    if architectures not in ([], [_FAMILIES[family]]):
        raise keys.fail("architectures", f"found {architectures!r}, expected {[_FAMILIES[family]]!r}")
    return family


# Heads


def _facts(checkpoint: Checkpoint, keys: Keys, base: BaseInput, given: DraftFacts | None) -> DraftFacts:
    """The facts of the tensors; of a bare config those given, or what it implies."""
    if checkpoint.tensors is None:
        return given or _implied_facts(keys, base)
    found = DraftFacts(
        kind=_kind(checkpoint, checkpoint.tensors),
        own_embedding="embed_tokens.weight" in checkpoint.tensors,
        # A map of the whole vocabulary to itself, which some heads carry, is not read: ids are direct.
        maps_vocabulary="d2t" in checkpoint.tensors and keys.get("draft_vocab_size") != base.model.vocab_size,
        qkv_bias=any(name.endswith("self_attn.q_proj.bias") for name in checkpoint.tensors),
    )
    if given is not None and given != found:
        raise CheckpointError(
            f"{checkpoint.directory}: found {_facts_text(found)}, "
            f"but {_facts_text(given)} was planned: give the planned head"
        )
    return found


def _facts_text(facts: DraftFacts) -> str:
    own = "with" if facts.own_embedding else "without"
    maps = "with" if facts.maps_vocabulary else "without"
    biases = "with" if facts.qkv_bias else "without"
    return f"an {facts.kind} head {own} embed_tokens, {maps} d2t, {biases} biases of q, k and v"


def _implied_facts(keys: Keys, base: BaseInput) -> DraftFacts:
    vocab = keys.get("draft_vocab_size")
    return DraftFacts(
        kind="eagle" if vocab is None else "eagle3",
        own_embedding=keys.has("target_hidden_size"),
        maps_vocabulary=vocab is not None and vocab != base.model.vocab_size,
        qkv_bias=keys.boolean("qkv_bias", False),
    )


def _kind(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> Literal["eagle", "eagle3"]:
    """The kind of a head by its tensors, never by a name of a file or directory."""
    if "d2t" in tensors or any(name.startswith("midlayer.") for name in tensors):
        return "eagle3"
    if "fc.weight" in tensors or any(name.startswith("layers.0.") for name in tensors):
        return "eagle"
    some = ", ".join(sorted(tensors)[:3])
    raise CheckpointError(
        f"{checkpoint.directory}: not an EAGLE head: found {some} and others, "
        "expected fc.weight with midlayer.* (EAGLE-3) or with layers.* (EAGLE-1, -2)"
    )


# Derived tables


def _check_tensors(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], reading: Reading) -> None:
    """The derived names and shapes are those of the headers; raise CheckpointError with the first that is not."""
    derived = {source.name: source for source in reading.roles.values()}
    where = checkpoint.config_file.parent
    for name, source in derived.items():
        if name not in tensors:
            raise CheckpointError(f"{where}: {name}: missing, expected shape {list(source.shape)} by config.json")
    for name, info in tensors.items():
        shape = derived[name].shape if name in derived else reading.ignored.get(name)
        if shape is None:
            raise CheckpointError(
                f"{where}: {name}: surplus, of shape {list(info.shape)}: {_surplus_reason(name, derived)}"
            )
        if info.shape != shape:
            raise CheckpointError(
                f"{where}: {name}: found shape {list(info.shape)}, expected {list(shape)} by config.json"
            )
        if name in derived:
            _check_dtype(f"{where}: {name}", info.dtype, {"I64"} if name == "d2t" else _FLOATS)


def _surplus_reason(name: str, derived: Mapping[str, Source]) -> str:
    if name == "lm_head.weight" and "model.embed_tokens.weight" in derived:
        return "tie_word_embeddings is true, so the embedding is the head; say false if this tensor is the head"
    return "nothing that config.json describes has it"


def _check_dtype(path: str, found: str, allowed: frozenset[str] | set[str]) -> None:
    if found not in allowed:
        raise CheckpointError(f"{path}: found dtype {found}, expected {' or '.join(sorted(allowed))}")


def _table_sha256(roles: Roles) -> str:
    shapes = {source.name: source.shape for source in roles.values()}
    lines = (f"{name}:{','.join(map(str, shape))}\n" for name, shape in sorted(shapes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
