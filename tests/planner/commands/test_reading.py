"""Commands that read: show, diff, check, scan and inventory."""

import json
from pathlib import Path

import pytest

from plans import codec
from tests.planner.commands.built import build, edited, planner


def test_show_has_four_forms(plan: Path, tmp_path: Path) -> None:
    assert "c0" in planner("show", plan).stdout
    assert planner("show", plan, "--markdown").stdout.startswith("#")
    data = json.loads(planner("show", plan, "--json").stdout)
    assert data["content"] == codec.encode(codec.load(plan))
    page = tmp_path / "plan.html"
    assert planner("show", plan, "--html", page).exit_code == 0
    assert page.read_text().lower().startswith("<!doctype html>")
    refused = planner("show", plan, "--html", tmp_path / "none" / "x.html")
    assert refused.exit_code == 2
    assert str(tmp_path / "none" / "x.html") in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "forms"),
    [
        (("show", "p", "--json", "--markdown"), "--json and --markdown"),
        (("show", "p", "--json", "--html", "x"), "--json and --html"),
        (("show", "p", "--device-map", "--html", "x"), "--html and --device-map"),
        (("diff", "p", "q", "--json", "--markdown"), "--json and --markdown"),
    ],
)
def test_two_output_formats_at_once_are_refused(arguments: tuple[str, ...], forms: str) -> None:
    result = planner(*arguments)
    assert result.exit_code == 2
    assert f"found {forms}, expected one of them at most" in result.stderr


def test_the_file_of_a_plan_instead_of_its_directory_is_refused(plan: Path) -> None:
    file = plan / "plan.yaml"
    result = planner("show", file)
    assert result.exit_code == 2
    assert result.stderr == f"error: {file}: found a file, expected the directory of a plan: give {plan}\n"


def test_an_unknown_slot_is_refused_with_similar_names(plan: Path) -> None:
    message = planner("show", plan, "--slot", "layers.0.qkv.weigth").stderr
    assert "did you mean layers.0.qkv.weight" in message
    assert "no device has it: expected a name like embed.weight, " in planner("show", plan, "--slot", "?").stderr


def test_diff_exits_with_1_if_plans_differ(models: Path, plan: Path, tmp_path: Path) -> None:
    same = planner("diff", plan, plan, "--json")
    assert same.exit_code == 0
    assert json.loads(same.stdout)["equal"] is True
    build(models, tmp_path / "q", "--plan-only", "--context", 500)
    other = planner("diff", plan, tmp_path / "q", "--json")
    assert other.exit_code == 1
    data = json.loads(other.stdout)
    assert data["equal"] is False
    assert "options.context" in {difference["path"] for difference in data["differences"]}
    assert planner("diff", plan, tmp_path / "q").exit_code == 1
    assert "context" in planner("diff", plan, tmp_path / "q", "--markdown").stdout


def test_a_directory_of_bytecode_beside_plans_is_none_of_them(plan: Path, tmp_path: Path) -> None:
    bytecode = tmp_path / "__pycache__"
    bytecode.mkdir()
    result = planner("check", bytecode, plan)
    assert (result.exit_code, result.stderr) == (0, f"{plan}: clean\n")
    assert planner("check", bytecode).exit_code == 2


def test_check_solves_again(plan: Path, tmp_path: Path) -> None:
    result = planner("check", plan, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"plans": [{"plan": str(plan), "clean": True, "differences": []}]}
    # Consistent, but with another step time than the solver finds.
    proof = r"objective_ns: \d+\n(\s+)least_ns: \d+\n\s+bound_ns: \d+"
    wrong = edited(
        plan, tmp_path / "a", proof, r"objective_ns: 9000000000\n\1least_ns: 9000000000\n\1bound_ns: 9000000000"
    )
    result = planner("check", plan, wrong, "--json")
    assert result.exit_code == 1
    first, second = json.loads(result.stdout)["plans"]
    assert first["clean"]
    assert not second["clean"]
    assert any("objective_ns" in line for line in second["differences"])
    # The same plan in other bytes.
    spelt = edited(plan, tmp_path / "b", r"\A", "# reviewed\n")
    result = planner("check", spelt)
    assert result.exit_code == 1
    assert "plan.yaml: not in canonical form" in result.stderr
    # An inconsistent plan.
    broken = edited(plan, tmp_path / "c", r"first_layer: 0", "first_layer: 1")
    result = planner("check", broken, "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "InvalidPlanError"
    assert "stages[0].first_layer" in error["message"]
    # The other plans are checked although one is refused.
    result = planner("check", broken, plan, tmp_path / "none", "--json")
    assert result.exit_code == 2
    data = json.loads(result.stdout)
    assert data["plans"] == [{"plan": str(plan), "clean": True, "differences": []}]
    assert data["error"]["type"] == "InvalidPlanError"
    assert f"{tmp_path / 'none'}: no plan.yaml here" in result.stderr
    # The config differs from the hash in the plan.
    other = edited(plan, tmp_path / "d", r"\A", "")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert planner("check", other).exit_code == 1


def test_scan_counts_tensors_from_headers(models: Path) -> None:
    data = json.loads(planner("scan", models / "base", "--json").stdout)
    assert data["num_tensors"] == 3 + 9 * 8
    assert data["dtypes"] == ["F32"]
    assert data["nbytes"] == sum(tensor["nbytes"] for tensor in data["tensors"])
    assert len(data["blocks"]) == 2 + 8
    text = planner("scan", models / "base").stdout
    assert [line.split("  ")[1] for line in text.splitlines()[1:]] == ["embed", "layers 0-7", "lm_head"]
    assert "9 tensors each" in text
    text = planner("scan", models / "head").stdout
    assert "draft" in text
    assert "tensors" in text
    bare = json.loads(planner("scan", models / "base" / "config.json", "--json").stdout)
    assert bare["nbytes"] == data["nbytes"]


def test_inventory_writes_defaults_out(models: Path, tmp_path: Path) -> None:
    text = planner("inventory", models / "inventory.yaml").stdout
    (tmp_path / "full.yaml").write_text(text)
    assert planner("inventory", tmp_path / "full.yaml").stdout == text
    assert "reserve" in text
    data = json.loads(planner("inventory", models / "inventory.yaml", "--json").stdout)
    assert [device["id"] for device in data["inventory"]["devices"]] == ["c0", "c1", "c2"]
