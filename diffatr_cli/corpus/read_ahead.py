"""Making things in threads, a bounded weight of them ahead of the one who uses them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class _Lane(Generic[T]):
    """The items of one maker on their way to the user. It waits for room at a condition of its own: woken with all others, dozens
    of threads would look each time whether it is their turn."""

    def __init__(self, number: int, guard: threading.Lock) -> None:
        self.number = number
        self.items: deque[tuple[T, int]] = deque()
        self.offered: int | None = None  # the weight of an item for which there was no room
        self.room = threading.Condition(guard)
        self.open = False  # whether its items are wanted now
        self.ended = False
        self.failure: BaseException | None = None


class _Stop(BaseException):
    """Ends a maker of which no more is wanted."""


def read_ahead(
    makers: Iterable[Callable[[], Iterator[T]]], weigh: Callable[[T], int], limit: int, workers: int, at_once: int = 1
) -> Generator[tuple[int, T | None]]:
    """Run makers in threads; give what they make, each item with the number of its maker, and None at a maker's end.

    What is made and not yet taken weighs at most `limit` together, but that each maker of which items are wanted may always be
    one item ahead. What a maker raises comes out here, after its items. Whoever closes the generator ends all makers at their
    next item.

    Args:
        makers: each is called, and its iterator used, in a worker's thread.
        weigh: of an item, such as its bytes.
        workers: threads.
        at_once: of so many makers, the first ones that have not ended, items are given as they come; not more than `workers`.
            With one, all come in the makers' order.
    """
    guard = threading.Lock()
    news = threading.Condition(guard)  # of an open lane
    lanes = deque[_Lane[T]]()
    weight = 0  # of all items in lanes
    closed = False

    def fits(lane: _Lane[T], heavy: int) -> bool:
        return weight + heavy <= limit or (lane.open and not lane.items)

    def admit() -> None:
        """Let those go on for which there is room now, in the order in which their items are wanted."""
        room = limit - weight
        for lane in lanes:
            if lane.offered is not None and (lane.offered <= room or (lane.open and not lane.items)):
                room -= lane.offered
                lane.room.notify()

    def put(lane: _Lane[T], item: T) -> None:
        nonlocal weight
        heavy = weigh(item)
        with guard:
            while not closed and not fits(lane, heavy):
                lane.offered = heavy
                lane.room.wait()
            lane.offered = None
            if closed:
                raise _Stop
            lane.items.append((item, heavy))
            weight += heavy
            if lane.open:
                news.notify()

    def run(lane: _Lane[T], make: Callable[[], Iterator[T]]) -> None:
        try:
            for item in make():
                put(lane, item)
        except _Stop:
            pass
        except BaseException as error:
            lane.failure = error
        with guard:
            lane.ended = True
            if lane.open:
                news.notify()

    def take() -> tuple[int, T | None]:
        """The next item, or end, of an open lane."""
        nonlocal weight
        item = None
        with guard:
            while (lane := next((each for each in islice(lanes, at_once) if each.items or each.ended), None)) is None:
                news.wait()
            if lane.items:
                item, heavy = lane.items.popleft()
                weight -= heavy
            else:
                lanes.remove(lane)
                for each in islice(lanes, at_once):
                    each.open = True
            admit()
        if item is None and lane.failure:
            raise lane.failure
        return lane.number, item

    waiting = enumerate(makers)
    pool = ThreadPoolExecutor(workers, "read-ahead")
    try:
        while True:
            for number, make in islice(waiting, 4 * workers - len(lanes)):
                lane = _Lane[T](number, guard)
                with guard:
                    lane.open = len(lanes) < at_once
                    lanes.append(lane)
                pool.submit(run, lane, make)
            if not lanes:
                return
            yield take()
    finally:
        with guard:
            closed = True
            for lane in lanes:
                lane.room.notify()
        pool.shutdown(cancel_futures=True)
