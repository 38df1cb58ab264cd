"""Lines about what an EAGLE head accepts."""

from dataclasses import replace

import pytest

from runtime.commands.report import acceptance_lines, low_acceptance
from runtime.generation import Generation

GENERATION = Generation(
    prompt_ids=(1,),
    tokens=(2, 3),
    text="",
    finish="length",
    accept_lengths=(),
    acceptance_length=1.0,
    reused=0,
    seed=None,
    load_s=0.0,
    prefill_s=0.0,
    decode_s=1.0,
    tokens_per_s=1.0,
    plan_digest="0" * 64,
    devices=(),
)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((), []),
        ((0, 0), ["position  1     0.0% of 2 steps"]),
        ((0, 2), ["position  1    50.0% of 2 steps", "position  2    50.0% of 2 steps"]),
    ],
)
def test_the_acceptance_of_each_position_is_told(lengths: tuple[int, ...], expected: list[str]) -> None:
    assert list(acceptance_lines(replace(GENERATION, accept_lengths=lengths))) == expected


def test_a_head_whose_first_token_is_seldom_accepted_is_warned_of() -> None:
    *_, warning = acceptance_lines(replace(GENERATION, accept_lengths=(1,) + (0,) * 19))
    assert warning == (
        "warning: only 5.0% of 20 steps accept the first drafted token, of a head that fits the model 45 % and more: "
        "the usual causes are other layers of the model than it was trained on (--aux-layers), "
        "norm_before_residual, or another base model than its own"
    )
    assert list(low_acceptance(0.31, 100)) == []
    assert list(low_acceptance(0.0, 15)) == [], "too few steps"
    assert list(low_acceptance(None, 100)) == []
