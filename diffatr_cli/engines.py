"""Where heavy work on many items is done: in this process, or by an engine's workers, in other processes and on other machines.

A `Work` is a function with a heavy state, such as a model. An `Engine` maps it over items: workers load the state once each, and
what comes of the items arrives in their order, made a bounded way ahead of whoever uses it. `InProcess` is the plain engine;
`cluster.engine.RayEngine` has workers. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Protocol, TypeVar

from .errors import DiffATRError

Item = TypeVar("Item")
Piece = TypeVar("Piece")
_In = TypeVar("_In", contravariant=True)
_Out = TypeVar("_Out", covariant=True)


class Work(Protocol[_In, _Out]):
    """What is done to items. It travels to workers by pickle, and so do items and pieces.

    The pieces of an item must depend on the item alone: where a worker is lost another begins the item again, and pieces that
    came before are not given again.

    Attributes:
        batch: items that go to a worker together.
    """

    @property
    def batch(self) -> int: ...

    def open(self) -> Callable[[Sequence[_In]], Iterator[tuple[int, _Out]]]:
        """Load the state, once a worker; give the function that makes the pieces of some items.

        The function gives each piece with the place of its item among those that it got, item by item in their order.

        Raises:
            DiffATRError: this worker cannot do the work. It comes out of `Engine.map`.
        """


class Engine(Protocol):
    """Does work on items."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda`: what a worker is to compute on."""

    @property
    def threads(self) -> int:
        """How many a worker may use."""

    def map(self, work: Work[Item, Piece], items: Sequence[Item]) -> Generator[Iterator[Piece]]:
        """The pieces of each item, in the order of the items; a piece is gone once the next one was asked for.

        Whoever goes on to the next item leaves what is left of the one before; whoever closes the generator ends the work.

        Raises:
            ItemLost: out of an item's iterator: workers died over this item. The items after it come all the same.
            DiffATRError: what a worker raised, or there are no workers any more. Pieces that came are good.
        """


class ItemLost(DiffATRError):
    """Workers died over an item, again when it was begun once more and alone."""


class InProcess:
    """Does the work in this process, batch by batch."""

    def __init__(self, device: str = "cpu", threads: int = 1) -> None:
        self.device, self.threads = device, threads

    def map(self, work: Work[Item, Piece], items: Sequence[Item]) -> Generator[Iterator[Piece]]:
        """As `Engine.map`."""
        function = work.open()
        for first in range(0, len(items), work.batch):
            batch = items[first : first + work.batch]
            yield from by_item(function(batch), len(batch))


def by_item(pieces: Iterator[tuple[int, Piece]], count: int) -> Generator[Iterator[Piece]]:
    """What comes of each of `count` items, of pieces with the places of their items, ascending; nothing comes of some items."""
    groups = groupby(pieces, key=itemgetter(0))
    place, group = next(groups, (count, iter(())))
    for number in range(count):
        if number < place:
            yield iter(())
            continue
        yield (piece for _, piece in group)
        place, group = next(groups, (count, iter(())))
