"""The methods of quantization that are read."""

from collections.abc import Callable, Mapping
from typing import Any

from planner.errors import ConfigError
from planner.quantized import autoround, compressed_tensors, fp8, gptq, mxfp4
from planner.quantized.records import Recipe
from planner.quantized.settings import Settings
from plans.format import quote

METHODS: Mapping[str, Callable[[Settings], Recipe | None]] = {
    "compressed-tensors": compressed_tensors.read,
    "gptq": gptq.read_gptq,
    "awq": gptq.read_awq,
    "auto-round": autoround.read,
    "fp8": fp8.read_fp8,
    "fbgemm_fp8": fp8.read_fbgemm,
    "modelopt": fp8.read_modelopt,
    "mxfp4": mxfp4.read,
}
"""Reader of the settings of each ``quant_method``."""


def read_recipe(values: Any, where: str) -> Recipe | None:
    """Read the settings of a quantizer, None: weights are plain; ``where``: their path in messages.

    Raise ConfigError.
    """
    settings = Settings(values, where)
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"{where}.quant_method: found {quote(method)}, expected one of {', '.join(METHODS)}")
    return METHODS[method](settings)
