"""Trees that are chosen: by which objective and profile, and what is said of them."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from planner.request import LEAST_CHAIN, tree_text
from plans import codec
from plans.acceptance import load_profile, profile_digest
from tests.planner.commands.built import build, planner
from tests.planner.instances import ROOT

TOKENS = ("expected_tokens_per_s", "plain_tokens_per_s", "expected_acceptance", "break_even_acceptance", "tree")


def test_the_tree_is_chosen_and_checked_again(tmp_path: Path) -> None:
    """One slow device on which rows cost nothing: a tree; the plan is that of --tree but for the record."""
    inventory = tmp_path / "gpu.yaml"
    figures = "memory: 1 GiB, bandwidth: 1 GB/s, flops: 50 TFLOP/s, reserve: 0 B"
    inventory.write_text(f"hosts: [{{name: a, devices: [{{id: g0, type: slow-gpu, {figures}}}]}}]\n")
    out, by_hand = tmp_path / "chosen", tmp_path / "by-hand"
    done = planner("build", "--gpus", inventory, "--out", out, "--plan-only", "--json", "--dtype", "float32")
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    tree = data["tree"]
    assert data["expected_tokens_per_s"] > data["plain_tokens_per_s"]
    assert data["expected_acceptance"] > data["break_even_acceptance"] > 1
    assert "without the draft, on the best placement for that: " in done.stderr
    assert "drafting pays from" in done.stderr
    plan = codec.load(out)
    assert plan.speculation is not None
    assert plan.speculation.profile_sha256 == profile_digest(load_profile(out / "acceptance.yaml", inside=False))
    text = f"total_token={tree['total_token']},depth={tree['depth']},top_k={tree['top_k']}"
    asked = ("--gpus", inventory, "--out", by_hand, "--plan-only", "--json", "--dtype", "float32", "--tree", text)
    again = planner("build", *asked)
    assert dataclasses.replace(plan, speculation=None) == codec.load(by_hand)
    assert "without the draft, on the best placement for that: " in again.stderr
    assert "without the draft, on this placement: " in " ".join(planner("show", by_hand).stdout.split())
    assert json.loads(again.stdout)["break_even_acceptance"] == pytest.approx(data["break_even_acceptance"], rel=0.01)
    assert planner("check", out).exit_code == 0
    shown = planner("show", out).stdout
    assert f"with the draft, {text}: " in shown
    assert {key: json.loads(planner("show", out, "--json").stdout)[key] for key in TOKENS} == {
        key: data[key] for key in TOKENS
    }
    assert "expected acceptance: `published means" in planner("show", out, "--markdown").stdout


RIGHT_IN_TEN = (
    "profile: '1.0'\ndrafter: {drafter}\norigin: published\nsource: {count} of ten\n"
    "contexts:\n- {{steps: 0, tokens: 1, levels: [{{nodes: 10, chosen: [{count}]}}]}}\n"
)


def test_a_head_may_have_a_profile_of_its_own(models: Path, tmp_path: Path) -> None:
    """It is taken unless another is given, and the plan keeps it, also where the tree is not chosen by it."""
    head, out, other = tmp_path / "head", tmp_path / "p", tmp_path / "other.yaml"
    shutil.copytree(models / "head", head)
    (head / "acceptance.yaml").write_text(RIGHT_IN_TEN.format(drafter="eagle3", count=5))
    other.write_text(RIGHT_IN_TEN.format(drafter="eagle3", count=2))
    for more, acceptance in (((), 1.5), (("--profile", other), 1.2)):
        built = build(models, out, "--plan-only", "--json", "--draft", head, *more)
        assert json.loads(built.stdout)["expected_acceptance"] == acceptance
        assert json.loads(planner("show", out, "--json").stdout)["expected_acceptance"] == acceptance
        assert planner("check", out).exit_code == 0
    assert "2 of ten" in (out / "acceptance.yaml").read_text()
    shipped = json.loads(build(models, out, "--plan-only", "--json").stdout)
    assert json.loads(planner("show", out, "--json").stdout)["expected_acceptance"] == shipped["expected_acceptance"]
    assert not (out / "acceptance.yaml").exists(), "a shipped profile is not copied"
    (head / "acceptance.yaml").write_text(RIGHT_IN_TEN.format(drafter="eagle", count=5))
    refused = build(models, out, "--plan-only", "--draft", head)
    message = f"{head}/acceptance.yaml: found a profile of eagle, the drafter is eagle3"
    assert (refused.exit_code, message in refused.stderr) == (2, True)


def test_no_link_beside_a_plan_is_followed_out_of_it(models: Path, tmp_path: Path) -> None:
    """It may be a stranger's, as a head's may, which a Hugging Face cache links to blobs; --profile is the user's."""
    head, out, own = tmp_path / "snapshots" / "head", tmp_path / "p", tmp_path / "blobs" / "own.yaml"
    shutil.copytree(models / "head", head)
    own.parent.mkdir()
    own.write_text(RIGHT_IN_TEN.format(drafter="eagle3", count=5))
    (tmp_path / "link.yaml").symlink_to(own)
    (head / "acceptance.yaml").symlink_to(own)
    for given in ((), ("--profile", tmp_path / "link.yaml")):
        assert build(models, out, "--plan-only", "--draft", head, *given).exit_code == 0
        assert "5 of ten" in (out / "acceptance.yaml").read_text()
    secret = tmp_path / "secret"
    secret.write_text("precious")
    for target, reason in ((secret, "outside of"), (own, "outside of"), (tmp_path / "gone", "No such file")):
        (out / "acceptance.yaml").unlink()
        (out / "acceptance.yaml").symlink_to(target)
        shown = planner("show", out)
        assert (shown.exit_code, "precious" in shown.output) == (2, False)
        assert re.search(f"{re.escape(str(out))}/acceptance.yaml: cannot read: .*{reason}", shown.stderr)
    for link, reason in ((secret, "a link to"), (tmp_path / "gone", "No such file")):
        (head / "acceptance.yaml").unlink()
        (head / "acceptance.yaml").symlink_to(link)
        refused = build(models, out, "--plan-only", "--draft", head)
        assert (refused.exit_code, "precious" in refused.output) == (2, False)
        assert f"{head}/acceptance.yaml: cannot read: {reason}" in refused.stderr


