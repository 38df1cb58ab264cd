"""A program of its own: a pickled dictionary of tensors becomes a safetensors file. Never imported by the planner.

``python -P pickled.py SOURCE TARGET``. Only tensors are read (``weights_only``): no code of the file is run.
"""

import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def convert(source: Path, target: Path) -> None:
    """Write the tensors of ``source`` to ``target``, completely or not at all; end with a message otherwise."""
    data = _load(source)
    if not isinstance(data, dict):
        sys.exit(f"found {type(data).__name__}, expected a dictionary of tensors")
    for name, value in data.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            sys.exit(f"{name!r}: found {type(value).__name__}, expected a dense tensor with a name")
    tensors = {name: value.detach().contiguous().clone() for name, value in data.items()}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(target)


def _load(source: Path) -> Any:
    """Only the newer, zipped format can be mapped; the older one is read whole."""
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source) or None)
    except pickle.UnpicklingError:
        sys.exit("it is no pickle, or holds something else than tensors, which is never loaded")
    except (RuntimeError, EOFError, OSError) as error:
        sys.exit(str(error).partition(". ")[0])


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
