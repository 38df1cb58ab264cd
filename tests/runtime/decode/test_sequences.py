"""The record of the tokens in the caches: tokens that a step adds, and where a new prompt begins best."""

import pytest

from runtime.decode.messages import Message
from runtime.decode.sequences import Sequences, Start, common_length


def message(accepted: int) -> Message:
    return Message(accepted=accepted, path=[], tokens=[], parents=[])


def begin(sequences: Sequences, place: int, prompt: tuple[int, ...], *, drafted: bool = True) -> None:
    sequences.begin(Start(place=place, source=place, reused=0), prompt)
    sequences.extend(place, prompt, drafted=drafted)
    sequences.join(place)


def after(prompts: list[tuple[int, ...]], *, drafted: bool = True, copies: bool = True) -> Sequences:
    """Return the record of two places after prefill and one step; all sequences have ended."""
    sequences = Sequences(2, copies=copies)
    for place, prompt in enumerate(prompts):
        begin(sequences, place, prompt, drafted=drafted)
    sequences.commit(0, 50, [51, 52], drafted=drafted, certain=True)
    if len(prompts) > 1:
        sequences.commit(1, 60, [], drafted=drafted, certain=True)
    assert sequences.next_position(0) == len(sequences.tokens[0]) + 1
    assert sequences.committed_rows([message(2), message(0)]) == [3, int(len(prompts) > 1)]
    for place in range(2):
        sequences.end(place)
    return sequences


def test_a_step_adds_the_root_and_the_accepted_tokens() -> None:
    sequences = after([(1, 2, 3), (7,)])
    assert sequences.tokens == [[1, 2, 3, 50, 51, 52], [7, 60]]
    assert sequences.drafted == [6, 2]
    assert sequences.committed_rows([message(2), message(1)]) == [0, 0], "places that have ended commit nothing"


@pytest.mark.parametrize(
    ("prompt", "reused"),
    [((1, 2, 3, 50, 51, 52, 8), 5), ((1, 2, 3, 9), 2), ((1, 2), 1), ((9,), 0)],
)
def test_the_common_prefix_is_reused_but_for_its_last_position(prompt: tuple[int, ...], reused: int) -> None:
    sequences = after([(1, 2, 3), (7,)])
    start = sequences.start(prompt, [0], reuse=True, drafted=True)
    assert start == Start(place=0, source=0, reused=reused)
    sequences.begin(start, prompt)
    assert sequences.tokens[0] == list(prompt[:reused])
    assert not sequences.active[0]


def test_a_conversation_goes_on_in_its_place_and_a_common_beginning_is_copied() -> None:
    talk = tuple(range(10, 30))
    sequences = after([(7,), talk])

    def start(prompt: tuple[int, ...], free: list[int], *, reuse: bool = True) -> tuple[int, int, int]:
        start = sequences.start(prompt, free, reuse=reuse, drafted=True)
        return start.place, start.source, start.reused

    assert start((*talk, 60, 9), [0, 1]) == (1, 1, 20)
    assert start((*talk[:5], 99), [0, 1]) == (0, 1, 4), "most of the conversation would be lost"
    assert start((*talk, 9), [0]) == (0, 1, 19), "the other place is busy"
    assert start((8,), [0, 1]) == (0, 0, 0)
    assert start((*talk, 9), [0, 1], reuse=False) == (0, 0, 0)
    begin(sequences, 0, (1,))
    assert start((8,), [0, 1]) == (1, 1, 0), "the one that was used longest ago"


def test_without_copies_the_free_place_with_the_longest_prefix_is_taken() -> None:
    talk = tuple(range(10, 30))
    sequences = after([talk, (7,)], copies=False)
    assert sequences.start((*talk[:5], 99), [0, 1], reuse=True, drafted=True) == Start(place=0, source=0, reused=4)
    assert sequences.start((*talk[:5], 99), [1], reuse=True, drafted=True) == Start(place=1, source=1, reused=0)
    assert sequences.start((7, 60, 8), [0, 1], reuse=True, drafted=True) == Start(place=1, source=1, reused=1)


