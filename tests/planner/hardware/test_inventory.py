"""The inventory: defaults, order, complete error messages, canonical text, and the catalogue."""

import copy
import dataclasses
import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InventoryError
from planner.hardware import catalog as catalog_module
from planner.hardware.catalog import catalog
from planner.hardware.inventory import load_inventory, parse_inventory
from planner.hardware.inventory_text import dump_inventory
from plans.check_inputs import natural_key
from plans.codec import decode, encode
from plans.schema import Device, DType, GroupSum, Host, Inventory, Link, Pair, Together
from plans.strict_yaml import dump_yaml, load_yaml
from runtime.processes.machine import is_named

CATALOG = Path(catalog_module.__file__).with_name("catalog.yaml")

DESIGN = """
hosts:
  - name: box0
    links: {class: nvlink}
    devices:
      - {id: gpu0, type: a100-80g}
      - {id: gpu1, type: rtx-4090, memory: 24 GiB, reserve: 1 GiB}
      - {id: cpu,  type: cpu, memory: 64 GiB, bandwidth: 40 GB/s}
  - name: box1
    devices: [{id: gpu10, type: t4}, {id: gpu9, type: t4}, {id: gpu2, type: t4}]
network: {class: ethernet, bandwidth: 25 Gbit/s, latency: 20 us}
"""


def design() -> Any:
    return load_yaml(DESIGN, "design")


def parsed(data: Any, dtype: DType = "bfloat16") -> Inventory:
    return parse_inventory(data, "f").at(dtype)


def test_the_catalogue_fills_in_figures_missing_from_the_file() -> None:
    inventory = parsed(design())
    cpu, gpu0, gpu1, *_ = inventory.devices
    assert gpu0 == Device(
        id="gpu0",
        host="box0",
        type="a100-80g",
        kind="cuda",
        ordinal=0,
        uuid=None,
        reported_name="A100",
        memory_bytes=81040 << 20,
        reserve_bytes=1 << 30,
        bandwidth_bytes_per_s=2_039 * 10**9,
        flops_per_s=312 * 10**12,
        overhead_ns=36_000,
        compute_capability=80,
    )
    assert (gpu1.memory_bytes, gpu1.reserve_bytes, gpu1.ordinal) == (24 << 30, 1 << 30, 1)
    assert (cpu.kind, cpu.ordinal, cpu.memory_bytes, cpu.reserve_bytes) == ("cpu", 0, 64 << 30, 0)
    assert inventory.network == Link(link_class="ethernet", latency_ns=20_000, bandwidth_bytes_per_s=3_125_000_000)
    assert [host.link.link_class for host in inventory.hosts] == ["nvlink", "pcie"]


def test_devices_are_in_natural_order_and_numbered_in_it() -> None:
    inventory = parsed(design())
    assert [(device.id, device.ordinal) for device in inventory.devices if device.host == "box1"] == [
        ("gpu2", 0),
        ("gpu9", 1),
        ("gpu10", 2),
    ]
    assert sorted(["b1", "a10", "a9", "a"], key=natural_key) == ["a", "a9", "a10", "b1"]


def test_the_order_of_a_list_never_matters() -> None:
    expected = parse_inventory(design(), "f")
    for hosts in itertools.permutations(design()["hosts"]):
        for devices in itertools.permutations(hosts[0]["devices"]):
            data = design() | {"hosts": [hosts[0] | {"devices": list(devices)}, *hosts[1:]]}
            assert parse_inventory(data, "f") == expected


def test_a_rate_follows_the_dtype_unless_it_is_given() -> None:
    for dtype, flops in (("bfloat16", 8_100), ("float16", 65_000), ("float32", 8_100)):
        inventory = parsed(design(), dtype)  # type: ignore[arg-type]
        assert inventory.devices[-1].flops_per_s == flops * 10**9, dtype
    data = design()
    data["hosts"][0]["devices"][0]["flops"] = "1 TFLOP/s"
    assert parsed(data, "float32").devices[1].flops_per_s == 10**12


