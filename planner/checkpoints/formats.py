"""Recognise checkpoints that are not read here by their files, config and tensors, and say what each is.

    refuse_other_files   a directory without weights in safetensors files that a model is read from
    quantizer_settings   what a checkpoint whose weights are quantized says of them, where its method is read
    refuse_quantized     a checkpoint whose weights are quantized, whatever says so: the config, a file beside it, or
                         the names and dtypes of its tensors

Without this a checkpoint of FP8 weights whose config does not mention them would be planned with twice its bytes.
"""

import json
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from planner.checkpoints.header import TensorInfo
from planner.errors import CheckpointError, ConfigError
from plans.files import read_inside
from plans.format import quote

BEFORE_QUANTIZATION = (
    "this format is not read here: give one in compressed-tensors, GPTQ, AWQ, FP8 or MXFP4, or the checkpoint before "
    "quantization"
)
OF_MODELOPT = "hf_quant_config.json"
"""File beside a config in which ModelOpt has the settings of its quantizer."""
MOST_SIDE_BYTES = 12 << 20

_SIDE_FILES = {
    OF_MODELOPT: "ModelOpt",
    "quant_config.json": "AWQ",
    "quantize_config.json": "GPTQ",
    "quant_strategy.json": "EXL2 or EXL3",
}
"""Files beside ``config.json`` by which quantizers say what they wrote, with the format."""

_METHODS = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "auto-round": "AutoRound in its own layout",
    "fp8": "FP8",
    "fbgemm_fp8": "FBGEMM FP8",
    "mxfp4": "MXFP4",
    "bitsandbytes": "bitsandbytes",
    "modelopt": "ModelOpt",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "hqq": "HQQ",
    "torchao": "torchao",
}
"""Names of formats by ``quant_method``; another method is named as the config does."""

_TENSORS = (
    ("*.trellis", "EXL3"),
    ("*.q_weight", "EXL2"),
    ("*.quant_state.bitsandbytes__*", "bitsandbytes"),
    ("*.SCB", "bitsandbytes"),
    ("*_blocks", "MXFP4"),
    ("*.weight_packed", "compressed-tensors"),
    ("*.g_idx", "GPTQ"),
    ("*.qweight", "AWQ or GPTQ"),
    ("*.weight_scale_2", "ModelOpt NVFP4"),
    ("*.weight_scale_inv", "FP8 in blocks"),
    ("*.weight_scale", "weights with scales (FP8 or INT8)"),
)
"""Names of tensors that only a quantized checkpoint has, the first of which counts, with the format."""

_QUANTIZED_DTYPES = {"F8_E4M3": "FP8", "F8_E5M2": "FP8", "U32": "MLX"}
"""Dtypes that only weights of a quantized checkpoint have."""

_OTHER_FILES = (
    ("adapter_config.json", "a LoRA adapter", "merge it into its base model and save that (merge_and_unload of peft)"),
    ("*.gguf", "GGUF", "give the model's repository with safetensors files; llama.cpp runs GGUF"),
    (
        "consolidated*.safetensors",
        "weights in Mistral's own layout",
        "give the repository's model*.safetensors with their config.json",
    ),
    ("consolidated*.pth", "weights in Meta's own layout", "give the repository's model*.safetensors"),
    ("*.pth", "weights that torch has pickled", "load them where you trust them and save them with safetensors"),
    ("tf_model*.h5", "weights of TensorFlow", "save the model with safetensors (save_pretrained of transformers)"),
    ("flax_model*.msgpack", "weights of Flax", "save the model with safetensors (save_pretrained of transformers)"),
    ("*.onnx", "an ONNX graph", "give the model's repository with safetensors files"),
)
"""Pattern of files that hold a model in another form, what that form is, and what to do."""


def refuse_other_files(directory: Path) -> None:
    """Raise CheckpointError for a directory whose files hold a model in another form, and none that is read."""
    names = sorted(file.name for file in directory.iterdir())
    for pattern, form, advice in _OTHER_FILES:
        found = [name for name in names if fnmatchcase(name, pattern)]
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise CheckpointError(f"{directory}: found {form} ({found[0]}{more}), expected safetensors files: {advice}")


