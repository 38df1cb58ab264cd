"""The embedded demo model: where its checkpoint and those of its EAGLE heads are."""

import json
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEMO = Path(__file__).with_name("demo")
BASE = DEMO / "base"
HEADS: Mapping[str, Path] = {"eagle": DEMO / "eagle1", "eagle3": DEMO / "eagle3"}
"""Directory of the EAGLE head of each kind."""
DEFAULT_HEAD = HEADS["eagle3"]


def write_shorter(directory: Path, num_layers: int) -> None:
    """Write the checkpoint of the demo model's first layers to an empty ``directory``, with its other tensors."""
    config = json.loads((BASE / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": num_layers}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, directory)
    data = (BASE / "model.safetensors").read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    begin, kept, pieces, end = 8 + size, dict[str, Any](), list[bytes](), 0
    for name, tensor in json.loads(data[8:begin]).items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if name == "__metadata__" or (layer and int(layer[1]) >= num_layers):
            continue
        first, last = tensor["data_offsets"]
        pieces.append(data[begin + first : begin + last])
        kept[name] = tensor | {"data_offsets": [end, end + last - first]}
        end += last - first
    header = json.dumps(kept).encode()
    header += b" " * (-len(header) % 8)
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"".join(pieces))
