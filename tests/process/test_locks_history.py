"""Goal: whatever locks and fences may not do, the checker of their histories notices.

Method: small histories by hand, each with one fault, beside the same history without it.
"""

from __future__ import annotations

import pytest
from lock_history import (
    Held,
    Increment,
    Stop,
    counter_violations,
    hand_overs,
    parse,
    parse_increments,
    violations,
)

SECOND = 1_000_000_000


def held(
    worker: int,
    token: int,
    enter_ns: int,
    alive_ns: int,
    *,
    exclusive: bool = True,
    name: str = "a",
) -> Held:
    return Held((worker, token), name, token, exclusive, enter_ns, alive_ns)


def test_grants_one_after_the_other_are_fine() -> None:
    history = [held(1, 3, 10, 20), held(2, 5, 21, 30), held(1, 7, 31, 31)]
    assert violations(history) == []
    assert violations(history[::-1]) == []
    # Other names have nothing to do with it.
    assert violations([held(1, 5, 10, 20), held(2, 3, 15, 20, name="b")]) == []


@pytest.mark.parametrize(
    "second",
    [
        held(2, 5, 20, 30),
        held(2, 5, 12, 15),
        held(2, 4, 15, 40, exclusive=False),
    ],
)
def test_an_overlap_is_noticed(second: Held) -> None:
    found = violations([held(1, 3, 10, 20), second])
    assert any("same time" in text for text in found), found
    assert any("same time" in text for text in violations([second, held(1, 3, 10, 20)]))


def test_an_overlap_with_an_earlier_long_one_is_noticed() -> None:
    history = [
        held(1, 2, 10, 90, exclusive=False),
        held(2, 4, 11, 20, exclusive=False),
        held(3, 7, 50, 60),
    ]
    assert len(violations(history)) == 1


def test_shared_grants_may_be_together_and_have_one_token() -> None:
    history = [
        held(1, 3, 1, 5),
        held(1, 8, 10, 40, exclusive=False),
        held(2, 6, 11, 30, exclusive=False),
        held(3, 8, 20, 30, exclusive=False),
        held(2, 9, 41, 42),
    ]
    assert violations(history) == []


def test_a_grant_is_not_believed_beyond_its_last_check() -> None:
    # Killed, or stopped and lost: nobody says that it was still held at 25.
    assert violations([held(1, 3, 10, 20), held(2, 5, 25, 30)]) == []
    assert violations([held(1, 3, 10, 0), held(2, 5, 5, 30)]) == []


@pytest.mark.parametrize(
    "history",
    [
        [held(1, 3, 10, 20), held(2, 3, 21, 30)],
        [held(1, 3, 10, 20), held(2, 3, 21, 0)],
    ],
)
def test_a_repeated_token_is_noticed(history: list[Held]) -> None:
    assert any("one token twice" in text for text in violations(history))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (held(1, 5, 10, 20), held(2, 3, 21, 30)),
        (held(1, 5, 10, 20), held(2, 4, 21, 30, exclusive=False)),
        (held(1, 6, 10, 20, exclusive=False), held(2, 5, 21, 30)),
    ],
)
def test_a_token_that_does_not_grow_is_noticed(first: Held, second: Held) -> None:
    assert ["did not grow" in text for text in violations([first, second])] == [True]


def test_a_token_that_lies_about_its_mode_is_noticed() -> None:
    assert ["lowest bit" in text for text in violations([held(1, 4, 10, 20)])] == [True]
    shared = [held(1, 5, 10, 20, exclusive=False)]
    assert ["lowest bit" in text for text in violations(shared)] == [True]


def test_who_was_stopped_beyond_its_ttl_and_goes_on_is_noticed() -> None:
    history = [held(1, 3, 0, 4 * SECOND), held(2, 3, 0, 4 * SECOND, name="b")]
    stop = Stop(1, 1 * SECOND, 3 * SECOND, in_commit=False)
    found = violations(history, [stop], ttl_s=1.5)
    assert len(found) == 1
    assert "after a stop of 2.00 s" in found[0]
    assert violations(history, [stop], ttl_s=2.5) == []
    # Entered after the stop, or silent since.
    assert violations([held(1, 3, 2 * SECOND, 4 * SECOND)], [stop], ttl_s=1.5) == []
    assert violations([held(1, 3, 0, 1 * SECOND)], [stop], ttl_s=1.5) == []


def test_a_stop_while_nobody_can_commit_does_not_count() -> None:
    history = [held(1, 3, 0, 4 * SECOND)]
    stop = Stop(1, 1 * SECOND, 3 * SECOND, in_commit=False)
    held_up = [Stop(2, 0, 2 * SECOND, in_commit=True), Stop(3, 1, 2 * SECOND, in_commit=True)]
    assert violations(history, [stop, *held_up], ttl_s=1.5) == []
    assert len(violations(history, [stop, *held_up], ttl_s=0.5)) == 1


def test_a_log_is_read_as_it_was_written() -> None:
    log = (
        "enter 1 0 a exclusive 3 10\n"
        "failed 2 -1 LockTimeout\n"
        "alive 1 0 12\n"
        "enter 2 0 b shared 4 11\n"
        "alive 1 0 20\n"
        "lost 2 0\n"
        "enter 3 0 a exclus"
    )
    assert parse(log.splitlines(keepends=True)) == [
        Held((1, 0), "a", 3, True, 10, 20),
        Held((2, 0), "b", 4, False, 11, 0, lost=True),
    ]


def test_locks_that_go_to_another_worker_are_told_apart_from_those_that_stay() -> None:
    stays = [held(1, 3, 10, 20), held(1, 5, 21, 30), held(2, 6, 25, 26, exclusive=False)]
    goes = held(3, 7, 31, 31)
    elsewhere = held(2, 9, 32, 33, name="b")
    assert hand_overs(stays) == []
    assert hand_overs([goes, *stays, elsewhere]) == [goes]


def test_a_counter_s_increments_follow_each_other() -> None:
    fine = parse_increments("3 1\n3 2\n9 3\n")
    assert counter_violations(fine, 3) == []
    assert counter_violations([], 0) == []


def test_a_stale_increment_is_noticed() -> None:
    found = counter_violations(parse_increments("5 1\n3 2\n"), 2)
    assert ["though stale" in text for text in found] == [True]


def test_a_lost_increment_is_noticed() -> None:
    found = counter_violations([Increment(3, 1), Increment(5, 1)], 1)
    assert ["did not see" in found[0], "after 2 accepted" in found[1]] == [True, True]
