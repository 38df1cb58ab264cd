"""Which layers of the base an EAGLE-3 head reads: certain, ambiguous, or unknown, by who wrote it."""

from pathlib import Path
from typing import Any

import pytest

from planner.errors import CheckpointError, ConfigError
from planner.families import BaseInput, load_base, load_draft, load_planned_draft, parse_aux_layers
from tests.planner.families.test_heads import EAGLE3, head, shapes_of_eagle3
from tests.planner.tiny_checkpoints import SMALL, bare, refused

KEY = "eagle_aux_hidden_state_layer_ids"
MODELOPT = {"use_aux_hidden_state": True, "use_last_layernorm": True, "next_layer_regular": True}


@pytest.fixture
def base(tmp_path: Path) -> BaseInput:
    """Return a base of 12 layers."""
    return load_base(bare(tmp_path / "base", SMALL | {"model_type": "llama", "num_hidden_layers": 12}))


CERTAIN: list[tuple[dict[str, Any], tuple[int, ...], str | None]] = [
    ({KEY: [1, 3, 6]}, (1, 3, 6), "inputs"),
    ({KEY: [0, 12]}, (0, 12), "inputs"),
    ({KEY: [4]}, (4,), "inputs"),
    ({"eagle_config": {KEY: [1, 5, 8]}}, (2, 6, 9), "outputs"),
    ({"eagle_config": {KEY: [1, 5, 8], "use_aux_hidden_state": True}}, (2, 6, 9), "outputs"),
    ({"eagle_config": {KEY: [2, 6, 10]}}, (2, 6, 10), "inputs"),
    ({"eagle_config": {KEY: [8, 10, 12]} | MODELOPT}, (8, 10, 12), "inputs"),
    ({"eagle_config": {KEY: [1, 10, 12]}}, (1, 10, 12), "inputs"),
    ({KEY: [], "eagle_config": {KEY: None}}, (2, 6, 9), None),
]
"""Keys of a config, with the boundaries that they mean and where they are from."""


@pytest.mark.parametrize(("keys", "layers", "source"), CERTAIN, ids=str)
def test_what_is_certain_is_used(
    tmp_path: Path, base: BaseInput, keys: dict[str, Any], layers: tuple[int, ...], source: str | None
) -> None:
    shapes = shapes_of_eagle3() | {"fc.weight": (16, 16 * len(layers))}
    layout = {} if "use_last_layernorm" not in keys.get("eagle_config", {}) else {"layers.0.": "midlayer."}
    where = head(tmp_path / "head", EAGLE3 | keys, shapes)
    draft = load_draft(where, base).draft
    assert (draft.aux_layers, draft.aux_layers_from) == (layers, source)
    assert draft.layout == ("modelopt" if layout else None)
    assert load_planned_draft(where / "config.json", base, draft).draft == draft


AMBIGUOUS: list[tuple[list[int], dict[str, Any]]] = [([1, 5, 8], MODELOPT), ([1, 5, 11], {}), ([0, 4, 8], {})]


@pytest.mark.parametrize(("ids", "keys"), AMBIGUOUS, ids=str)
def test_what_is_ambiguous_is_refused_with_both_readings(
    tmp_path: Path, base: BaseInput, ids: list[int], keys: dict[str, Any]
) -> None:
    file = bare(tmp_path / "head", EAGLE3 | {"eagle_config": {KEY: ids} | keys})
    outputs, inputs = ",".join(map(str, ids)), ",".join(map(str, ids))
    assert refused(ConfigError, lambda: load_draft(file, base)) == (
        f"{file}: eagle_config: {KEY}: found {ids}, which may name layers by their outputs (SpecForge, ModelOpt as a "
        f"rule), the inputs of layers {', '.join(str(i + 1) for i in ids)}, or by their inputs (ModelOpt from dumps of "
        f"vLLM): give --aux-layers outputs={outputs} or --aux-layers inputs={inputs}; the right one accepts more"
    )
    asked = load_draft(file, base, aux_layers=parse_aux_layers(f"outputs={outputs}")).draft
    assert (asked.aux_layers, asked.aux_layers_from) == (tuple(i + 1 for i in ids), "option")
    assert load_planned_draft(file, base, asked).draft == asked


