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
    """The items of one maker on their way to the user. Both wait at conditions of their own: woken with all others, dozens of
    threads would look each time whether it is their turn."""

    def __init__(self, guard: threading.Lock) -> None:
        self.items: deque[tuple[T, int]] = deque()
        self.offered: int | None = None  # the weight of an item for which there was no room
        self.room = threading.Condition(guard)
        self.arrival = threading.Condition(guard)
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
    guard = threading.Lock()
    lanes: deque[_Lane[T]] = deque()
    weight = 0  # of all items in lanes

    def fits(lane: _Lane[T], heavy: int) -> bool:
        return weight + heavy <= limit or (bool(lanes) and lanes[0] is lane and not lane.items)

    def admit() -> None:
        """Let those go on for which there is room now, in the order in which their items are wanted."""
        room = limit - weight
        for lane in lanes:
            if lane.offered is not None and (fits(lane, lane.offered) if lane is lanes[0] else lane.offered <= room):
                room -= lane.offered
                lane.room.notify()

    def put(lane: _Lane[T], item: T) -> None:
        nonlocal weight
        heavy = weigh(item)
        with guard:
            while not lane.left and not fits(lane, heavy):
                lane.offered = heavy
                lane.room.wait()
            lane.offered = None
            if lane.left:
                raise _Stop
            lane.items.append((item, heavy))
            weight += heavy
            lane.arrival.notify()

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
            lane.arrival.notify()

    def take(lane: _Lane[T]) -> Iterator[T]:
        nonlocal weight
        while True:
            with guard:
                lane.arrival.wait_for(lambda: bool(lane.items) or lane.ended or lane.left)
                if lane.left or not lane.items:
                    break
                item, heavy = lane.items.popleft()
                weight -= heavy
                admit()
            yield item
        if lane.failure and not lane.left:
            raise lane.failure

    def leave(lane: _Lane[T]) -> None:
        nonlocal weight
        with guard:
            lane.left = True
            weight -= sum(heavy for _, heavy in lane.items)
            lane.items.clear()
            lane.room.notify()

    waiting = iter(makers)
    pool = ThreadPoolExecutor(workers, "read-ahead")
    try:
        while True:
            for make in islice(waiting, 4 * workers - len(lanes)):
                lane = _Lane[T](guard)
                with guard:
                    lanes.append(lane)
                pool.submit(run, lane, make)
            if not lanes:
                return
            yield take(lanes[0])
            leave(lanes[0])
            with guard:
                lanes.popleft()
                admit()  # it is the next one's turn
    finally:
        for lane in lanes:
            leave(lane)
        pool.shutdown(cancel_futures=True)