def test_no_draft_is_said_plainly(tmp_path: Path) -> None:
    """A drafter that is never right: plain decoding, with the option that keeps the draft."""
    profile = tmp_path / "never.yaml"
    profile.write_text(RIGHT_IN_TEN.format(drafter="eagle3", count=0))
    out = tmp_path / "plain"
    asked = ("build", "--gpus", ROOT / "inventory.yaml", "--plan-only", "--profile", profile, "--json", "--out")
    done = planner(*asked, out)
    data = json.loads(done.stdout)
    assert (data["tree"], data["expected_acceptance"], codec.load(out).draft) == (None, 1.0, None)
    assert "no draft: plain decoding is expected to be the fastest" in done.stderr
    assert "to keep it, give --tree total_token=60,depth=7,top_k=10, or --objective step" in done.stderr
    assert not (out / "draft").exists()
    assert planner("check", out).exit_code == 0
    kept = planner(*asked, tmp_path / "kept", "--objective", "step")
    assert "the draft is expected to lose: plan with --objective tokens, or with --no-draft" in kept.stderr
    assert codec.load(tmp_path / "kept").draft is not None


def test_the_least_tree_that_is_chosen_can_be_asked_for(tmp_path: Path) -> None:
    """One drafted token: a pass of the drafter, and none behind it."""
    asked = ("build", "--gpus", ROOT / "inventory.yaml", "--plan-only", "--json", "--out", tmp_path / "p")
    done = planner(*asked, "--tree", tree_text(LEAST_CHAIN))
    assert done.exit_code == 0, done.stderr
    assert codec.load(tmp_path / "p").options.tree == LEAST_CHAIN


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--objective", "tokens", "--tree", "depth=3"), "--objective tokens: chooses the tree: leave --tree out"),
        (("--objective", "tokens", "--strategy", "balanced"), "--objective tokens: found --strategy balanced"),
        (("--profile", "none.yaml"), "none.yaml: cannot read: No such file"),
    ],
)
def test_objectives_that_contradict_are_refused(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = planner("build", "--gpus", ROOT / "inventory.yaml", "--out", tmp_path / "p", *arguments)
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
