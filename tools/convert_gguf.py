"""Convert a GGUF file of the llama architecture to a checkpoint as Hugging Face publishes them.

    python tools/convert_gguf.py MODEL.gguf DIRECTORY

Quantized tensors are dequantized by the gguf library and stored in bfloat16. The directory gets `config.json`,
`model.safetensors`, `tokenizer.json` and `tokenizer_config.json` with the chat template. What cannot be converted
without a guess is refused by name: other architectures, tokenizers and rotary scalings.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

Progress = Callable[[int, int], None]
"""Receives the bytes of tensors read so far, and those of all tensors."""

ARCHITECTURE = "llama"
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's name of a layer's tensor, and that of the checkpoint."""
OTHER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CONTROL, USER_DEFINED = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED


class ConversionError(Exception):
    """A GGUF file that cannot be read or converted; the text is one line."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GgufFile:
    """An open GGUF file: key-value pairs of its header, and tensors that stay on disk."""

    path: Path
    reader: gguf.GGUFReader

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or the default where it is absent; raise ConversionError if neither is there."""
        field = self.reader.get_field(key)
        if field is not None:
            # contents() of an empty array fails in the library
            return field.contents() if len(field.data) else []
        if default is None:
            raise self.fail(key, "missing")
        return default

    def fail(self, datum: str, problem: str) -> ConversionError:
        """Return the error for a datum of this file."""
        return ConversionError(f"{self.path}: {datum}: {problem}")


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF file; raise ConversionError where it is none, is cut off or has another architecture."""
    try:
        file = GgufFile(path=path, reader=gguf.GGUFReader(path))
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:  # of the library's parser
        raise ConversionError(f"{path}: not a whole GGUF file: {' '.join(str(error).split())[:200]}") from error
    architecture = file.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise file.fail("general.architecture", f"found {architecture!r}, expected {ARCHITECTURE!r}")
    return file


def convert(path: Path, directory: Path, progress: Progress = lambda done, total: None) -> None:
    """Write the checkpoint of a GGUF file into an existing directory; raise ConversionError."""
    file = open_gguf(path)
    config = read_config(file)
    tokenizer, tokenizer_config = read_tokenizer(file)
    tensors = read_tensors(file, config, progress)
    weights = directory / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(tokenizer_config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


# Config


def read_config(file: GgufFile) -> dict[str, Any]:
    """Return config.json; raise ConversionError for a key that means another model than Llama."""
    heads = file.get("llama.attention.head_count")
    hidden = file.get("llama.embedding_length")
    head_dim = file.get("llama.attention.key_length", hidden // heads)
    for key, only in (
        ("llama.rope.dimension_count", head_dim),
        ("llama.attention.value_length", head_dim),
        ("llama.expert_count", 0),
        ("llama.rope.scaling.type", "none"),
        ("llama.attention.sliding_window", 0),
    ):
        value = file.get(key, only)
        if value != only:
            raise file.fail(key, f"found {value!r}, expected {only!r}: nothing else is converted")
    if not all(type(size) is int for size in (heads, hidden, file.get("llama.feed_forward_length"))):
        raise file.fail("llama.feed_forward_length", "found one size per layer, expected one for all")
    bos, eos = file.get("tokenizer.ggml.bos_token_id"), file.get("tokenizer.ggml.eos_token_id")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(file.get("tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": file.get("llama.feed_forward_length"),
        "num_hidden_layers": file.get("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": file.get("llama.context_length"),
        "rms_norm_eps": shortest(file.get("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": shortest(file.get("llama.rope.freq_base", 10000.0)),
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in file.reader.tensors),
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "bfloat16",
    }


def shortest(value: float) -> float:
    """Return the shortest decimal of a float32: GGUF has 1e-05 as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


# Tensors