def test_a_device_of_no_listed_type_gives_its_own_figures() -> None:
    entry = {"id": "x", "type": "tpu-9", "memory": "1 GiB", "reserve": 0, "bandwidth": "1 GB/s", "flops": "1 TFLOP/s"}
    (device,) = parsed({"hosts": [{"name": "a", "devices": [entry]}]}).devices
    assert (device.kind, device.type, device.reported_name, device.reserve_bytes) == ("cuda", "tpu-9", "", 0)


def test_several_devices_may_share_an_accelerator_over_gloo() -> None:
    devices = [{"id": f"part{i}", "type": "h200", "ordinal": 0, "memory": "4 GiB"} for i in range(2)]
    data = {"hosts": [{"name": "a", "links": {"class": "pcie", "transport": "gloo"}, "devices": devices}]}
    inventory = parse_inventory(data, "f")
    assert [device.ordinal for device in inventory.devices] == [0, 0]
    assert inventory.hosts[0].transport == "gloo"


WHOLE = {"id": "g0", "type": "rtx-4090", "ordinal": 0}
PART = WHOLE | {"memory": "12 GiB", "reserve": 0}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [WHOLE, WHOLE | {"id": "g1"}],
            "hosts[0].devices[1].ordinal: found 0, which g0 has too: expected another one, or, where g0, g1 are parts "
            "of one accelerator, an ordinal and a memory of its own for each",
        ),
        (
            [{"id": "g0", "type": "rtx-4090", "ordinal": 1}, {"id": "g1", "type": "rtx-4090"}],
            "hosts[0].devices[1].ordinal: found 1, which g0 has too: expected another one, or, where g0, g1 are parts "
            "of one accelerator, an ordinal and a memory of its own for each",
        ),
        (
            [PART, PART | {"id": "g1"}],
            f"hosts[0].devices[1].ordinal: found 0, which g0 has too: the parts have {24 << 30} bytes of memory "
            f"together, expected at most {24050 << 20}, those of a rtx-4090",
        ),
        (
            [PART, PART | {"id": "g1", "type": "h200", "memory": "1 GiB"}],
            "hosts[0].devices[1].ordinal: found 0, which g0 has too: h200 and rtx-4090 are not parts of one "
            "accelerator",
        ),
    ],
)
def test_whole_accelerators_have_ordinals_of_their_own(entries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InventoryError) as caught:
        parse_inventory({"hosts": [{"name": "a", "devices": entries}]}, "f")
    assert str(caught.value) == f"f: {message}"


@pytest.mark.parametrize("listed", [False, True])
def test_a_pair_may_have_its_own_link(listed: bool) -> None:
    pairs = [{"between": ["gpu10", "gpu2"], "class": "nvlink", "latency": "5 us"}]
    data = design()
    data["hosts"][1]["links"] = pairs if listed else {"class": "pcie", "pairs": pairs}
    (pair,) = parse_inventory(data, "f").hosts[1].pairs
    assert pair == Pair(
        a="gpu2",
        b="gpu10",
        link=Link(link_class="nvlink", latency_ns=5_000, bandwidth_bytes_per_s=240 * 10**9),
    )


# Refusals: path to the datum, changed value, complete message.

