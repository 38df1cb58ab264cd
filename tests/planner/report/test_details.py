"""The lines of -v and -vv against the figures of the plan."""

from planner.report.details import compared_memory, compared_times, device_details, inventory_lines
from tests.sample_plans import edited, spread_plan, two_stage_plan


def test_every_device_of_the_inventory_has_a_line_with_its_figures() -> None:
    lines = list(inventory_lines(two_stage_plan().inventory))
    assert lines[0].startswith("Devices found: 4 on ")
    assert [line.split()[0] for line in lines[1:]] == ["cpu0", "cpu1", "cpu2", "cpu3"]
    assert ": cpu, 24.0 MiB of which " in lines[1]


def test_every_device_in_use_has_its_layers_tensors_and_kv_cache() -> None:
    plan = two_stage_plan()
    text = "\n".join(device_details(plan))
    assert "  cpu1: embed, 24 rows; stage 0: layers 0-2 with 1 KV heads, 256 MLP channels, layers 3-4 with " in text
    assert "  cpu2: stage 1: layers 5-7 with 4 KV heads, 768 MLP channels; lm_head, 1024 rows; draft" in text
    assert f" for {plan.options.batch} x {plan.options.context} positions in {plan.options.kv_dtype}; " in text
    assert "cpu3" not in text
    assert "embed, 128256 rows" in "\n".join(device_details(spread_plan()))


def test_memory_and_times_are_compared() -> None:
    plan = two_stage_plan()
    other = edited(plan, "memory[2].kv_bytes", plan.memory[2].kv_bytes + (3 << 20))
    memory = list(compared_memory(plan, other))
    assert memory[1:3] == ["  cpu0: unchanged", "  cpu1: unchanged"]
    assert memory[3].endswith("MiB (+3.0 MiB)")
    times = list(compared_times(plan, edited(plan, "stages[0].predicted_ns", 5_000_000)))
    assert "  stage 0: 14.2 ms -> 5.0 ms" in times
    assert "  messages: none -> 9.2 ms" in times
