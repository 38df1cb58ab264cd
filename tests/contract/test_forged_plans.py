"""A plan's directory from a stranger is safe to verify and to run: each is refused in a typed error, or runs in bounds.

``forged_plans`` says what is forged, and how every access of a kernel is checked.
"""

import dataclasses
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from plans import check_model
from plans.check import InvalidPlanError, load
from plans.codec import dumps
from plans.schema import Plan, Run
from runtime.request import make_request
from tests.contract.forged_plans import completed, forge, forge_images
from tests.contract.ranks import with_engines
from tests.plan_factory import Group, make_model, make_plan

ROOT = Path(__file__).parents[2]
CASES = 280
"""Cases of one process; there are two."""


@pytest.mark.parametrize("first", [0, 1000])
def test_forged_plans_are_refused_or_run_in_bounds(first: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.contract.forged_plans", str(first), str(CASES), str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1200)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, f"{lines[-1:]}: exit {result.returncode}: {result.stderr[-3000:]}"
    ends = [line.split(maxsplit=1)[1] for line in lines if not line.endswith("begins")]
    assert len(ends) == CASES
    kinds = Counter(end.split()[1] for end in ends)
    assert set(kinds) == {"refused", "ran"}
    assert kinds["ran"] >= CASES // 5
    assert kinds["refused"] >= CASES // 5
    assert {"derived ran on 1", "derived ran on 2", "derived ran on 4", "changed ran on 1"} <= set(ends)
    assert {"changed refused InvalidPlanError", "derived refused InvalidPlanError"} <= set(ends)


def two_head_dims() -> Plan:
    """Return a plan of two classes of layers: the rotary table is that of the first, the second reads beyond it."""
    model = make_model(num_layers=1, num_heads=8, num_kv_heads=8, head_dim=4)
    (layers,) = model.layers
    wide = dataclasses.replace(layers.attention, num_heads=1, num_kv_heads=1, head_dim=16)
    model = dataclasses.replace(model, layers=(layers, dataclasses.replace(layers, attention=wide)))
    runs = tuple(Run(num_layers=1, kv_heads=(heads,), mlp_units=(layers.mlp.units,)) for heads in (8, 1))
    return completed(make_plan(model, [Group(devices=("a",), runs=runs)], complete=False))


def test_layers_of_two_head_dims_are_refused_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the check, without which no kernel is called with a rotary table of smaller heads."""
    with monkeypatch.context() as patch:
        patch.setattr(check_model, "_check_same", lambda *arguments: iter(()))
        plan = two_head_dims()
        (tmp_path / "plan.yaml").write_text(dumps(plan))
        forge_images(random.Random(0), plan, tmp_path)
        request = make_request(load(tmp_path), (1, 2, 3), {"max_new_tokens": 2})
        with pytest.raises(AssertionError) as caught:
            with_engines(plan, tmp_path, lambda rank: rank.generate(request))
        assert caught.traceback[-1].path.name == "whole_layers.py"
    with pytest.raises(InvalidPlanError, match=r"layers\[1\]\.attention\.head_dim: found 16, expected 4"):
        load(tmp_path)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_forged_plan_verifies_and_runs_as_a_command(devices: int, tmp_path: Path) -> None:
    """The cases above run all ranks as threads; here they are the processes of a user's run."""
    for number in range(100):
        directory = tmp_path / str(number)
        directory.mkdir()
        forge(random.Random(f"forged {number}"), directory)
        if (directory / "images.yaml").is_file() and len(load(directory).devices) == devices:
            break
    for arguments in (["verify"], ["run", "--prompt-ids", "1,1", "--max-new-tokens", "2"]):
        command = [sys.executable, "-m", "runtime", arguments[0], str(directory), *arguments[1:]]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode in (0, 2, 4, 5), result.stderr
        assert "Traceback" not in result.stderr