RATES = {"devices": 2, "bandwidth": "1 GB/s", "flops": "1 GFLOP/s", "overhead": "50 us"}
"""Of a CPU of the catalogue's overhead, beside another one."""
PATHS: list[tuple[str, Any, str]] = [
    (
        "hosts.0.devices.1.memroy",
        "24 GiB",
        "f: hosts[0].devices[1].memroy: unknown field, did you mean memory?",
    ),
    (
        "hosts.0.devices.1.zzz",
        1,
        "f: hosts[0].devices[1].zzz: unknown field, expected one of id, type, memory, reserve, bandwidth, flops, "
        "overhead, ordinal, uuid, reported_name, pass, table, together, measured",
    ),
    (
        "hosts.0.devices.1.uuid",
        "GPU_1",
        "f: hosts[0].devices[1].uuid: found 'GPU_1', expected a UUID of the driver, like GPU-... or MIG-...",
    ),
    ("host", [], "f: host: unknown field, did you mean hosts?"),
    (
        "network.speed",
        1,
        "f: network.speed: unknown field, expected one of class, latency, bandwidth, sums, awake, measured",
    ),
    ("hosts.0.links.clas", "x", "f: hosts[0].links.clas: unknown field, did you mean class?"),
    (
        "hosts.0.devices.1.memory",
        "24 GiBit",
        "f: hosts[0].devices[1].memory: found '24 GiBit' with unit GiBit, "
        "expected one of B, kB, MB, GB, TB, KB, KiB, MiB, GiB, TiB",
    ),
    (
        "hosts.0.devices.0.bandwidth",
        2039,
        "f: hosts[0].devices[0].bandwidth: found 2039 without a unit, expected a quantity like 25 Gbit/s or 40 GB/s",
    ),
    ("hosts.0.devices.0.flops", "0 FLOP/s", "f: hosts[0].devices[0].flops: found 0 FLOP/s, expected more than zero"),
    (
        "hosts.0.devices.1.reserve",
        "24 GiB",
        "f: hosts[0].devices[1].reserve: found 25769803776 bytes, expected less than memory, 25769803776 bytes",
    ),
    (
        "hosts.0.devices.1.memory",
        "-1 GiB",
        "f: hosts[0].devices[1].memory: found '-1 GiB', which is negative, expected a quantity like 24 GiB",
    ),
    (
        "hosts.0.devices.1.id",
        "gpu0",
        "f: hosts[0].devices[1].id: 'gpu0' is already the id of a device of host box0, "
        "expected an id that is unique in the whole inventory",
    ),
    (
        "hosts.1.devices.1.id",
        "gpu0",
        "f: hosts[1].devices[1].id: 'gpu0' is already the id of a device of host box0, "
        "expected an id that is unique in the whole inventory",
    ),
    (
        "hosts.0.devices.0.id",
        "../gpu",
        "f: hosts[0].devices[0].id: found '../gpu', expected a name of lower-case letters, digits, '_' and '-'",
    ),
    (
        "hosts.0.devices.0.id",
        0,
        "f: hosts[0].devices[0].id: found 0, expected a name of lower-case letters, digits, '_' and '-'",
    ),
    ("hosts.1.name", "box0", "f: hosts[1].name: 'box0' is already the name of another host"),
    ("hosts.0.devices", [], "f: hosts[0].devices: no device, expected at least one"),
    ("hosts.0.devices", None, "f: hosts[0].devices: missing, expected a sequence of devices"),
    ("hosts.0.devices", {}, "f: hosts[0].devices: found a mapping, expected a sequence of devices"),
    ("hosts", [], "f: hosts: no host, expected at least one with at least one device"),
    ("hosts", None, "f: hosts: missing, expected a sequence of hosts"),
    ("hosts.0", "box0", "f: hosts[0]: found 'box0', expected a host with name, links and devices"),
    (
        "network",
        None,
        "f: network: missing, expected the link between the 2 hosts, "
        "like {class: ethernet, bandwidth: 25 Gbit/s, latency: 20 us}",
    ),
    (
        "hosts.0.devices.0.memory",
        24,
        "f: hosts[0].devices[0].memory: found 24 bytes, expected more than the reserve, 1073741824 bytes: give it with "
        "a unit, like 24 GiB",
    ),
    (
        "hosts.0.devices.0.memory",
        "512 MiB",
        "f: hosts[0].devices[0].memory: found 536870912 bytes, expected more than the reserve, 1073741824 bytes: give "
        "a reserve",
    ),
    (
        "hosts.0.devices.0.type",
        4090,
        "f: hosts[0].devices[0].type: found 4090, expected a name of lower-case letters, digits, '.', '_' and "
        "'-'; the nearest known types are rtx-4090, rtx-4090-d",
    ),
    (
        "hosts.0.devices.0.type",
        "orin",
        "f: hosts[0].devices[0].type: 'orin' is not in the catalogue; the nearest known types are jetson-agx-orin-64g, "
        "jetson-agx-orin-32g, jetson-orin-nx-16g; a device of another type gives memory, bandwidth and flops itself; "
        "missing: memory, bandwidth, flops",
    ),
    (
        "hosts.0.devices.0.type",
        "a100-81g",
        "f: hosts[0].devices[0].type: 'a100-81g' is not in the catalogue; the nearest known types are a100-80g, "
        "v100-16g, p100-16g; a device of another type gives memory, bandwidth and flops itself; "
        "missing: memory, bandwidth, flops",
    ),
    (
        "hosts.0.devices.0.type",
        "h100",
        "f: hosts[0].devices[0].type: 'h100' is not in the catalogue; the nearest known types are h100-80g, "
        "h100-80g-pcie, h100-94g-nvl; a device of another type gives memory, bandwidth and flops itself; "
        "missing: memory, bandwidth, flops",
    ),
    (
        "hosts.0.devices.0.type",
        "RTX 4090",
        "f: hosts[0].devices[0].type: found 'RTX 4090', expected a name of lower-case letters, digits, '.', '_' and "
        "'-'; the nearest known types are rtx-4090, rtx-4090-d, rtx-5090",
    ),
    (
        "hosts.0.devices.2",
        {"id": "cpu", "type": "cpu", "bandwidth": "40 GB/s"},
        "f: hosts[0].devices[2].memory: missing, expected a quantity like 24 GiB",
    ),
    (
        "hosts.0.devices.2.ordinal",
        1,
        "f: hosts[0].devices[2].ordinal: found 1, expected 0: a cpu is not numbered",
    ),
    (
        "hosts.0.devices.0.ordinal",
        "0",
        "f: hosts[0].devices[0].ordinal: found '0', expected the index of an accelerator, 0 to 1023",
    ),
    (
        "hosts.0.devices.0.reported_name",
        1,
        "f: hosts[0].devices[0].reported_name: found 1, expected a part of the driver's device name",
    ),
    (
        "hosts.0.links.class",
        "nvlnk",
        "f: hosts[0].links.class: 'nvlnk' is not in the catalogue, did you mean nvlink?; "
        "a link of another class gives latency and bandwidth itself; missing: latency, bandwidth",
    ),
    (
        "hosts.0.links.transport",
        "nccl",
        "f: hosts[0].links.transport: found 'nccl', expected auto or gloo",
    ),
    (
        "hosts.0.links.pairs",
        [{"between": ["gpu0", "gpu2"], "class": "nvlink"}],
        "f: hosts[0].links.pairs[0].between: 'gpu2' is no device of this host, did you mean gpu1?",
    ),
    (
        "hosts.0.links.pairs",
        [{"between": ["gpu0", "gpu0"], "class": "nvlink"}],
        "f: hosts[0].links.pairs[0].between: found ['gpu0', 'gpu0'], expected the ids of two devices",
    ),
    (
        "hosts.0.links.pairs",
        [{"between": ["gpu0", "gpu1"], "class": "nvlink"}, {"between": ["gpu1", "gpu0"], "class": "pcie"}],
        "f: hosts[0].links.pairs[1].between: the link of gpu0 and gpu1 is already given",
    ),
    (
        "network.sums",
        [{"members": 2, "time": "40 us"}, {"members": 4, "time": "10 us"}],
        "f: network.sums[1].time: found 10 us, expected at least 40 us, which fewer members take",
    ),
    (
        "hosts.0.devices.2.together",
        [RATES | {"bandwidth": "41 GB/s"}],
        "f: hosts[0].devices[2].together[0].bandwidth: found 41 GB/s, expected at most 40 GB/s, "
        "the rate with fewer devices",
    ),
    (
        "hosts.0.devices.0.together",
        [RATES | {"flops": "20 TFLOP/s"}],
        "f: hosts[0].devices[0].together[0].flops: found 20 TFLOP/s, expected at most 19500 GFLOP/s, "
        "the rate with fewer devices",
    ),
    (
        "hosts.0.devices.2.together",
        [RATES | {"pass": "1 us"}],
        "f: hosts[0].devices[2].together[0].pass: found 1 us, expected at least 150 us, the time with fewer devices",
    ),
    (
        "hosts.0.devices.2.together",
        [RATES | {"table": "90 us"}, RATES | {"devices": 3}],
        "f: hosts[0].devices[2].together[1].table: missing, which means 50 us, expected at least 90 us, "
        "the time with fewer devices",
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), PATHS, ids=[f"{path}={value}" for path, value, _ in PATHS])
def test_bad_input_is_refused_with_its_path(path: str, value: Any, message: str) -> None:
    data = copy.deepcopy(design())
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    target = data
    for part in parents:
        target = target[part]
    target[last] = value
    with pytest.raises(InventoryError) as caught:
        parse_inventory(data, "f")
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_a_document_that_is_no_inventory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "inventory.yaml"
    with pytest.raises(InventoryError) as caught:
        load_inventory(file)
    detect = f"or write this machine's with `python -m planner inventory --detect {file}`"
    assert str(caught.value) == f"{file}: no such file: give an inventory of hosts and devices, {detect}"
    file.write_text("[]")
    with pytest.raises(InventoryError) as caught:
        load_inventory(file)
    assert str(caught.value) == f"{file}: found a sequence, expected a mapping with hosts and network"
    file.write_text("hosts: [}")
    with pytest.raises(InventoryError, match="line 1: did not find expected node content"):
        load_inventory(file)
    file.write_text("hosts: []\nhosts: []\n")
    with pytest.raises(InventoryError, match="duplicate key 'hosts'"):
        load_inventory(file)
    file.write_text(DESIGN)
    assert load_inventory(file) == parse_inventory(design(), "f")


