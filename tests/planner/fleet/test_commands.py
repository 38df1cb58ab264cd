"""Fleets through the commands: build, check, diff, show, damaged files, and the files that start one."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from planner.api.fleets import read_fleet
from planner.cli import main
from planner.report.fleet import proof_lines
from tests.planner.instances import cpu, gpu, host

MACHINE = {
    "hosts": [
        host("127.0.0.1", cpu("cpu0", 200), cpu("cpu1", 200), cpu("cpu2", 1, 1)),
    ]
}
ASKED = ("--context", 256, "--batch", 2, "--clients", 4, "--plan-only")


def planner(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inventory") / "inventory.yaml"
    file.write_text(yaml.safe_dump(MACHINE))
    return file


@pytest.fixture(scope="module")
def fleet(inventory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two replicas of the demo model, each on one of two equal devices; the third device is too small."""
    out = tmp_path_factory.mktemp("built") / "fleet"
    result = planner("build", "--gpus", inventory, *ASKED, "--replicas", 2, "--out", out)
    assert result.exit_code == 0, result.output
    assert "2 replicas on 2 of 3 devices, 4 running sequences" in result.stderr
    assert "not used: cpu2" in result.stderr
    return out


@pytest.fixture
def copy(fleet: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fleet, tmp_path / "fleet"))