@pytest.mark.parametrize("prefix", ["midlayer.", "layers.0."])
def test_a_head_that_names_no_layers_is_read_where_its_producer_is_recognised(
    tmp_path: Path, base: BaseInput, prefix: str
) -> None:
    """Those with both maps are; an export of ModelOpt has no t2d, and NVIDIA's, for one, needs other layers."""
    shapes = {name.replace("midlayer.", prefix): shape for name, shape in shapes_of_eagle3().items()}
    known = load_draft(head(tmp_path / "known", EAGLE3, shapes), base).draft
    assert (known.aux_layers, known.aux_layers_from) == ((2, 6, 9), None)
    others = {name: shape for name, shape in shapes.items() if name != "t2d"}
    where = head(tmp_path / "other", EAGLE3, others)
    assert refused(ConfigError, lambda: load_draft(where, base)) == (
        f"{where / 'config.json'}: {KEY}: missing, and nothing tells on which layers of the base the head was trained: "
        "the default is wrong for some heads of this layout, which then accept almost nothing: give --aux-layers "
        "inputs=... or outputs=..., as its authors say, for the default --aux-layers inputs=2,6,9"
    )
    asked = load_draft(where, base, aux_layers=(3, 6, 9)).draft
    assert (asked.aux_layers, asked.aux_layers_from) == ((3, 6, 9), "option")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({KEY: [1, 2, 13]}, f"{KEY}: found [1, 2, 13], expected 1 to 16 different layers from 0 to 12, in order"),
    ({KEY: [4, 2]}, f"{KEY}: found [4, 2], expected 1 to 16 different layers from 0 to 12, in order"),
    ({KEY: 4}, f"{KEY}: found 4, expected 1 to 16 different layers from 0 to 12, in order"),
    ({KEY: [True]}, f"{KEY}: found [True], expected 1 to 16 different layers from 0 to 12, in order"),
    (
        {KEY: [2, 6, 9], "eagle_config": {KEY: [1, 5, 8]}},
        f"{KEY}: found here and in eagle_config, expected one of the two: --aux-layers inputs=2,6,9 decides",
    ),
    (
        {"eagle_config": {KEY: [1, 5, 8], "use_aux_hidden_state": False}},
        f"eagle_config: {KEY}: found [1, 5, 8], expected none: use_aux_hidden_state is false, so that no layers of the "
        "base are read",
    ),
    (
        {"eagle_config": {"norm_before_fc": True, "use_aux_hidden_state": False}},
        "eagle_config: use_aux_hidden_state: found False in a head with a norm before fc, a bias of it or masks",
    ),
    (
        {KEY: [2, 6], "num_aux_hidden_states": 3},
        f"num_aux_hidden_states: found 3, expected 2: {KEY} names as many",
    ),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED, ids=str)
def test_layers_that_cannot_be_are_refused(tmp_path: Path, base: BaseInput, keys: dict[str, Any], message: str) -> None:
    file = bare(tmp_path / "head", EAGLE3 | keys)
    assert refused(ConfigError, lambda: load_draft(file, base)) == f"{file}: {message}"


def test_a_head_without_layers_of_the_base_has_no_fc(tmp_path: Path, base: BaseInput) -> None:
    config = EAGLE3 | {"eagle_config": {KEY: [], "use_aux_hidden_state": False}}
    shapes = shapes_of_eagle3()
    with_fc = head(tmp_path / "fc", config, shapes)
    assert "fc.weight: surplus" in refused(CheckpointError, lambda: load_draft(with_fc, base))
    where = head(tmp_path / "head", config, {name: s for name, s in shapes.items() if name != "fc.weight"})
    draft = load_draft(where, base).draft
    assert (draft.aux_layers, draft.aux_layers_from, draft.fc_width) == ((), None, 0)
    assert load_planned_draft(where / "config.json", base, draft).draft == draft
    assert "found False with --aux-layers" in refused(ConfigError, lambda: load_draft(where, base, aux_layers=(3, 6)))


def test_a_base_with_too_few_layers_for_the_default_is_refused(tmp_path: Path) -> None:
    small = load_base(bare(tmp_path / "small", SMALL | {"model_type": "llama", "num_hidden_layers": 6}))
    file = bare(tmp_path / "head", EAGLE3)
    assert refused(ConfigError, lambda: load_draft(file, small)) == (
        f"{file}: {KEY}: missing, and layers 2, L // 2 and L - 3 of a base model with L = 6 layers are not three "
        "different ones in order: expected at least 7 layers, or layers named by --aux-layers"
    )
    assert load_draft(bare(tmp_path / "named", EAGLE3 | {KEY: [0, 1, 5]}), small).draft.aux_layers == (0, 1, 5)


@pytest.mark.parametrize(
    "text",
    ["", "2,3", "inputs", "inputs=", "inputs=2,1", "inputs=2,2", "layers=2", "inputs=-1", "inputs=2, 3"],
)
def test_other_texts_are_no_layers(text: str) -> None:
    assert parse_aux_layers(text) is None


def test_layers_are_named_by_inputs_or_by_outputs() -> None:
    assert parse_aux_layers("inputs=2,18,33") == parse_aux_layers("outputs=1,17,32") == (2, 18, 33)
