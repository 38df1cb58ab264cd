"""Values of options: numbers are decimal, in ASCII digits and within a range; every other text is refused in a line."""

import pytest
from click.testing import CliRunner

from planner.cli import main

WHOLE = ("", "x", "1.5", "1e3", "1_0", " 1", "0x10", "\uff11\uff12", "\u0663", "9" * 5000, "-1", "nan", "9" * 20)
FRACTIONS = ("", "x", "1e3", "-1", "nan", "inf", "\uff11%", "101%", "1" * 5000, "0." + "1" * 5000, "0.0.1", "%")
NUMBERS = ("", "nan", "-nan", "inf", "1e999", "-1", "1_0", "\u0663", "1" * 5000)
TREES = (
    *("depth=3,depth=3", "total_token=60,total_token=60", "depth=", "depth=\u0663", "depth=3_0", "depth=" + "9" * 5000),
    *(
        "depth=-1",
        "top_k=0",
        "top_k=257",
        "total_token=1025",
        "depth",
        "width=3",
        "",
        ",",
        "static=",
        "static=0,0",
        "static=a",
    ),
    *("static=" + "9" * 5, "static=0." + "0." * 2000, "static=1.0", "static=\u0663"),
)
CONTEXTS = ("", "0", "-1", "1.5", "k", "\u0663", "9" * 5000, "maximum", "32kk")
CASES = [
    *(
        (option, text)
        for option in ("--batch", "--prefill-chunk", "--stall-timeout", "--workers", "--solver-seed")
        for text in WHOLE
    ),
    *((option, text) for option in ("--gap", "--within", "--simplify") for text in FRACTIONS),
    *(("--solver-limit", text) for text in NUMBERS),
    *(("--tree", text) for text in TREES),
    *(("--context", text) for text in CONTEXTS),
    *((option, "") for option in ("--gpus", "--model", "--draft", "--device-map", "--previous", "--out")),
    *((option, "x" * 100_000) for option in ("--dtype", "--kv-dtype", "--kv", "--strategy")),
    ("--strategy", "custom:"),
]


@pytest.mark.parametrize(("option", "text"), CASES, ids=[f"{option}={text[:20]}" for option, text in CASES])
def test_a_value_out_of_its_range_is_refused_in_a_line(option: str, text: str) -> None:
    arguments = ["build", *([] if option == "--gpus" else ["--gpus", "inventory.yaml"]), f"{option}={text}"]
    done = CliRunner().invoke(main, arguments, prog_name="prog")
    assert (done.exit_code, done.stdout) == (2, "")
    *usage, error = done.stderr.splitlines()
    assert [line.partition(" ")[0] for line in usage] == ["Usage:", "Try", ""]
    assert error.startswith("Error: Invalid value for")
    assert "found" in error or "static: expected" in error
    assert "expected" in error
    assert len(error) < 400


def test_a_message_has_all_names_however_long_the_value_is() -> None:
    done = CliRunner().invoke(main, ["build", "--gpus", "inventory.yaml", f"--kv={'x' * 100_000}"])
    names = "expected one of heads, context, head_dim, batch"
    assert done.stderr.endswith(f"'--kv': found '{'x' * 80}'... of 100000 characters, {names}\n")


@pytest.mark.parametrize(
    ("option", "text"),
    [("--solver-seed", str(2**31)), ("--workers", "65"), ("--batch", "1025"), ("--stall-timeout", "3601")],
)
def test_a_message_has_the_range(option: str, text: str) -> None:
    done = CliRunner().invoke(main, ["build", "--gpus", "inventory.yaml", option, text])
    assert f"'{option}': found '{text}', expected a whole number from " in done.stderr
