"""Measured figures: of samples by hand, through a file and back, and in predicted times; refusals of bad fields."""

import copy
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from planner.api import fixed_times, measuring, samples
from planner.cli import main
from planner.costs.roofline import Tier, all_reduce_ns, share_ns, share_ps
from planner.costs.topology import Fabric, together
from planner.demo_model import BASE, write_shorter
from planner.efficiency import BANDWIDTH_EFFICIENCY, FLOPS_EFFICIENCY, nominal
from planner.errors import DetectionError, InputError, InventoryError
from planner.families import load_base
from planner.hardware.inventory import parse_inventory
from planner.hardware.inventory_text import dump_inventory
from planner.hardware.measured import Figure, device_data, link_of, rate_of, rates_of, time_of
from planner.problem.links import Links
from planner.problem.placed import draft_ns, parts_ns
from plans import cpu_times
from plans.schema import DType
from plans.strict_yaml import dump_yaml, load_yaml

CALIBRATED = samples.calibrated
VALUES = {"memory": 10**6, "cached": 10**5}
TIMES = {
    "float32": {"1": 400_000, "8": 500_000, "60": 1_500_000},
    "bfloat16": {"1": 250_000, "8": 500_000, "60": 2_500_000},
}
"""Ns of products by rows; the other of two samples takes a little longer."""
SAMPLES: dict[str, Any] = {
    "cores": 2,
    "processes": 3,
    "threads": 1,
    "values": VALUES,
    "cached_bytes": 1 << 20,
    "products_ns": {
        devices: {
            "memory": {
                dtype: {rows: [slower * ns, slower * ns + 9] * 2 for rows, ns in by_rows.items()}
                for dtype, by_rows in TIMES.items()
            },
            "cached": {"float32": {rows: [slower * ns // 20] * 4 for rows, ns in TIMES["float32"].items()}},
        }
        for devices, slower in (("1", 1), ("2", 2), ("3", 4))
    },
    "rows_ns": {"1": [5000, 5000, 6000], "2": [9000, 9000, 9100], "3": [9000, 9000, 9000]},
    "scores_ns": {
        devices: {"float32": {"16": [slower * 4000] * 3, "64": [slower * 7000] * 3}}
        for devices, slower in (("1", 1), ("2", 2), ("3", 2))
    },
    "message_ns": [50_000, 50_000, 60_000],
    "sums": [
        {"members": 2, "message_bytes": 1000, "times_ns": [20_000, 20_000, 20_001]},
        {"members": 2, "message_bytes": 65_000, "times_ns": [52_000, 52_000, 52_003]},
        {"members": 3, "message_bytes": 1000, "times_ns": [100_000, 100_000, 100_001]},
        {"members": 3, "message_bytes": 91_000, "times_ns": [160_000, 160_000, 160_001]},
    ],
}
INVENTORY = """
hosts:
- name: a
  devices:
  - {id: c0, type: cpu, memory: 1 GiB, bandwidth: 9 GB/s}
  - {id: c1, type: cpu, memory: 1 GiB, bandwidth: 9 GB/s}
- name: b
  links: {class: shm, latency: 7 us}
  devices: [{id: c2, type: cpu, memory: 1 GiB, bandwidth: 9 GB/s}]
network: {class: shm}
"""


US = {"value": "1 us", "spread": "0 ns"}
AWAKE_NS = 14_000
TOGETHER = {"devices": 2, "bandwidth": "5 GB/s", "flops": "1 GFLOP/s", "overhead": "90 us"}


def data() -> Any:
    return load_yaml(INVENTORY, "f")


def measured_parts(devices: int) -> fixed_times.Timed:
    """Return times of steps and parts on so many devices."""
    plain, layers, eagle, tree_layers, drafter, few = (ns * devices * 10**6 for ns in (42, 40, 103, 60, 40, 13))
    return fixed_times.Timed(
        plain=plain,
        message=AWAKE_NS * devices // 2,
        tree_message=AWAKE_NS * devices // 2,
        layers=layers,
        eagle=eagle,
        tree_layers=tree_layers,
        drafter=drafter,
        few_layers=few,
    )


@pytest.fixture(autouse=True)
def synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the runtime's commands give samples by hand; the demo's image is not compiled."""
    monkeypatch.setattr(measuring, "calibrated", lambda processes: SAMPLES | {"processes": processes})
    monkeypatch.setattr(fixed_times, "timed", lambda whole, few: measured_parts(int(whole.parent.parent.name)))
    monkeypatch.setattr(fixed_times, "compile_images", lambda directory, model: None)


@pytest.fixture
def measured(synthetic: None) -> Any:
    return measuring.measure(data(), "f")[0]


def test_a_product_of_fewer_rows_takes_no_longer_than_one_of_more() -> None:
    slow = {"1": [900, 1000], "4": [500, 600], "6": [400, 400], "8": [450, 450], "16": [800, 800]}
    of_dtype = SAMPLES["products_ns"] | {"1": {"memory": {"float32": slow}, "cached": {}}}
    (alone, *_) = rates_of(SAMPLES | {"products_ns": of_dtype})
    values = SAMPLES["values"]["memory"]
    assert alone.rates["float32"].bandwidth.value == int(float(f"{4 * values * 10**9 / 400:.4g}"))
    times = {rows: 2 * rows * values * 10**9 / own.value for rows, own in alone.rates["float32"].products.items()}
    assert {rows: round(ns) for rows, ns in times.items()} == {1: 400, 4: 400, 6: 400, 8: 450, 16: 800}


def test_samples_become_rates() -> None:
    alone, *_ = every = rates_of(SAMPLES)
    assert [own.devices for own in every] == [1, 2, 3]
    assert alone.rates["float32"].bandwidth.value == 4 * 10**6 * 10**9 // 400_000 == 10**10
    assert alone.rates["bfloat16"].bandwidth.value == 2 * 10**6 * 10**9 // 250_000 == 8 * 10**9
    assert alone.rates["bfloat16"].products[8].value == 2 * 8 * 10**6 * 10**9 // 500_000
    assert alone.cached is not None
    assert alone.cached.rates["float32"].bandwidth.value == 2 * alone.rates["float32"].bandwidth.value


def test_the_times_of_two_measurements_are_taken_together() -> None:
    both = samples.joined(SAMPLES, SAMPLES | {"message_ns": [70_000]})
    assert both["message_ns"] == [50_000, 50_000, 60_000, 70_000]
    assert both["products_ns"]["2"]["memory"]["bfloat16"]["8"] == [1_000_000, 1_000_009] * 4
    assert [entry["times_ns"] for entry in both["sums"]] == [2 * entry["times_ns"] for entry in SAMPLES["sums"]]
    same = ("cores", "processes", "threads", "values", "cached_bytes")
    assert all(both[name] == SAMPLES[name] for name in same)


@pytest.mark.parametrize("name", ["cores", "threads", "cached_bytes"])
def test_what_changes_between_two_measurements_is_refused(name: str) -> None:
    with pytest.raises(DetectionError, match=f"^{name}: found {SAMPLES[name]}, later 7: the machine changed meanwhile"):
        samples.joined(SAMPLES, SAMPLES | {name: 7})


def test_samples_become_the_figures_of_a_link() -> None:
    link = link_of(SAMPLES)
    assert link is not None
    assert link.latency.value == 50_000
    assert {members: own.value for members, own in link.groups.items()} == {2: 20_000, 3: 100_000}
    assert link.bandwidth is not None
    assert link.bandwidth.value == pytest.approx(2 * 2 * 90_000 * 10**9 // (3 * 60_000), rel=1e-3)
    assert link_of(SAMPLES | {"sums": []}) is None


def test_the_last_of_many_who_sleep_waits_for_a_core(measured: Any) -> None:
    inventory = parse_inventory(measured, "f").at("float32")
    devices = tuple(replace(device, host="a") for device in inventory.devices)
    host = replace(inventory.hosts[0], link=inventory.network)
    one_host = replace(inventory, hosts=(host,), devices=devices, network=None)
    links = Links(fabric=Fabric(inventory=one_host))
    two, three = (together(devices[0], count) for count in (2, 3))
    more_ns = cpu_times.table_ns(three) - cpu_times.table_ns(two)
    assert more_ns > 0
    assert links.waits_ns((0, 1, 2), walks=False) == (0, 0, more_ns)
    more_ns += cpu_times.tree_ns(three) - cpu_times.tree_ns(two)
    assert links.waits_ns((0, 1, 2), walks=True) == (0, 0, more_ns)
    assert inventory.network is not None
    alike = replace(host, link=replace(inventory.network, awake_ns=None))
    links = Links(fabric=Fabric(inventory=replace(one_host, hosts=(alike,))))
    assert links.waits_ns((0, 1, 2), walks=False) == ()


def test_a_message_to_who_is_awake_takes_what_the_step_message_of_two_took(measured: Any) -> None:
    found = measured["network"]["measured"]
    assert found["awake"] == {"value": "14 us", "spread": "0 ns"}
    inventory = parse_inventory(measured, "f").at("float32")
    assert inventory.network is not None
    assert (inventory.network.latency_ns, inventory.network.awake_ns) == (50_000, AWAKE_NS)
    found["awake"]["value"] = "51 us"
    with pytest.raises(InventoryError, match=r"awake.value: found 51 us, expected at most the latency, 50 us"):
        parse_inventory(measured, "f")
    del found["awake"]
    network = parse_inventory(measured, "f").at("float32").network
    assert network is not None
    assert network.awake_ns is None


def test_a_step_message_that_seems_slower_than_waking_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_times, "timed", lambda whole, few: replace(measured_parts(2), message=10**6))
    assert measuring.measure(data(), "f")[0]["network"]["measured"]["awake"]["value"] == "50 us"


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=40))
def test_figures_are_among_the_best_samples(samples: list[int]) -> None:
    own, rate, ordered = time_of(samples), rate_of(10**6, samples), sorted(samples)
    tenth = ordered[len(samples) // 10 + 1]
    assert ordered[0] * 0.999 <= own.value <= tenth * 1.001
    assert 10**15 / tenth * 0.999 <= rate.value <= 10**15 / ordered[0] * 1.001
    assert own.spread <= (ordered[-1] - ordered[0]) * 1.001


@pytest.mark.parametrize(("weights_bytes", "quicker"), [(None, 1), (1 << 20, 2), (1 + (1 << 20), 1)])
def test_predicted_times_follow_measured_rates(weights_bytes: int | None, quicker: int, measured: Any) -> None:
    """Products take what they took, alone or beside others, and an all-reduce too; those of rows between two that were
    measured the time between.
    """
    for dtype, times in TIMES.items():
        inventory = parse_inventory(measured, "f").at(dtype, weights_bytes)  # type: ignore[arg-type]
        fabric, width = Fabric(inventory=inventory), 4 if dtype == "float32" else 2
        for devices, slower in ((1, 1), (2, 2), (3, 4)):
            for device in fabric.at_work(tuple(range(devices))):
                by = quicker if dtype == "float32" else 1
                for rows, ns in times.items():
                    took = share_ns(device, width * 10**6, 2 * int(rows) * 10**6)
                    assert took == pytest.approx(slower * ns / by, rel=1e-3)
                between = share_ns(device, width * 10**6, 2 * 34 * 10**6)
                assert between == pytest.approx(slower * (times["8"] + times["60"]) / 2 / by, rel=1e-3)
                assert share_ns(device, 0, 2 * 60 * 10**6) == pytest.approx(slower * times["60"] / by, rel=1e-3)
    assert {device.bandwidth_bytes_per_s for device in parse_inventory(measured, "f").at("float16").devices} == {
        9 * 10**9
    }, "a dtype that was not measured keeps its figures"
    for link in (inventory.network, *(host.link for host in inventory.hosts)):
        assert link is not None
        assert all_reduce_ns([Tier(count=2, link=link)], 1000) == pytest.approx(20_000, rel=0.03)
        assert all_reduce_ns([Tier(count=3, link=link)], 1000) == pytest.approx(100_000, rel=0.02)
        assert all_reduce_ns([Tier(count=3, link=link)], 91_000) == pytest.approx(160_000, rel=0.02)
        assert all_reduce_ns([Tier(count=5, link=link)], 0) == 150_000, "three rounds to two"


@pytest.mark.parametrize(("head_dim", "ns"), [(8, 4000), (16, 4000), (40, 5500), (64, 7000), (128, 14_000)])
def test_scores_take_what_was_measured_of_heads_with_their_dims(head_dim: int, ns: int, measured: Any) -> None:
    fabric = Fabric(inventory=parse_inventory(measured, "f").at("float32"))
    for devices, slower in ((1, 1), (2, 2), (3, 2)):
        device = fabric.at_work(tuple(range(devices)))[0]
        flops = 4 * head_dim * 10**6
        took = share_ps(device, 0, 7 * 10**6 + flops, 10**6, head_dim) - share_ps(device, 0, 7 * 10**6)
        assert took == pytest.approx(slower * ns * 1000 * 10**6 / 1024, rel=1e-6)
    assert share_ps(replace(device, measured=None), 0, flops, 10**6, head_dim) == share_ps(
        replace(device, measured=None), 0, flops
    )


def test_heads_that_are_divided_take_no_less_in_all() -> None:
    """Also where more dims seemed to take longer than in proportion: what is more is noise, or a cache's."""
    scored = copy.deepcopy(SAMPLES)
    scored["scores_ns"]["1"]["float32"] = {"16": [1000] * 2, "64": [9000] * 2, "128": [9000] * 2}
    device = data()["hosts"][0]["devices"][0] | {"measured": device_data(rates_of(scored)[:1])}
    (own,) = parse_inventory({"hosts": [{"name": "a", "devices": [device]}]}, "f").at("float32").devices
    assert own.measured is not None
    assert [(time.head_dim, time.ns) for time in own.measured.scores or ()] == [(16, 1000), (64, 4000), (128, 8000)]
    for head_dim in range(2, 200):
        for parts in (2, 3, 4):
            part_ps = share_ps(own, 0, 0, 10**6, head_dim // parts) if head_dim % parts == 0 else None
            assert part_ps is None or parts * part_ps >= share_ps(own, 0, 0, 10**6, head_dim)


def test_scores_take_time_where_products_alone_were_measured(measured: Any) -> None:
    for own in measured["hosts"][0]["devices"]:
        for rates in (own["measured"], *own["measured"]["together"]):
            rates["float32"].pop("scores", None)
    (device, *_) = parse_inventory(measured, "f").at("float32").devices
    per_score = share_ps(device, 0, 150 * 10**6)
    assert share_ps(device, 0, 7 * 10**6, 10**6) == pytest.approx(share_ps(device, 0, 7 * 10**6) + per_score, rel=1e-6)
    listed = replace(device, measured=None)
    assert share_ps(listed, 0, 7 * 10**6, 10**6) == share_ps(listed, 0, 7 * 10**6)


def test_a_product_that_takes_longer_than_those_around_it_is_left_out() -> None:
    """So that bounds hold: of 8 rows 2 us are measured, and 1.5 us are the time between 1 and 60 rows."""
    kinked = SAMPLES | {"values": {"memory": 1000, "cached": 1000}}
    times = {"1": [1000] * 2, "8": [2000] * 2, "60": [5214] * 2}
    kinked["products_ns"] = {"1": {"memory": {"float32": times}, "cached": {}}}
    device = data()["hosts"][0]["devices"][0] | {"measured": device_data(rates_of(kinked))}
    inventory = {"hosts": [{"name": "a", "devices": [device]}]}
    (own,) = parse_inventory(inventory, "f").at("float32").devices
    assert own.measured is not None
    assert len(own.measured.products) == 2
    assert share_ns(own, 4000, 2 * 8 * 1000) == pytest.approx(1500, abs=2)


def test_rates_alone_are_at_least_those_beside_others() -> None:
    """A sample is worse where another program was at work, and never better."""
    noisy = copy.deepcopy(SAMPLES)
    for own in (*noisy["products_ns"]["1"]["memory"].values(), noisy["scores_ns"]["1"]["float32"]):
        for name, times in own.items():
            own[name] = [5 * ns for ns in times]
    device = data()["hosts"][0]["devices"][0] | {"measured": device_data(rates_of(noisy))}
    (own,) = parse_inventory({"hosts": [{"name": "a", "devices": [device]}]}, "f").at("float32").devices
    beside = (own.together or ())[0]
    assert own.measured is not None
    assert beside.measured is not None
    assert (own.bandwidth_bytes_per_s, own.flops_per_s) == (beside.bandwidth_bytes_per_s, beside.flops_per_s)
    assert (own.measured.products, own.measured.scores) == (beside.measured.products, beside.measured.scores)
    assert own.measured.row_ns < beside.measured.row_ns


def test_a_measured_time_is_no_shorter_beside_others() -> None:
    """Also where alone it was not measured, and follows from the overhead."""
    inventory = data()
    beside = {"devices": 2, "overhead": US | {"value": "90 us"}, "pass": US, "table": US}
    inventory["hosts"][0]["devices"][0]["measured"] = {"overhead": US | {"value": "100 us"}, "together": [beside]}
    (own,) = parse_inventory(inventory, "f").at("float32").devices[0].together or ()
    assert (own.overhead_ns, own.pass_ns, own.table_ns) == (100_000, 300_000, 100_000)


@pytest.mark.parametrize("held", ["", ".cached"])
def test_rates_beside_others_need_those_alone(held: str, measured: Any) -> None:
    """Without them nothing says that they are not those of a faster device."""
    changed = copy.deepcopy(measured)
    own = changed["hosts"][0]["devices"][0]["measured"]
    del own["float32"], own["cached"]
    if held:
        for beside in own["together"]:
            del beside["float32"]
    where = re.escape(f"f: hosts[0].devices[0].measured.together[0]{held}.float32: found rates with 2 devices, ")
    with pytest.raises(InventoryError, match=rf"^{where}expected those of one alone as well, as measured"):
        parse_inventory(changed, "f")


def test_rates_without_those_of_a_cache_count_whatever_a_step_reads(measured: Any) -> None:
    for beside in measured["hosts"][0]["devices"][0]["measured"]["together"]:
        del beside["cached"]
    inventory = parse_inventory(measured, "f")
    cached, other = (inventory.at("float32", nbytes).devices[0] for nbytes in (1 << 20, None))
    assert cached.bandwidth_bytes_per_s == 2 * other.bandwidth_bytes_per_s
    assert cached.together == other.together


def test_rates_beside_others_are_measured_or_given() -> None:
    inventory = data()
    inventory["hosts"][0]["devices"][0] |= {"together": [TOGETHER], "measured": {"overhead": US}}
    with pytest.raises(InventoryError, match=r"f: hosts\[0\]\.devices\[0\]\.together: found beside measured"):
        parse_inventory(inventory, "f")
    del inventory["hosts"][0]["devices"][0]["measured"]
    again, _ = measuring.measure(inventory, "f")
    assert "together" not in again["hosts"][0]["devices"][0]
    assert parse_inventory(again, "f").devices[0].measured


def test_members_of_hosts_without_shared_memory_are_counted_by_host() -> None:
    far = data()
    far["network"] = {"class": "ethernet", "latency": "20 us", "bandwidth": "1 GB/s"}
    for device in (device for host in far["hosts"] for device in host["devices"]):
        device["together"] = [TOGETHER]
    fabric = Fabric(inventory=parse_inventory(far, "f").at("float32"))
    assert [device.bandwidth_bytes_per_s for device in fabric.at_work((0, 1, 2))] == [5 * 10**9, 5 * 10**9, 9 * 10**9]
    assert [device.bandwidth_bytes_per_s for device in fabric.at_work((0, 2))] == [9 * 10**9] * 2


@pytest.mark.parametrize("devices", [1, 2])
def test_fixed_times_make_parts_of_steps_as_long_as_they_were(devices: int, measured: Any, tmp_path: Path) -> None:
    computing = parse_inventory(measured, "f").devices[0].measured
    link = link_of(SAMPLES)
    assert link is not None
    link = replace(link, awake=Figure(value=AWAKE_NS, spread=0))
    planned = fixed_times.priced(fixed_times.demo_plan(tmp_path / "plan", devices), computing, link)
    (stage,) = planned.stages
    assert len(stage.devices) == devices
    embed_ns, layers_ns, head_ns = parts_ns(planned, replace(planned.options, tree=None))
    tree_embed_ns, _, tree_head_ns = parts_ns(planned, planned.options)
    expected, measured_rates = measured_parts(devices), planned.inventory.devices[0].measured
    assert measured_rates is not None
    assert embed_ns + head_ns == pytest.approx(2_000_000 * devices, rel=1e-3)
    assert tree_embed_ns + tree_head_ns == pytest.approx(3_000_000 * devices, rel=1e-3)
    assert layers_ns == pytest.approx(expected.layers, rel=1e-3)
    (few_ns, more_ns) = (own_ns // devices for own_ns in (expected.few_layers, expected.layers - expected.few_layers))
    assert measured_rates.stage_ns == pytest.approx(devices * (few_ns - 2 * more_ns // 6), rel=1e-2)
    assert measured_rates.row_ns == {1: 5000, 2: 9000}[devices]
    assert draft_ns(planned, planned.options) == pytest.approx(expected.drafter, rel=1e-3)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_shorter_demo_model_has_the_tensors_of_its_layers(layers: int, tmp_path: Path) -> None:
    write_shorter(tmp_path, layers)
    whole, few = (load_file(directory / "model.safetensors") for directory in (BASE, tmp_path))
    left = [name for name in whole if name not in few]
    assert left
    assert all(int(name.split(".")[2]) >= layers for name in left)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in few.items())
    assert load_base(tmp_path).model.num_layers == layers


def test_a_measured_inventory_is_written_and_read_again(measured: Any) -> None:
    inventory = parse_inventory(measured, "f")
    again = parse_inventory(load_yaml(dump_yaml(measured), "g"), "g")
    assert again == inventory
    spelt = parse_inventory(load_yaml(dump_inventory(inventory), "g"), "g")
    assert [device.measured for device in spelt.devices] == [device.measured for device in inventory.devices]
    dtypes: tuple[DType, ...] = ("bfloat16", "float32")
    assert [spelt.at(dtype) for dtype in dtypes] == [inventory.at(dtype) for dtype in dtypes]
    assert measuring.measure(measured, "f")[0] == measured, "to measure again replaces the figures"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("measured",),
            {"int4": {}},
            "measured.int4: unknown field, expected one of overhead, pass, table, row, tree, stage, bfloat16, "
            "float16, float32, cached, together",
        ),
        (("measured", "float32", "rate"), [], "measured.float32.rate: unknown field, did you mean rates?"),
        (("measured", "float32", "rates"), [], "measured.float32.rates: found no rate, expected at least one of more"),
        (
            ("measured", "float32", "rates"),
            [{"rows": 1, "value": "4 GFLOP/s", "spread": "0 FLOP/s"}],
            "measured.float32.rates: found that of 1 row alone, expected at least one of more rows: add it",
        ),
        (
            ("measured", "overhead"),
            {"value": "5 parsec", "spread": "0 ns"},
            "measured.overhead.value: found '5 parsec' with unit parsec, expected",
        ),
        (("measured", "float32", "rates", 0, "rows"), 0, "rates[0].rows: found 0, expected a number from 1 to"),
        (("measured", "float32", "rates", 1, "rows"), 1, "rates[1].rows: found 1, expected a number from 2 to"),
        (("measured", "float32", "rates", 0, "value"), "0 FLOP/s", "rates[0].value: found 0 FLOP/s, expected more"),
        (("measured", "float32", "bandwidth"), "9 GB/s", "bandwidth: found '9 GB/s', expected a mapping with value"),
        (
            ("measured", "float32", "bandwidth", "value"),
            "9 us",
            "bandwidth.value: found '9 us' with unit us, expected",
        ),
        (("measured", "float32", "scores"), [], "measured.float32.scores: found no time, expected at least one: add"),
        (
            ("measured", "float32", "scores", 0, "value"),
            "0 ns",
            "measured.float32.scores[0].value: found 0 ns, expected at least 1 ns",
        ),
        (
            ("measured", "float32", "scores", 0, "head_dim"),
            8,
            "measured: float32: found scores of heads of [16, 64] dims, expected [8, 64], with any number of devices",
        ),
        (("measured", "float32", "bandwidth"), {"value": "9 GB/s"}, "bandwidth.spread: missing, expected a quantity"),
    ],
)
def test_bad_fields_are_refused(path: tuple[Any, ...], value: Any, message: str, measured: Any) -> None:
    changed = copy.deepcopy(measured)
    target = changed["hosts"][0]["devices"][0]
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(InventoryError) as caught:
        parse_inventory(changed, "f")
    assert str(caught.value).startswith("f: hosts[0].devices[0].measured")
    assert message in str(caught.value)


def test_bad_links_are_refused(measured: Any) -> None:
    changed = copy.deepcopy(measured)
    changed["network"]["measured"] = {"bandwidth": {"value": "1 GB/s", "spread": "0 B/s"}}
    with pytest.raises(InventoryError, match=r"f: network\.measured\.latency: found nothing, expected a mapping"):
        parse_inventory(changed, "f")
    changed["network"]["measured"] = measured["network"]["measured"] | {"groups": [{"members": 0, "value": "1 us"}]}
    with pytest.raises(InventoryError, match=r"measured\.groups\[0\]\.members: found 0, expected a number from 1"):
        parse_inventory(changed, "f")


def test_only_cpus_of_one_machine_are_measured() -> None:
    gpu = load_yaml("hosts: [{name: a, devices: [{id: g, type: t4}]}]", "f")
    with pytest.raises(InputError, match="no CPU device, and GPUs are not measured"):
        measuring.measure(gpu, "f")
    far = data()
    far["network"] = {"class": "ethernet", "latency": "20 us", "bandwidth": "1 GB/s"}
    with pytest.raises(InputError, match="several hosts, and only this machine can be measured"):
        measuring.measure(far, "f")


def test_devices_beside_a_gpu_keep_its_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "calibrated", lambda processes: SAMPLES | {"sums": []})
    mixed = load_yaml(
        "hosts: [{name: a, devices: [{id: g, type: t4}, {id: c, type: cpu, memory: 1 GiB, bandwidth: 1 GB/s}]}]", "f"
    )
    found, lines = measuring.measure(mixed, "f")
    assert "measured" not in found["hosts"][0]["devices"][0]
    assert "links" not in found["hosts"][0]
    *_, kept, took = lines
    assert kept == "not measured, figures stay: links with GPUs, g"
    assert re.fullmatch(r"took \d+ s", took)


def test_what_ends_a_measurement_is_one_line() -> None:
    failed = subprocess.CompletedProcess([], 5, stdout="", stderr="warning\nerror: a process that measures died\n")
    with (
        mock.patch.object(subprocess, "run", return_value=failed),
        pytest.raises(DetectionError, match="measures died"),
    ):
        CALIBRATED(2)
    slow = subprocess.TimeoutExpired([], 60)
    with mock.patch.object(subprocess, "run", side_effect=slow), pytest.raises(DetectionError, match="too busy"):
        CALIBRATED(2)


def test_the_command_writes_into_the_file(tmp_path: Path) -> None:
    file = tmp_path / "inventory.yaml"
    file.write_text(INVENTORY)
    done = CliRunner().invoke(main, ["inventory", "--measure", str(file)])
    assert done.exit_code == 0, done.output
    assert "3 devices, alone and at once, share 2 cores" in done.stderr
    assert parse_inventory(load_yaml(file.read_text(), "f"), "f").devices[0].measured is not None
    assert [path.name for path in tmp_path.iterdir()] == ["inventory.yaml"]
    both = CliRunner().invoke(main, ["inventory", "--measure", "--detect"])
    assert (both.exit_code, "give one" in both.stderr) == (2, True)


def test_a_nominal_rate_comes_to_what_was_measured() -> None:
    assert nominal(10**10, BANDWIDTH_EFFICIENCY) * 4 // 5 == 10**10
    assert nominal(10**10, FLOPS_EFFICIENCY) // 2 == 10**10