# Canonical text

SIZES = st.one_of(st.integers(1, (1 << 63) - 1), st.integers(1, 512).map(lambda n: n << 30))
CLASSES = st.sampled_from([*catalog().links, "my-fabric"])
SUMS = st.lists(st.integers(1, 10**9), min_size=1, max_size=3).map(
    lambda times: tuple(GroupSum(members=2 + 3 * i, ns=ns) for i, ns in enumerate(sorted(times)))
)
LINKS = st.builds(
    Link, link_class=CLASSES, latency_ns=st.integers(0, 10**9), bandwidth_bytes_per_s=SIZES, sums=st.none() | SUMS
)
IDS = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,7}", fullmatch=True)
HOST_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,7}", fullmatch=True)


@st.composite
def devices(draw: st.DrawFn, device_id: str, host: str, ordinal: int) -> Device:
    name = draw(st.sampled_from([*catalog().devices, "own-type"]))
    memory = draw(st.integers(1, 1 << 50))
    device = Device(
        id=device_id,
        host=host,
        type=name,
        kind="cpu" if name == "cpu" else "cuda",
        ordinal=0 if name == "cpu" else ordinal,
        uuid=None
        if name == "cpu"
        else draw(st.none() | st.just(f"GPU-{host}-{ordinal}".replace(".", "-").replace("_", "-"))),
        reported_name=draw(st.from_regex(r"[ -~]{0,8}", fullmatch=True)),
        memory_bytes=memory,
        reserve_bytes=draw(st.integers(0, memory - 1)),
        bandwidth_bytes_per_s=draw(SIZES),
        flops_per_s=draw(SIZES),
        overhead_ns=draw(st.integers(0, 10**6)),
        compute_capability=None if name == "own-type" else catalog().devices[name].compute_capability,
        pass_ns=draw(st.none() | st.integers(0, 10**6)),
        table_ns=draw(st.none() | st.integers(0, 10**6)),
    )
    return dataclasses.replace(device, together=draw(together(device)))


