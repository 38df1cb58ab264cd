"""Layers that an EAGLE head reads: from its config or --aux-layers to the plan and its report."""

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.planner.commands.built import build, planner


def test_the_layers_that_a_head_reads_are_told_or_asked_for(models: Path, tmp_path: Path) -> None:
    """From the config to the plan and its report; an option that is given decides, also when images are compiled."""
    told = build(models, tmp_path / "a", "--plan-only")
    assert "the EAGLE head reads inputs of layers 2, 4, 5 (the default)" in told.stderr
    head = tmp_path / "head"
    shutil.copytree(models / "head", head)
    config = json.loads((head / "config.json").read_text())
    exported = {"eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_last_layernorm": True}
    (head / "config.json").write_text(json.dumps(config | {"eagle_config": exported}))
    refused = build(models, tmp_path / "b", "--draft", head)
    assert refused.exit_code == 2
    assert "give --aux-layers outputs=1,3,4 or --aux-layers inputs=1,3,4" in refused.stderr
    asked = build(models, tmp_path / "b", "--draft", head, "--aux-layers", "outputs=1,3,8")
    assert asked.exit_code == 2
    assert "--aux-layers: found [2, 4, 9], expected 1 to 16 different layers from 0 to 8, in order" in asked.stderr
    asked = build(models, tmp_path / "b", "--draft", head, "--aux-layers", "outputs=1,3,7")
    assert asked.exit_code == 0, asked.stderr
    assert "reads inputs of layers 2, 4 and the output of the last (as --aux-layers says)" in asked.stderr
    assert (tmp_path / "b" / "images.yaml").is_file()
    shown = planner("show", tmp_path / "b").stdout
    assert "reads inputs of layers 2, 4" in re.sub(r"\s+", " ", shown)
    assert planner("check", tmp_path / "b").exit_code == 0
    for wrong in ("1,2", "inputs=2,1"):
        assert build(models, tmp_path / "c", "--aux-layers", wrong).exit_code == 2


def test_a_bare_config_is_planned_with_the_layers_that_are_likely(models: Path, tmp_path: Path) -> None:
    """Its weights may be of a producer that used others: compiling them then asks."""
    head = tmp_path / "head"
    shutil.copytree(models / "head", head)
    told = build(models, tmp_path / "a", "--draft", head / "config.json", "--plan-only")
    assert "a bare config does not tell who trained the head: make sure of them" in told.stderr
    tensors = load_file(head / "model.safetensors")
    del tensors["t2d"]
    save_file(tensors, head / "model.safetensors")
    compiled = planner("compile", tmp_path / "a", "--model", models / "base", "--draft", head)
    assert compiled.exit_code == 2
    assert "eagle_aux_hidden_state_layer_ids: missing, and nothing tells on which layers" in compiled.stderr


def test_aux_layers_without_a_head_are_refused(models: Path, tmp_path: Path) -> None:
    alone = ("--gpus", models / "inventory.yaml", "--model", models / "base", "--out", tmp_path / "p")
    refused = planner("build", *alone, "--aux-layers", "inputs=2,4,5")
    assert (refused.exit_code, "--aux-layers: there is no EAGLE head" in refused.stderr) == (2, True)
