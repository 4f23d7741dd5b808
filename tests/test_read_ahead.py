"""Making ahead: everything in order, within bounds, and nothing left running."""

import threading
import time
import tracemalloc
from collections import Counter
from contextlib import closing
from functools import partial
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffatr_cli.core.windows import OURS, spans
from diffatr_cli.corpus.read_ahead import read_ahead
from diffatr_cli.corpus.windows import cut


def weight(item):
    return item[1]


plans_of_makers = st.lists(st.lists(st.integers(0, 30), max_size=8), max_size=12)
"""The weights of what each maker makes."""


def items_of(plans):
    return [[(number, heavy, place) for place, heavy in enumerate(plan)] for number, plan in enumerate(plans)]


def nothing_runs():
    return not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


@settings(max_examples=60)
@given(plans_of_makers, st.integers(0, 50), st.integers(1, 4))
def test_everything_comes_in_order(plans, limit, workers):
    makers = [partial(iter, items) for items in items_of(plans)]
    with closing(read_ahead(makers, weight, limit, workers)) as found:
        got = list(found)
    assert got == [(number, item) for number, items in enumerate(items_of(plans)) for item in [*items, None]]
    assert nothing_runs()


@settings(max_examples=60)
@given(plans_of_makers, st.integers(0, 50), st.integers(1, 4), st.data())
def test_side_by_side_those_of_each_maker_come_in_order(plans, limit, workers, data):
    at_once = data.draw(st.integers(1, workers))
    makers = [partial(iter, items) for items in items_of(plans)]
    got, begun, ended = [[] for _ in plans], set(), 0
    with closing(read_ahead(makers, weight, limit, workers, at_once)) as found:
        for number, item in found:
            got[number].append(item)
            begun.add(number)
            ended += item is None
            assert len(begun) - ended <= at_once
            assert begun <= set(range(ended + at_once + 1))  # the first ones that have not ended
    assert got == [[*items, None] for items in items_of(plans)]
    assert nothing_runs()


def test_no_more_is_made_ahead_than_the_limit_allows():
    put = []

    def make(number):
        for place in range(10):
            yield (number, 1)
            put.append((number, place))  # the next one is asked for when this one was put

    with closing(read_ahead([partial(make, i) for i in range(6)], weight, 5, 3)) as found:
        assert next(found) == (0, (0, 1))
        time.sleep(0.3)
        assert len(put) <= 1 + 5 + 1  # taken, waiting, and one ahead of what is wanted now
        assert [next(found) for _ in range(4)] == [(0, (0, 1))] * 4
        time.sleep(0.3)
        assert len(put) <= 5 + 5 + 1
        assert [number for number, _ in found] == [0] * 6 + [number for number in range(1, 6) for _ in range(11)]


def test_side_by_side_each_may_be_one_item_ahead_and_no_more():
    put = []

    def make(number):
        for _ in range(10):
            yield (number, 100)
            put.append(number)

    with closing(read_ahead([partial(make, i) for i in range(6)], weight, 5, 4, 3)) as found:
        first, _ = next(found)
        time.sleep(0.3)
        assert sorted(put) == sorted([0, 1, 2, first])  # one that waits of each, and the one that was taken
        assert Counter(number for number, _ in found) + Counter([first]) == dict.fromkeys(range(6), 11)


def test_one_is_read_while_another_keeps_its_user_waiting():
    """Whoever waits for the first alone, does so in vain."""
    taken = threading.Event()

    def waits():
        assert taken.wait(60)
        yield (0, 1)

    with closing(read_ahead([waits, partial(iter, [(1, 1)])], weight, 10, 2, 2)) as found:
        assert next(found) == (1, (1, 1))
        assert next(found) == (1, None)
        taken.set()
        assert list(found) == [(0, (0, 1)), (0, None)]


def test_one_heavy_item_at_a_time_gets_through():
    makers = [partial(iter, [(i, 1000), (i, 0), (i, 1000)]) for i in range(5)]
    with closing(read_ahead(makers, weight, 1, 4)) as found:
        assert len(list(found)) == 20


def test_what_a_maker_raises_comes_out_after_its_items():
    def bad():
        yield (0, 0)
        raise KeyError("bad")

    with closing(read_ahead([partial(iter, [(1, 0)]), bad, partial(iter, [(2, 0)])], weight, 10, 2)) as found:
        assert list(islice(found, 3)) == [(0, (1, 0)), (0, None), (1, (0, 0))]
        with pytest.raises(KeyError, match="bad"):
            next(found)
    assert nothing_runs()


@pytest.mark.parametrize("at_once", [1, 2])
def test_closing_ends_the_makers(at_once):
    closed = threading.Semaphore(0)

    def endless():
        try:
            while True:
                yield (0, 1)
        finally:
            closed.release()

    found = read_ahead([endless, endless], weight, 10, 2, at_once)
    assert next(found)[1] == (0, 1)
    found.close()
    assert closed.acquire(timeout=10)
    assert closed.acquire(timeout=10)
    assert nothing_runs()


def cuts(lengths):
    """Blocks of these lengths, of a recording whose samples are their own places."""
    places = np.arange(sum(lengths), dtype=np.float32)  # exact up to 2**24
    return np.split(places, np.cumsum(lengths)[:-1]) if lengths else []


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(st.integers(0, 3 * OURS.length), st.sampled_from([OURS.length, OURS.hop, OURS.length - 1, 1])), max_size=12
    )
)
def test_windows_of_blocks_are_those_of_the_whole(lengths):
    got = list(cut(cuts(lengths)))
    assert [(window.start, window.end) for window in got] == spans(sum(lengths))
    for window in got:
        assert len(window.samples) == window.end - window.start
        assert (window.samples[0], window.samples[-1]) == (window.start, window.end - 1)


def test_cutting_holds_one_window_and_one_block():
    """Whatever the length."""
    block = np.zeros(OURS.length // 2, np.float32)
    tracemalloc.start()
    count = sum(1 for _ in cut(block for _ in range(200)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == len(spans(200 * len(block)))
    assert peak < 5 * 4 * OURS.length
