"""Divisions against brute force: every way to divide a small machine, each replica planned for itself."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from planner.api import fleets
from planner.api.fleets import Asked, FleetResult
from planner.build import plan
from planner.errors import InfeasibleError, InputError
from planner.families import BaseInput, inputs_of, load_base
from planner.fleet import build as fleet_build
from planner.fleet import parts as fleet_parts
from planner.formulations import Formulations
from planner.problem.placed import step_ns
from planner.request import Request, Wanted, resolve_request
from planner.solver.minimise import Settings
from planner.speculation.profiles import shipped_profile
from plans.fleet import check_fleet, microtokens_per_s
from plans.places import places
from plans.schema import Inventory, Options, Plan
from plans.step import step_options
from tests.planner import machines
from tests.planner.instances import TINY, cpu, demo, gpu, host, listed, saved
from tests.planner.machines import random_machine, rewritten

SEEDS = (0, 3, 4, 6, 7, 11, 14, 20, 22)
ONE = Settings(workers=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseInput:
    return load_base(saved(tmp_path_factory.mktemp("fleet") / "tiny", TINY))


def request_of(base: BaseInput, machine: Any) -> Request:
    wanted = Wanted(context=64, dtype="bfloat16", simplify_ppm=0)
    return Request(base=base, draft=None, inventory=listed(machine), wanted=wanted)


def drawn(seed: int) -> tuple[Any, Asked]:
    """Return a machine of up to two hosts of three devices, which hold the model alone, in twos, or on both hosts."""
    rng = random.Random(seed)
    machine = random_machine(rng, 2, 3, (500, 900, 1500)[seed % 3])
    clients, replicas = rng.choice((None, None, 3, 5)), rng.choice((None, None, 1, 2, 5))
    return machine, Asked(clients=clients, replicas=replicas)


# ---- every division ----


class Speeds:
    """Speed of a sequence by devices and running sequences, each planned on these devices under their own names.

    A plan has the least of the batches that is enough; a step of fewer running sequences is priced as such.
    """

    def __init__(self, base: BaseInput, inventory: Inventory, options: Options, batches: Sequence[int]) -> None:
        self._base, self._inventory, self._options, self._batches = base, inventory, options, batches
        self.of, self._plan = cache(self._speed), cache(self._planned)

    def _speed(self, devices: frozenset[int], running: int) -> int | None:
        own = self._plan(devices, min(batch for batch in self._batches if batch >= running))
        if own is None:
            return None
        count = places(own, running)
        full = count == own.options.batch
        ns = own.proof.objective_ns if full else step_ns(own, step_options(own.options, count, None))
        return microtokens_per_s(1_000_000, ns)

    def _planned(self, devices: frozenset[int], batch: int) -> Plan | None:
        part = fleet_parts.restricted(self._inventory, sorted(devices))
        options = dataclasses.replace(self._options, batch=batch)
        formulation = Formulations().of(self._base, None, part, options)
        try:
            return plan(formulation, inputs_of(self._base, None), ONE).plan
        except InfeasibleError:
            return None


def divisions(inventory: Inventory) -> Iterator[list[frozenset[int]]]:
    """Yield every set of disjoint replicas, each on devices of one host or on several whole hosts."""
    by_host: dict[str, list[int]] = {}
    for index, device in enumerate(inventory.devices):
        by_host.setdefault(device.host, []).append(index)
    hosts = list(by_host.values())
    if len(hosts) > 1:
        yield [frozenset(index for own in hosts for index in own)]
    for chosen in product(*(list(packings(own)) for own in hosts)):
        yield [replica for replicas in chosen for replica in replicas]


def packings(devices: Sequence[int]) -> Iterator[list[frozenset[int]]]:
    """Yield all sets of disjoint sets of devices."""
    if not devices:
        yield []
        return
    first, *rest = devices
    yield from packings(rest)
    for mask in range(1 << len(rest)):
        own = frozenset([first, *(d for bit, d in enumerate(rest) if mask >> bit & 1)])
        for others in packings([d for d in rest if d not in own]):
            yield [own, *others]


def best_total(speeds: Speeds, inventory: Inventory, asked: Asked) -> int | None:
    """Return the most speed of all divisions, None where there is none."""
    best: int | None = None
    for division in divisions(inventory):
        if not division or (asked.replicas is not None and len(division) != asked.replicas):
            continue
        numbers = range(1, 1 + (asked.clients or 1))
        for running in product(numbers, repeat=len(division)):
            if asked.clients not in (None, sum(running)):
                continue
            known = [speeds.of(devices, number) for devices, number in zip(division, running, strict=True)]
            if None not in known:
                total = sum(number * (speed or 0) for number, speed in zip(running, known, strict=True))
                best = total if best is None else max(best, total)
    return best


@pytest.fixture(scope="module")
def divided(base: BaseInput) -> Callable[[int], FleetResult | None]:
    """Return what divides a drawn machine; None where it is refused."""
    return cache(lambda seed: _divided(base, seed))


def _divided(base: BaseInput, seed: int) -> FleetResult | None:
    machine, asked = drawn(seed)
    try:
        return fleets.divided(request_of(base, machine), asked, ONE)
    except InfeasibleError:
        return None


@pytest.mark.parametrize("seed", SEEDS)
def test_no_division_is_better(base: BaseInput, divided: Callable[[int], FleetResult | None], seed: int) -> None:
    machine, asked = drawn(seed)
    request = request_of(base, machine)
    options, inventory = resolve_request(request)
    batches = (1,) if asked.clients is None else {3: (1, 2, 3), 5: (1, 2, 3, 4, 5)}[asked.clients]
    expected = best_total(Speeds(base, inventory, options, batches), inventory, asked)
    result = divided(seed)
    assert (result.fleet.proof.microtokens_per_s if result else None) == expected
    if result is not None:
        assert check_fleet(result.fleet, result.built.plans) == ()


@pytest.mark.parametrize("replicas", [None, 1, 2])
def test_a_step_is_priced_by_its_running_sequences(base: BaseInput, replicas: int | None) -> None:
    """On CPUs, where a step computes the running sequences alone; 7 clients, with 1, 2, 3, 4, 6 or 7 places each."""
    cpus = [cpu(f"c{number}", 64, 2 + number) for number in range(3)]
    asked = Asked(clients=7, replicas=replicas, batch=None if replicas is None else 6)
    request = request_of(base, {"hosts": [host("a", *cpus)]})
    options, inventory = resolve_request(request)
    batches = (1, 2, 3, 4, 6, 7) if replicas is None else (6,)
    expected = best_total(Speeds(base, inventory, options, batches), inventory, asked) if replicas != 1 else None
    if expected is None:
        with pytest.raises(InfeasibleError, match="at most 6 sequences run at once"):
            fleets.divided(request, asked, ONE)
        return
    result = fleets.divided(request, asked, ONE)
    assert result.fleet.proof.microtokens_per_s == expected
    assert check_fleet(result.fleet, result.built.plans) == ()
    if replicas == 2:
        free = [own for own in result.fleet.replicas if own.sequences < 6]
        assert free
        assert all((own.microtokens_per_s or 0) > result.fleet.template(own.template).microtokens_per_s for own in free)


def test_these_machines_are_divided_in_several_ways(divided: Callable[[int], FleetResult | None]) -> None:
    fleets = [result.fleet for seed in SEEDS if (result := divided(seed)) is not None]
    assert 0 < len(fleets) < len(SEEDS)
    assert len({len(fleet.replicas) for fleet in fleets}) > 2
    hosts = {device.id: device.host for fleet in fleets for device in fleet.inventory.devices}
    assert {len({hosts[d] for d in replica.devices}) for fleet in fleets for replica in fleet.replicas} == {1, 2}


@pytest.mark.parametrize("seed", [0, 4])
def test_another_writing_of_a_machine_has_the_same_fleet(base: BaseInput, seed: int) -> None:
    machine = random_machine(random.Random(seed), 3, 3, 1500)
    other, _ = rewritten(random.Random(seed), machine)
    one, two = (fleets.divided(request_of(base, m), Asked(), ONE) for m in (machine, other))
    assert one.built.plans == two.built.plans
    assert (one.fleet.templates, one.fleet.proof) == (two.fleet.templates, two.fleet.proof)
    assert [(r.template, r.sequences) for r in one.fleet.replicas] == [
        (r.template, r.sequences) for r in two.fleet.replicas
    ]


# ---- loads and refusals ----


def cards(count: int, kib: int = 8000) -> Any:
    return {"hosts": [host("box", *(gpu(f"g{number}", kib) for number in range(count)))]}


def fleet_of(base: BaseInput, machine: Any, **asked: Any) -> FleetResult:
    return fleets.divided(request_of(base, machine), Asked(**asked), ONE)


def test_one_sequence_has_all_devices_and_many_have_a_replica_each(base: BaseInput) -> None:
    slow = {"hosts": [host("box", *(gpu(f"g{n}", 8000, bandwidth="200 MB/s", overhead="1 us") for n in range(4)))]}
    alone = fleet_of(base, slow, clients=1).fleet
    assert [(len(replica.devices), replica.sequences) for replica in alone.replicas] == [(4, 1)]
    every = fleet_of(base, slow).fleet
    assert [(replica.devices, replica.sequences) for replica in every.replicas] == [((f"g{n}",), 1) for n in range(4)]
    assert every.unused == ()


def test_replicas_that_share_cores_are_priced_while_all_compute(base: BaseInput, tmp_path: Path) -> None:
    """With half the rates together, each of two replicas is as fast as on a device with these rates alone.

    One device of the two is priced so as well; a GPU beside them takes no cores.
    """

    def machine(**figures: Any) -> Any:
        return {"hosts": [host("a", *(cpu(f"c{n}", 64) | figures for n in range(2)), gpu("g", 10))]}

    fast, slow = ({"bandwidth": f"{n} GB/s", "flops": f"{n} TFLOP/s", "overhead": "50 us"} for n in (2, 1))
    shared = machine(**fast, together=[{"devices": 2} | slow, {"devices": 3} | slow | {"overhead": "1 ms"}])
    for replicas in (1, 2):
        result, apart = (fleet_of(base, own, replicas=replicas) for own in (shared, machine(**slow)))
        assert (result.built.plans, result.fleet) == (apart.built.plans, apart.fleet)
    assert fleet_of(base, machine(**fast)).fleet.proof.microtokens_per_s > result.fleet.proof.microtokens_per_s
    assert fleets.check_fleet(result.write(tmp_path / "fleet")).clean


def test_the_least_speed_is_kept(base: BaseInput) -> None:
    slow = {"bandwidth": "1 GB/s", "overhead": "1 us"}
    machine = {"hosts": [host("box", gpu("g0", 8000, **slow | {"bandwidth": "3 GB/s"}), gpu("g1", 8000, **slow))]}
    free = fleet_of(base, machine).fleet
    least = min(template.microtokens_per_s for template in free.templates) / 1e6 * 1.01
    fast = fleet_of(base, machine, min_tokens_per_s=least).fleet
    assert min(template.microtokens_per_s for template in fast.templates) >= least * 1e6
    assert fast.proof.microtokens_per_s < free.proof.microtokens_per_s


@pytest.mark.parametrize(
    ("count", "kib", "asked", "message"),
    [
        (2, 100, {}, "no placement fits"),
        (2, 8000, {"replicas": 3}, "--replicas: found 3, at most 2 fit: give fewer"),
        (2, 8000, {"min_tokens_per_s": 1e6}, "no division has any number of replicas with 1e\\+06 tokens/s each"),
        (2, 3000, {"clients": 5000}, "--clients: found 5000, at most [0-9]+ sequences run at once"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(
    base: BaseInput, count: int, kib: int, asked: Any, message: str
) -> None:
    with pytest.raises(InfeasibleError, match=message):
        fleet_of(base, cards(count, kib), **asked)


def test_parts_of_an_accelerator_are_refused(base: BaseInput) -> None:
    halves = [gpu(f"g{n}", 4000) | {"ordinal": 0} for n in range(2)]
    with pytest.raises(InputError, match="device g1: is a part of an accelerator"):
        fleet_of(base, {"hosts": [host("box", *halves)]})


def test_unlike_types_of_one_figure_are_refused(base: BaseInput) -> None:
    two = [gpu("g0", 4000), gpu("g1", 4000) | {"reported_name": "Other"}]
    with pytest.raises(InputError, match="devices g0 and g1: have the figures of each other, and other types"):
        fleet_of(base, {"hosts": [host("box", *two)]})


def test_too_many_ways_to_divide_a_host_are_refused(base: BaseInput, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_parts, "MOST_SUBSETS", 7)
    unlike = [gpu(f"g{n}", 4000 + n) for n in range(3)]
    with pytest.raises(InputError, match="host box has too many subsets of devices, expected at most 7"):
        fleet_of(base, {"hosts": [host("box", *unlike)]})


def test_bridged_cards_may_be_parted(base: BaseInput) -> None:
    pairs = [{"between": [f"g{n}", f"g{n + 1}"], "class": "nvlink"} for n in (0, 2)]
    machine = {"hosts": [cards(4)["hosts"][0] | {"links": {"class": "pcie", "pairs": pairs}}]}
    fleet = fleet_of(base, machine).fleet
    assert [len(replica.devices) for replica in fleet.replicas] == [1, 1, 1, 1]
    two = fleet_of(base, machine, replicas=2).fleet
    assert all(
        set(replica.devices) in ({"g0", "g1"}, {"g2", "g3"}) or len(replica.devices) == 1 for replica in two.replicas
    )


def test_replicas_of_hosts_written_alike_are_on_hosts_of_their_own(base: BaseInput, tmp_path: Path) -> None:
    hosts = [host(f"h{n}", *(gpu(f"h{n}g{d}", 900) for d in range(2))) for n in range(3)]
    fleet = fleet_of(base, {"hosts": hosts, "network": {"class": "ethernet"}}).fleet
    for replica in fleet.replicas:
        assert len({device[:2] for device in replica.devices}) == 1, replica


# ---- a published direction ----


def test_unlike_hosts_share_devices_of_several_looks() -> None:
    """A stage on devices of both looks on both hosts, which are no equal hosts, is faster than any of one look."""
    link = {"class": "nvlink", "latency": "100 ns", "bandwidth": "400 GB/s"}
    looks = ((5000, 50), (5000, 51)), ((5000, 50), (5000, 51), (5000, 51))
    hosts = [
        host(f"h{number}", *(machines.device(f"d{number}-{n}", *own) for n, own in enumerate(of_host)), links=link)
        for number, of_host in enumerate(looks)
    ]
    base, _ = demo(None)
    fleet = fleets.divided(request_of(base, {"hosts": hosts, "network": link}), Asked(replicas=1), ONE).fleet
    assert [len(replica.devices) for replica in fleet.replicas] == [5]


def test_no_tree_is_faster_than_the_one_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proven of what was solved, and not proven of a speed that it exceeds."""
    base, draft = demo("eagle3")
    assert draft is not None
    wanted = Wanted(context=64, dtype="bfloat16", simplify_ppm=0, objective="tokens")
    request = Request(
        base=base, draft=draft, inventory=listed({"hosts": [host("a", cpu("a0", 256), cpu("a1", 256, 7))]}),
        wanted=wanted, profile=shipped_profile(draft.draft),
    )  # fmt: skip
    builds: list[fleet_build._Build] = []
    own = fleet_build._Build.fleet
    monkeypatch.setattr(fleet_build._Build, "fleet", lambda build: (builds.append(build), own(build))[1])
    fleets.divided(request, Asked(), ONE)
    for template, planned in builds[0].planned.items():
        assert builds[0].is_slower(template, int(planned.speed * 1.0001) + 1)
        assert not builds[0].is_slower(template, int(planned.speed * 0.999))
    assert builds[0].planned


