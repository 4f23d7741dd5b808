"""Making ahead: everything in order, within bounds, and nothing left running."""

import threading
import time
import tracemalloc
from contextlib import closing
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffatr_cli.core.windows import OURS, spans
from diffatr_cli.corpus.read_ahead import read_ahead
from diffatr_cli.corpus.windows import cut


def weight(item):
    return item[1]


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 30), max_size=8), max_size=12), st.integers(0, 50), st.integers(1, 4), st.randoms())
def test_everything_comes_in_order_and_what_waits_is_bounded(plans, limit, workers, random):
    """`plans`: the weights of what each maker makes; the user leaves some makers early."""
    lock = threading.Lock()
    made = taken = peak = 0

    def make(number):
        nonlocal made, peak
        for place, heavy in enumerate(plans[number]):
            yield (number, heavy, place)
            with lock:  # it was put by now
                made += 1

    got, left = [], []
    with closing(read_ahead([partial(make, i) for i in range(len(plans))], weight, limit, workers)) as lanes:
        for number, lane in enumerate(lanes):
            stop = random.choice([None, None, 2])
            for item in lane:
                taken += 1
                got.append(item)
                if stop is not None and item[2] >= stop:
                    left.append(number)
                    break
    want = [
        (number, heavy, place)
        for number, plan in enumerate(plans)
        for place, heavy in enumerate(plan)
        if number not in left or place <= 2
    ]
    assert got == want
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_no_more_is_made_ahead_than_the_limit_allows():
    put = []

    def make(number):
        for place in range(10):
            yield (number, 1)
            put.append((number, place))  # the next one is asked for when this one was put

    with closing(read_ahead([partial(make, i) for i in range(6)], weight, 5, 3)) as lanes:
        first = next(lanes)
        time.sleep(0.3)
        assert len(put) <= 5
        assert [next(first) for _ in range(4)] == [(0, 1)] * 4
        time.sleep(0.3)
        assert len(put) <= 9
        assert len(list(first)) == 6
        for lane in lanes:
            assert len(list(lane)) == 10


def test_one_heavy_item_at_a_time_gets_through():
    makers = [partial(iter, [(i, 1000), (i, 0), (i, 1000)]) for i in range(5)]
    with closing(read_ahead(makers, weight, 1, 4)) as lanes:
        assert [len(list(lane)) for lane in lanes] == [3] * 5


def test_what_a_maker_raises_comes_out_of_its_own_iterator():
    def bad():
        yield (0, 0)
        raise KeyError("bad")

    with closing(read_ahead([partial(iter, [(1, 0)]), bad, partial(iter, [(2, 0)])], weight, 10, 2)) as lanes:
        assert list(next(lanes)) == [(1, 0)]
        second = next(lanes)
        assert next(second) == (0, 0)
        with pytest.raises(KeyError, match="bad"):
            next(second)
        assert list(next(lanes)) == [(2, 0)]


def test_closing_ends_the_makers():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield (0, 1)
        finally:
            closed.set()

    lanes = read_ahead([endless, endless], weight, 10, 2)
    assert next(next(lanes)) == (0, 1)
    lanes.close()
    assert closed.wait(10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


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
