"""Commands run in this process, and the models, the inventory and the tree that their tests build."""

import re
from pathlib import Path

from click.testing import CliRunner, Result

from planner.cli import main
from tests.planner.instances import cpu, host

INVENTORY = {
    "hosts": [host("left", cpu("c0", 5), cpu("c1", 4), links={"class": "loopback"}), host("right", cpu("c2", 6, 8))],
    "network": {"class": "loopback"},
}
SIZES = {"hidden_size": 64, "num_heads": 8, "num_kv_heads": 4, "head_dim": 8, "intermediate_size": 192}
TREE = "total_token=20,depth=3,top_k=4"


def planner(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def build(models: Path, out: Path, *more: object) -> Result:
    chosen = ("--model", models / "base", "--draft", models / "head", "--context", 512, "--tree", TREE)
    return planner("build", "--gpus", models / "inventory.yaml", *chosen, "--out", out, *more)


def edited(plan: Path, to: Path, old: str, new: str) -> Path:
    """Copy a plan's directory without images, with one edit of plan.yaml."""
    (to / "draft").mkdir(parents=True)
    for name in ("config.json", "draft/config.json"):
        (to / name).write_bytes((plan / name).read_bytes())
    text = (plan / "plan.yaml").read_text()
    assert re.search(old, text), old
    (to / "plan.yaml").write_text(re.sub(old, new, text, count=1))
    return to