def read_tensors(file: GgufFile, config: dict[str, Any], progress: Progress) -> dict[str, torch.Tensor]:
    """Return the checkpoint's tensors by name, in bfloat16; raise ConversionError for a surplus or missing one."""
    total = sum(int(tensor.n_bytes) for tensor in file.reader.tensors)
    tensors: dict[str, torch.Tensor] = {}
    done = 0
    for tensor in file.reader.tensors:
        name = checkpoint_name(file, tensor.name)
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise file.fail(tensor.name, f"{tensor.tensor_type.name} cannot be dequantized: {error}") from error
        if tensor.name.endswith("attn_q.weight"):
            values = unpermute(values, config["num_attention_heads"])
        elif tensor.name.endswith("attn_k.weight"):
            values = unpermute(values, config["num_key_value_heads"])
        # a copy: an F32 tensor is a read-only view of the file
        tensors[name] = torch.from_numpy(np.array(values, dtype=np.float32)).to(torch.bfloat16)
        done += int(tensor.n_bytes)
        progress(done, total)
    missing = expected_names(config) - set(tensors)
    if missing:
        raise file.fail("tensors", f"{min(missing)} is missing")
    return tensors


def checkpoint_name(file: GgufFile, name: str) -> str:
    """Return the checkpoint's name of a GGUF tensor; raise ConversionError for one that Llama does not have."""
    if name in OTHER_TENSORS:
        return OTHER_TENSORS[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    kind = rest.removesuffix(".weight")
    if not name.startswith("blk.") or not block.isdecimal() or kind not in LAYER_TENSORS or kind == rest:
        raise file.fail(name, "found a tensor that a plain Llama does not have")
    return f"model.layers.{int(block)}.{LAYER_TENSORS[kind]}.weight"


def expected_names(config: dict[str, Any]) -> set[str]:
    """Return the names of all tensors that the config implies."""
    layers = range(config["num_hidden_layers"])
    names = {f"model.layers.{i}.{name}.weight" for i in layers for name in LAYER_TENSORS.values()}
    names |= {"model.embed_tokens.weight", "model.norm.weight"}
    return names if config["tie_word_embeddings"] else names | {"lm_head.weight"}


def unpermute(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Return rows of q or k in the order of half-split rotary embeddings; GGUF interleaves the halves of each head."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


# Tokenizer


def read_tokenizer(file: GgufFile) -> tuple[Tokenizer, dict[str, Any]]:
    """Return the byte-level BPE with tokenizer_config.json; raise ConversionError for another kind of tokenizer."""
    kind = file.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise file.fail("tokenizer.ggml.model", f"found {kind!r}, expected 'gpt2', a byte-level BPE")
    tokens, types = file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.token_type")
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in file.get("tokenizer.ggml.merges"))]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizer(file)
    tokenizer.decoder = decoders.ByteLevel()
    added = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False) for token, kind in added])
    special = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = file.get(f"tokenizer.ggml.{key}_token_id", -1)
        if number >= 0:
            special[f"{name}_token"] = tokens[number]
    if file.get("tokenizer.ggml.add_bos_token", False):
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokens.index(bos))]
        )
    config: dict[str, Any] = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.get("llama.context_length"),
        "clean_up_tokenization_spaces": False,
    }
    template = file.get("tokenizer.chat_template", "")
    return tokenizer, config | ({"chat_template": template} if template else {})


def pre_tokenizer(file: GgufFile) -> pre_tokenizers.PreTokenizer:
    """Return what splits a text before the merges; raise ConversionError for a split that is not known here."""
    name = file.get("tokenizer.ggml.pre")
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    splits: dict[str, list[Any]] = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
        "gpt-2": [gpt2],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), bytes_alone],
    }
    if name not in splits:
        raise file.fail("tokenizer.ggml.pre", f"found {name!r}, expected one of {', '.join(sorted(splits))}")
    return pre_tokenizers.Sequence(splits[name])


def main() -> None:
    """Convert the file of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path, metavar="MODEL.gguf")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="created; must not exist")
    args = parser.parse_args()
    try:
        args.directory.mkdir(parents=True)
        convert(args.gguf, args.directory)
    except FileExistsError:
        parser.exit(2, f"error: {args.directory}: exists already: give a directory that does not\n")
    except ConversionError as error:
        parser.exit(2, f"error: {error}\n")
    sys.stdout.write(f"wrote {args.directory}\n")


if __name__ == "__main__":
    main()