@st.composite
def together(draw: st.DrawFn, alone: Device) -> tuple[Together, ...] | None:
    """Draw rates of a device beside others, no faster the more there are."""
    rates: list[Together] = []
    bandwidth, flops, overhead = alone.bandwidth_bytes_per_s, alone.flops_per_s, alone.overhead_ns
    for devices in draw(st.lists(st.integers(2, 9), max_size=3, unique=True).map(sorted)):
        bandwidth, flops = draw(st.integers(1, bandwidth)), draw(st.integers(1, flops))
        overhead += draw(st.integers(0, 10**6))
        own = Together(devices=devices, bandwidth_bytes_per_s=bandwidth, flops_per_s=flops, overhead_ns=overhead)
        rates.append(dataclasses.replace(own, pass_ns=alone.pass_ns, table_ns=alone.table_ns))
    return tuple(rates) or None


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    names = sorted(draw(st.lists(HOST_NAMES, min_size=1, max_size=3, unique=True)))
    ids = draw(st.lists(IDS, min_size=2 * len(names), max_size=9, unique=True))
    hosts, all_devices = [], []
    for number, name in enumerate(names):
        own = sorted(ids[number :: len(names)], key=natural_key)
        ordinals = draw(st.lists(st.integers(0, 16), min_size=len(own), max_size=len(own), unique=True))
        all_devices += [draw(devices(*one)) for one in zip(own, [name] * len(own), ordinals, strict=True)]
        linked = draw(st.lists(st.sampled_from(list(itertools.combinations(range(len(own)), 2))), unique=True))
        link = draw(LINKS)
        drawn = [Pair(a=own[a], b=own[b], link=draw(LINKS)) for a, b in sorted(linked)]
        pairs = tuple(pair for pair in drawn if pair.link != link)  # another is none
        hosts.append(Host(name=name, link=link, pairs=pairs, transport=draw(st.sampled_from(["auto", "gloo"]))))
    network = draw(LINKS) if len(names) > 1 else None
    return Inventory(hosts=tuple(hosts), network=network, devices=tuple(all_devices))


