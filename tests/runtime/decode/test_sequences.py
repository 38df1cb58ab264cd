"""The record of the tokens in the caches: tokens that a step adds, and prefixes that a new prompt reuses."""

import pytest

from runtime.decode.messages import Message
from runtime.decode.sequences import Sequences, common_length


def message(accepted: int) -> Message:
    return Message(accepted=accepted, stopped=False, path=[], tokens=[], parents=[])


def after(prompts: list[tuple[int, ...]], *, drafted: bool) -> Sequences:
    """Return the record of two sequences after prefill and one step."""
    sequences = Sequences(2)
    assert sequences.begin(prompts, reuse=False, drafted=drafted) == [0, 0]
    sequences.prefilled(prompts, drafted=drafted)
    sequences.commit([50, 60], [[51, 52], []], drafted=drafted)
    return sequences


def test_a_step_adds_the_root_and_the_accepted_tokens() -> None:
    sequences = after([(1, 2, 3), (7,)], drafted=True)
    assert sequences.tokens == [[1, 2, 3, 50, 51, 52], [7, 60]]
    assert sequences.drafted == [6, 2]
    assert sequences.next_positions == [7, 3]
    assert sequences.committed_rows([message(2), message(0)]) == [3, 1]


def test_a_sequence_that_has_ended_and_one_without_a_prompt_commit_nothing() -> None:
    sequences = after([(1, 2, 3)], drafted=True)
    assert sequences.tokens == [[1, 2, 3, 50, 51, 52], []]
    sequences.end(0)
    sequences.commit([53, 0], [[54], []], drafted=True)
    assert sequences.tokens == [[1, 2, 3, 50, 51, 52], []]
    assert sequences.committed_rows([message(2), message(1)]) == [0, 0]


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [((1, 2, 3, 50, 51, 52, 8), 5), ((1, 2, 3, 9), 2), ((1, 2), 1), ((9,), 0)],
)
def test_the_common_prefix_is_reused_but_for_its_last_position(prompt: tuple[int, ...], kept: int) -> None:
    sequences = after([(1, 2, 3), (7,)], drafted=True)
    assert sequences.begin([prompt], reuse=True, drafted=True) == [kept, 0]
    assert sequences.tokens == [list(prompt[:kept]), []]
    assert sequences.active == [True, False]


def test_a_draft_reuses_only_what_its_own_caches_have() -> None:
    """Plain decoding fills only the caches of the base."""
    sequences = after([(1, 2, 3), (7,)], drafted=False)
    assert sequences.drafted == [0, 0]
    assert sequences.begin([(1, 2, 3, 50)], reuse=True, drafted=False) == [3, 0]
    sequences.prefilled([(1, 2, 3, 50)], drafted=False)
    assert sequences.begin([(1, 2, 3, 50)], reuse=True, drafted=True) == [0, 0]


def test_nothing_is_reused_after_forgetting_or_without_being_asked() -> None:
    sequences = after([(1, 2, 3), (7,)], drafted=True)
    assert sequences.begin([(1, 2, 3)], reuse=False, drafted=True) == [0, 0]
    sequences = after([(1, 2, 3), (7,)], drafted=True)
    sequences.forget()
    assert sequences.begin([(1, 2, 3)], reuse=True, drafted=True) == [0, 0]


def test_the_common_length_ends_with_the_shorter_one() -> None:
    assert common_length([1, 2, 3], [1, 2]) == 2
    assert common_length([], [1]) == 0
    assert common_length([1, 2], [1, 3]) == 1
