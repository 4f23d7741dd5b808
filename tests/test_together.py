"""Answering together: everyone gets the own answer or the own error, in one call for all that wait."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.corpus.priority_lock import PriorityLock
from diffatr_cli.corpus.together import Together


class Doubler:
    """Answers with twice the number, and fails for negative ones; notes what it was asked at once."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.free = threading.Event()
        self.began = threading.Event()
        self.at_work = 0

    def __call__(self, asked: Sequence[int]) -> list[int]:
        self.at_work += 1
        assert self.at_work == 1, "one call at a time"
        self.calls.append(list(asked))
        self.began.set()
        assert self.free.wait(20)
        self.at_work -= 1
        if any(number < 0 for number in asked):
            raise ValueError(f"no answer to {[number for number in asked if number < 0]}")
        return [2 * number for number in asked]


def asked_meanwhile(together: Together[int, int], doubler: Doubler, first: int, others: Sequence[int]) -> list[int | str]:
    """The answers, or what errors say, to one number, and to others asked while that one is answered."""

    def ask(number: int) -> int | str:
        try:
            return together(number)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(1 + len(others)) as pool:
        waiting = [pool.submit(ask, first)]
        assert doubler.began.wait(20)
        for number in others:  # each in its place of the queue
            known = len(together._waiting)
            waiting.append(pool.submit(ask, number))
            while len(together._waiting) == known:
                time.sleep(0.001)
        doubler.free.set()
        return [each.result(20) for each in waiting]


@given(st.integers(-3, 9), st.lists(st.integers(-3, 9), max_size=12), st.integers(1, 5))
def test_everyone_gets_the_own_answer(first: int, others: list[int], most: int) -> None:
    doubler = Doubler()
    together = Together(doubler, PriorityLock().take, most)
    expected = [f"no answer to [{number}]" if number < 0 else 2 * number for number in (first, *others)]
    assert asked_meanwhile(together, doubler, first, others) == expected
    assert max(map(len, doubler.calls)) <= most
    assert together(7) == 14  # it goes on


def test_who_waits_is_answered_in_one_call() -> None:
    doubler = Doubler()
    together = Together(doubler, PriorityLock().take)
    asked_meanwhile(together, doubler, 1, [2, 3, 4])
    assert doubler.calls == [[1], [2, 3, 4]]


def test_a_turn_that_is_refused_is_told_and_holds_nobody_up() -> None:
    refused = iter([True, False])

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        if next(refused):
            raise RuntimeError("no turn")
        yield

    doubler = Doubler()
    doubler.free.set()
    together = Together(doubler, turn)
    with pytest.raises(RuntimeError, match="no turn"):
        together(1)
    assert together(2) == 4
    assert doubler.calls == [[2]]