@given(inventories(), st.sampled_from(["bfloat16", "float16", "float32"]))
@settings(max_examples=60, deadline=None)
def test_the_canonical_text_reads_back(inventory: Inventory, dtype: Any) -> None:
    text = dump_inventory(inventory)
    again = parse_inventory(load_yaml(text, "dump"), "dump").at(dtype)
    assert again == inventory
    assert dump_inventory(again) == text
    assert decode(Inventory, load_yaml(dump_yaml(encode(inventory)), "record"), "record") == inventory


def test_a_listed_inventory_reads_back_with_its_rates_for_every_dtype() -> None:
    data = design()
    data["hosts"][0]["devices"][0]["flops"] = "1 TFLOP/s"
    listed = parse_inventory(data, "f")
    assert parse_inventory(load_yaml(dump_inventory(listed), "dump"), "dump") == listed


def test_a_uuid_is_that_of_one_accelerator() -> None:
    data = design()
    entries = data["hosts"][0]["devices"]
    ids = {device.id: device for device in parse_inventory(data, "f").devices}
    first, second = [entry for entry in entries if ids[entry["id"]].kind == "cuda"][:2]
    first["uuid"] = second["uuid"] = "GPU-1"
    with pytest.raises(InventoryError, match=rf"uuid: found GPU-1, which {first['id']} has too"):
        parse_inventory(data, "f")
    second["uuid"] = "GPU-2"
    assert {device.uuid for device in parse_inventory(data, "f").devices} == {"GPU-1", "GPU-2", None}
    parts = [
        {"id": f"part{n}", "type": "a100-80g", "ordinal": 7, "memory": "30 GiB", "uuid": "GPU-7"} for n in range(2)
    ]
    assert len(parsed({"hosts": [{"name": "a", "devices": parts}]}).devices) == 2
    for part in parts:
        part["uuid"] = "MIG-7"
    with pytest.raises(InventoryError, match="uuid: found MIG-7, which part0 has too"):
        parsed({"hosts": [{"name": "a", "devices": parts}]})
    with pytest.raises(InventoryError, match="uuid: found GPU-1, expected none: a cpu has no UUID"):
        parsed({"hosts": [{"name": "a", "devices": [{"id": "c", "type": "cpu", "memory": "1 GiB", "flops": "1 TFLOP/s",
                                                     "bandwidth": "1 GB/s", "uuid": "GPU-1"}]}]})  # fmt: skip


