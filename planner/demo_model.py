"""The embedded demo model: where its checkpoint and those of its EAGLE heads are."""

from collections.abc import Mapping
from pathlib import Path

DEMO = Path(__file__).with_name("demo")
BASE = DEMO / "base"
HEADS: Mapping[str, Path] = {"eagle": DEMO / "eagle1", "eagle3": DEMO / "eagle3"}
"""Directory of the EAGLE head of each kind."""
DEFAULT_HEAD = HEADS["eagle3"]