def test_many_sequences_of_a_small_model_are_faster_on_replicas(tmp_path: Path) -> None:
    """On 4 RTX 3090, a 12B model in AWQ: published runs have 3.4 times as many tokens/s with four replicas as with one.

    Measured by others at full load (club-3090, docs/MULTI_CARD.md); alone a sequence is fastest on all cards.
    """
    twelve = {"hidden_size": 5120, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    twelve |= {"intermediate_size": 14336, "num_hidden_layers": 40, "vocab_size": 131072}
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
    model = load_base(
        saved(tmp_path / "awq", TINY | twelve | {"max_position_embeddings": 8192, "quantization_config": awq})
    )
    cards = {"hosts": [host("box", *({"id": f"g{n}", "type": "rtx-3090"} for n in range(4)), links={"class": "pcie"})]}
    wanted = Wanted(context=4096, simplify_ppm=0)
    request = Request(base=model, draft=None, inventory=listed(cards), wanted=wanted)

    def total(clients: int, replicas: int | None) -> tuple[int, int]:
        fleet = fleets.divided(request, Asked(clients=clients, replicas=replicas), ONE).fleet
        return fleet.proof.microtokens_per_s, len(fleet.replicas)

    assert total(1, None)[1] == 1
    best, replicas = total(64, None)
    assert replicas == 4
    assert best > 1.2 * total(64, 1)[0]