def test_an_added_device_equals_one_listed_in_the_file() -> None:
    data = design()
    listed = parse_inventory(data, "f")
    another = dataclasses.replace(listed.devices[1], id="gpu2x", ordinal=2)
    data["hosts"][0]["devices"].insert(0, {"id": "gpu2x", "type": "a100-80g", "ordinal": 2})
    assert listed.with_device(another) == parse_inventory(data, "f")


# Catalogue

GEFORCE = {
    *("rtx-5090", "rtx-5080", "rtx-5070-ti", "rtx-5070", "rtx-5060-ti-16g", "rtx-4090", "rtx-4080", "rtx-4070"),
    *("rtx-4060-ti-16g", "rtx-3090-ti", "rtx-3090", "rtx-3080-10g", "rtx-3070", "rtx-3060-12g", "rtx-2080-ti"),
}
DATA_CENTRE = {
    *("gb300", "b300", "gb200", "b200", "gh200-96g", "h200", "h100-80g", "h100-80g-pcie", "h100-94g-nvl"),
    *("h800-80g", "h20", "a100-40g", "a100-40g-pcie", "a100-80g", "a100-80g-pcie", "a800-80g", "l40s", "l40"),
    *("l20", "l4", "a40", "a30", "a10", "a10g", "t4", "v100-16g", "v100-32g"),
    *("p100-16g", "mi250x", "mi300x", "mi325x"),
}
WORKSTATION = {"rtx-pro-6000", "rtx-6000-ada", "a6000", "a5000", "a4500", "a4000", "quadro-rtx-8000"}
SHARED = {"gb10", "jetson-agx-orin-64g", "jetson-agx-orin-32g"}

# Plausible GB/s by memory type, for GDDR buses of 64 to 512 bits and two to eight HBM stacks.
BANDWIDTHS = {
    "lpddr5": (60, 210),
    "lpddr5x": (200, 300),
    "gddr5": (300, 400),
    "gddr6": (190, 970),
    "gddr6x": (500, 1010),
    "gddr7": (440, 1800),
    "hbm2": (700, 1600),
    "hbm2e": (1500, 2100),
    "hbm3": (3300, 5400),
    "hbm3e": (4700, 8100),
}

# Published float16 TFLOP/s with sparsity; a dense rate is at most half.
SPARSE: dict[str, float] = load_yaml(
    """
    {gb300: 5000, gb200: 5000, b300: 4500, b200: 4500, gh200-96g: 1979, h200: 1979, h100-80g: 1979, h200-nvl: 1671,
     h100-94g-nvl: 1671, h100-80g-pcie: 1513, h800-80g: 1979, h20: 296, a100-40g: 624, a100-80g: 624, a30: 330,
     a10: 250, a16: 35.9, a2: 36, a40: 299.4, l4: 242, l20: 239, l40: 362.1, l40s: 733, a6000: 309.7, a5500: 272.8,
     a5000: 222.2, a4500: 189.2, a4000: 153.4, rtx-6000-ada: 728.5, rtx-5000-ada: 522.2, rtx-pro-6000: 1007.6,
     rtx-3080-10g: 119, rtx-3090: 142.3, rtx-4080: 195, rtx-4090: 330.4, rtx-5080: 225.1, rtx-5090: 419,
     mi300x: 2614.9, mi325x: 2614.9, mi355x: 5033.2, gb10: 250, jetson-agx-orin-64g: 85}
    """,
    "sparse",
)