def quantizer_settings(
    config: Mapping[str, Any], config_file: Path, methods: Collection[str]
) -> tuple[Mapping[str, Any], str] | None:
    """Return what a checkpoint says of its quantized weights, and where; None of other methods than these."""
    for key in ("quantization_config", "compression_config"):
        settings = config.get(key)
        if not isinstance(settings, dict) or (method := _method(key, settings)) not in methods:
            continue
        if method != "modelopt" or _is_read(settings):
            return {**settings, "quant_method": method}, f"{config_file}: {key}"
    file = config_file.with_name(OF_MODELOPT)
    if "quantization_config" not in config and config_file.name == "config.json" and file.is_file():
        settings = _of_modelopt(file)
        if "modelopt" in methods and _is_read(settings):
            return {**settings, "quant_method": "modelopt"}, f"{file}: quantization"
    return None


def _is_read(settings: Mapping[str, Any]) -> bool:
    """Return whether ModelOpt's settings name an algorithm that is read, or a null: weights are plain then."""
    return settings.get("quant_algo", "") in ("FP8", None)


def _method(key: str, settings: Mapping[str, Any]) -> str:
    """Return the method of a config: as it says, or by what it has."""
    if key == "compression_config" or ("config_groups" in settings and "producer" not in settings):
        return "compressed-tensors"
    method = settings.get("quant_method", _producer(settings))
    return method if isinstance(method, str) else ""


def refuse_quantized(config: Mapping[str, Any], config_file: Path, tensors: Mapping[str, TensorInfo] | None) -> None:
    """Raise ConfigError or CheckpointError for quantized weights, naming their format and what tells it."""
    for key in ("quantization_config", "compression_config", "quantization"):
        settings = config.get(key)
        if settings is not None:
            raise ConfigError(f"{config_file}: {key}: found {_named(key, settings)}: {BEFORE_QUANTIZATION}")
    for name, form in _SIDE_FILES.items():
        file = config_file.with_name(name)
        if config_file.name == "config.json" and file.is_file():
            raise CheckpointError(f"{file}: found weights in {form}{_algorithm(file)}: {BEFORE_QUANTIZATION}")
    refuse_quantized_tensors(config_file, tensors)


def refuse_quantized_tensors(config_file: Path, tensors: Mapping[str, TensorInfo] | None) -> None:
    """Raise CheckpointError for quantized weights that the names or dtypes of tensors tell."""
    for pattern, form in _TENSORS:
        found = next((name for name in tensors or () if fnmatchcase(name, pattern)), None)
        if found is not None:
            raise CheckpointError(f"{config_file.parent}: {found}: found {form}: {BEFORE_QUANTIZATION}")
    for name, info in (tensors or {}).items():
        if info.dtype in _QUANTIZED_DTYPES:
            form = _QUANTIZED_DTYPES[info.dtype]
            raise CheckpointError(
                f"{config_file.parent}: {name}: found dtype {info.dtype}, which is {form}: {BEFORE_QUANTIZATION}"
            )


def _named(key: str, settings: Any) -> str:
    """Return the format that a config describes, with its number of bits where it is given."""
    method = settings.get("quant_method", _producer(settings)) if isinstance(settings, dict) else None
    if key == "compression_config" or method == "compressed-tensors":
        return f"compressed-tensors{_detail(settings, 'format')}"
    if method is None and key == "quantization_config":
        return quote(settings)
    form = "MLX" if method is None else _METHODS.get(str(method), quote(method))
    return form + _detail(settings, "quant_algo") + _detail(settings, "bits", " bits")


def _producer(settings: Mapping[str, Any]) -> Any:
    """Return the name of the program that wrote settings without a method, as ModelOpt does; None if absent."""
    producer = settings.get("producer")
    return producer.get("name") if isinstance(producer, dict) else None


def _detail(settings: Any, key: str, unit: str = "") -> str:
    value = settings.get(key) if isinstance(settings, dict) else None
    return f", {value}{unit}" if isinstance(value, str | int) and len(str(value)) < 40 else ""


def _algorithm(file: Path) -> str:
    """Return the algorithm that ModelOpt's file names; empty where it names none."""
    return _detail(_of_modelopt(file), "quant_algo")


def _of_modelopt(file: Path) -> Mapping[str, Any]:
    """Return the settings in ModelOpt's file; none where it cannot be read."""
    try:
        settings = json.loads(read_inside(file.parent, file.name, MOST_SIDE_BYTES)).get("quantization")
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}
