"""Canonical YAML: written records read back equal; everything else is refused with a complete message."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plans.codec import decode, digest, dumps, encode, load, loads
from plans.schema import Link, NewerSchemaError, Plan, PlanError, Tree, VocabSplit
from plans.strict_yaml import MAX_DOCUMENT_BYTES, dump_yaml, load_yaml

TEXT = st.text(st.characters(exclude_categories=("C", "Zs", "Zl", "Zp"), include_characters=" "))
INTEGERS = st.integers(0, 2**63 - 1)
st.register_type_strategy(int, INTEGERS)
st.register_type_strategy(str, TEXT)
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
PLANS = st.builds(Plan, schema=st.just("4.5"))


@settings(max_examples=20, deadline=None)
@given(PLANS)
def test_round_trip_of_any_plan(plan: Plan) -> None:
    text = dumps(plan)
    assert loads(text) == plan
    assert dumps(loads(text)) == text
    assert loads(text.encode()) == plan


@settings(max_examples=5, deadline=None)
@given(PLANS)
def test_digest_is_of_the_canonical_text(plan: Plan) -> None:
    assert digest(plan) == hashlib.sha256(dumps(plan).encode()).hexdigest()


LINK = Link(link_class="pcie", latency_ns=10, bandwidth_bytes_per_s=5)
CANONICAL_LINK = "link_class: pcie\nlatency_ns: 10\nbandwidth_bytes_per_s: 5\n"


def test_canonical_text_of_a_record() -> None:
    assert dump_yaml(encode(LINK)) == CANONICAL_LINK
    split = VocabSplit(devices=("a", "b", "c"), transport="nccl", hop_transport="local", rows=(1, 0, 2), predicted_ns=7)
    assert dump_yaml(encode(split)) == (
        "devices: [a, b, c]\ntransport: nccl\nhop_transport: local\nrows: [1, 0, 2]\npredicted_ns: 7\n"
    )


def test_text_that_is_equal_but_not_canonical_is_read() -> None:
    text = "# by hand\n{bandwidth_bytes_per_s: +5, latency_ns: 10, link_class: 'pcie'}"
    assert decode(Link, load_yaml(text, "x.yaml"), "x.yaml") == LINK


LINK_DATA: dict[str, object] = {"link_class": "pcie", "latency_ns": 10, "bandwidth_bytes_per_s": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latency_ns": "10"}, "x.yaml: latency_ns: found '10', expected an integer"),
        ({"latency_ns": 1.5}, "x.yaml: latency_ns: found 1.5, expected an integer"),
        ({"latency_ns": True}, "x.yaml: latency_ns: found true, expected an integer"),
        ({"latency_ns": None}, "x.yaml: latency_ns: found nothing, expected an integer"),
        ({"latency_ns": -1}, "x.yaml: latency_ns: found -1, expected an integer from 0 to 2^63 - 1"),
        ({"latency_ns": 2**63}, f"x.yaml: latency_ns: found {2**63}, expected an integer from 0 to 2^63 - 1"),
        (
            {"latency_ns": 1 << 99999},
            "x.yaml: latency_ns: found an integer of 100000 bits, expected an integer from 0 to 2^63 - 1",
        ),
        ({"link_class": 5}, "x.yaml: link_class: found 5, expected a string"),
        ({"link_class": [5]}, "x.yaml: link_class: found a sequence, expected a string"),
        ({"link_class": "a\nb"}, r"x.yaml: link_class: found 'a\nb', expected printable characters"),
        ({"latency": 5}, "x.yaml: latency: unknown field, did you mean latency_ns?"),
        (
            {"zzz": 5},
            "x.yaml: zzz: unknown field, expected one of link_class, latency_ns, bandwidth_bytes_per_s, sums, awake_ns",
        ),
    ],
)
def test_fields_that_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        decode(Link, LINK_DATA | change, "x.yaml")
    assert str(caught.value) == message


def test_a_missing_field_is_named() -> None:
    with pytest.raises(PlanError) as caught:
        decode(Link, {"link_class": "pcie"}, "x.yaml")
    assert str(caught.value) == "x.yaml: latency_ns: missing"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "x.yaml: found a sequence, expected a mapping (Tree)"),
        (
            {"kind": "grown", "total_token": 1, "depth": 1, "top_k": 1},
            "x.yaml: kind: found 'grown', expected one of dynamic, static",
        ),
    ],
)
def test_records_that_are_refused(data: object, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        decode(Tree, data, "x.yaml")
    assert str(caught.value) == message


@settings(max_examples=5, deadline=None)
@given(PLANS.filter(lambda plan: len(plan.stages) > 0))
def test_the_path_leads_to_the_datum(plan: Plan) -> None:
    data = encode(plan)
    data["stages"][0]["runs"] = [{"num_layers": 1, "kv_heads": [1, -2], "mlp_units": []}]
    with pytest.raises(PlanError) as caught:
        loads(dump_yaml(data))
    assert str(caught.value) == (
        "plan.yaml: stages[0].runs[0].kv_heads[1]: found -2, expected an integer from 0 to 2^63 - 1"
    )


@settings(max_examples=5, deadline=None)
@given(PLANS)
def test_a_newer_minor_schema_is_read_unless_it_has_more_fields(plan: Plan) -> None:
    data = encode(plan) | {"schema": "4.8"}
    assert loads(dump_yaml(data)).schema == "4.8"
    data["options"]["zzz"] = 1
    with pytest.raises(PlanError) as caught:
        loads(dump_yaml(data))
    assert str(caught.value) == (
        "plan.yaml: options.zzz: unknown field, expected one of batch, context, dtype, weights, kv_dtype, "
        "prefill_chunk, stall_timeout_s, strategy, kv_axis, custom, gap_ppm, within_ppm, simplify_ppm, max_devices, "
        "tree, schedule, keep_draft "
        "(the plan has schema 4.8, this program knows 4.5: update it)"
    )


def test_a_newer_major_schema_has_its_own_error() -> None:
    with pytest.raises(NewerSchemaError) as caught:
        loads("schema: '5.0'\nanything: else\n", "p/plan.yaml")
    assert str(caught.value) == (
        "p/plan.yaml: schema: the plan has version 5.0, this program reads up to 4.x: "
        "update the program, or build the plan again with this one"
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "plan.yaml: found nothing, expected a mapping (Plan)"),
        ("a: 1", "plan.yaml: schema: missing, expected a string like '4.5'"),
        ("schema: 1.0", "plan.yaml: schema: found 1.0, expected a string like '4.5'"),
        ("schema: '1'", "plan.yaml: schema: found '1', expected a string like '4.5'"),
        ("schema: '01.0'", "plan.yaml: schema: found '01.0', expected a string like '4.5'"),
        ("schema: '1.0'", "plan.yaml: schema: version 1.0 is older than 4.0: build the plan again"),
    ],
)
def test_versions_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        loads(text)
    assert str(caught.value) == message
    assert not isinstance(caught.value, NewerSchemaError)


def test_no_more_of_a_document_is_read_than_is_parsed(tmp_path: Path) -> None:
    """A file of 100 MB and one larger than memory are refused early."""
    for size in (100 << 20, 1 << 42):
        with (tmp_path / "plan.yaml").open("wb") as file:
            file.truncate(size)
        with pytest.raises(PlanError) as caught:
            load(tmp_path)
        assert str(caught.value) == f"{tmp_path / 'plan.yaml'}: {size} bytes, expected at most {MAX_DOCUMENT_BYTES}"


def test_a_directory_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: no plan.yaml here: give the directory of a plan, as `planner build` wrote it"
    )