# Total MiB in nvidia-smi: more than a program can use, by at most what the driver and ECC take.
BOARDS: dict[str, float] = load_yaml(
    """
    {b300: 275040, gb200: 189471, gb300: 284208, b200: 183359, h200: 143771, h100-80g: 81559, h20: 97871,
     gh200-96g: 97871, a100-80g: 81920, a100-40g: 40960, a10: 23028, l40s: 46068, l4: 23034, t4: 15360,
     rtx-pro-6000: 97887, rtx-4090: 24564, rtx-3090: 24576, rtx-5090: 32607, a6000: 49140}
    """,
    "boards",
)


def test_the_catalogue_has_the_common_devices_and_links() -> None:
    assert GEFORCE | DATA_CENTRE | WORKSTATION | SHARED | {"cpu"} <= set(catalog().devices)
    assert {"nvlink", "pcie", "shm", "ethernet", "infiniband", "xgmi"} <= set(catalog().links)


@pytest.mark.parametrize("name", sorted(catalog().devices))
def test_a_row_of_the_catalogue_is_plausible(name: str) -> None:
    entry = catalog().devices[name]
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", name)
    assert entry.source.strip()
    assert entry.flops_per_s["float32"] <= entry.flops_per_s["float16"]
    assert entry.flops_per_s["bfloat16"] <= entry.flops_per_s["float16"]
    if name == "cpu":
        assert entry.memory_bytes is entry.bandwidth_bytes_per_s is None
        return
    assert entry.memory_bytes is not None
    assert entry.bandwidth_bytes_per_s is not None
    assert 512 << 20 <= entry.reserve_bytes < entry.memory_bytes // 3
    low, high = BANDWIDTHS[entry.memory_type]
    assert low * 10**9 <= entry.bandwidth_bytes_per_s <= high * 10**9
    # A size in the name may exceed the memory by at most a tenth.
    size = re.search(r"-([0-9]+)g(?:-|$)", name)
    if size:
        assert 0.9 < entry.memory_bytes / (int(size[1]) << 30) <= 1.02
    assert 2 * entry.flops_per_s["float16"] <= SPARSE.get(name, math.inf) * 10**12
    if name in BOARDS:
        assert 0.96 < entry.memory_bytes / (BOARDS[name] << 20) < 1


@pytest.mark.parametrize("name", sorted(set(catalog().devices) - {"cpu"}))
def test_driver_names_contain_the_name_that_the_runtime_looks_for(name: str) -> None:
    entry = catalog().devices[name]
    assert entry.names
    for driver_name in entry.names:
        assert is_named(f"NVIDIA {driver_name}", entry.reported_name)
    sharing = [other for other in catalog().devices.values() if set(other.names) & set(entry.names)]
    sizes = sorted(other.memory_bytes or 0 for other in sharing)
    assert all(smaller * 1.15 < larger for smaller, larger in itertools.pairwise(sizes)), (
        "types that share a name must differ in memory"
    )


def test_a_row_of_the_catalogue_has_no_unknown_field() -> None:
    fields = {"memory", "memory_type", "reserve", "bandwidth", "bfloat16", "float16", "float32", "overhead"}
    fields |= {"capability"}
    for name, row in load_yaml(CATALOG.read_bytes(), CATALOG.name)["devices"].items():
        assert set(row) <= fields | {"reported_name", "names", "source"}, name


@pytest.mark.parametrize("name", sorted(set(catalog().devices) - {"cpu"}))
def test_gpus_of_nvidia_have_a_compute_capability_and_the_units_of_it(name: str) -> None:
    entry = catalog().devices[name]
    if "AMD" in entry.source:
        assert entry.compute_capability is None
        return
    assert entry.compute_capability in {60, 61, 70, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121}
    rates = entry.flops_per_s
    assert (rates["bfloat16"] > rates["float32"]) == (entry.compute_capability >= 80)


def test_devices_without_bfloat16_units_run_it_at_the_rate_of_float32() -> None:
    for name in ("t4", "v100-16g", "v100-32g"):
        rates = catalog().devices[name].flops_per_s
        assert rates["bfloat16"] == rates["float32"] < rates["float16"]
