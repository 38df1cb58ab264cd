"""Conversion of GGUF files: random models written by gguf's own writer, compared with transformers and tokenizers."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from convert_gguf import ConversionError, convert
from planner.families.load import load_base
from tests.tools.tiny_gguf import TEXT, tiny_model, tiny_tokenizer, write_gguf


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: small matrices, and threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize(("heads", "kv_heads", "tied"), [(3, 1, True), (4, 4, False)])
def test_it_computes_what_the_quantized_model_computes(
    tmp_path: Path, kind: str, heads: int, kv_heads: int, tied: bool
) -> None:
    model = tiny_model(heads, heads=heads, kv_heads=kv_heads, tied=tied)
    tensors = write_gguf(tmp_path / "m.gguf", model, gguf.GGMLQuantizationType[kind])
    (tmp_path / "out").mkdir()
    convert(tmp_path / "m.gguf", tmp_path / "out")
    model.load_state_dict(tensors, strict=not tied)
    model.tie_weights()
    converted = LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = torch.randint(400, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(converted(ids).logits, model(ids).logits)
    assert converted.config.rms_norm_eps == 1e-5
    # the planner reads it: every tensor has the name and shape that the config implies
    assert load_base(tmp_path / "out").model.num_layers == 2


def test_the_tokenizer_and_the_template_are_those_of_the_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_model(0, heads=2, kv_heads=1, tied=True), gguf.GGMLQuantizationType.F16)
    (tmp_path / "out").mkdir()
    convert(tmp_path / "m.gguf", tmp_path / "out")
    original = tiny_tokenizer()
    converted = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    for text in (TEXT, "<|im_start|>user\nhi<|im_end|>\n", ""):
        assert converted(text).input_ids == original.encode(text).ids
        assert converted.decode(original.encode(text).ids) == original.decode(
            original.encode(text).ids, skip_special_tokens=False
        )
    assert (converted.bos_token, converted.eos_token) == ("<|im_start|>", "<|im_end|>")
    rendered = converted.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize(
    ("keys", "datum"),
    [
        (
            {"tokenizer.ggml.pre": "qwen2"},
            "tokenizer.ggml.pre: found 'qwen2', expected one of gpt-2, llama-bpe, smollm",
        ),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model: found 'llama', expected 'gpt2'"),
        ({"llama.expert_count": 8}, "llama.expert_count: found 8, expected 0"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type: found 'yarn', expected 'none'"),
        ({"llama.rope.dimension_count": 16}, "llama.rope.dimension_count: found 16, expected 32"),
        ({"general.architecture": "mamba"}, "general.architecture: found 'mamba', expected 'llama'"),
    ],
)
def test_what_would_be_a_guess_is_refused(tmp_path: Path, keys: dict[str, Any], datum: str) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_model(0, heads=2, kv_heads=1, tied=True), gguf.GGMLQuantizationType.F16, keys)
    with pytest.raises(ConversionError, match=re.escape(datum)):
        convert(tmp_path / "m.gguf", tmp_path)


def test_a_file_that_is_none_ends_with_one_line(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_model(0, heads=2, kv_heads=1, tied=True), gguf.GGMLQuantizationType.Q8_0)
    whole = (tmp_path / "m.gguf").read_bytes()
    cuts = {"empty": b"", "text": b"not a model" * 10, "header": whole[:200], "cut": whole[: len(whole) // 2]}
    for name, content in cuts.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConversionError, match=r"not a whole GGUF file|missing") as caught:
            convert(tmp_path / name, tmp_path)
        assert "\n" not in str(caught.value)


def test_the_command_writes_only_a_directory_that_is_new(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_model(0, heads=2, kv_heads=1, tied=True), gguf.GGMLQuantizationType.F16)
    command = [sys.executable, "tools/convert_gguf.py", tmp_path / "m.gguf", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path}: exists already: give a directory that does not\n")