def test_a_draft_reuses_only_what_its_own_caches_have() -> None:
    """Plain decoding fills only the caches of the base."""
    sequences = after([(1, 2, 3), (7,)], drafted=False)
    assert sequences.drafted == [0, 0]
    start = sequences.start((1, 2, 3, 50), [0], reuse=True, drafted=False)
    assert start.reused == 3
    sequences.begin(start, (1, 2, 3, 50))
    sequences.extend(0, (50,), drafted=False)
    assert sequences.start((1, 2, 3, 50), [0], reuse=True, drafted=True).reused == 0


def test_nothing_is_reused_of_a_record_that_may_be_wrong() -> None:
    sequences = after([(1, 2, 3), (7,)])
    with pytest.raises(KeyboardInterrupt), sequences.changing():
        raise KeyboardInterrupt
    assert sequences.start((1, 2, 3), [0, 1], reuse=True, drafted=True).reused == 0
    begin(sequences, 0, (1, 2, 3))
    assert sequences.start((1, 2, 3), [0, 1], reuse=True, drafted=True).reused == 2
    sequences.commit(0, 5, [6], drafted=True, certain=False)
    assert sequences.start((1, 2, 3), [0, 1], reuse=True, drafted=True).reused == 0


def test_the_common_length_ends_with_the_shorter_one() -> None:
    assert common_length([1, 2, 3], [1, 2]) == 2
    assert common_length([], [1]) == 0
    assert common_length([1, 2], [1, 3]) == 1


def test_a_ring_is_reused_where_it_has_the_last_window_of_a_prompt() -> None:
    """A ring for a window of 5 and 4 rows at once has the last 8 positions."""
    sequences = Sequences(2, copies=True, kept=8, spare=4)
    text = tuple(range(100, 140))

    def reusable(place: int, length: int) -> int:
        return sequences.reusable(place, (*text[:length], 7), drafted=True)

    begin(sequences, 0, text[:8])
    assert [reusable(0, length) for length in (1, 4, 8)] == [0, 3, 7], "nothing was overwritten yet"
    sequences.extend(0, text[8:20], drafted=True)
    assert [reusable(0, length) for length in (4, 8, 16, 17, 20)] == [0, 0, 0, 16, 19]
    sequences.end(0)
    start = sequences.start((*text[:18], 9, 9, 9), [0, 1], reuse=True, drafted=True)
    sequences.begin(start, (*text[:18], 9, 9, 9))
    assert start == Start(place=0, source=0, reused=17)
    assert [reusable(0, length) for length in (15, 16, 17)] == [0, 0, 16], "the rows behind it were written"
    sequences.extend(0, (text[17], 9, 9, 9), drafted=True)
    start = sequences.start((*text[:18], 9, 9, 8), [1], reuse=True, drafted=True)
    assert start == Start(place=1, source=0, reused=19)
    sequences.begin(start, (*text[:18], 9, 9, 8))
    assert reusable(1, 16) == 0, "a copy has the rows of its source"
    sequences.begin(Start(place=1, source=1, reused=0), ())
    sequences.extend(1, text[:3], drafted=True)
    assert reusable(1, 3) == 2


def test_a_step_whose_message_nobody_has_read_may_have_overwritten_a_ring() -> None:
    """In a place that ended meanwhile for good; otherwise until the message is read."""
    text = tuple(range(100, 140))
    sequences = Sequences(2, copies=True, kept=8, spare=4)
    begin(sequences, 0, text[:20])
    prompt = (*text[:17], 7)
    assert sequences.reusable(0, prompt, drafted=True) == 16
    sequences.go_ahead(3)
    assert sequences.reusable(0, prompt, drafted=True) == 0
    start = Start(place=1, source=0, reused=19)
    sequences.begin(start, text[:20])
    assert sequences.reusable(1, prompt, drafted=True) == 0, "its copy is made behind that step"
    sequences.come_back()
    assert [sequences.reusable(place, prompt, drafted=True) for place in (0, 1)] == [16, 0]
    sequences.go_ahead(3)
    sequences.end(0)
    sequences.come_back()
    assert sequences.reusable(0, prompt, drafted=True) == 0
    assert sequences.reusable(0, (*text[:20], 7), drafted=True) == 19