def edited(directory: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    file = directory / "fleet.yaml"
    data = yaml.safe_load(file.read_text())
    change(data)
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return directory


# ---- show, check, diff ----


def test_a_fleet_is_shown_in_every_form(fleet: Path, tmp_path: Path) -> None:
    text = planner("show", fleet)
    assert text.exit_code == 0, text.output
    for words in ("1xcpu-b2", "cpu0", "cpu1", "not used: cpu2", "OPTIMAL: no division has more tokens/s"):
        assert words in text.output
    markdown = planner("show", fleet, "--markdown").output
    assert "| `1xcpu-b2` | 1 stage on 1 device |" in markdown
    assert "Not used: `cpu2`." in markdown
    page = tmp_path / "fleet.html"
    assert planner("show", fleet, "--html", page).exit_code == 0
    assert "<span>cpu1</span>" in page.read_text()
    data = json.loads(planner("show", fleet, "--json").stdout)
    assert data["unused"] == ["cpu2"]
    assert data["content"] == yaml.safe_load((fleet / "fleet.yaml").read_text())
    assert data["tokens_per_s"] * 1e6 == pytest.approx(data["content"]["proof"]["microtokens_per_s"])


@pytest.mark.parametrize("option", [("--device-map",), ("--export", "vllm"), ("--slot", "norm.weight")])
def test_forms_of_one_plan_are_refused(fleet: Path, option: tuple[str, ...]) -> None:
    result = planner("show", fleet, *option)
    assert result.exit_code == 2
    assert f"{option[0]}: is of one plan: give the directory of a template in {fleet}" in result.stderr


def test_what_takes_a_plan_names_the_templates_of_a_fleet(fleet: Path) -> None:
    message = f"{fleet}: found a fleet, expected a plan: give that of one of its templates, {fleet}/1xcpu-b2\n"
    assert planner("compile", fleet).stderr.endswith(message)
    assert (
        f"fleet.yaml: found a file, expected the directory of a plan: give {fleet}"
        in planner("show", fleet / "fleet.yaml").stderr
    )


def test_a_fleet_is_divided_again_to_the_same_bytes(fleet: Path, inventory: Path, tmp_path: Path) -> None:
    checked = planner("check", fleet)
    assert (checked.exit_code, checked.stderr) == (0, f"{fleet}: clean\n")
    again = tmp_path / "again"
    assert planner("build", "--gpus", inventory, *ASKED, "--replicas", 2, "--out", again).exit_code == 0
    assert (again / "fleet.yaml").read_bytes() == (fleet / "fleet.yaml").read_bytes()
    assert planner("diff", fleet, again).exit_code == 0
    assert planner("show", fleet / "1xcpu-b2").exit_code == 0
    assert planner("check", fleet / "1xcpu-b2").exit_code == 0


def test_diff_names_the_replicas_that_changed(fleet: Path, inventory: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    planner("build", "--gpus", inventory, *ASKED, "--replicas", 1, "--clients", 2, "--out", other)
    result = planner("diff", fleet, other)
    assert result.exit_code == 1
    assert "replicas 2 -> 1" in result.output
    assert "replica on cpu1: 1xcpu-b2, 2 sequences -> none" in result.output
    assert "request.replicas: 2 -> 1" in result.output
    data = json.loads(planner("diff", fleet, other, "--json").stdout)
    assert not data["equal"]
    assert "## Replicas that changed" in planner("diff", fleet, other, "--markdown").output
    mixed = planner("diff", fleet, fleet / "1xcpu-b2")
    assert (mixed.exit_code, "is no fleet, and is compared with one" in mixed.stderr) == (2, True)


def test_check_finds_a_fleet_that_its_inputs_do_not_lead_to(copy: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["proof"]["parts"] += 1

    result = planner("check", edited(copy, change))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{copy}: 1 differences\n  proof.parts: ")


def test_check_wants_the_canonical_text(copy: Path) -> None:
    (copy / "fleet.yaml").write_text((copy / "fleet.yaml").read_text() + "\n")
    result = planner("check", copy)
    assert (result.exit_code, "fleet.yaml: not in canonical form" in result.stderr) == (1, True)


DAMAGE: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (
        lambda d: d["replicas"][1].update(devices=["cpu0"]),
        "replicas[1].devices: found cpu0, expected devices of no other",
    ),
    (lambda d: d["replicas"][1].update(devices=["gpu7"]), "replicas[1].devices: found gpu7, expected a device of the"),
    (lambda d: d["replicas"][1].update(devices=["cpu2"]), "replicas[1].devices: found cpu2, expected a device like d0"),
    (lambda d: d["replicas"][1].update(devices=["cpu1", "cpu2"]), "expected 1 devices, as the plan has"),
    (lambda d: d["replicas"][0].update(template="none"), "replicas[0].template: found none, expected the name of a"),
    (lambda d: d["replicas"][0].update(sequences=3), "replicas[0].sequences: found 3, expected from 1 to 2"),
    (lambda d: d["replicas"].pop(), "unused: found [cpu2], expected [cpu1, cpu2]"),
    (lambda d: d.update(unused=[]), "unused: found [], expected [cpu2]"),
    (lambda d: d["templates"][0].update(plan_sha256="0" * 64), "templates[0].plan_sha256: found 0000"),
    (lambda d: d["templates"][0].update(name="../away"), "templates[0].name: found '../away', expected lower-case"),
    (lambda d: d["templates"][0].update(name="gone"), "gone: no plan.yaml here"),
    (lambda d: d["templates"][0].update(microtokens_per_s=1), "templates[0].microtokens_per_s: found 1, expected"),
    (
        lambda d: d["replicas"][0].update(microtokens_per_s=5),
        "replicas[0].microtokens_per_s: found 5, expected none: all",
    ),
    (lambda d: d["proof"].update(microtokens_per_s=1), "proof.microtokens_per_s: found 1, expected"),
    (lambda d: d["proof"].update(any_microtokens_per_s=1), "proof.any_microtokens_per_s: found 1, expected at least"),
    (lambda d: d["request"].update(clients=5), "replicas: found 4 sequences, expected 5, as was asked for"),
    (lambda d: d["request"].update(replicas=3), "replicas: found 2 replicas, expected 3, as was asked for"),
    (
        lambda d: d["request"].update(min_microtokens_per_s=10**14),
        "expected at least 100000000000000, as was asked for",
    ),
    (lambda d: d["inventory"]["devices"].reverse(), "inventory.devices: found"),
    (lambda d: d.update(fleet="2.0"), "fleet: found version 2.0, this program reads 1.x"),
    (lambda d: d.update(extra=1), "extra: unknown field"),
    (lambda d: d.pop("proof"), "proof: missing"),
]


@pytest.mark.parametrize("number", range(len(DAMAGE)))
def test_damage_is_named(copy: Path, number: int) -> None:
    change, message = DAMAGE[number]
    result = planner("show", edited(copy, change))
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_plan_that_is_missing_or_damaged_is_named(copy: Path) -> None:
    plan = copy / "1xcpu-b2" / "plan.yaml"
    plan.write_text(plan.read_text().replace("context: 256", "context: 255", 1))
    assert planner("check", copy).exit_code == 2
    plan.unlink()
    result = planner("show", copy)
    assert (result.exit_code, "1xcpu-b2: no plan.yaml here" in result.stderr) == (2, True)


def test_the_profile_beside_a_fleet_or_plan_is_an_artifact(copy: Path) -> None:
    for directory in (copy / "1xcpu-b2", copy):
        (directory / "acceptance.yaml").unlink()
        result = planner("check", directory)
        assert result.exit_code == 4
        assert (
            f"{directory}/acceptance.yaml: no such file: the tree was chosen by the acceptance profile" in result.stderr
        )


def test_a_plan_of_a_fleet_keeps_a_profile_that_is_not_shipped(inventory: Path, tmp_path: Path) -> None:
    """Its tree was asked for, so that only the tokens that ``show`` expects are by it."""
    out, profile = tmp_path / "fleet", tmp_path / "p.yaml"
    profile.write_text(
        "profile: '1.0'\ndrafter: eagle3\norigin: published\nsource: half\n"
        "contexts:\n- {steps: 0, tokens: 1, levels: [{nodes: 10, chosen: [5]}]}\n"
    )
    tree = ("--tree", "total_token=4,depth=1,top_k=2", "--profile", profile)
    built = planner("build", "--gpus", inventory, *ASKED, "--replicas", 1, "--clients", 2, *tree, "--out", out)
    assert built.exit_code == 0, built.output
    (template,) = (file.parent for file in out.glob("*/plan.yaml"))
    assert json.loads(planner("show", template, "--json").stdout)["expected_acceptance"] == 1.5
    assert (template / "acceptance.yaml").read_bytes() == (out / "acceptance.yaml").read_bytes()


def test_no_link_beside_a_fleet_or_plan_is_followed_out_of_it(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.yaml"
    shutil.copy(copy / "acceptance.yaml", outside)
    for directory in (copy / "1xcpu-b2", copy):
        (directory / "acceptance.yaml").unlink()
        (directory / "acceptance.yaml").symlink_to(outside)
        result = planner("check", directory)
        assert (result.exit_code, f"{directory}/acceptance.yaml: cannot read: a link to" in result.stderr) == (2, True)


# ---- build ----


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--clients", 3), 2, "--clients: is about replicas: give --replicas auto"),
        (("--min-tokens-per-s", 3), 2, "--min-tokens-per-s: is about replicas"),
        (("--objective", "throughput"), 2, "--objective throughput: is about replicas"),
        (("--replicas", "auto", "--objective", "step"), 2, "--objective step: found with --replicas"),
        (("--replicas", "auto", "--strategy", "balanced"), 2, "--strategy: is of one placement"),
        (("--replicas", "auto", "--context", "max"), 2, "--context max: is of one placement"),
        (("--replicas", "auto", "--previous", "p"), 2, "p: no plan.yaml here"),
        (("--replicas", "0"), 2, "found '0', expected auto, or a number of replicas from 1"),
        (("--replicas", 2, "--clients", 1), 2, "--clients: found 1, expected at least one for each of 2 replicas"),
        (("--replicas", 4, "--no-draft"), 3, "--replicas: found 4, at most 2 fit: give fewer, less context"),
        (("--replicas", 1, "--no-draft", "--min-tokens-per-s", "1e8"), 3, "no division has exactly one replica with"),
        (
            ("--no-draft", "--objective", "tokens"),
            2,
            "--objective tokens: chooses a draft tree, and --no-draft asks for",
        ),
        (("--no-draft", "--profile", "p.yaml"), 2, "--profile p.yaml: is of a draft, and --no-draft asks for none"),
    ],
)
def test_what_contradicts_itself_is_refused(
    inventory: Path, tmp_path: Path, options: tuple[object, ...], code: int, message: str
) -> None:
    result = planner("build", "--gpus", inventory, "--plan-only", "--out", tmp_path / "out", *options)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_plan_and_a_fleet_do_not_take_each_others_place(fleet: Path, inventory: Path) -> None:
    result = planner("build", "--gpus", inventory, "--no-draft", "--plan-only", "--out", fleet)
    assert (result.exit_code, "holds something other than a plan" in result.stderr) == (2, True)
    result = planner("build", "--gpus", inventory, *ASKED, "--replicas", 2, "--out", fleet / "1xcpu-b2")
    assert (result.exit_code, "holds something other than a fleet" in result.stderr) == (2, True)


# ---- launch ----

GPUS = {
    "hosts": [
        host("left", *({"id": f"l{n}", "type": "rtx-3090"} for n in range(3)), links={"class": "pcie"}),
        host("right", *({"id": f"r{n}", "type": "rtx-3090"} for n in range(3)), links={"class": "pcie"}),
    ],
    "network": {"class": "ethernet"},
}


def launched(tmp_path: Path, machine: Any, *asked: object) -> dict[str, str]:
    (tmp_path / "gpus.yaml").write_text(yaml.safe_dump(machine))
    out = tmp_path / "a fleet"
    built = planner("build", "--gpus", tmp_path / "gpus.yaml", "--no-draft", "--plan-only", "--out", out, *asked)
    assert built.exit_code == 0, built.output
    result = planner("show", out, "--launch")
    assert result.exit_code == 0, result.output
    files = [Path(line) for line in result.stdout.splitlines()]
    return {str(file.relative_to(out / "launch")): file.read_text() for file in files}


def test_each_replica_gets_its_gpus_port_and_weight(tmp_path: Path) -> None:
    files = launched(tmp_path, GPUS, "--replicas", "auto")
    assert len(files) == 6 * 2 + 2 + 1
    script = files["right/replica-5.sh"]
    assert "export EAGLEPLAN_GPUS=2\n" in script
    assert f"exec eagleplan serve '{tmp_path}/a fleet/1xrtx-3090-b1' --host right --port 8003" in script
    unit = files["left/replica-1.service"]
    assert "Environment=EAGLEPLAN_GPUS=1\n" in unit
    server = f'serve "{tmp_path}/a fleet/1xrtx-3090-b1" --host left --port 8002'
    assert f"ExecStart={sys.executable} -m runtime {server}" in unit
    compose = yaml.safe_load(files["left/docker-compose.yaml"])
    assert sorted(compose["services"]) == ["nginx", "replica-0", "replica-1", "replica-2"]
    assert compose["services"]["replica-2"]["environment"] == {"EAGLEPLAN_GPUS": "2"}
    assert compose["services"]["replica-2"]["command"][:3] == ["eagleplan", "serve", "/fleet/1xrtx-3090-b1"]
    front = files["nginx.conf"]
    assert "least_conn;" in front
    assert "server right:8003 weight=1 max_fails=1 fail_timeout=10s;" in front


def test_a_replica_over_hosts_has_the_torchrun_command_of_each(tmp_path: Path) -> None:
    small = {
        "hosts": [host(name, gpu(f"{name}0", 3200), gpu(f"{name}1", 3200)) for name in ("a", "b", "c")],
        "network": {"class": "ethernet"},
    }
    files = launched(tmp_path, small, "--replicas", 1, "--context", 64)
    plan = tmp_path / "a fleet" / "4xtiny-gpu-b1"
    assert sorted(files) == ["a/replica-0.sh", "b/replica-0.sh"]
    for node, text in enumerate(files.values()):
        used = 2 if "d2" in (plan / "plan.yaml").read_text() else 1
        assert f"--nnodes 2 --node-rank {node} --nproc-per-node {used}" in text
        assert "--master-addr a --master-port 29500" in text
        assert f"-m runtime run '{plan}' \"$@\"" in text
        assert "export EAGLEPLAN_GPUS=0,1\n" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze on this machine")
def test_units_are_what_systemd_takes(tmp_path: Path) -> None:
    files = launched(tmp_path, GPUS, "--replicas", "auto")
    unit = tmp_path / "eagleplan-replica-0.service"
    unit.write_text(files["left/replica-0.service"])
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "eagleplan-replica-0" not in done.stderr


@pytest.mark.parametrize(
    ("most", "words"), [(1, "of one host, by"), (2, ", or on 2 whole"), (3, ", or on 2 to 3 whole")]
)
def test_the_family_is_named_in_words(most: int, words: str, fleet: Path) -> None:
    read = read_fleet(fleet).fleet
    proof = dataclasses.replace(read.proof, most_hosts=most)
    assert words in proof_lines(dataclasses.replace(read, proof=proof))[0]


def test_what_no_choice_of_hosts_holds_is_said_to_be_short(tmp_path: Path) -> None:
    file = tmp_path / "inventory.yaml"
    hosts = [host(f"h{number}", cpu(f"c{number}", 1, 1)) for number in range(3)]
    file.write_text(yaml.safe_dump({"hosts": hosts, "network": {"class": "ethernet"}}))
    result = planner("build", "--gpus", file, *ASKED, "--replicas", "auto", "--out", tmp_path / "fleet")
    assert result.exit_code == 3
    assert re.search(r"error: no placement fits: .* short in all", result.stderr), result.stderr
