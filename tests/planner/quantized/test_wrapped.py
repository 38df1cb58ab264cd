"""Quantized text parts of models of text and images: read as those of the text alone, by each way of naming them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from planner.checkpoints.checkpoint import SINGLE
from planner.errors import CheckpointError, ConfigError
from planner.families import load_base
from planner.families.load import FAMILIES
from planner.families.wrappers import WRAPPERS
from tests.planner.quantized.checkpoints import METHODS, compiled, input_of
from tests.planner.tiny_checkpoints import bare, refused, saved_wrapper

LINEAR = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
EXCEPT: dict[str, dict[str, Any]] = {
    "awq": {"modules_to_not_convert": ["visual", "vision_tower", "multi_modal_projector"]},
    "w4a16": {"ignore": ["re:.*lm_head", "re:.*vision_tower.*", "re:.*visual.*", "re:multi_modal_projector.*"]},
    "fp8": {"modules_to_not_convert": ["model.vision_tower", "model.visual", "model.multi_modal_projector", "lm_head"]},
    "sorted-gptq": {},
    "auto-round": {
        "block_name_to_quantize": "model.language_model.layers",
        "extra_config": {"model.visual.blocks.0.attn.qkv": {"bits": 16}, "visual.merger.mlp.0": {"bits": 16}},
    },
}
"""Settings by method, beside those of a text alone: how quantizers leave the images' part out."""


def images_of(checkpoint: Path, directory: Path) -> list[dict[str, Tensor]]:
    """Compile a plan of two devices; return their images."""
    compiled(checkpoint, directory)
    return [load_file(directory / f"{device}.safetensors") for device in ("a", "b")]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("llava", "awq"), ("llava", "sorted-gptq"), ("gemma3", "w4a16"), ("mistral3", "fp8"), ("mistral3", "w4a16"),
        ("qwen2_5_vl", "awq"), ("qwen2_5_vl", "auto-round"), ("qwen3_vl", "fp8"),
    ],
)  # fmt: skip
def test_images_are_those_of_the_text_alone(tmp_path: Path, name: str, method: str) -> None:
    pack, settings = METHODS[method]
    whole = saved_wrapper(tmp_path / "whole", name, **SIZES)
    config = json.loads((whole / "config.json").read_text())
    settings = settings | EXCEPT[method]
    stored, first = load_file(whole / SINGLE), WRAPPERS[name].prefixes[0]
    ways = [prefix for prefix in WRAPPERS[name].prefixes if any(key.startswith(prefix[0]) for key in stored)]
    saved_as = ways[-1]
    text = {
        key.replace(saved_as[0], "model.", 1).replace(saved_as[1], "lm_head.", 1): tensor
        for key, tensor in stored.items()
        if not key.startswith(WRAPPERS[name].vision)
    }
    images = {key: tensor for key, tensor in stored.items() if key.startswith(WRAPPERS[name].vision)}
    coded = dict[str, Tensor]()
    for key, tensor in text.items():
        if LINEAR.fullmatch(key) is None:
            coded[key] = tensor
            continue
        module = key.removesuffix(".weight")
        coded |= {f"{module}.{part}": t.contiguous() for part, t in pack(tensor, input_of(module)).tensors.items()}
    assert len(coded) > len(text)
    alone = config["text_config"] | {
        "model_type": WRAPPERS[name].families[config["text_config"]["model_type"]],
        "tie_word_embeddings": config["tie_word_embeddings"],
    }
    alone["architectures"] = [FAMILIES[alone["model_type"]]]
    alone["rope_parameters"] = {
        name: value for name, value in alone["rope_parameters"].items() if not name.startswith("mrope")
    }
    file = bare(tmp_path / "alone", alone | {"quantization_config": METHODS[method][1]})
    save_file(coded, file.with_name(SINGLE), metadata={"format": "pt"})
    expected = images_of(tmp_path / "alone", tmp_path / "alone-plan")
    digests = set()
    for way in WRAPPERS[name].prefixes:
        directory = tmp_path / f"way{len(digests)}-{way[0]}"
        file = bare(directory, config | {"quantization_config": settings})
        spelled = {
            (way[1] + key.removeprefix("lm_head.") if key.startswith("lm_head.") else way[0] + key[6:]): tensor
            for key, tensor in coded.items()
        }
        save_file(spelled | images, directory / SINGLE, metadata={"format": "pt"})
        found = images_of(directory, tmp_path / f"plan-{way[0]}")
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[slot].view(torch.uint8), other[slot].view(torch.uint8)) for slot in other)
        digests.add(load_base(directory).tensors_sha256)
        digests.add(load_base(file).tensors_sha256)
    assert len(digests) == 1
    assert first in WRAPPERS[name].prefixes


def test_a_layer_that_one_of_its_names_leaves_out_is_plain_unless_it_has_codes(tmp_path: Path) -> None:
    """Lists of exceptions have names of the model in memory, those of a checkpoint are older."""
    pack, settings = METHODS["fp8"]
    whole = saved_wrapper(tmp_path / "whole", "llava", **SIZES)
    config = json.loads((whole / "config.json").read_text())
    left_out = "model.language_model.layers.0.mlp.down_proj"
    config["quantization_config"] = settings | {"modules_to_not_convert": [left_out, "vision_tower", "lm_head"]}
    stored = load_file(whole / SINGLE)
    model = next(prefix for prefix, _ in WRAPPERS["llava"].prefixes if any(key.startswith(prefix) for key in stored))
    for plain in (True, False):
        tensors = dict(stored)
        for key in [key for key in stored if re.fullmatch(rf"{model}layers\.\d+\.\w+\.\w+_proj\.weight", key)]:
            if plain and key == f"{model}layers.0.mlp.down_proj.weight":
                continue
            layer = pack(tensors.pop(key), 0)
            tensors |= {key.replace("weight", part): t.contiguous() for part, t in layer.tensors.items()}
        directory = tmp_path / str(plain)
        file = bare(directory, config)
        save_file(tensors, directory / SINGLE, metadata={"format": "pt"})
        of_headers, of_config = load_base(directory).model, load_base(file).model
        assert (of_headers == of_config) is plain
    assert of_headers.layers[0].mlp.down_format is not None


def test_packed_experts_in_another_format_are_refused(tmp_path: Path) -> None:
    """A bare config would otherwise be planned with plain experts."""
    whole = saved_wrapper(tmp_path / "whole", "qwen3_vl_moe", mlp_only_layers=[], **SIZES)
    config = json.loads((whole / "config.json").read_text())
    file = bare(tmp_path / "bare", config | {"quantization_config": METHODS["fp8"][1]})
    message = r"experts\.\w+: packed experts, expected mxfp4: not read in another format"
    assert re.search(message, refused(ConfigError, lambda: load_base(file)))


def test_a_missing_tensor_has_the_name_of_the_checkpoint(tmp_path: Path) -> None:
    whole = saved_wrapper(tmp_path / "whole", "mistral3", **SIZES)
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(config | {"quantization_config": METHODS["fp8"][1] | EXCEPT["fp8"]}))
    message = refused(CheckpointError, lambda: load_base(whole))
    assert re.search(r": (language_model\.model|model\.language_model)\.layers\.0\.\S+scale_inv: missing", message)
