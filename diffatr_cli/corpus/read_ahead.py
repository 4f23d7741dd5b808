"""Making things in threads, a bounded weight of them ahead of the one who uses them in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class _Lane(Generic[T]):
    """The items of one maker on their way to the user."""

    def __init__(self) -> None:
        self.items: deque[tuple[T, int]] = deque()
        self.ended = False
        self.failure: BaseException | None = None
        self.left = False  # whether nobody wants more of them


class _Stop(BaseException):
    """Ends a maker of which no more is wanted."""


def read_ahead(
    makers: Iterable[Callable[[], Iterator[T]]], weigh: Callable[[T], int], limit: int, workers: int
) -> Generator[Iterator[T]]:
    """Run makers in threads; give the items of each, in the makers' order, as an iterator.

    What is made and not yet taken weighs at most `limit` together, but that the maker whose turn it is may always be one item
    ahead: it is waited for. Whoever goes on to the next iterator ends the maker of the one before at its next item; whoever
    closes the generator ends all.

    Args:
        makers: each is called, and its iterator used, in a worker's thread. What it raises comes out of its iterator here.
        weigh: of an item, such as its bytes.
        workers: threads.
    """
    changed = threading.Condition()
    lanes: deque[_Lane[T]] = deque()
    weight = 0  # of all items in lanes

    def put(lane: _Lane[T], item: T) -> None:
        nonlocal weight
        heavy = weigh(item)
        with changed:
            changed.wait_for(
                lambda: lane.left or weight + heavy <= limit or (bool(lanes) and lanes[0] is lane and not lane.items)
            )
            if lane.left:
                raise _Stop
            lane.items.append((item, heavy))
            weight += heavy
            changed.notify_all()

    def run(lane: _Lane[T], make: Callable[[], Iterator[T]]) -> None:
        try:
            for item in make():
                put(lane, item)
        except _Stop:
            pass
        except BaseException as error:
            lane.failure = error
        with changed:
            lane.ended = True
            changed.notify_all()

    def take(lane: _Lane[T]) -> Iterator[T]:
        nonlocal weight
        while True:
            with changed:
                changed.wait_for(lambda: bool(lane.items) or lane.ended or lane.left)
                if lane.left or not lane.items:
                    break
                item, heavy = lane.items.popleft()
                weight -= heavy
                changed.notify_all()
            yield item
        if lane.failure and not lane.left:
            raise lane.failure

    def leave(lane: _Lane[T]) -> None:
        nonlocal weight
        with changed:
            lane.left = True
            weight -= sum(heavy for _, heavy in lane.items)
            lane.items.clear()
            changed.notify_all()

    waiting = iter(makers)
    pool = ThreadPoolExecutor(workers, "read-ahead")
    try:
        while True:
            for make in islice(waiting, 4 * workers - len(lanes)):
                lane = _Lane[T]()
                with changed:
                    lanes.append(lane)
                pool.submit(run, lane, make)
            if not lanes:
                return
            yield take(lanes[0])
            leave(lanes[0])
            with changed:
                lanes.popleft()
                changed.notify_all()  # it is the next one's turn
    finally:
        for lane in lanes:
            leave(lane)
        pool.shutdown(cancel_futures=True)
